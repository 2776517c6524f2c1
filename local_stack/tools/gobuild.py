"""A tool built with Go from its module, into the cache."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from local_stack.tools import cache
from local_stack.tools.catalogue import GoBuild, Tool, parse_version
from local_stack.tools.errors import UnavailableError
from local_stack.tools.places import Places
from local_stack.tools.progress import Ticker, duration, say

MODULES = Path(__file__).resolve().parent.parent / "go"
_POLL_SECONDS = 1.0
_STOP_SECONDS = 5.0
# A build on a slow machine takes a few times what it takes here; one past this is stuck.
_LIMIT_FACTOR = 12
_LAST_LINES = 10


def build(tool: Tool, places: Places) -> Path:
    """Build a tool into the cache and return its path there.

    Its log stays in the cache, beside the tool.

    Raises:
        UnavailableError: if the tool is not a Go program, Go is missing or too old, or the build fails.

    """
    if not tool.go:
        raise UnavailableError("it is no Go program")
    go = places.program("go")
    log = places.cached(tool).with_name("build.log")
    expected = f"about {tool.go.minutes} minute{'s' if tool.go.minutes > 1 else ''}"
    with cache.staging(tool, places) as directory:
        # What asks for another target or a workspace is left out; proxies and caches stay.
        env = {name: value for name, value in os.environ.items() if name not in ("GOOS", "GOARCH")}
        # Without C it needs no compiler, and runs in a container of another C library.
        env |= {"CGO_ENABLED": "0", "GOBIN": str(directory), "GOWORK": "off"}
        _require_go(tool, tool.go, go, directory, env)
        say(
            f"building {tool} with Go: {expected} the first time"
            f" (and {tool.go.disk_gigabytes} GB in Go's caches); log: {log}"
        )
        ticker = Ticker(f"building {tool} with Go", expected)
        with log.open("wb") as file, _started(_command(tool, tool.go, go), directory, env, file) as process:
            code = _wait(process, ticker, tool.go.minutes * 60 * _LIMIT_FACTOR)
        if code:
            raise UnavailableError(_failure(code, log))
        built = cache.keep(tool, places, directory / tool.name)
    say(f"built {tool} in {duration(ticker.elapsed_seconds)}: {built}")
    return built


def _require_go(tool: Tool, recipe: GoBuild, go: str, directory: Path, env: dict[str, str]) -> None:
    """See that Go is new enough, or new enough to fetch the Go that is."""
    asked = subprocess.run(
        [go, "env", "GOVERSION", "GOTOOLCHAIN"],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise UnavailableError(f"{go} does not work: {asked.stderr.strip() or f'exit {asked.returncode}'}")
    version, toolchain, *_ = [*asked.stdout.splitlines(), "", ""]
    try:
        found = parse_version(version)
    except ValueError as error:
        raise UnavailableError(f"{go}: {error}") from error
    # Go before 1.21 knows no GOTOOLCHAIN, and answers with an empty line.
    fetches = toolchain == "auto" or toolchain.endswith("+auto")
    if found < parse_version(recipe.go_version) and not fetches:
        raise UnavailableError(
            f"{go} is Go {version.removeprefix('go')}, and {tool} needs {recipe.go_version} or newer"
        )


def _command(tool: Tool, recipe: GoBuild, go: str) -> list[str]:
    """Return the command that puts the program into GOBIN."""
    install = ["install", "-trimpath", "-mod=readonly", "-ldflags=-s -w"]
    if recipe.module:
        # -C must stand first (Go 1.20 and newer).
        return [go, "-C", str(MODULES / recipe.module), *install, recipe.package]
    return [go, *install, f"{recipe.package}@v{tool.version}"]


@contextmanager
def _started(
    command: list[str], directory: Path, env: dict[str, str], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, and leave no process of it behind whatever ends the wait for it."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that its compilers can be stopped with it
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], ticker: Ticker, limit_seconds: float) -> int:
    """Return a process's exit code, and say meanwhile how long it has been running."""
    while ticker.elapsed_seconds < limit_seconds:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            ticker.tick()
    raise UnavailableError(f"go install did not end within {duration(limit_seconds)}")


def _failure(code: int, log: Path) -> str:
    """Say the end of a build's log, and return the reason in one line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in lines[-_LAST_LINES:]:
        say(f"  {line}")
    return f"go install failed (exit {code}): {lines[-1] if lines else 'no message'}; log: {log}"
