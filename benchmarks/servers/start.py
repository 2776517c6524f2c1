"""Builds and starts the kinds of servers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import programs

_HERE = Path(__file__).parent
Command = list[str | Path]


@dataclass(frozen=True, kw_only=True)
class ServerKind:
    """A kind of server.

    Attributes:
        name: as its project calls it.
        command: what starts it, an argument short: the address to serve at. Raises MissingError where the server can't
            be built.
    """

    name: str
    command: Callable[[], Command]


def go_server() -> Path:
    """Returns the server of grpc-go, built into the cache.

    Raises:
        MissingError: it can't be built.
    """
    return programs.go_program("grpc-go", programs.digest(_HERE / "go"), _HERE / "go", ".")


def _python(module: str) -> Command:
    return [sys.executable, "-m", f"benchmarks.servers.{module}"]


def _node() -> Command:
    return [*programs.node("grpc-js", _HERE / "node"), _HERE / "node" / "server.js"]


def _java() -> Command:
    return [*programs.java("grpc-java", _HERE / "java"), "Main"]


GO = ServerKind(name="grpc-go", command=lambda: [go_server()])
AIO = ServerKind(name="grpc.aio", command=lambda: _python("aio"))
THREADS = ServerKind(name="grpc with threads", command=lambda: _python("threads"))
NODE = ServerKind(name="@grpc/grpc-js", command=_node)
JAVA = ServerKind(name="grpc-java", command=_java)
# The original's, with a line of log a call.
ORIGINAL = ServerKind(name="the original's server", command=lambda: [go_server(), "-name", "hello_server-1"])
KINDS = (GO, AIO, THREADS, NODE, JAVA)
