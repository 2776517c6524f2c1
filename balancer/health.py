"""What each replica says of its health, asked with gRPC's own client.

A replica that names its health service is watched (grpc.health.v1.Health/Watch), which tells of an end and of
NOT_SERVING at once, and is asked in turn as well (Check), which finds out one that hangs. One that names none is only
connected to. Deadlines and intervals are of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from balancer.fleet import Health
from balancer.registration import Registration

LOG = logging.getLogger("balancer")

# A replica that serves is asked so often, one that is held more often, and of many so many a second in all.
SERVING_SECONDS, HELD_SECONDS = 0.5, 0.2
# One that does not serve is asked again after a part of the time for which it has not, within these bounds.
AGAIN_SECONDS, AGAIN_MOST_SECONDS, AGAIN_PART = 0.1, 5.0, 0.03
TIMEOUT_SECONDS = 0.5
# A connection without answers is given up after this: a partition may have ended, and TCP sends again ever more seldom.
_SILENT_SECONDS = 2.0
# What all probes may cost in a second, in units of about 0.2 ms of processor time, and what each kind costs. So 40 ms.
BUDGET, _CHECK_COST, _CONNECTION_COST = 200.0, 1.0, 4.0
# Each takes about 100 KB. Replicas beyond these are asked in turn only.
MAX_WATCHES = 1000
# A server that has as many calls as it takes must not lose one of them to the balancer's watch.
_SATURATED_SECONDS = 60.0
# Gossip takes less to find that a host is dead, and its replicas leave the catalogue. A replica that can't be told from
# another program that has its address by now waits so long.
_GOSSIP_SECONDS = 10.0
_TICK_SECONDS, _TICK_SECONDS_A_REPLICA = 0.05, 0.00002
# A watch may tell so much in quick succession before it is heard less and less often, each 3.2 s at last.
_QUICK, _DOUBLINGS = 20, 6

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
    # How long a connection may take. A channel that is closed meanwhile keeps it as long, 20 s by default.
    ("grpc.min_reconnect_backoff_ms", int(2 * TIMEOUT_SECONDS * 1000)),
]
_STATUS = {
    health_pb2.HealthCheckResponse.SERVING: Health.SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN: Health.WRONG_SERVICE,
}


@dataclass(kw_only=True, eq=False)
class _Probe:
    """What is known of one replica; times are of the monotonic clock."""

    registration: Registration
    asked: float
    held: bool = False
    health: Health = Health.SERVING
    changed: float = 0.0
    gone: float = float("-inf")
    turn: asyncio.Task[None] | None = None
    channel: grpc.aio.Channel | None = None
    watch: asyncio.Task[None] | None = None
    watch_due: float = float("-inf")
    closed: bool = False

    def interval(self, now: float, fair: float) -> float:
        """Seconds between two questions; ``fair`` is what all of them can have."""
        if self.health is not Health.SERVING:
            return min(max((now - self.changed) * AGAIN_PART, AGAIN_SECONDS), AGAIN_MOST_SECONDS)
        return max(HELD_SECONDS if self.held else SERVING_SECONDS, fair)

    @property
    def cost(self) -> float:
        """Of the next question."""
        return _CHECK_COST if self.registration.health else _CONNECTION_COST


@dataclass(kw_only=True)
class Prober:
    """Asks all replicas.

    Attributes:
        report: is told the key of a replica and its health after each question, and whenever the replica tells.
        clock: seconds of a monotonic clock.
    """

    report: Callable[[str, Health], None]
    clock: Callable[[], float] = time.monotonic
    _probes: dict[str, _Probe] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _watches: int = 0

    def update(self, replicas: Iterable[tuple[Registration, bool, Health]]) -> None:
        """Takes the replicas that there are now: registration, whether it is held, and its health as it was known."""
        before, self._probes = self._probes, {}
        now = self.clock()
        for number, (registration, held, health) in enumerate(replicas):
            probe = before.pop(registration.key, None)
            if probe and probe.registration.health != registration.health:
                self._close(probe)
                probe = None
            if probe is None:
                # Not all at the same moment.
                asked = now - number % 10 * 0.1 * SERVING_SECONDS
                probe = _Probe(registration=registration, asked=asked, health=health, changed=now)
            probe.registration, probe.held = registration, held
            self._probes[registration.key] = probe
        for probe in before.values():
            self._close(probe)

    async def run(self) -> None:
        """Asks for ever."""
        allowance, last = BUDGET, self.clock()
        while True:
            await asyncio.sleep(_TICK_SECONDS + len(self._probes) * _TICK_SECONDS_A_REPLICA)
            now = self.clock()
            allowance = min(allowance + (now - last) * BUDGET, BUDGET)
            last = now
            allowance = self._start_due(now, allowance)

    async def close(self) -> None:
        """Ends every watch and every connection."""
        self.update([])
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start_due(self, now: float, allowance: float) -> float:
        """Starts the questions that are due: those of replicas that serve before all others, however many are gone.

        Of the others, those come more often that have served till lately: they are the likeliest to be back.
        """
        fair = sum(probe.cost for probe in self._probes.values()) / BUDGET
        due = []
        for probe in self._probes.values():
            if probe.turn is None:
                waited, interval = now - probe.asked, probe.interval(now, fair)
                if waited >= interval:
                    due.append((probe.health is not Health.SERVING, -waited / interval**2, probe))
        due.sort(key=lambda one: one[:2])
        for _, _, probe in due:
            if allowance < probe.cost:
                break
            allowance -= probe.cost
            self._start(probe)
        return allowance

    def _start(self, probe: _Probe) -> None:
        if probe.turn is None and not probe.closed:
            probe.turn = self._spawn(self._take_turn(probe))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take_turn(self, probe: _Probe) -> None:
        try:
            health = await self._ask(probe)
            self._record(probe, health)
            if health is Health.SERVING and probe.registration.health:
                self._start_watch(probe)
        finally:
            probe.asked = self.clock()
            probe.turn = None

    def _record(self, probe: _Probe, health: Health) -> None:
        if probe.closed:
            return
        now = self.clock()
        if not probe.registration.health:
            if health in (Health.REFUSED, Health.WRONG_SERVICE):
                probe.gone = now
            elif health is Health.SERVING and now < probe.gone + _GOSSIP_SECONDS:
                health = Health.REFUSED
        if health is not probe.health:
            if Health.SERVING in (health, probe.health):
                probe.changed = now
            probe.health = health
        self.report(probe.registration.key, health)

    async def _ask(self, probe: _Probe) -> Health:
        fresh = probe.channel is None
        if fresh:
            # Costs a tenth of a channel where nobody listens.
            health = await _connect(probe.registration)
            if health is not Health.SERVING:
                return health
        channel = probe.channel = probe.channel or _channel(probe.registration)
        if not probe.registration.health:
            health = await _handshake(channel)
            await self._drop_channel(probe)
            return health
        health, code = await _check(channel, probe.registration.health)
        if code is grpc.StatusCode.UNKNOWN:
            # Another server that has the address by now, such as one of web pages, is no replica that is back. (But
            # INTERNAL is what gRPC's C core makes of a replica's frames that it does not know, such as padded ones.)
            health = probe.health
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            probe.watch_due = self.clock() + _SATURATED_SECONDS
            self._end_watch(probe)
        silent = probe.health is Health.TIMEOUT and self.clock() > probe.changed + _SILENT_SECONDS
        ready = channel.get_state() is grpc.ChannelConnectivity.READY
        lost = health is Health.TIMEOUT and (silent or not ready)
        if lost or health is Health.REFUSED or (probe.watch is None and self._watches >= MAX_WATCHES):
            await self._drop_channel(probe)
        if health is Health.REFUSED and not fresh:
            # The connection has ended, as servers do with old ones: is there another?
            return await self._ask(probe)
        return health

    async def _drop_channel(self, probe: _Probe) -> None:
        self._end_watch(probe)
        channel, probe.channel = probe.channel, None
        if channel is not None:
            await channel.close()

    def _end_watch(self, probe: _Probe) -> None:
        if probe.watch is not None:
            probe.watch.cancel()
            probe.watch = None

    def _start_watch(self, probe: _Probe) -> None:
        if (
            probe.watch is None
            and probe.channel is not None
            and self.clock() >= probe.watch_due
            and self._watches < MAX_WATCHES
        ):
            self._watches += 1
            probe.watch = self._spawn(self._watch(probe, probe.channel))
            probe.watch.add_done_callback(self._watch_ended)

    async def _watch(self, probe: _Probe, channel: grpc.aio.Channel) -> None:
        request = health_pb2.HealthCheckRequest(service=probe.registration.health)
        call = health_pb2_grpc.HealthStub(channel).Watch(request)
        try:
            quick, due = 0, float("-inf")
            async for response in call:
                if response is None:
                    break  # What grpcio gives for what is no such message.
                self._record(probe, _STATUS.get(response.status, Health.NOT_SERVING))
                # One that never stops talking, or changes its mind all the time, waits for its turn (HTTP/2's flow
                # control), each time longer.
                quick = quick + 1 if self.clock() < due else 0
                pause = _TICK_SECONDS * 2 ** min(max(quick - _QUICK, 0), _DOUBLINGS)
                await asyncio.sleep(pause)
                due = self.clock() + 2 * _TICK_SECONDS
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        finally:
            call.cancel()
        probe.watch = None
        if code is grpc.StatusCode.UNIMPLEMENTED:
            # A health service without it: Check alone.
            probe.watch_due = float("inf")
            return
        wait = _SATURATED_SECONDS if code is grpc.StatusCode.RESOURCE_EXHAUSTED else SERVING_SECONDS
        probe.watch_due = self.clock() + wait
        # Most often the replica has ended.
        self._start(probe)

    def _watch_ended(self, _task: asyncio.Task[None]) -> None:
        self._watches -= 1

    def _close(self, probe: _Probe) -> None:
        probe.closed = True
        self._spawn(self._finish(probe))

    async def _finish(self, probe: _Probe) -> None:
        # First the question: it may make a channel yet, and must not be left with one that is closed.
        if probe.turn is not None:
            probe.turn.cancel()
            await asyncio.wait([probe.turn])
        await self._drop_channel(probe)


def _target(registration: Registration) -> str:
    return f"ipv{6 if ':' in registration.address else 4}:{registration.target}"


def _channel(registration: Registration) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(_target(registration), options=_OPTIONS)


async def _connect(registration: Registration) -> Health:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(registration.address, registration.port)
    except TimeoutError:
        return Health.TIMEOUT
    except OSError:
        return Health.REFUSED
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Health.SERVING


async def _handshake(channel: grpc.aio.Channel) -> Health:
    """Whether somebody speaks HTTP/2 there."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return Health.WRONG_SERVICE
                await channel.wait_for_state_change(state)
                state = channel.get_state()
    except TimeoutError:
        return Health.TIMEOUT
    return Health.SERVING


async def _check(channel: grpc.aio.Channel, service: str) -> tuple[Health, grpc.StatusCode]:
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return Health.REFUSED, code
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Health.TIMEOUT, code
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
            return Health.WRONG_SERVICE, code
        # Whoever is there knows the name or does not say; one with too much to do is there too.
        return Health.SERVING, code
    # grpcio gives None for what is no such message.
    status = Health.WRONG_SERVICE if response is None else _STATUS.get(response.status, Health.NOT_SERVING)
    return status, grpc.StatusCode.OK
