"""Builds and starts the server and the client of each library.

``python -m tests.foreign.programs`` builds them all.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from testbed import programs

_HERE = Path(__file__).parent
Command = list[str | Path]


@dataclass(frozen=True, kw_only=True)
class Library:
    """A gRPC library.

    Attributes:
        name: as its project calls it.
        server, client: what starts them, an argument short: the address. They raise MissingError where a toolchain is
            missing. None for one that is tried as the other only.
    """

    name: str
    server: Callable[[], Command] | None = None
    client: Callable[[], Command] | None = None


def _python(*arguments: str) -> Command:
    return [sys.executable, "-m", *arguments]


def go(role: str) -> Command:
    """Returns what starts a role of the program in Go, an argument short."""
    source = _HERE / "go"
    return [programs.go_program("foreign", programs.digest(source), source, "."), role]


def _node(role: str) -> Command:
    return [*programs.node("foreign-node", _HERE / "node"), _HERE / "node" / "main.js", role]


def _java(role: str) -> Command:
    return [*programs.java("foreign-java", _HERE / "java"), "Main", role]


def _rust(role: str) -> Command:
    def make(unfinished: Path) -> None:
        shutil.copytree(_HERE / "rust", unfinished, dirs_exist_ok=True)
        # Without optimization: it takes half the time to build, and nothing is measured.
        programs.build([programs.program("cargo"), "build", "--quiet"], cwd=unfinished)

    return [programs.kept("foreign-rust", programs.digest(_HERE / "rust"), "target/debug/foreign", make), role]


def tool(name: str) -> Path:
    """``grpcurl``, or ``client`` or ``server`` of gRPC's interoperability suite.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    source = _HERE / "tools"
    return programs.go_program("foreign-tools", programs.digest(source), source, "tool", file=name)


def prometheus() -> Path:
    """Prometheus' own discovery of targets.

    Raises:
        MissingError: there is no Go, or it does not build.
    """
    source = _HERE / "prometheus"
    return programs.go_program("foreign-prometheus", programs.digest(source), source, ".", file="prometheus")


LIBRARIES = (
    Library(
        name="grpcio-threads",
        server=partial(_python, "tests.foreign.python_server", "threads"),
        client=partial(_python, "tests.foreign.python_client"),
    ),
    Library(name="grpc.aio", server=partial(_python, "tests.foreign.python_server", "aio")),
    Library(name="grpc-go", server=partial(go, "server"), client=partial(go, "client")),
    Library(name="grpc-js", server=partial(_node, "server"), client=partial(_node, "client")),
    Library(name="grpc-java", server=partial(_java, "server"), client=partial(_java, "client")),
    Library(name="tonic", server=partial(_rust, "server"), client=partial(_rust, "client")),
)


def libraries(*names: str) -> list[Library]:
    """Returns some of them, by name."""
    return [one for one in LIBRARIES if one.name in names]


def main() -> None:
    for library in LIBRARIES:
        for make in (library.server, library.client):
            if make:
                print(*make())
    print(tool("grpcurl").parent)
    print(prometheus())


if __name__ == "__main__":
    main()
