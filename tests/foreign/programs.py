"""Builds and starts the server and the clients of each library.

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
        server, client, greeter: what starts them without the last arguments: an address, of a greeter some targets.
            They raise MissingError where a toolchain is missing. None for what is not tried.
    """

    name: str
    server: Callable[[], Command] | None = None
    client: Callable[[], Command] | None = None
    greeter: Callable[[], Command] | None = None


def _python(*arguments: str) -> Command:
    return [sys.executable, "-m", *arguments]


def go(role: str) -> Command:
    """Returns what starts a role of the program in Go, an argument short."""
    source = _HERE / "go"
    return [programs.go_program("foreign", programs.digest(source), source, "."), role]


def _node(role: str) -> Command:
    return [*programs.node("foreign-node", _HERE / "node"), _HERE / "node" / "main.js", role]


def _java(role: str) -> Command:
    # Of the compilers only the one that is quick: it starts in half the time, and nothing is measured.
    return [*programs.java("foreign-java", _HERE / "java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "Main", role]


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


def _in_one_program(name: str, start: Callable[[str], Command]) -> Library:
    roles = {"server": "server", "client": "client", "greeter": "greet"}
    return Library(name=name, **{field: partial(start, role) for field, role in roles.items()})


LIBRARIES = (
    Library(
        name="grpcio-threads",
        server=partial(_python, "tests.foreign.python_server", "threads"),
        client=partial(_python, "tests.foreign.python_client"),
        greeter=partial(_python, "tests.foreign.python_greeter"),
    ),
    Library(name="grpc.aio", server=partial(_python, "tests.foreign.python_server", "aio")),
    _in_one_program("grpc-go", go),
    _in_one_program("grpc-js", _node),
    _in_one_program("grpc-java", _java),
    Library(name="tonic", server=partial(_rust, "server"), client=partial(_rust, "client")),
)


def libraries(*names: str) -> list[Library]:
    """Returns some of them, by name."""
    return [one for one in LIBRARIES if one.name in names]


def main() -> None:
    for library in LIBRARIES:
        for make in (library.server, library.client, library.greeter):
            if make:
                print(*make())
    print(tool("grpcurl").parent)
    print(prometheus())


if __name__ == "__main__":
    main()
