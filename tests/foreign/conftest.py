"""A server of each library, direct and behind the balancer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.balancers import LuaNginx
from testbed.errors import MissingError
from testbed.processes import Processes
from testbed.programs import ROOT
from testbed.wait import wait_for
from tests.foreign.programs import LIBRARIES, Command, Library, libraries
from tests.support.frames import PREFACE
from tests.support.local import SLOT
from tests.support.missing import missing

CASE_SECONDS = 60
GREETING = [one for one in LIBRARIES if one.greeter]
_DEADLINE_EXCEEDED = 4
# Headers that differ between clients, and are not the caller's metadata.
_CONNECTIONS_OWN = (
    "user-agent",
    "content-type",
    "te",
    "grpc-accept-encoding",
    "accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
)
# host: nginx before 1.26 sends it in place of :authority.
_BALANCERS_OWN = ("x-request-id", "host", ":authority")


def wait_until_listening(target: str) -> None:
    """Waits until something speaks HTTP/2 at an address.

    Before nginx starts, ``nginx -t`` listens there for a moment.
    """
    wait_for(lambda: speaks(target), bool, 15, f"something listens at {target}", 0.05)


def speaks(target: str) -> bool:
    """Returns whether a connection gets a server's first frame."""
    host, _, port = target.rpartition(":")
    with socket.socket() as connection, suppress(OSError):
        connection.settimeout(1)
        connection.connect((host, int(port)))
        connection.sendall(PREFACE)
        return bool(connection.recv(1))
    return False


def balanced(balancer: LuaNginx, target: str) -> LuaNginx:
    """Starts a balancer of one replica, which need not be there; returns it when it listens."""
    balancer.start([target], ready=wait_until_listening)
    return balancer


@dataclass
class Served:
    """A library's server, at an address of its own, and a balancer in front of it."""

    library: Library
    direct: str
    balancer: LuaNginx

    @property
    def through(self) -> str:
        return self.balancer.target

    def attach(self) -> str:
        """Returns the balancer's last lines, for the report of a failed test."""
        return self.balancer.tail()


@dataclass
class Client:
    """A library's client."""

    library: Library
    command: Command

    @classmethod
    def of(cls, library: Library) -> Client:
        assert library.client
        return cls(library, built(library.client))

    def run(
        self, target: str, cases: list[dict[str, Any]], options: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Returns the results of all calls."""
        done = subprocess.run(
            [*map(str, self.command), target],
            input=json.dumps(cases),
            env={**os.environ, "FOREIGN_OPTIONS": json.dumps(options or {})},
            capture_output=True,
            text=True,
            timeout=CASE_SECONDS,
            check=False,
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(found) == sum(case.get("at_once", 1) for case in cases), done.stderr
        return [comparable(one) for one in found]


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a result without the differences of two connections: their metadata, the order of names."""
    code, message = result["status"]
    return {
        # A deadline ends a call at the client or at the server, with different messages.
        "status": [code, "" if code == _DEADLINE_EXCEEDED else message],
        "initial": sorted(_callers(result["initial"])),
        "trailing": sorted(_callers(result["trailing"])),
        "answers": [{**one, "metadata": sorted(_callers(one["metadata"]))} for one in result["answers"]],
    }


def _callers(pairs: list[list[str]] | None) -> list[list[str]]:
    # Some servers send the date.
    return [
        pair
        for pair in pairs or []
        if pair[0] not in (*_CONNECTIONS_OWN, *_BALANCERS_OWN) and not (pair[0] == "date" and "GMT" in pair[1])
    ]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the processes of foreign tests."""
    return tmp_path_factory.mktemp("foreign")


def built(make: Callable[[], Command]) -> Command:
    """Builds a program; skips the test where its toolchain is missing, and fails it in CI."""
    try:
        return make()
    except MissingError as error:
        missing(str(error))


@contextmanager
def serving(
    library: Library, address: str, started: Processes, options: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Runs the library's server at an address."""
    assert library.server
    command = built(library.server)
    env = {"FOREIGN_OPTIONS": json.dumps(options or {})}
    server = started.start(f"server-{library.name}", [*command, address], cwd=ROOT, env=env)
    wait_for(
        lambda: started.tail(f"server-{library.name}"),
        lambda text: "serving" in text or server.poll() is not None,
        30,
        "it serves",
    )
    yield
    started.stop(server)


@pytest.fixture(scope="session", params=[one for one in LIBRARIES if one.server], ids=lambda one: one.name)
def served(request: pytest.FixtureRequest, tools: None, directory: Path) -> Iterator[Served]:  # noqa: ARG001
    """Each server, and a balancer before it."""
    library = request.param
    number = LIBRARIES.index(library)
    direct = f"127.{100 + SLOT}.250.{number + 1}:7777"
    with Processes(directory) as started, serving(library, direct, started):
        yield Served(library, direct, balanced(LuaNginx(started, 23000 + 30 * SLOT + 3 * number), direct))


before_grpc_go = pytest.mark.parametrize("served", libraries("grpc-go"), ids=["grpc-go"], indirect=True)


@pytest.fixture(scope="session", params=[one for one in LIBRARIES if one.client], ids=lambda one: one.name)
def client(request: pytest.FixtureRequest) -> Client:
    return Client.of(request.param)


@pytest.fixture(scope="session")
def greeters() -> dict[str, Command]:
    """What starts each client that greets, but those whose toolchain is missing: their other tests say so."""
    found = {}
    for library in GREETING:
        assert library.greeter
        try:
            found[library.name] = library.greeter()
        except MissingError:
            continue
    return found
