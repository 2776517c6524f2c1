"""The binary check: whether a program that exists is a suitable one."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from local_stack.errors import UnavailableError
from local_stack.tools.places import Places
from local_stack.tools.tool import NGINX, Tool

_TIMEOUT_SECONDS = 30
# "2026/07/08 11:03:29 [emerg] 7#7: message" once the configuration is read, "nginx: [emerg] message" before.
_NGINX_MESSAGE = re.compile(r"\[(?:emerg|alert|error)\] (?:\d+#\d+: )?(.*?)(?: in /\S+)?$", re.MULTILINE)


def on_path(tool: Tool, places: Places) -> Path:
    """Returns the first suitable program of a tool's name; the error has the reason for each unsuitable one."""
    reasons: dict[Path, str] = {}
    for program in (directory / tool.name for directory in places.directories):
        # access() comes first, because it does not raise for a directory that may not be read.
        if os.access(program, os.X_OK) and program.is_file() and program.resolve() not in reasons:
            reasons[program.resolve()] = reason = unsuitable(tool, program)
            if not reason:
                return program
    raise UnavailableError("; ".join(reasons.values()) or "none")


def in_cache(tool: Tool, places: Places) -> Path:
    """Returns the tool that was downloaded or built before; raises UnavailableError if there is none that runs."""
    cached = places.cached(tool)
    if reason := unsuitable(tool, cached) if cached.is_file() else f"no {cached}":
        raise UnavailableError(reason)
    return cached


def unsuitable(tool: Tool, program: Path) -> str:
    """Runs a program and returns why it is unsuitable; empty if it is suitable."""
    try:
        _, output = _run(program, str(program), "-v")
        found = re.search(rf"^{tool.name}(?: version: \S+/| v)(\d\S*)", output, re.IGNORECASE | re.MULTILINE)
        if not found:
            return f"{program} prints no version, but {(output.splitlines() or ['nothing'])[0]!r}"
        if reason := tool.unsuitable(found[1]):
            return f"{program}: {reason}"
        return _unsuitable_nginx(program) if tool is NGINX else ""
    except subprocess.TimeoutExpired:
        return f"{program} did not end within {_TIMEOUT_SECONDS} s"
    except OSError as error:
        return f"{program} does not run: {error.strerror}"


def _unsuitable_nginx(program: Path) -> str:
    code, output = _run(program, "sh", "-c", _check_nginx())
    if code == 0:
        return ""
    # The last message is the one that ended nginx; the alerts before it may be advice.
    message = (_NGINX_MESSAGE.findall(output) or [f"exit {code}"])[-1]
    if "by_lua_block" in message:
        return f"{program} has no Lua module: {message}"
    if "module 'cjson' not found" in message:
        names = " or ".join(packages[-1] for packages in NGINX.packages.values())
        return f"{program} has no JSON library for its Lua: install {names}"
    return f"{program} does not run the stack's Lua: {message}"


@cache
def _check_nginx() -> str:
    return Path(__file__).parents[2].joinpath("build/check-nginx").read_text(encoding="utf-8")


def _run(program: Path, *command: str) -> tuple[int, str]:
    """Runs a command that finds a program first on its PATH; returns the exit code and the output."""
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ.get('PATH', '')}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace").strip()
