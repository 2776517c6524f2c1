"""The order in which a tool is looked for, with small shell scripts as programs."""

import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.__main__ import main
from local_stack.tools.places import RELEASES_URL, Places

ROOT = Path(__file__).resolve().parents[2]
MORE_DIRECTORIES = tuple(map(Path, ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/go/bin")))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Give a machine with nothing on it, whose official releases are out of reach."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "bin").mkdir()
    (tmp_path / "sbin").mkdir()
    return Places(
        directories=(tmp_path / "bin", tmp_path / "sbin"),
        cache=tmp_path / "cache",
        releases_url="http://127.0.0.1:9",  # discard: nothing listens there
        policy_file=tmp_path / "policy-rc.d",
    )


def program(path: Path, body: str) -> Path:
    """Write a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def consul(path: Path, version: str = "1.22.7") -> Path:
    return program(path, f"echo Consul v{version}\necho 'Build Date 1970-01-01T00:00:01Z'")


def test_program_on_path_is_taken_before_the_cached_one(places: Places) -> None:
    consul(places.cached(TOOLS["consul"]))
    on_path = consul(places.directories[1] / "consul")
    assert find("consul", places=places) == on_path


def test_unsuitable_program_on_path_is_passed_over(places: Places) -> None:
    consul(places.directories[0] / "consul", "1.22.5")
    suitable = consul(places.directories[1] / "consul", "1.23.1")
    assert find("consul", places=places) == suitable


def test_cached_program_is_taken_before_anything_is_installed(places: Places, tmp_path: Path) -> None:
    cached = consul(places.cached(TOOLS["consul"]))
    for name in ("apt-get", "apt-cache", "go"):
        program(places.directories[0] / name, f"touch {tmp_path}/ran")
    assert find("consul", places=places) == cached
    assert not (tmp_path / "ran").exists()


def test_cached_program_that_does_not_run_is_not_taken(places: Places) -> None:
    cached = places.cached(TOOLS["consul"])
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"\x7fELF of another machine")
    cached.chmod(0o755)
    with pytest.raises(ToolError, match=r"in the cache: \S+/consul does not run: Exec format error"):
        find("consul", places=places, install=False)


def test_program_of_the_same_name_that_is_something_else_is_not_taken(places: Places) -> None:
    program(places.directories[0] / "consul", "echo usage: consul 1.22.7")
    with pytest.raises(ToolError, match=r"does not say its version, but 'usage: consul 1.22.7'"):
        find("consul", places=places, install=False)


def test_file_that_is_not_executable_is_not_looked_at(places: Places) -> None:
    consul(places.directories[0] / "consul").chmod(0o644)
    with pytest.raises(ToolError, match="on PATH: none"):
        find("consul", places=places, install=False)


def test_nothing_is_installed_when_that_is_asked_for(places: Places, tmp_path: Path) -> None:
    for name in ("apt-get", "apt-cache", "go"):
        program(places.directories[0] / name, f"touch {tmp_path}/ran")
    with pytest.raises(ToolError, match="nothing was installed, as asked"):
        find("consul", places=places, install=False)
    assert not (tmp_path / "ran").exists()
    assert not places.cache.exists()


def test_error_has_a_line_for_each_way_and_says_what_to_do(places: Places) -> None:
    with pytest.raises(ToolError) as raised:
        find("consul", places=places)
    assert str(raised.value).splitlines() == [
        "Consul 1.22.7 or newer and older than 2.0 was not found:",
        "  on PATH: none",
        f"  in the cache: no {places.cached(TOOLS['consul'])}",
        "  distribution's package: neither apt-get nor apk is here",
        (
            "  official release: http://127.0.0.1:9/consul/1.22.7/consul_1.22.7_SHA256SUMS:"
            " [Errno 111] Connection refused"
        ),
        "  built with Go: go is not on PATH",
        (
            "  by hand: put consul from https://releases.hashicorp.com/consul/1.22.7/ on PATH,"
            " or install Go 1.25.9 or newer (https://go.dev/dl/) and run this again"
        ),
    ]


def test_reason_why_path_did_not_do_is_said_before_anything_is_installed(
    places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    consul(places.directories[0] / "consul", "1.21.0")
    with pytest.raises(ToolError):
        find("nginx", places=places)
    with pytest.raises(ToolError):
        find("consul", places=places)
    said = capfd.readouterr().err
    assert "local_stack: nginx 1.22: on PATH: none\n" in said
    assert f"on PATH: {places.directories[0]}/consul: version 1.21.0 is older than 1.22.7\n" in said


def test_cache_that_cannot_be_written_is_a_reason(places: Places) -> None:
    places.cache.write_text("not a directory", encoding="utf-8")
    with pytest.raises(ToolError, match=r"official release: \[Errno 20\] Not a directory"):
        find("consul", places=places)


def test_unknown_tool_is_an_error() -> None:
    with pytest.raises(ToolError, match="envoy is none of nginx, consul, consul-template"):
        find("envoy")


def test_places_follow_the_environment(tmp_path: Path) -> None:
    places = Places.from_env(
        {
            "PATH": f"{tmp_path}::{tmp_path}",
            "HOME": "/home/somebody",
            "XDG_CACHE_HOME": str(tmp_path),
            "LOCAL_STACK_RELEASES_URL": "http://releases.test/",
        }
    )
    assert places.directories == (tmp_path, *MORE_DIRECTORIES)
    assert places.cached(TOOLS["consul"]) == tmp_path / "grpc-load-balancing" / "consul-1.22.7" / "consul"
    assert places.releases_url == "http://releases.test"


@pytest.mark.parametrize("xdg", ["", "relative"])
def test_cache_is_in_the_home_directory_without_a_valid_xdg_cache_home(xdg: str) -> None:
    places = Places.from_env({"HOME": "/home/somebody", "XDG_CACHE_HOME": xdg})
    assert places.cache == Path("/home/somebody/.cache/grpc-load-balancing")
    assert places.releases_url == RELEASES_URL


@pytest.fixture
def environment(places: Places, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Let the process's own environment be that machine."""
    monkeypatch.setattr(Places, "from_env", lambda _env: places)
    return places


def test_command_line_prints_just_the_path_of_one_tool(environment: Places, capfd: pytest.CaptureFixture[str]) -> None:
    path = consul(environment.directories[0] / "consul")
    assert main(["consul"]) == 0
    assert capfd.readouterr() == (f"{path}\n", "")


def test_command_line_prints_what_it_has_found_and_fails_for_the_rest(
    environment: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    path = consul(environment.directories[0] / "consul")
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
    done = subprocess.run(
        [sys.executable, "-S", "-m", "local_stack.tools", "--help"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
