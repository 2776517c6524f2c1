"""Builds with Go, with a small shell script as the go command."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.processes import is_alive
from local_stack.settings import ROOT
from local_stack.tools import TOOLS
from testbed.wait import wait_for
from tests.support.machine import Machine as BareMachine
from tests.support.machine import prints

BUILDS = prints("$GOBIN/consul", "Consul v1.22.7")


class Machine(BareMachine):
    """A machine that can have a go command."""

    def has_go(self, install: str, *, version: str = "go1.26.8", toolchain: str = "local") -> None:
        """Gives it Go; ``install`` is a shell line that `go install` runs."""
        answer = f'if [ "$1" = env ]; then echo {version}; echo {toolchain}; exit; fi'
        self.script("go", answer, f'echo "$CGO_ENABLED $*" >> {self.calls_file}', install)

    def left(self) -> list[Path]:
        """Returns the files of Consul in the cache: the program, and unfinished directories."""
        return [path for path in self.cached.parent.iterdir() if path.name not in ("lock", "build.log")]

    def start(self) -> subprocess.Popen[str]:
        """Starts the command line in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "local_stack.tools", "consul"],
            cwd=ROOT,
            env={
                "PATH": str(self.bin),
                "HOME": str(self.bin),
                "XDG_CACHE_HOME": str(self.places.cache.parent),
                "LOCAL_STACK_RELEASES_URL": self.places.releases_url,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_consul_is_built_from_its_own_module_without_c_and_kept(machine: Machine) -> None:
    machine.has_go(BUILDS)
    assert machine.find() == machine.cached
    call = "install -trimpath -mod=readonly -ldflags=-s -w github.com/hashicorp/consul"
    assert machine.calls() == [f"0 -C {ROOT}/local_stack/go/consul {call}"]
    assert machine.find(install=False) == machine.cached
    assert len(machine.calls()) == 1


def test_consul_template_is_built_from_its_published_module(machine: Machine) -> None:
    machine.has_go(prints("$GOBIN/consul-template", "consul-template v0.42.1"))
    built = machine.find("consul-template")
    assert built.parts[-2:] == ("consul-template-0.42.1", "consul-template")
    assert machine.calls()[0].endswith("-ldflags=-s -w github.com/hashicorp/consul-template@v0.42.1")


def test_failed_build_says_its_last_lines_and_where_its_log_is(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.has_go("echo '# some/package' >&2; echo 'no space left on device' >&2; exit 1")
    log = machine.cached.with_name("build.log")
    assert f"built with Go: go install failed (exit 1): no space left on device; log: {log}\n" in machine.refusal()
    assert "local_stack:   # some/package\nlocal_stack:   no space left" in capfd.readouterr().err
    assert log.read_text(encoding="utf-8") == "# some/package\nno space left on device\n"
    assert machine.left() == []


def test_program_that_was_built_is_kept_only_if_it_is_suitable(machine: Machine) -> None:
    machine.has_go(BUILDS.replace("1.22.7", "1.22.8-dev"))
    assert "version 1.22.8-dev is a pre-release" in machine.refusal()
    assert machine.left() == []


def test_go_that_is_too_old_is_refused(machine: Machine) -> None:
    machine.has_go(BUILDS, version="go1.19.8", toolchain="")
    assert "bin/go is Go 1.19.8, and consul 1.22.7 needs 1.25.9 or newer" in machine.refusal()
    assert not machine.calls()


def test_older_go_that_fetches_the_go_it_needs_is_used(machine: Machine) -> None:
    machine.has_go(BUILDS, version="go1.24.4", toolchain="auto")
    assert machine.find() == machine.cached


def test_progress_of_a_build_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("local_stack.tools.cache.INTERVAL_SECONDS", 0.05)
    machine.has_go(f"sleep 0.7; {BUILDS}")
    machine.find()
    said = capfd.readouterr().err
    assert "building consul 1.22.7 with Go, about 7 min the first time, and up to 5 GB" in said
    assert "building consul 1.22.7 with Go, about 7 min the first time: 1 s" in said


def test_two_processes_build_a_tool_once(machine: Machine) -> None:
    machine.has_go(f"while ! [ -e {machine.bin}/go-on ]; do sleep 0.05; done; {BUILDS}")
    first = machine.start()
    wait_for(machine.calls, bool, 20, "a build has started")
    second = machine.start()
    assert second.stderr
    while "another process is getting it; waiting for that" not in (line := second.stderr.readline()):
        assert line, "the second process did not say that it waits"
    (machine.bin / "go-on").touch()
    assert first.communicate()[0] == second.communicate()[0] == f"{machine.cached}\n"
    assert len(machine.calls()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_build_leaves_neither_process_nor_file(machine: Machine, number: signal.Signals) -> None:
    pid_file = machine.bin / "pid"
    machine.has_go(f"touch $GOBIN/half; sleep 300 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait")
    process = machine.start()
    wait_for(pid_file.exists, bool, 20, "the build has started its compiler")
    process.send_signal(number)
    assert process.communicate()[1].endswith("local_stack: interrupted\n")
    assert process.returncode == 1
    assert not is_alive(int(pid_file.read_text(encoding="ascii")))
    assert machine.left() == []


def test_files_of_a_killed_process_are_removed_by_the_next_build(machine: Machine) -> None:
    machine.consul(machine.cached.parent / "unfinished-killed" / "consul")
    machine.has_go(BUILDS)
    machine.find()
    assert machine.left() == [machine.cached]


def test_go_module_of_consul_has_the_version_that_is_wanted() -> None:
    consul = TOOLS["consul"]
    assert consul.go
    assert consul.go.module
    lines = (consul.go.module / "go.mod").read_text(encoding="utf-8").splitlines()
    assert f"\t{consul.go.package} v{consul.version} // indirect" in lines
    assert f"tool {consul.go.package}" in lines
    assert f"go {consul.go.go_version}" in lines
