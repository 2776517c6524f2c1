"""The server's metrics, over real calls of every kind in every style of handler."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from grpc_server.calls import Calls
from grpc_server.in_flight import CallsInFlight
from grpc_server.metrics import TYPES, Metrics
from testbed.wait import wait_for

Context = grpc.aio.ServicerContext[bytes, bytes]
SERVICE = "test.Kinds"


class Kinds:
    """Each kind of call in each style; the request gives its end."""

    @staticmethod
    async def _end(request: bytes, context: Context) -> None:
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        if request == b"set":
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        if request == b"raise":
            raise ValueError("a bug")
        if request == b"hang":
            await asyncio.sleep(60)

    async def unary(self, request: bytes, context: Context) -> bytes:
        await self._end(request, context)
        return request

    async def server_yields(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request
        await self._end(request, context)

    async def server_writes(self, request: bytes, context: Context) -> None:
        for _ in range(3):
            await context.write(request)
        await self._end(request, context)

    async def client_iterates(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        last = b""
        async for request in requests:
            last = request
        await self._end(last, context)
        return last

    async def client_reads(self, _requests: AsyncIterator[bytes], context: Any) -> bytes:
        last = b""
        while (request := await context.read()) is not grpc.aio.EOF:
            last = request
        await self._end(last, context)
        return last

    async def bidi_yields(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
            await self._end(request, context)

    async def bidi_writes(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)
            await self._end(request, context)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of the service."""
        kinds: dict[str, list[Any]] = {
            "unary_unary": [self.unary],
            "unary_stream": [self.server_yields, self.server_writes],
            "stream_unary": [self.client_iterates, self.client_reads],
            "stream_stream": [self.bidi_yields, self.bidi_writes],
        }
        made = {
            method.__name__: getattr(grpc, f"{kind}_rpc_method_handler")(method)
            for kind, methods in kinds.items()
            for method in methods
        }
        return grpc.method_handlers_generic_handler(SERVICE, made)


# By method: grpc_type, messages that a call of two requests or one takes and gives.
METHODS = {
    "unary": ("unary", 1, 1),
    "server_yields": ("server_stream", 1, 3),
    "server_writes": ("server_stream", 1, 3),
    "client_iterates": ("client_stream", 2, 1),
    "client_reads": ("client_stream", 2, 1),
    "bidi_yields": ("bidi_stream", 2, 2),
    "bidi_writes": ("bidi_stream", 2, 2),
}


class Server:
    """A server with the handlers and the health service of the real one; its channel and its registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.channel: Any = None

    async def run(self, use: Callable[[Server], Awaitable[None]]) -> None:
        """Serves while ``use`` runs."""
        services: Any = Calls(CallsInFlight(), Metrics(self.registry))
        services.add_generic_rpc_handlers((Kinds().handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), services)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((services,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as self.channel:
            await use(self)
        await server.stop(0)

    async def call(self, method: str, request: bytes, deadline: float = 10) -> str:
        """Makes one call, with two equal requests if it takes a stream; returns its status."""
        path = f"/{SERVICE}/{method}"
        kind = next((kind for kind, name in TYPES.items() if name == METHODS.get(method, ("",))[0]), "unary_unary")
        given = iter([request, request]) if kind.startswith("stream") else request
        call = getattr(self.channel, kind)(path)(given, timeout=deadline)
        try:
            if kind.endswith("stream"):
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    def value(self, name: str, method: str, service: str = SERVICE, **labels: str) -> float:
        """Returns a metric of a method, 0 if it does not exist."""
        kind = METHODS[method][0] if method in METHODS else "server_stream"
        given = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, **labels}
        return self.registry.get_sample_value(name, given) or 0.0

    def codes(self, method: str, service: str = SERVICE) -> dict[str, float]:
        """Returns the number of ended calls of a method by status."""
        return {
            sample.labels["grpc_code"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total"
            and (sample.labels["grpc_service"], sample.labels["grpc_method"]) == (service, method)
        }

    async def settled(self, method: str, count: int, service: str = SERVICE) -> dict[str, float]:
        """Waits until so many calls have ended at the server, later than at the client; returns :meth:`codes`."""
        return await asyncio.to_thread(
            wait_for,
            lambda: self.codes(method, service),
            lambda codes: sum(codes.values()) >= count,
            4,
            "calls end",
            0.02,
        )


def run(use: Callable[[Server], Awaitable[None]]) -> None:
    asyncio.run(Server().run(use))


@pytest.mark.parametrize("method", METHODS)
def test_calls_messages_and_time_are_counted(method: str) -> None:
    async def use(server: Server) -> None:
        _, taken, given = METHODS[method]
        assert await server.call(method, b"fine") == "OK"
        assert await server.call(method, b"fine") == "OK"
        assert await server.settled(method, 2) == {"OK": 2}
        assert server.value("grpc_server_started_total", method) == 2
        assert server.value("grpc_server_msg_received_total", method) == 2 * taken
        assert server.value("grpc_server_msg_sent_total", method) == 2 * given
        assert server.value("grpc_server_handling_seconds_count", method) == 2
        assert 0 < server.value("grpc_server_handling_seconds_sum", method) < 5

    run(use)


@pytest.mark.parametrize("method", METHODS)
def test_every_end_has_its_status(method: str) -> None:
    async def use(server: Server) -> None:
        seen = [await server.call(method, how) for how in (b"abort", b"set", b"raise")]
        assert seen == ["NOT_FOUND", "RESOURCE_EXHAUSTED", "UNKNOWN"]
        assert await server.call(method, b"hang", deadline=0.3) == "DEADLINE_EXCEEDED"
        await server.settled(method, 4)
        hanging = asyncio.create_task(server.call(method, b"hang"))
        begun = functools.partial(server.value, "grpc_server_started_total", method)
        await asyncio.to_thread(wait_for, begun, lambda count: count == 5, 2, "the fifth call begins", 0.01)
        hanging.cancel()
        await server.settled(method, 5)
        expected = ("NotFound", "ResourceExhausted", "Unknown", "DeadlineExceeded", "Canceled")
        assert server.codes(method) == dict.fromkeys(expected, 1)

    run(use)


def test_a_watch_that_the_client_ends_is_counted_when_it_ends() -> None:
    async def use(server: Server) -> None:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert server.value("grpc_server_started_total", "Watch", "grpc.health.v1.Health") == 1
        assert server.codes("Watch", "grpc.health.v1.Health") == {}
        watch.cancel()
        assert await server.settled("Watch", 1, "grpc.health.v1.Health") == {"Canceled": 1}

    run(use)


def test_methods_that_are_not_there_are_not_counted() -> None:
    async def use(server: Server) -> None:
        assert await server.call("nobody", b"") == "UNIMPLEMENTED"
        await asyncio.sleep(0.1)
        assert server.codes("nobody") == {}

    run(use)


def test_many_calls_at_once_are_all_answered_and_counted() -> None:
    async def use(server: Server) -> None:
        methods = list(METHODS) * 100
        seen = await asyncio.gather(*(server.call(method, b"fine") for method in methods))
        assert set(seen) == {"OK"}
        for method in METHODS:
            assert await server.settled(method, 100) == {"OK": 100}

    run(use)


@pytest.fixture(autouse=True, params=["own", "shared"])
def numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Counts as the only process of a server does, and as a worker does."""
    if request.param == "shared":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keeps the stack trace of the handler that raises out of the log."""
    with caplog.at_level("CRITICAL", "grpc"):
        yield
