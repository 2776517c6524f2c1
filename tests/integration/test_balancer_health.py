"""The balancer's health prober with real servers, without a stack."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from balancer import probe as module
from balancer.fleet import Health
from balancer.registration import Registration
from testbed.calls import open_channel
from testbed.processes import cpu_seconds
from testbed.wait import wait_for
from tests.support import frames
from tests.support.balancer import descriptors
from tests.support.drivers import ROOT
from tests.support.local import SLOT
from tests.support.prober import Probing, as_json
from tests.support.scripted import RawServer
from tests.support.server_process import PORT, ServerProcess, dripping

NAME = "tests.Health"
Status = health_pb2.HealthCheckResponse
_numbers = itertools.count(1)
# Nothing else is to be told from a check in its turn.
LONG_SECONDS = 60.0


def registered(name: str = NAME, address: str = "", port: int = PORT) -> Registration:
    """A replica at an address of its own."""
    number = next(_numbers)
    address = address or f"127.45.{SLOT * 5 + number // 250}.{number % 250 + 1}"
    return Registration(application="tests", address=address, port=port, weight=1, health=name)


class Server:
    """A gRPC server with a health service, at the address of a replica while the ``with`` block runs."""

    def __init__(
        self,
        registration: Registration,
        *,
        names: tuple[str, ...] = (NAME,),
        service: object = None,
        options: tuple[tuple[str, int], ...] = (),
        most: int | None = None,
    ) -> None:
        self.health = HealthServicer(experimental_thread_pool=ThreadPoolExecutor(2))
        for name in names:
            self.set(Status.SERVING, name)
        own = [("grpc.so_reuseport", 0), *options]
        self._server = grpc.server(ThreadPoolExecutor(4), options=own, maximum_concurrent_rpcs=most)
        if service is not False:
            health_pb2_grpc.add_HealthServicer_to_server(service or self.health, self._server)
        self._server.add_insecure_port(registration.target)
        self.handlers = self._server.add_generic_rpc_handlers
        self.stop = self._server.stop

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0).wait(5)

    def set(self, status: int, name: str = NAME) -> None:
        """Changes its own word on its health."""
        self.health.set(name, status)


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that serves is not asked in turn: only its watch tells of a change."""
    monkeypatch.setattr(module, "SERVING_SECONDS", LONG_SECONDS)


def test_a_server_that_serves_is_serving() -> None:
    replica = registered()
    with Server(replica), Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)


def test_an_address_of_ipv6_is_asked_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as one:
        port = one.getsockname()[1]
    replica = registered(address="::1", port=port)
    with Probing(replica, known=Health.SERVING) as probing:
        probing.wait(replica, Health.REFUSED, 3)
        with Server(replica):
            probing.wait(replica, Health.SERVING, 2)


@pytest.mark.usefixtures("no_turns")
def test_a_server_that_says_it_does_not_serve_is_believed_at_once() -> None:
    replica = registered()
    with Server(replica) as server, Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        for _ in range(3):
            probing.wait(replica, Health.NOT_SERVING, 1, after=lambda: server.set(Status.NOT_SERVING))
            probing.wait(replica, Health.SERVING, 1, after=lambda: server.set(Status.SERVING))


@pytest.mark.usefixtures("no_turns")
def test_the_end_of_a_server_is_seen_at_once() -> None:
    replica = registered()
    with Server(replica) as server, Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        probing.wait(replica, Health.REFUSED, 1, after=lambda: server.stop(None))


def test_a_server_with_a_health_name_that_has_come_back_is_serving_within_half_a_second() -> None:
    replica = registered()
    back = []
    with Probing(replica, known=Health.SERVING) as probing:
        for _ in range(3):
            probing.wait(replica, Health.REFUSED, 3)
            with Server(replica):
                back.append(probing.wait(replica, Health.SERVING, 2))
    # Another program may have the processor, but hardly each time.
    assert min(back) < 0.5, back


@pytest.mark.parametrize("name", [NAME, ""])
def test_where_nobody_listens_a_replica_is_refused(name: str) -> None:
    replica = registered(name)
    with Probing(replica, known=Health.SERVING) as probing:
        probing.wait(replica, Health.REFUSED, 3)


class Answering(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it ships no types
    """A health service that always answers the same."""

    def __init__(self, status: int = Status.SERVING, code: grpc.StatusCode | None = None, watch: bool = True) -> None:
        self._response = Status(status=status)
        self._code = code
        self._watch = watch

    def Check(  # noqa: N802 - gRPC's name
        self, _request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if self._code is not None:
            context.abort(self._code, "as the test says")
        return self._response

    def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        if not self._watch:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no Watch")
        yield self.Check(request, context)
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(30)


@pytest.mark.parametrize(
    ("service", "names", "found"),
    [
        (None, ("other.Name",), Health.WRONG_SERVICE),
        (False, (), Health.WRONG_SERVICE),
        (Answering(Status.SERVICE_UNKNOWN), (), Health.WRONG_SERVICE),
        (Answering(code=grpc.StatusCode.NOT_FOUND), (), Health.WRONG_SERVICE),
        (Answering(code=grpc.StatusCode.UNIMPLEMENTED), (), Health.WRONG_SERVICE),
        (Answering(Status.UNKNOWN), (), Health.NOT_SERVING),
        (Answering(Status.NOT_SERVING), (), Health.NOT_SERVING),
        (Answering(code=grpc.StatusCode.PERMISSION_DENIED), (), Health.SERVING),
        (Answering(watch=False), (), Health.SERVING),
    ],
)
def test_what_a_server_answers_is_what_it_is(service: object, names: tuple[str, ...], found: Health) -> None:
    replica = registered()
    with Server(replica, service=service, names=names), Probing(replica, known=Health.REFUSED) as probing:
        probing.wait(replica, found, 3)
        assert probing.wait_for_answers(replica, 4) == {found}


@contextlib.contextmanager
def raw(registration: Registration, answer: Callable[[int, int], bytes | None]) -> Iterator[RawServer]:
    """A server that nobody else wrote, while the block runs.

    ``answer`` has what is sent on a connection (its number) when it has been made, and for each call (its stream's
    number); None ends it.
    """

    def reply(number: int, found: list[frames.Frame]) -> bytes | None:
        streams = [one.stream for one in found if one.kind == frames.HEADERS] if found else [0]
        said = [answer(number, stream) for stream in streams]
        return None if None in said else b"".join(filter(None, said))

    with contextlib.closing(RawServer(registration.address, registration.port, reply)) as server:
        yield server


OK_HEADER = frames.block([(":status", "200"), ("content-type", "application/grpc")])
OK_TRAILERS = frames.block([("grpc-status", "0")])
# The message SERVING, with a field that this version of the protocol does not know.
SERVES = frames.message(b"\x08\x01" + b"\x7a\x03abc")


def padded(stream: int, part: bytes) -> bytes:
    """A DATA frame with padding."""
    return frames.frame(frames.DATA, frames.PADDED, stream, b"\x05" + part + bytes(5))


def answered(stream: int, body: bytes) -> bytes:
    """A call's answer around its DATA frames; without a call the server's settings."""
    if not stream:
        return frames.settings()
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, OK_HEADER)
    return head + body + frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, OK_TRAILERS)


def in_one(stream: int) -> bytes:
    """An answer in one DATA frame."""
    return answered(stream, frames.frame(frames.DATA, 0, stream, SERVES))


def in_pieces(stream: int) -> bytes:
    """An answer in a DATA frame for each byte, some with padding, some without a byte."""
    pieces = [frames.frame(frames.DATA, 0, stream, bytes([byte])) + padded(stream, b"") for byte in SERVES[:3]]
    return answered(stream, b"".join(pieces) + b"".join(padded(stream, bytes([byte])) for byte in SERVES[3:]))


@pytest.mark.parametrize("answer", [in_one, in_pieces])
def test_an_answer_in_any_number_of_frames_is_understood(answer: Callable[[int], bytes]) -> None:
    replica = registered()
    with raw(replica, lambda _, stream: answer(stream)), Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        assert probing.wait_for_answers(replica, 6) == {Health.SERVING}


HOLD = "/tests.Slot/Hold"


class Slot(grpc.GenericRpcHandler):
    """A method whose calls last until the test ends them."""

    def __init__(self) -> None:
        self.taken, self.end = threading.Event(), threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return grpc.unary_unary_rpc_method_handler(self._hold) if details.method == HOLD else None

    def _hold(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.taken.set()
        self.end.wait(30)
        return request


def held(replica: Registration) -> grpc.StatusCode:
    """The status of a call that lasts until the slot ends."""
    with open_channel(replica.target) as channel:
        try:
            channel.unary_unary(HOLD, request_serializer=bytes, response_deserializer=bytes)(b"", timeout=20)
        except grpc.RpcError as error:
            return grpc.StatusCode(error.code())
    return grpc.StatusCode.OK


def test_a_server_that_has_as_many_calls_as_it_takes_is_serving() -> None:
    replica, slot = registered(), Slot()
    with Server(replica, most=1) as server, ThreadPoolExecutor(1) as calls:
        server.handlers((slot,))
        holding = calls.submit(held, replica)
        assert slot.taken.wait(5)
        with Probing(replica) as probing:
            probing.wait(replica, Health.SERVING, 2)
            assert probing.wait_for_answers(replica, 5) == {Health.SERVING}
        slot.end.set()
        assert holding.result(10) is grpc.StatusCode.OK


def test_the_watch_leaves_a_server_all_the_calls_that_it_takes() -> None:
    replica, slot = registered(), Slot()
    slot.end.set()
    with Server(replica, most=1) as server, Probing(replica) as probing:
        server.handlers((slot,))
        probing.wait(replica, Health.SERVING, 2)
        # The watch has taken the only place; the next check finds none, and that ends the watch.
        wait_for(lambda: held(replica), lambda code: code is grpc.StatusCode.OK, 3, "there is a place for a call")
        # A check takes a moment of it.
        codes = [held(replica) for _ in range(200)]
        assert codes.count(grpc.StatusCode.OK) >= 190
        assert set(probing.of(replica)) == {Health.SERVING}


@pytest.mark.parametrize(("name", "settings"), [(NAME, b""), (NAME, frames.settings()), ("", b"")], ids=str)
def test_a_server_that_accepts_and_does_not_answer_is_found_out_in_time(name: str, settings: bytes) -> None:
    replica = registered(name)
    with raw(replica, lambda _, stream: b"" if stream else settings), Probing(replica, known=Health.SERVING) as probing:
        assert probing.wait(replica, Health.TIMEOUT, 3) < 2
        assert probing.wait_for_answers(replica, 3) == {Health.TIMEOUT}


def test_a_stopped_process_is_found_out_within_about_a_second_and_is_back_within_one() -> None:
    replica = registered("protos.Ping")
    gone, back = [], []
    with ServerProcess("replica", replica.address) as server, Probing(replica) as probing:
        send = server.process.send_signal
        probing.wait(replica, Health.SERVING, 20)
        for _ in range(3):
            gone.append(probing.wait(replica, Health.TIMEOUT, 3, after=partial(send, signal.SIGSTOP)))
            back.append(probing.wait(replica, Health.SERVING, 3, after=partial(send, signal.SIGCONT)))
        assert set(probing.of(replica)) <= {Health.REFUSED, Health.TIMEOUT, Health.SERVING}
    assert min(gone) < 1.1, gone
    assert min(back) < 1, back


def test_a_killed_process_is_refused_and_not_timed_out() -> None:
    replica = registered("protos.Ping")
    with ServerProcess("replica", replica.address) as server, Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 20)
        began = time.monotonic()
        probing.wait(replica, Health.REFUSED, 1, after=server.kill)
        assert Health.TIMEOUT not in probing.of(replica, began)


AGE_SECONDS = 3


@pytest.mark.parametrize("grace_ms", [100, 1000])
def test_a_server_that_ends_old_connections_is_always_serving(grace_ms: int) -> None:
    replica = registered()
    age = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", grace_ms))
    with Server(replica, options=age), Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        began = time.monotonic()
        wait_for(time.monotonic, lambda now: now > began + AGE_SECONDS, AGE_SECONDS + 1, "connections get old")
        assert len(probing.of(replica, began)) >= 3
        assert set(probing.of(replica, began)) == {Health.SERVING}


def test_a_replica_without_a_health_name_serves_if_it_speaks_http_2() -> None:
    replica = registered("")
    with Server(replica, names=(), service=False), Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        assert probing.wait_for_answers(replica, 3) == {Health.SERVING}


@pytest.mark.parametrize("name", [NAME, ""])
@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), None], ids=str
)
def test_what_does_not_speak_http_2_does_not_serve(name: str, said: bytes | None) -> None:
    replica = registered(name)
    with raw(replica, lambda *_: said), Probing(replica, known=Health.SERVING) as probing:
        assert Health.SERVING not in probing.wait_for_answers(replica, 3)


def test_a_replica_without_a_health_name_that_was_gone_waits_for_gossip() -> None:
    replica = registered("")
    ahead = 0.0
    with Probing(replica, known=Health.SERVING, clock=lambda: time.monotonic() + ahead) as probing:
        probing.wait(replica, Health.REFUSED, 3)
        with Server(replica, names=(), service=False):
            began = time.monotonic()
            assert probing.wait_for_answers(replica, 4, began) == {Health.REFUSED}
            ahead = module._GOSSIP_SECONDS
            probing.wait(replica, Health.SERVING, 3)


def test_a_servers_graceful_stop_does_not_wait_for_the_prober() -> None:
    replica = registered()
    with Server(replica) as server, Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        probing.wait_for_answers(replica, 3)
        probing.update()
        began = time.monotonic()
        assert server.stop(grace=10).wait(5)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", [NAME, ""])
@pytest.mark.parametrize("said", [b"", frames.settings()], ids=["silent", "HTTP/2"])
def test_a_replica_that_leaves_at_any_moment_leaves_no_connection(name: str, said: bytes) -> None:
    replica, others = registered(name), registered()
    with raw(replica, lambda _, stream: b"" if stream else said) as server, Probing(others) as probing:
        for number in range(30):
            accepted = server.accepted
            probing.update(replica)
            if number % 3:
                # At another moment of a question each time.
                wait_for(lambda before=accepted: server.accepted - before, bool, 5, "it is asked")  # type: ignore[misc]
            probing.update()
        wait_for(lambda: len(server.open), lambda count: count == 0, 5, "its connections end")


def test_a_replica_that_is_registered_otherwise_is_asked_as_it_is_now() -> None:
    replica = registered("other.Name")
    with Server(replica), Probing(replica) as probing:
        probing.wait(replica, Health.WRONG_SERVICE, 2)
        for now in (replace(replica, health=NAME), replace(replica, health="")):
            probing.wait(replica, Health.SERVING, 2, after=lambda now=now: probing.update(now))  # type: ignore[misc]


def test_a_connection_that_is_dead_is_given_up_for_a_new_one() -> None:
    """A host that was cut off for a while: TCP sends again later and later."""
    replica, dead = registered(), False

    def answer(connection: int, stream: int) -> bytes:
        return b"" if dead and connection <= accepted else in_one(stream)

    with raw(replica, answer) as server, Probing(replica) as probing:
        probing.wait(replica, Health.SERVING, 2)
        accepted, dead = server.accepted, True
        probing.wait(replica, Health.TIMEOUT, 3)
        probing.wait(replica, Health.SERVING, 6)


class Program:
    """The prober as a program that runs in the ``with`` block, and its last word on each replica."""

    def __init__(self, registrations: list[Registration]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.prober"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write(as_json(registrations))
        self._process.stdin.flush()
        self.last: dict[str, tuple[float, Health]] = {}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                at, key, value = json.loads(line)
                self.last[key] = (at, Health(value))

    def processor_share(self) -> float:
        """The part of a core that it takes, over some seconds."""
        before, began = cpu_seconds([self._process.pid]), time.monotonic()
        now = wait_for(time.monotonic, lambda now: now > began + 4, 5, "time passes")
        return (cpu_seconds([self._process.pid]) - before) / (now - began)

    def descriptors(self) -> int:
        """Its open file descriptors."""
        return descriptors(self._process.pid)

    def wait(self, registrations: list[Registration], wanted: Callable[[Health], bool], seconds: float) -> None:
        """Waits until that is said of all."""

        def others() -> list[object]:
            known = [(one.key, self.last.get(one.key, (0, Health.SERVING))[1]) for one in registrations]
            return [(key, health) for key, health in known if not wanted(health)]

        wait_for(others, lambda left: not left, seconds, "it is said of all")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._thread.join()


@pytest.fixture
def crowd() -> Iterator[list[Registration]]:
    """150 replicas that are gone and 300 that hang, half of them with a health name."""
    with dripping() as port:
        yield [registered((NAME, "")[number % 2], port=port if number % 3 else PORT) for number in range(450)]


@contextlib.contextmanager
def all_serving(registrations: list[Registration]) -> Iterator[None]:
    """A server for each, which all end at once."""
    with contextlib.ExitStack() as servers:
        for one in registrations:
            servers.enter_context(Server(one))
        yield


def test_replicas_that_are_gone_or_hang_disturb_neither_others_nor_the_machine(crowd: list[Registration]) -> None:
    real, back = [registered() for _ in range(3)], []
    with Program([*crowd, *real]) as probing:
        with all_serving(real):
            # All are taken to serve, and all are asked in their turn.
            probing.wait(crowd, lambda health: health is not Health.SERVING, 40)
            probing.wait(real, lambda health: health is Health.SERVING, 10)
            # A slow machine needs 0.16; without pauses between questions it would be all of a core.
            assert probing.processor_share() < 0.3
            assert probing.descriptors() < 500
        for _ in range(3):
            probing.wait(real, lambda health: health is Health.REFUSED, 5)
            with all_serving(real):
                began = time.monotonic()
                probing.wait(real, lambda health: health is Health.SERVING, 5)
                back.append(max(probing.last[one.key][0] for one in real) - began)
    assert min(back) < 2, back


class Flooding(Answering):
    """A health service whose watch never stops talking."""

    def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        while context.is_active():
            yield self.Check(request, context)


def test_a_replica_that_floods_its_watch_takes_little_of_the_processor() -> None:
    replica = registered()
    with Server(replica, service=Flooding()), Program([replica]) as probing:
        probing.wait([replica], lambda health: health is Health.SERVING, 10)
        assert probing.processor_share() < 0.15
