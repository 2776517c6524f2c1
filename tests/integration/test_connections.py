"""LB_MAX_CONNECTIONS_PER_ADDRESS with real connections."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from protos import api_pb2_grpc
from testbed.calls import greet, open_channel
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support import frames
from tests.support.certificates import Authority
from tests.support.control_plane import Balancer, serving
from tests.support.local import SLOT
from tests.support.relay import Relay
from tests.support.server_process import NETWORK, ServerProcess

# The first of three: calls, status, calls without TLS. test_tls_hostile.py has the next three.
_PORT = 29000 + 6 * SLOT
_LIMIT = 20
ATTACKER, NEIGHBOUR = "127.0.0.66", "127.0.0.67"
REFUSED = "RESOURCE_EXHAUSTED too many connections from this address"
Start = Callable[..., Balancer]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("server-1", f"{NETWORK}.9.1") as one:
        yield one


@pytest.fixture
def start(processes: Processes, tools: None, server: ServerProcess) -> Iterator[Start]:  # noqa: ARG001
    """Starts a balancer with the limit and some variables, in front of the server."""
    with ExitStack() as leave:

        def make(**variables: str) -> Balancer:
            own = {"LB_MAX_CONNECTIONS_PER_ADDRESS": str(_LIMIT), "LB_LISTEN": f"127.0.0.1:{_PORT}"}
            return leave.enter_context(serving(processes, _PORT, {**own, **variables}, server))

        yield make


class Caller:
    """A gRPC client with a source address and one connection; leaving the ``with`` block ends it."""

    def __init__(self, target: str, source: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._relay = Relay(target, source)
        self._channel = open_channel(self._relay.target, credentials)
        self._ping = api_pb2_grpc.PingStub(self._channel)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._relay.__exit__()

    def call(self) -> str:
        """Returns the answer, or the status with its message."""
        try:
            return greet(self._ping)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"


def connect(target: str, source: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), 5, (source, 0))


def test_an_address_with_too_many_idle_connections_is_refused_and_no_other(start: Start) -> None:
    one = start()
    with Caller(one.target, ATTACKER) as attacker, Caller(one.target, NEIGHBOUR) as neighbour, ExitStack() as idle:
        for source, count in ((ATTACKER, _LIMIT - 1), (NEIGHBOUR, _LIMIT - 1)):
            for _ in range(count):
                idle.enter_context(connect(one.target, source)).sendall(frames.PREFACE)
        # With their own connections both have as many as they may.
        assert [attacker.call(), neighbour.call()] == ["server-1"] * 2
        with connect(one.target, ATTACKER) as more:
            more.sendall(frames.PREFACE)
            wait_for(attacker.call, REFUSED.__eq__, 5, "the attacker's calls are refused")
            assert neighbour.call() == "server-1"
            assert f"refusing addresses=1 {ATTACKER} ({_LIMIT + 1})" in one.control_plane.log()
        wait_for(attacker.call, "server-1".__eq__, 15, "the attacker may call again")
        assert neighbour.call() == "server-1"


def test_handshakes_of_such_an_address_are_refused_and_no_other(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("balancer", ("localhost", "127.0.0.1"))
    one = start(LB_TLS_CERTIFICATE=str(pair.certificate), LB_TLS_KEY=str(pair.key))
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(["h2"])

    def handshake(source: str, leave: ExitStack) -> str:
        connection = leave.enter_context(connect(one.target, source))
        try:
            leave.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
        except (ssl.SSLError, ConnectionError):
            return "refused"
        return "accepted"

    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
    with ExitStack() as open_ones, Caller(one.target, NEIGHBOUR, credentials) as neighbour:
        assert neighbour.call() == "server-1"
        wait_for(lambda: handshake(ATTACKER, open_ones), "refused".__eq__, 20, "a handshake is refused")
        with ExitStack() as later:
            assert [handshake(ATTACKER, later) for _ in range(20)] == ["refused"] * 20
            assert handshake(NEIGHBOUR, later) == "accepted"
        assert neighbour.call() == "server-1"
        lines = one.nginx.tail().splitlines()
        assert not [line for line in lines if any(word in line for word in ("[error]", "[crit]", "[alert]"))]
    with ExitStack() as later:
        wait_for(lambda: handshake(ATTACKER, later), "accepted".__eq__, 15, "the attacker may connect again")


def test_connections_of_other_ports_and_of_ipv6_count_by_their_own_address(start: Start) -> None:
    one = start(LB_LISTEN=f"127.0.0.1:{_PORT} [::1]:{_PORT + 2}")
    with ExitStack() as idle, Caller(one.target, NEIGHBOUR) as neighbour, open_channel(f"[::1]:{_PORT + 2}") as own:
        for _ in range(_LIMIT):
            idle.enter_context(socket.create_connection(("::1", _PORT + 2), 5)).sendall(frames.PREFACE)
            # Those of the status port do not count.
            idle.enter_context(socket.create_connection(("127.0.0.1", _PORT + 1), 5, (NEIGHBOUR, 0)))

        def call() -> str:
            try:
                return greet(api_pb2_grpc.PingStub(own))
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}"

        wait_for(call, REFUSED.__eq__, 5, "the calls of ::1 are refused")
        assert neighbour.call() == "server-1"
