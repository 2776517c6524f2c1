"""``run_load`` as other tests use it: in the event loop of the server that it calls."""

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from grpc_client.errors import CallFailedError
from grpc_client.load import run_load
from grpc_client.options import Options
from grpc_client.report import LoadReport
from grpc_client.tally import Tally
from protos.api_pb2 import PingMessage
from testbed.wait import wait_for
from tests.support.served import Context, ping_handler, served


class Ping:
    """A Ping server that counts calls and connections, and whose answers can be held back or made to fail."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.open = asyncio.Event()
        self.open.set()
        self.fail = False

    @property
    def calls(self) -> int:
        return len(self.peers)

    async def say_hello(self, _request: PingMessage, context: Context) -> PingMessage:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.peers.append(context.peer())
        await self.open.wait()
        self.in_flight -= 1
        if self.fail:
            await context.abort(grpc.StatusCode.ABORTED, "told to fail")
        return PingMessage(greeting="Hello from aaa.")


def ping_server(ping: Ping, *, port: int = 0) -> contextlib.AbstractAsyncContextManager[int]:
    """Serves on a port, by default on a free one, and yields it; answers every call before the end."""
    return served(ping_handler(ping.say_hello), port=port, grace_seconds=10)


def load(ping: Ping, **options: Any) -> LoadReport:
    """Runs a load against a server of its own."""

    async def scenario() -> LoadReport:
        async with ping_server(ping) as port:
            return await run_load(Options(host="127.0.0.1", port=port, **options))

    return asyncio.run(scenario())


def start_load(port: int, **options: Any) -> tuple[asyncio.Task[LoadReport], Tally, asyncio.Event]:
    """Starts a load; returns its task, its tally and the event that stops it."""
    tally, stop = Tally(), asyncio.Event()
    load = run_load(Options(host="127.0.0.1", port=port, **options), stop=stop, tally=tally)
    return asyncio.create_task(load), tally, stop


async def reached(tally: Tally, calls: int) -> None:
    """Waits until the load has made so many calls."""
    await asyncio.to_thread(wait_for, lambda: tally.calls, lambda made: made >= calls, 30, f"{calls} calls", 0.01)


def test_count_is_the_number_of_calls_the_server_gets() -> None:
    ping = Ping()
    report = load(ping, count=101, concurrency=7)
    assert (report.ok, report.failed, ping.calls) == (101, 0, 101)
    assert report.replicas == {"aaa": 101}


def test_concurrency_is_the_number_of_calls_in_flight() -> None:
    async def scenario() -> int:
        ping = Ping()
        ping.open.clear()
        async with ping_server(ping) as port:
            running, _, _ = start_load(port, count=300, concurrency=6)
            await asyncio.to_thread(
                wait_for, lambda: ping.in_flight, lambda calls: calls == 6, 30, "six calls in flight"
            )
            ping.open.set()
            await running
        return ping.most_in_flight

    assert asyncio.run(scenario()) == 6


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_is_the_number_of_connections_the_server_sees(connections: int) -> None:
    ping = Ping()
    load(ping, count=30, concurrency=6, connections=connections)
    assert len(set(ping.peers)) == connections


def test_calls_in_flight_at_the_end_of_the_duration_are_answered() -> None:
    async def scenario() -> tuple[LoadReport, int]:
        ping = Ping()
        ping.open.clear()
        async with ping_server(ping) as port:
            running, _, _ = start_load(port, duration_seconds=0.2, concurrency=4)
            done, _ = await asyncio.wait([running], timeout=0.5)
            assert not done
            ping.open.set()
            return await running, ping.calls

    report, calls = asyncio.run(scenario())
    assert (report.ok, report.failed, calls) == (4, 0, 4)
    assert report.slowest.milliseconds > 200


def test_the_rate_is_kept() -> None:
    report = load(Ping(), duration_seconds=2, rate=100, concurrency=4)
    assert 150 <= report.ok <= 201
    assert report.seconds == pytest.approx(2, abs=0.5)


def test_a_slow_rate_ends_with_the_duration() -> None:
    report = load(Ping(), duration_seconds=0.3, rate=0.1)
    assert report.ok == 1
    assert report.seconds < 5


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_set_event_stops_the_load_early(rate: float | None) -> None:
    async def scenario() -> LoadReport:
        async with ping_server(Ping()) as port:
            running, tally, stop = start_load(port, duration_seconds=300, rate=rate)
            await reached(tally, 1)
            stop.set()
            return await running

    report = asyncio.run(scenario())
    assert report.failed == 0
    assert report.seconds < 60


def test_the_report_says_when_calls_failed() -> None:
    async def scenario() -> tuple[LoadReport, float, float]:
        ping = Ping()
        async with ping_server(ping) as port:
            running, tally, stop = start_load(port, duration_seconds=300, rate=200)
            await reached(tally, 20)
            began, ping.fail = tally.seconds, True
            await reached(tally, tally.calls + 20)
            ended, ping.fail = tally.seconds, False
            await reached(tally, tally.calls + 20)
            stop.set()
            return await running, began, ended

    report, began, ended = asyncio.run(scenario())
    moments = [event.seconds for event in report.error_events]
    assert report.errors == {"ABORTED": len(moments)}
    assert began <= moments[0] <= moments[-1] <= ended + 1
    assert report.ok >= 40


def test_no_call_ends_unavailable_when_the_server_comes_back_within_the_retries() -> None:
    async def scenario() -> LoadReport:
        ping = Ping()
        async with ping_server(ping) as port:
            running, tally, stop = start_load(port, duration_seconds=300, rate=50, concurrency=2)
            await reached(tally, 10)
        async with ping_server(ping, port=port):
            await reached(tally, tally.calls + 20)
            stop.set()
            return await running

    # A call that comes just as a grpc.aio server stops is CANCELLED now and then, which is not retried.
    assert "UNAVAILABLE" not in asyncio.run(scenario()).errors


def test_no_server_at_the_start_is_an_error_that_names_it() -> None:
    async def scenario() -> None:
        async with ping_server(Ping()) as port:
            pass
        with pytest.raises(CallFailedError, match=rf"127\.0\.0\.1:{port}: UNAVAILABLE: ") as caught:
            await run_load(Options(host="127.0.0.1", port=port, count=5, connections=2))
        assert caught.value.status == "UNAVAILABLE"

    asyncio.run(scenario())


def test_each_call_starts_on_the_next_connection() -> None:
    ping = Ping()
    load(ping, count=9, connections=3)
    assert len(set(ping.peers)) == 3
    assert ping.peers == ping.peers[:3] * 3
