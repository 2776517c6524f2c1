"""Builds with Go, with a small shell script as the go command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.places import Places

ROOT = Path(__file__).resolve().parents[2]
BUILDS = "printf '#!/bin/sh\\necho Consul v1.22.7\\n' > $GOBIN/consul"


class Machine:
    """A machine that has a go command and whose official releases are out of reach."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.calls_file = directory / "calls"
        self.places = Places(
            directories=(self.bin,),
            cache=directory / "grpc-load-balancing",
            releases_url="http://127.0.0.1:9",
        )
        self.consul = self.places.cached(TOOLS["consul"])
        self.env = {
            "PATH": str(self.bin),
            "HOME": str(directory),
            "XDG_CACHE_HOME": str(directory),
            "LOCAL_STACK_RELEASES_URL": self.places.releases_url,
        }

    def has_go(self, install: str, *, version: str = "go1.26.8", toolchain: str = "local") -> None:
        """Give it Go; `install` is a shell line that `go install` runs."""
        go = self.bin / "go"
        go.write_text(
            f"""#!/bin/sh
            PATH=/usr/bin:/bin
            if [ "$1" = env ]; then echo {version}; echo {toolchain}; exit; fi
            echo "$CGO_ENABLED $*" >> {self.calls_file}
            {install}
            """,
            encoding="utf-8",
        )
        go.chmod(0o755)

    def calls(self) -> list[str]:
        return self.calls_file.read_text(encoding="utf-8").splitlines() if self.calls_file.exists() else []

    def unfinished(self) -> list[Path]:
        return list(self.consul.parent.glob("unfinished-*"))

    def start(self) -> subprocess.Popen[str]:
        """Start the command line in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "local_stack.tools", "consul"],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_consul_is_built_from_its_own_module_without_c_and_kept(machine: Machine) -> None:
    machine.has_go(BUILDS)
    assert find("consul", places=machine.places) == machine.consul
    call = "install -trimpath -mod=readonly -ldflags=-s -w github.com/hashicorp/consul"
    assert machine.calls() == [f"0 -C {ROOT}/local_stack/go/consul {call}"]
    assert find("consul", places=machine.places, install=False) == machine.consul
    assert len(machine.calls()) == 1


def test_consul_template_is_built_from_its_published_module(machine: Machine) -> None:
    machine.has_go("printf '#!/bin/sh\\necho consul-template v0.42.1\\n' > $GOBIN/consul-template")
    built = find("consul-template", places=machine.places)
    assert built.parts[-2:] == ("consul-template-0.42.1", "consul-template")
    assert machine.calls()[0].endswith("-ldflags=-s -w github.com/hashicorp/consul-template@v0.42.1")


def test_failed_build_says_its_last_lines_and_where_its_log_is(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.has_go("echo '# some/package' >&2; echo 'no space left on device' >&2; exit 1")
    log = machine.consul.with_name("build.log")
    with pytest.raises(ToolError) as raised:
        find("consul", places=machine.places)
    assert f"built with Go: go install failed (exit 1): no space left on device; log: {log}\n" in str(raised.value)
    assert "local_stack:   # some/package\nlocal_stack:   no space left" in capfd.readouterr().err
    assert log.read_text(encoding="utf-8") == "# some/package\nno space left on device\n"
    assert not machine.consul.exists()
    assert not machine.unfinished()


def test_what_was_built_is_kept_only_if_it_suits(machine: Machine) -> None:
    machine.has_go(BUILDS.replace("1.22.7", "1.22.8-dev"))
    with pytest.raises(ToolError, match=r"version 1\.22\.8-dev is a pre-release"):
        find("consul", places=machine.places)
    assert not machine.consul.exists()
    assert not machine.unfinished()


def test_go_that_is_too_old_is_refused(machine: Machine) -> None:
    machine.has_go(BUILDS, version="go1.19.8", toolchain="")
    with pytest.raises(ToolError, match=r"bin/go is Go 1\.19\.8, and Consul 1\.22\.7 needs 1\.25\.9 or newer"):
        find("consul", places=machine.places)
    assert not machine.calls()


def test_older_go_that_fetches_the_go_it_needs_is_used(machine: Machine) -> None:
    machine.has_go(BUILDS, version="go1.24.4", toolchain="auto")
    assert find("consul", places=machine.places) == machine.consul


def test_progress_of_a_build_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("local_stack.tools.progress.INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("local_stack.tools.gobuild._POLL_SECONDS", 0.1)
    machine.has_go(f"sleep 1; {BUILDS}")
    find("consul", places=machine.places)
    said = capfd.readouterr().err
    assert "building Consul 1.22.7 with Go: about 7 minutes the first time" in said
    assert "building Consul 1.22.7 with Go: 1 s of about 7 minutes" in said


def test_two_processes_build_a_tool_once(machine: Machine) -> None:
    machine.has_go(f"while ! [ -e {machine.bin}/go-on ]; do sleep 0.05; done; {BUILDS}")
    first = machine.start()
    _wait_for_a_build(machine)
    second = machine.start()
    assert second.stderr
    while "another process is getting it; waiting for that" not in (line := second.stderr.readline()):
        assert line, "the second process did not say that it waits"
    (machine.bin / "go-on").touch()
    assert first.communicate()[0] == second.communicate()[0] == f"{machine.consul}\n"
    assert len(machine.calls()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_build_leaves_neither_process_nor_file(machine: Machine, number: signal.Signals) -> None:
    pid_file = machine.bin / "pid"
    machine.has_go(f"sleep 300 & echo $! > {pid_file}; touch $GOBIN/half {machine.bin}/started; wait")
    process = machine.start()
    _wait_for_a_build(machine)
    _wait_until((machine.bin / "started").exists, "the build has not started its compiler")
    compiler = int(pid_file.read_text(encoding="ascii"))
    process.send_signal(number)
    assert process.communicate()[1].endswith("local_stack: interrupted\n")
    assert process.returncode == 1
    assert not _is_alive(compiler)
    assert not machine.unfinished()
    assert not machine.consul.exists()


def test_what_a_killed_process_left_is_removed_by_the_next_build(machine: Machine) -> None:
    left = machine.consul.parent / "unfinished-killed"
    left.mkdir(parents=True)
    (left / "consul").touch()
    machine.has_go(BUILDS)
    find("consul", places=machine.places)
    assert not machine.unfinished()


def _wait_for_a_build(machine: Machine) -> None:
    _wait_until(machine.calls, "no build has started")


def _wait_until(holds: Callable[[], object], otherwise: str, timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A process that has ended and is not yet reaped by init is not alive.
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (ProcessLookupError, FileNotFoundError):
        return False
