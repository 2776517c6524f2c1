"""Makes many calls to Ping at once; tests use :func:`run_load` too."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from typing import TypeAlias

import grpc

from grpc_client.channel import connect, open_channel
from grpc_client.options import Options
from grpc_client.report import LoadReport
from grpc_client.tally import Tally
from protos import api_pb2

SAY_HELLO = "/protos.Ping/SayHello"
# Timers fire some milliseconds late. Late starts are made up for within this time, so that the load keeps its rate but
# sends no burst to a server that hangs for longer.
_CATCH_UP_SECONDS = 0.1

_Methods: TypeAlias = "Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]"


async def run_load(options: Options, *, stop: asyncio.Event | None = None, tally: Tally | None = None) -> LoadReport:
    """Calls ``Ping/SayHello`` as the options say and returns the report.

    Connects first and then starts the clock. Waits for the calls in flight at the end.

    Args:
        options: the settings of the load.
        stop: no call starts once it is set.
        tally: gets the counts, so that the caller can watch the load.

    Raises:
        CallFailedError: the first connections failed. Later failures are in the report.
    """
    tally = tally or Tally()
    calls = options.count or (math.inf if options.duration_seconds is not None else 1)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(open_channel(options)) for _ in range(int(min(options.connections, calls)))
        ]
        await asyncio.gather(*(connect(channel, options) for channel in channels))
        tally.start()
        schedule = _Schedule(options, calls, stop or asyncio.Event())
        # Without (de)serializers, because the request is serialized once and each different answer is parsed once.
        methods: _Methods = itertools.cycle([channel.unary_unary(SAY_HELLO) for channel in channels])
        async with asyncio.TaskGroup() as group:
            for _ in range(int(min(options.concurrency, calls))):
                group.create_task(_work(options, schedule, methods, tally))
        tally.end()
    return LoadReport.from_tally(tally)


class _Schedule:
    """Decides when the next call starts, for all workers."""

    def __init__(self, options: Options, calls: float, stop: asyncio.Event) -> None:
        now = time.perf_counter()
        self._calls_left = calls
        self._deadline = now + (options.duration_seconds or math.inf)
        self._interval_seconds = 1 / options.rate if options.rate else 0.0
        self._next_start = now
        self._stop = stop

    async def may_start(self) -> bool:
        """Waits until the next call is due; returns False if the load is over."""
        if not self._calls_left or self._stop.is_set() or time.perf_counter() >= self._deadline:
            return False
        self._calls_left -= 1
        if not self._interval_seconds:
            return True
        due = max(self._next_start, time.perf_counter() - _CATCH_UP_SECONDS)
        self._next_start = due + self._interval_seconds
        return await self._wait_until(due)

    async def _wait_until(self, due: float) -> bool:
        wait_seconds = min(due, self._deadline) - time.perf_counter()
        if wait_seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._stop.wait()
        return not self._stop.is_set() and due < self._deadline


async def _work(options: Options, schedule: _Schedule, methods: _Methods, tally: Tally) -> None:
    request = api_pb2.PingMessage(greeting=options.greeting).SerializeToString()
    clock = tally.clock
    while await schedule.may_start():
        started = clock()
        try:
            answer = await next(methods)(request, timeout=options.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            tally.refused(error.code().name, error.details() or "", started=started, ended=clock())
        else:
            tally.answered(answer, started=started, ended=clock())
