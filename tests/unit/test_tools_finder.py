"""The order in which a tool is looked for, with small shell scripts as programs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from local_stack.tools import ToolError, find
from local_stack.tools.__main__ import main
from local_stack.tools.places import RELEASES_URL, Places
from tests.support.machine import Machine

MORE_DIRECTORIES = tuple(map(Path, ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/go/bin")))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("no_proxy", "*")
    return Machine(tmp_path)


@pytest.fixture
def with_installers(machine: Machine) -> Machine:
    for name in ("apt-get", "apt-cache", "go"):
        machine.has(name)
    return machine


def test_suitable_program_on_path_is_taken_before_the_cached_one(machine: Machine) -> None:
    machine.consul(machine.cached)
    machine.consul(version="1.22.5")
    suitable = machine.consul(machine.sbin / "consul", "1.23.1")
    assert find("consul", places=machine.places) == suitable


def test_cached_program_is_taken_before_anything_is_installed(with_installers: Machine) -> None:
    cached = with_installers.consul(with_installers.cached)
    assert find("consul", places=with_installers.places) == cached
    assert not with_installers.calls()


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("#!/bin/sh\necho usage: consul 1.22.7", 0o755, r"prints no version, but 'usage: consul 1.22.7'"),
        ("#!/bin/sh\necho Consul v1.22.7", 0o644, "on PATH: none"),
    ],
)
def test_file_that_is_not_a_program_of_that_name_is_not_taken(
    machine: Machine, content: str, mode: int, reason: str
) -> None:
    path = machine.bin / "consul"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(ToolError, match=reason):
        find("consul", places=machine.places, install=False)


def test_cached_program_that_does_not_run_is_not_taken(machine: Machine) -> None:
    machine.consul(machine.cached).write_bytes(b"\x7fELF of another machine")
    with pytest.raises(ToolError, match=r"in the cache: \S+/consul does not run: Exec format error"):
        find("consul", places=machine.places, install=False)


def test_nothing_is_installed_when_that_is_asked_for(with_installers: Machine) -> None:
    with pytest.raises(ToolError, match="nothing was installed, as asked"):
        find("consul", places=with_installers.places, install=False)
    assert not with_installers.calls()
    assert not with_installers.places.cache.exists()


def test_error_has_a_line_for_each_way_and_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(ToolError) as raised:
        find("consul", places=machine.places)
    lines = [re.sub("_linux_.*zip", "_linux_….zip", line) for line in str(raised.value).splitlines()]
    assert lines == [
        "consul 1.22.7 or newer and older than 2.0 was not found:",
        "  on PATH: none",
        f"  in the cache: no {machine.cached}",
        "  distribution's package: neither apt-get nor apk is here",
        (
            "  official release: http://127.0.0.1:9/consul/1.22.7/consul_1.22.7_linux_….zip:"
            " urlopen error [Errno 111] Connection refused"
        ),
        "  built with Go: go is not on PATH",
        (
            "  by hand: put consul from https://releases.hashicorp.com/consul/1.22.7/ on PATH,"
            " or install Go 1.25.9 or newer (https://go.dev/dl/) and run this again"
        ),
    ]


def test_reason_why_path_did_not_do_is_said_before_anything_is_installed(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    consul = machine.consul(version="1.21.0")
    for name in ("nginx", "consul"):
        with pytest.raises(ToolError):
            find(name, places=machine.places)
    said = capfd.readouterr().err
    assert "local_stack: nginx 1.22: on PATH: none\n" in said
    assert f"on PATH: {consul}: version 1.21.0 is older than 1.22.7\n" in said


def test_cache_that_cannot_be_written_is_a_reason(machine: Machine) -> None:
    machine.places.cache.write_text("not a directory", encoding="utf-8")
    with pytest.raises(ToolError, match=r"official release: \[Errno 20\] Not a directory"):
        find("consul", places=machine.places)


def test_unknown_tool_is_an_error() -> None:
    with pytest.raises(ToolError, match=r"tool: must be one of nginx, consul, consul-template \(got 'envoy'\)"):
        find("envoy")


def test_places_follow_the_environment(tmp_path: Path) -> None:
    env = {"PATH": f"{tmp_path}::{tmp_path}", "HOME": "/home/somebody", "XDG_CACHE_HOME": str(tmp_path)}
    places = Places.from_env(env | {"LOCAL_STACK_RELEASES_URL": "http://releases.test/"})
    assert places.directories == (tmp_path, *MORE_DIRECTORIES)
    assert places.cache == tmp_path / "grpc-load-balancing"
    assert places.releases_url == "http://releases.test"


@pytest.mark.parametrize("xdg", ["", "relative"])
def test_cache_is_in_the_home_directory_without_a_valid_xdg_cache_home(xdg: str) -> None:
    places = Places.from_env({"HOME": "/home/somebody", "XDG_CACHE_HOME": xdg})
    assert places.cache == Path("/home/somebody/.cache/grpc-load-balancing")
    assert places.releases_url == RELEASES_URL


def test_command_line_prints_what_it_has_found_and_fails_for_the_rest(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Places, "from_env", lambda _env: machine.places)
    path = machine.consul()
    assert main(["consul"]) == 0
    assert capfd.readouterr() == (f"{path}\n", "")
    assert main(["--no-install"]) == 1
    out, err = capfd.readouterr()
    assert out == f"consul\t{path}\n"
    assert err.startswith("local_stack: nginx 1.22 or newer, with lua-nginx-module")
    assert "consul-template 0.42.1 or newer and older than 1.0 was not found" in err


def test_command_line_refuses_an_unknown_tool_with_status_2() -> None:
    with pytest.raises(SystemExit) as raised:
        main(["envoy"])
    assert raised.value.code == 2


def test_command_line_needs_nothing_but_the_standard_library() -> None:
    # -S: no site-packages. The working directory is the checkout, as in CI before there is an environment.
    command = [sys.executable, "-S", "-m", "local_stack.tools", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
