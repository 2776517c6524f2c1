"""The shell scripts of the images, under this machine's sh and under busybox."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from testbed.processes import children
from testbed.wait import wait_for
from tests.support.certificates import Authority, Pair
from tests.support.missing import missing

SCRIPTS = {
    path.name: path
    for path in (
        *sorted(ROOT.glob("build/config/*/usr/bin/*")),
        *(ROOT / "build" / name for name in ("check-nginx", "install", "rollout", "secure")),
    )
}
CONSUL = ROOT / "build/config/consul/usr/bin"
CONFIG = ROOT / "build/config/consul/etc/consul/conf.d"
DEFAULT_FLAGS = """
-node=box -node-id=UUID -datacenter=dc1 -domain=consul -data-dir=/consul/data -client=127.0.0.1 -http-port=8500
-dns-port=8600 -retry-interval=1s -retry-join=127.0.0.1 -retry-join=127.0.0.2
"""


def need(program: str) -> None:
    """Skips where a program is missing; in CI that is a failure."""
    if not shutil.which(program):
        missing(f"no {program} here")


@dataclass(frozen=True)
class Shell:
    """A shell with its search path and working directory."""

    command: tuple[str, ...]
    path: str
    directory: Path

    def arguments(self, script: str, *arguments: str) -> list[str]:
        """Returns the command line of a script."""
        return [*self.command, str(SCRIPTS[script]), *arguments]

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a script in an environment that has only ``env``."""
        return subprocess.run(
            self.arguments(script, *arguments),
            cwd=self.directory,
            env={"PATH": self.path, **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs consul-start with a name and two servers."""
        servers = {"HOSTNAME": "box", "CONSUL_SERVER": "127.0.0.1,127.0.0.2", "CONSUL_CONFIG_DIR": str(CONFIG)}
        return self.run("consul-start", **{**servers, **env})


@pytest.fixture(params=["sh", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """This machine's sh; or busybox's ash and programs, as on Alpine. Its consul prints its arguments, one a line."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "consul").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (programs / "consul").chmod(0o755)
    # This interpreter's python3: another one on PATH may need more of the environment.
    path = f"{programs}:{CONSUL}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    if request.param == "sh":
        return Shell(("sh",), path, tmp_path)
    need("busybox")
    for name in ("tr", "sed", "awk", "sha256sum", "hostname", "sleep", "dirname"):
        (programs / name).symlink_to(str(shutil.which("busybox")))
    # Only the script itself runs in ash; the scripts that it calls run in /bin/sh, by their first line.
    return Shell(("busybox", "ash"), path, tmp_path)


@pytest.mark.parametrize("command", ["shellcheck", "busybox ash -n"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_correct(command: str, script: str) -> None:
    program, *options = command.split()
    need(program)
    done = subprocess.run([program, *options, SCRIPTS[script]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert os.access(SCRIPTS[script], os.X_OK)


@pytest.mark.parametrize(
    ("servers", "flags"),
    [
        ("127.0.0.1,127.0.0.2", " -retry-join=127.0.0.1 -retry-join=127.0.0.2"),
        ("127.0.0.1 127.0.0.2", " -retry-join=127.0.0.1 -retry-join=127.0.0.2"),
        (" 127.0.0.1, 127.0.0.2 ", " -retry-join=127.0.0.1 -retry-join=127.0.0.2"),
        ("no-such-host.invalid,127.0.0.2", " -retry-join=no-such-host.invalid -retry-join=127.0.0.2"),
    ],
)
def test_join_flags_have_every_server(shell: Shell, servers: str, flags: str) -> None:
    done = shell.run("consul-join", CONSUL_SERVER=servers)
    assert (done.returncode, done.stdout) == (0, flags)


@pytest.mark.parametrize("script", ["consul-join", "consul-available"])
def test_without_servers_the_missing_variable_is_named(shell: Shell, script: str) -> None:
    done = shell.run(script)
    assert done.returncode == 2
    assert "CONSUL_SERVER: the names of the Consul servers" in done.stderr


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ({}, ""),
        ({"CONSUL_JOIN_WAN": "a,b c"}, " -retry-join-wan=a -retry-join-wan=b -retry-join-wan=c"),
        ({"CONSUL_ADVERTISE_WAN": "1.2.3.4"}, " -advertise-wan=1.2.3.4"),
        ({"CONSUL_JOIN_WAN": "a", "CONSUL_ADVERTISE_WAN": "b"}, " -retry-join-wan=a -advertise-wan=b"),
    ],
)
def test_flags_of_other_datacenters_are_those_asked_for(shell: Shell, env: dict[str, str], flags: str) -> None:
    done = shell.run("consul-join-wan", **env)
    assert (done.returncode, done.stdout) == (0, flags)


def test_node_id_is_a_uuid_of_datacenter_and_name(shell: Shell) -> None:
    found = [
        shell.run("consul-node-id", HOSTNAME=name, CONSUL_DC=datacenter).stdout.strip()
        for name, datacenter in (("a", "dc1"), ("a", "dc1"), ("b", "dc1"), ("a", "dc2"))
    ]
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", uuid) for uuid in found)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert found[0][:8] == hashlib.sha256(b"dc1/a").hexdigest()[:8]


def test_node_id_is_of_the_address_too_where_a_registrar_is(shell: Shell, tmp_path: Path) -> None:
    def node_ids() -> set[str]:
        addresses = ("10.0.0.1", "10.0.0.2")
        return {shell.run("consul-node-id", HOSTNAME="a", CONSUL_BIND=one).stdout for one in addresses}

    assert len(node_ids()) == 1
    programs = tmp_path / "etc/supervisor/conf.d"
    programs.mkdir(parents=True)
    (programs / "registrar.conf").touch()
    assert len(node_ids()) == 2
    # A network is the same in each container: the address that counts is the host's.
    own = shell.run("consul-node-id", HOSTNAME="a").stdout
    assert shell.run("consul-node-id", HOSTNAME="a", CONSUL_BIND="10.213.1.0/24").stdout == own


def test_node_id_is_of_dc1_and_the_hosts_name_by_default(shell: Shell) -> None:
    name = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert shell.run("consul-node-id").stdout == shell.run("consul-node-id", HOSTNAME=name, CONSUL_DC="dc1").stdout


@pytest.mark.parametrize(
    ("script", "value", "printed"),
    [
        ("consul-debug", "true", "a b\n"),
        ("consul-debug", "false", ""),
        ("consul-debug", "", ""),
        ("consul-available", "true", "[consul-available] found a Consul server\n"),
    ],
)
def test_debug_lines_are_printed_only_when_true(shell: Shell, script: str, value: str, printed: str) -> None:
    done = shell.run(script, "a", "b", CONSUL_SERVER="127.0.0.1", CONSUL_BOOTSTRAP_DEBUG=value)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", printed)


def test_available_waits_while_no_server_is_found(shell: Shell) -> None:
    env = {"CONSUL_SERVER": "no-such-host.invalid", "CONSUL_AVAILABLE_SLEEP": "0.1", "CONSUL_BOOTSTRAP_DEBUG": "true"}
    command, env = shell.arguments("consul-available"), {"PATH": shell.path, **env}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            waiting = "[consul-available] none of 'no-such-host.invalid' resolves yet\n"
            assert [process.stderr.readline() for _ in range(2)] == [waiting] * 2
            assert process.poll() is None
        finally:
            process.kill()


def test_container_find_prints_the_addresses_of_names_that_resolve(shell: Shell) -> None:
    done = shell.run("container-find", "127.0.0.9", "no-such-host.invalid", "localhost")
    assert done.returncode == 0
    first, *others = done.stdout.splitlines()
    assert first == "127.0.0.9"
    assert others
    assert set(others) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("role", ["bootstrap", "agent"])
def test_agent_starts_with_the_flags_of_its_role(shell: Shell, role: str) -> None:
    done = shell.start(CONSUL_ROLE=role)
    assert done.returncode == 0, done.stderr
    flags = [re.sub("^-node-id=.+", "-node-id=UUID", line) for line in done.stdout.splitlines()]
    assert flags == ["agent", f"-config-dir={CONFIG}/{role}", *DEFAULT_FLAGS.split()]


def test_role_is_agent_by_default(shell: Shell) -> None:
    assert shell.start().stdout == shell.start(CONSUL_ROLE="agent").stdout


@pytest.mark.parametrize(
    ("variable", "value", "flag"),
    [
        ("HOSTNAME", "other", "-node=other"),
        ("CONSUL_DC", "dc9", "-datacenter=dc9"),
        ("CONSUL_DOMAIN", "example", "-domain=example"),
        ("CONSUL_DATA_DIR", "/a b", "-data-dir=/a b"),
        ("CONSUL_CLIENT", "0.0.0.0", "-client=0.0.0.0"),
        ("CONSUL_PORT", "8501", "-http-port=8501"),
        ("CONSUL_DNS_PORT", "-1", "-dns-port=-1"),
        ("CONSUL_RETRY_INTERVAL", "5s", "-retry-interval=5s"),
        ("CONSUL_BIND", "127.0.0.3", "-bind=127.0.0.3"),
        ("CONSUL_UI", "true", "-ui"),
        ("CONSUL_SERVER", "127.0.0.5", "-retry-join=127.0.0.5"),
        ("CONSUL_JOIN_WAN", "far", "-retry-join-wan=far"),
        ("CONSUL_ADVERTISE_WAN", "1.2.3.4", "-advertise-wan=1.2.3.4"),
    ],
)
def test_variable_becomes_a_flag(shell: Shell, variable: str, value: str, flag: str) -> None:
    assert flag not in shell.start().stdout.splitlines()
    assert flag in shell.start(**{variable: value}).stdout.splitlines()


@pytest.mark.parametrize("value", ["false", "", "yes"])
def test_ui_is_served_only_when_true(shell: Shell, value: str) -> None:
    assert "-ui" not in shell.start(CONSUL_UI=value).stdout.splitlines()


@pytest.mark.parametrize("value", ["king", "no/such"])
@pytest.mark.parametrize(
    ("script", "variable", "values"),
    [
        ("consul-start", "CONSUL_ROLE", "bootstrap, agent"),
        ("nginx-start", "NGINX_UPDATE", "dynamic, reload, restart"),
        ("nginx-start", "LB_ACCESS_LOG", "on, off"),
    ],
)
def test_unknown_value_is_refused(shell: Shell, script: str, variable: str, values: str, value: str) -> None:
    done = shell.run(script, **{variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{variable}: must be one of {values} (got '{value}')\n"


Starter = Callable[..., subprocess.Popen[bytes]]


def sleeps(pid: int) -> bool:
    """Returns whether a script waits for its child sleep."""
    try:
        return any(Path(f"/proc/{child}/comm").read_text() == "sleep\n" for child in children(pid))
    except OSError:
        # A child of before has ended.
        return False


# No shell, which can't trap a signal that it was started with as ignored, as nohup has it.
AGENT = """
import signal
signal.signal(signal.SIGHUP, lambda *_: open("told", "a").write("hangup\\n"))
while True:
    signal.pause()
"""


def test_an_agent_is_told_of_renewed_files_once_they_fit_together(shell: Shell, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, renewed = authority.issue("agent"), authority.issue("agent", file="renewed")
    log, told = tmp_path / "log", tmp_path / "told"
    with log.open("w") as output:
        agent = subprocess.Popen([sys.executable, "-c", AGENT], cwd=tmp_path, stderr=output)
    files = [str(path) for path in (pair.certificate, pair.key, authority.path)]
    command = shell.arguments("reload-on-change", str(agent.pid), *files)
    script = subprocess.Popen(command, env={"PATH": shell.path})
    try:
        wait_for(lambda: sleeps(script.pid), bool, 10, "it has read the files")
        pair.replace_with(Pair(renewed.certificate, pair.key))
        wait_for(log.read_text, lambda text: "continues with the last good files" in text, 10, "it waits")
        assert not told.exists()
        pair.replace_with(renewed)
        wait_for(told.exists, bool, 10, "the agent is told")
        agent.kill()
        agent.wait()
        assert script.wait(10) == 0
    finally:
        for process in (agent, script):
            process.kill()
            process.wait()
    assert told.read_text() == "hangup\n"


@pytest.fixture(params=["this machine", "busybox alone"])
def with_name(request: pytest.FixtureRequest, tmp_path: Path) -> Starter:
    """Starts a shell script under with-name, with the programs of this machine or of busybox."""
    applets = tmp_path / "applets"
    (tmp_path / "run").mkdir()
    command, path = ["sh"], os.environ["PATH"]
    if request.param == "busybox alone":
        need("busybox")
        applets.mkdir()
        subprocess.run(["busybox", "--install", "-s", str(applets)], check=True)
        command, path = [shutil.which("busybox") or "", "ash"], str(applets)
    command += [str(SCRIPTS["with-name"]), "a-program", "sh", "-c"]
    return lambda script, **pipes: subprocess.Popen([*command, script], cwd=tmp_path, env={"PATH": path}, **pipes)


def test_every_line_has_its_programs_name_at_once(with_name: Starter, tmp_path: Path) -> None:
    # The script continues only after its first line has been read.
    script = "echo first; read -r _; echo second >&2; echo; printf last"
    with with_name(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"a-program | first\n"
        process.stdin.write(b"go on\n")
        process.stdin.close()
        assert process.stdout.read() == b"a-program | second\na-program | \na-program | last\n"
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert list((tmp_path / "run").iterdir()) == []


def test_a_program_continues_when_its_lines_can_not_be_written(with_name: Starter, tmp_path: Path) -> None:
    # More than the pipe holds, in lines that awk writes one by one, and a line after awk has failed.
    script = "i=0; while [ $i -lt 3000 ]; do echo 'forty characters are a line of this log.'; i=$((i + 1)); done"
    with Path("/dev/full").open("wb") as full:
        process = with_name(f"{script}; sleep 0.2; echo more && touch done", stdout=full, stderr=subprocess.DEVNULL)
        assert process.wait(20) == 0
    assert (tmp_path / "done").exists()
