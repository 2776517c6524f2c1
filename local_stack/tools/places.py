"""The machine as the tool finder sees it."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_stack.errors import UnavailableError
from local_stack.tools.tool import Tool

RELEASES_URL = "https://releases.hashicorp.com"
# PATH often lacks these: the servers' directories, for users other than root, and Go's own (go.dev/doc/install).
_MORE_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/go/bin")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where tools are looked for and kept."""

    directories: tuple[Path, ...]  # with programs, in the order of the search
    cache: Path  # the directory of the downloaded and built tools
    releases_url: str = RELEASES_URL
    root: bool = False  # whether packages may be installed
    policy_file: Path = Path("/usr/sbin/policy-rc.d")  # Debian's packages run it before they start a service

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Places":
        """Reads PATH, XDG_CACHE_HOME, HOME and LOCAL_STACK_RELEASES_URL."""
        names = [name for name in env.get("PATH", os.defpath).split(os.pathsep) if name]
        # A relative XDG_CACHE_HOME is invalid and ignored (XDG Base Directory Specification).
        xdg = Path(env.get("XDG_CACHE_HOME", ""))
        home = Path(env["HOME"]) if env.get("HOME") else Path.home()
        return cls(
            directories=tuple(Path(name).absolute() for name in dict.fromkeys([*names, *_MORE_DIRECTORIES])),
            cache=(xdg if xdg.is_absolute() else home / ".cache") / "grpc-load-balancing",
            releases_url=env.get("LOCAL_STACK_RELEASES_URL", "").rstrip("/") or RELEASES_URL,
            root=os.geteuid() == 0,
        )

    def program(self, name: str) -> str:
        """Returns the path of a program that installs tools; raises UnavailableError if there is none."""
        if found := shutil.which(name, path=os.pathsep.join(map(str, self.directories))):
            return found
        raise UnavailableError(f"{name} is not on PATH")

    def cached(self, tool: Tool) -> Path:
        """Returns the path at which a downloaded or built tool is kept."""
        return self.cache / f"{tool.name}-{tool.version}" / tool.name
