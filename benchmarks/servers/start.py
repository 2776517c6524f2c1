"""The kinds of servers: how each is built, where that is needed, and started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs

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
    """The server of grpc-go, built into the cache.

    Raises:
        MissingError: it can't be built.
    """
    return programs.go_program("grpc-go", programs.digest(_HERE / "go"), _HERE / "go", ".")


def _python(module: str) -> Command:
    return [sys.executable, "-m", f"benchmarks.servers.{module}"]


def _node() -> Command:
    def make(unfinished: Path) -> None:
        shutil.copy(_HERE / "node" / "package.json", unfinished)
        install: Command = [programs.program("npm"), "install", "--no-package-lock", "--no-audit", "--no-fund"]
        programs.build(install, cwd=unfinished)

    node = programs.program("node")
    modules = programs.kept("grpc-js", programs.digest(_HERE / "node"), "node_modules", make)
    return ["env", f"NODE_PATH={modules}", node, _HERE / "node" / "server.js"]


def _java() -> Command:
    def make(unfinished: Path) -> None:
        shutil.copytree(_HERE / "java", unfinished, dirs_exist_ok=True)
        programs.build([programs.program("mvn"), "-q", "-B", "package"], cwd=unfinished)

    java = programs.program("java")
    jars = programs.kept("grpc-java", programs.digest(_HERE / "java"), "target", make)
    return [java, "-cp", f"{jars}/*", "Main"]


GO = ServerKind(name="grpc-go", command=lambda: [go_server()])
AIO = ServerKind(name="grpc.aio", command=lambda: _python("aio"))
THREADS = ServerKind(name="grpc with threads", command=lambda: _python("threads"))
NODE = ServerKind(name="@grpc/grpc-js", command=_node)
JAVA = ServerKind(name="grpc-java", command=_java)
KINDS = (GO, AIO, THREADS, NODE, JAVA)
