"""A machine for the tool finder: its programs are shell scripts, and official releases are out of reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.places import Places


def prints(path: Path | str, text: str) -> str:
    """Returns a shell line that writes a program, which prints a text."""
    return f"printf '#!/bin/sh\\necho {text}\\n' > {path}; chmod 755 {path}"


class Machine:
    """A machine with nothing on it, below a directory."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.sbin = directory / "bin", directory / "sbin"
        self.bin.mkdir()
        self.sbin.mkdir()
        self.calls_file = directory / "calls"
        self.places = Places(
            directories=(self.bin, self.sbin),
            cache=directory / "grpc-load-balancing",
            releases_url="http://127.0.0.1:9",  # discard: nothing listens there
            root=True,
            policy_file=directory / "policy-rc.d",
        )
        self.cached = self.places.cached(TOOLS["consul"])

    def find(self, name: str = "consul", *, install: bool = True) -> Path:
        """Finds a tool."""
        return find(name, places=self.places, install=install)

    def refusal(self, name: str = "consul", *, install: bool = True) -> str:
        """Returns the message for a tool that is not found."""
        with pytest.raises(ToolError) as raised:
            self.find(name, install=install)
        return str(raised.value)

    def script(self, path: Path | str, *lines: str) -> Path:
        """Writes a shell script; a name is that of a program in the first directory on PATH."""
        path = self.bin / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(("#!/bin/sh", "PATH=/usr/bin:/bin", *lines, "")), encoding="utf-8")
        path.chmod(0o755)
        return path

    def consul(self, path: Path | str = "consul", version: str = "1.22.7") -> Path:
        """Writes a Consul that prints a version."""
        return self.script(path, f"echo Consul v{version}", "echo 'Build Date 1970-01-01T00:00:01Z'")

    def has(self, name: str, *lines: str) -> None:
        """Gives it a program whose calls are recorded."""
        self.script(name, f'echo "$*" >> {self.calls_file}', *lines)

    def calls(self) -> list[str]:
        """Returns the arguments of the recorded calls, without the options of apt."""
        lines = self.calls_file.read_text(encoding="utf-8").splitlines() if self.calls_file.exists() else []
        return [" ".join(word for word in line.split() if not word.startswith("-o=")) for line in lines]
