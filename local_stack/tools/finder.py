"""The ways to get a tool, one after the other."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from local_stack.errors import ToolError, UnavailableError, say
from local_stack.tools import binary_check, gobuild, packages, release
from local_stack.tools.cache import keep
from local_stack.tools.places import RELEASES_URL, Places
from local_stack.tools.tool import TOOLS, Tool

Way = Callable[[Tool, Places], Path]


def find(name: str, *, install: bool = True, places: Places | None = None) -> Path:
    """Returns the path of a suitable program; installs, downloads or builds one if the machine has none.

    Args:
        name: "nginx", "consul" or "consul-template".
        install: whether to go beyond PATH and the cache; a step that takes time is announced on stderr.
        places: the machine; by default that of the process's environment.

    Raises:
        ToolError: it was not found; with one line for each way that was tried, and the remedy by hand.
    """
    if name not in TOOLS:
        raise ToolError(f"tool: must be one of {', '.join(TOOLS)} (got {name!r})")
    tool, places = TOOLS[name], places or Places.from_env(os.environ)
    looks: dict[str, Way] = {"on PATH": binary_check.on_path}
    installs: dict[str, Way] = {"distribution's package": packages.install}
    if go := tool.go:
        looks["in the cache"] = binary_check.in_cache
        installs["official release"] = partial(_keep, release.download)
        installs["built with Go"] = partial(_keep, lambda tool, *to: gobuild.build(go, str(tool), *to))
    reasons: list[str] = []
    said = 0
    for title, way in (looks | installs if install else looks).items():
        # The reasons are of interest only when something is installed.
        while title in installs and said < len(reasons):
            say(f"{tool}: {reasons[said]}")
            said += 1
        try:
            return way(tool, places)
        except (UnavailableError, OSError) as error:
            reasons.append(f"{title}: {error}")
    if not install:
        reasons.append("nothing was installed, as asked")
    raise ToolError("\n  ".join([f"{tool.wanted} was not found:", *reasons, _by_hand(tool, places)]))


def _keep(make: Callable[[Tool, Places, Path], None], tool: Tool, places: Places) -> Path:
    """Makes a tool and puts it into the cache, if it is suitable."""
    cached = places.cached(tool)

    def make_suitable(directory: Path) -> None:
        make(tool, places, directory)
        if reason := binary_check.unsuitable(tool, directory / tool.name):
            raise UnavailableError(reason)

    keep(cached.parent, str(tool), lambda: not binary_check.unsuitable(tool, cached), make_suitable)
    return cached


def _by_hand(tool: Tool, places: Places) -> str:
    if tool.go:
        url = f"{RELEASES_URL}/{tool.name}/{tool.version}/"
        go = f"install Go {tool.go.go_version} or newer (https://go.dev/dl/) and run this again"
        return f"by hand: put {tool.name} from {url} on PATH, or {go}"
    if command := packages.command(tool, places):
        return f"by hand, as root: {' '.join(command)}"
    return f"by hand: install {tool.wanted}, and put it on PATH"
