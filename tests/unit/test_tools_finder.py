"""Which versions of a tool are suitable, and where it is looked for, with small shell scripts as programs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.__main__ import main
from local_stack.tools.places import RELEASES_URL, Places
from local_stack.tools.tool import parse_version
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


@pytest.mark.parametrize(
    ("tool", "version", "reason"),
    [
        ("consul", "1.22.7", ""),
        ("consul", "1.22.10", ""),
        ("consul", "1.23.0", ""),
        ("consul", "1.22.7-1", ""),  # HashiCorp's package for Debian
        ("consul-template", "0.42.1", ""),
        ("consul-template", "0.43.0", ""),
        ("nginx", "1.22", ""),
        ("nginx", "1.22.1-9+deb12u11", ""),
        ("nginx", "1:1.26.3-3", ""),
        ("nginx", "1.24.0-2ubuntu7", ""),
        ("nginx", "1.30.1-r0", ""),  # Alpine
        ("nginx", "1.25.3.1", ""),  # OpenResty
        ("consul", "1.22.5", "version 1.22.5 is older than 1.22.7"),
        ("consul", "1.9.12", "version 1.9.12 is older than 1.22.7"),
        ("consul", "2.0.0", "version 2.0.0 is not older than 2.0"),
        ("consul", "1.23.0-dev", "version 1.23.0-dev is a pre-release"),
        ("consul", "1.23.0~rc1-1", "version 1.23.0~rc1 is a pre-release"),
        ("consul", "1.22.7+ent", "version 1.22.7 is the Enterprise edition, which needs a licence"),
        ("consul-template", "0.42.0", "version 0.42.0 is older than 0.42.1"),
        ("consul-template", "1.0.0", "version 1.0.0 is not older than 1.0"),
        ("nginx", "1.18.0", "version 1.18.0 is older than 1.22"),
        ("nginx", "unknown", "no version in 'unknown'"),
    ],
)
def test_version_is_suitable_or_the_reason_is_said(tool: str, version: str, reason: str) -> None:
    assert TOOLS[tool].unsuitable(version) == reason


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("1.9.12") < parse_version("1.22") == (1, 22, 0)
    assert parse_version("go1.26.8") == (1, 26, 8)


def test_suitable_program_on_path_is_taken_before_the_cached_one(machine: Machine) -> None:
    machine.consul(machine.cached)
    machine.consul(version="1.22.5")
    suitable = machine.consul(machine.sbin / "consul", "1.23.1")
    assert machine.find() == suitable


def test_cached_program_is_taken_before_anything_is_installed(with_installers: Machine) -> None:
    cached = with_installers.consul(with_installers.cached)
    assert with_installers.find() == cached
    assert not with_installers.calls()


@pytest.mark.parametrize(
    ("where", "content", "mode", "reason"),
    [
        ("bin", b"#!/bin/sh\necho usage: consul 1.22.7", 0o755, r"prints no version, but 'usage: consul 1.22.7'"),
        ("bin", b"#!/bin/sh\necho Consul v1.22.7", 0o644, "on PATH: none"),
        ("cached", b"\x7fELF of another machine", 0o755, r"in the cache: \S+/consul does not run: Exec format error"),
    ],
)
def test_file_that_is_not_a_program_of_that_name_is_not_taken(
    machine: Machine, where: str, content: bytes, mode: int, reason: str
) -> None:
    path = machine.script(machine.cached if where == "cached" else "consul")
    path.write_bytes(content)
    path.chmod(mode)
    assert re.search(reason, machine.refusal(install=False))


def test_nothing_is_installed_when_that_is_asked_for(with_installers: Machine) -> None:
    assert "nothing was installed, as asked" in with_installers.refusal(install=False)
    assert not with_installers.calls()
    assert not with_installers.places.cache.exists()


def test_error_has_a_line_for_each_way_and_says_what_to_do(machine: Machine) -> None:
    url = "http://127.0.0.1:9/consul/1.22.7/consul_1.22.7_linux_….zip"
    path = "put consul from https://releases.hashicorp.com/consul/1.22.7/ on PATH"
    go = "install Go 1.25.9 or newer (https://go.dev/dl/) and run this again"
    assert re.sub("_linux_.*zip", "_linux_….zip", machine.refusal()).splitlines() == [
        "consul 1.22.7 or newer and older than 2.0 was not found:",
        "  on PATH: none",
        f"  in the cache: no {machine.cached}",
        "  distribution's package: neither apt-get nor apk is here",
        f"  official release: {url}: urlopen error [Errno 111] Connection refused",
        "  built with Go: go is not on PATH",
        f"  by hand: {path}, or {go}",
    ]


def test_reason_why_path_did_not_do_is_said_before_anything_is_installed(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    consul = machine.consul(version="1.21.0")
    machine.refusal("nginx")
    machine.refusal()
    said = capfd.readouterr().err
    assert "local_stack: nginx 1.22: on PATH: none\n" in said
    assert f"on PATH: {consul}: version 1.21.0 is older than 1.22.7\n" in said


def test_cache_that_cannot_be_written_is_a_reason(machine: Machine) -> None:
    machine.places.cache.write_text("not a directory", encoding="utf-8")
    assert "official release: [Errno 20] Not a directory" in machine.refusal()


def test_unknown_tool_is_an_error() -> None:
    with pytest.raises(ToolError, match=r"tool: must be one of nginx, consul, consul-template \(got 'envoy'\)"):
        find("envoy")
    with pytest.raises(SystemExit) as raised:
        main(["envoy"])
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("xdg", "releases", "cache", "releases_url"),
    [
        ("/var/cache", "http://releases.test/", "/var/cache", "http://releases.test"),
        ("", "", "/home/somebody/.cache", RELEASES_URL),
        ("relative", "", "/home/somebody/.cache", RELEASES_URL),
    ],
)
def test_places_follow_the_environment(xdg: str, releases: str, cache: str, releases_url: str) -> None:
    env = {"PATH": "/one::/one", "HOME": "/home/somebody", "XDG_CACHE_HOME": xdg, "LOCAL_STACK_RELEASES_URL": releases}
    places = Places.from_env(env)
    assert places.directories == (Path("/one"), *MORE_DIRECTORIES)
    assert places.cache == Path(cache, "grpc-load-balancing")
    assert places.releases_url == releases_url


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


def test_command_line_needs_nothing_but_the_standard_library() -> None:
    # -S: no site-packages. The working directory is the checkout, as in CI before there is an environment.
    command = [sys.executable, "-S", "-m", "local_stack.tools", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
