"""The ways to get a tool, one after the other."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from local_stack.tools import cache, gobuild, packages, probe, release
from local_stack.tools.catalogue import TOOLS, Tool
from local_stack.tools.errors import ToolError, UnavailableError
from local_stack.tools.places import RELEASES_URL, Places
from local_stack.tools.progress import say

Way = Callable[[Tool, Places], Path]


def find(tool: str, *, install: bool = True, places: Places | None = None) -> Path:
    """Return the path of a suitable program; get it first if there is none.

    It is looked for on PATH and in the cache, then comes from the distribution's package, the official
    release or a build with Go. What takes time is announced on stderr.

    Args:
        tool: "nginx", "consul" or "consul-template".
        install: whether to go beyond PATH and the cache.
        places: the machine; by default as the process's environment says.

    Raises:
        ToolError: with one line for each way that did not lead to it, and what to install by hand.

    """
    if tool not in TOOLS:
        raise ToolError(f"{tool} is none of {', '.join(TOOLS)}")
    return _find(TOOLS[tool], places or Places.from_env(os.environ), install=install)


def _find(tool: Tool, places: Places, *, install: bool) -> Path:
    looks = _looks(tool)
    reasons: list[str] = []
    said = 0
    for name, way in (looks | (_installs(tool) if install else {})).items():
        if name not in looks:
            # Only now is it of interest why the ways before did not lead to it.
            for reason in reasons[said:]:
                say(f"{tool}: {reason}")
            said = len(reasons)
        try:
            return way(tool, places)
        except (UnavailableError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise ToolError(_report(tool, places, reasons, install=install))


def _looks(tool: Tool) -> dict[str, Way]:
    """Return the ways that change nothing; what is neither downloaded nor built is never in the cache."""
    ways: dict[str, Way] = {"on PATH": probe.on_path}
    if tool.go:
        ways["in the cache"] = probe.in_cache
    return ways


def _installs(tool: Tool) -> dict[str, Way]:
    """Return the ways that install something."""
    ways: dict[str, Way] = {"distribution's package": packages.install}
    if tool.go:
        ways["official release"] = partial(_once, release.download)
        ways["built with Go"] = partial(_once, gobuild.build)
    return ways


def _once(make: Way, tool: Tool, places: Places) -> Path:
    """Put a tool into the cache, unless another process has by the time that this one may."""
    with cache.exclusive(tool, places):
        with suppress(UnavailableError):
            return probe.in_cache(tool, places)
        return make(tool, places)


def _report(tool: Tool, places: Places, reasons: list[str], *, install: bool) -> str:
    """Say what was tried, and what can be done by hand."""
    lines = [f"{tool.wanted} was not found:", *(f"  {reason}" for reason in reasons)]
    if not install:
        lines.append("  nothing was installed, as asked")
    command = packages.command(tool, places)
    if tool.go:
        lines.append(
            f"  by hand: put {tool.name} from {RELEASES_URL}/{tool.name}/{tool.version}/ on PATH,"
            f" or install Go {tool.go.go_version} or newer (https://go.dev/dl/) and run this again"
        )
    elif command:
        lines.append(f"  by hand, as root: {' '.join(command)}")
    else:
        lines.append(f"  by hand: install {tool.wanted}, and put it on PATH")
    return "\n".join(lines)
