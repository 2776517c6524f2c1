"""The health probe of one replica, with gRPC's own client.

A replica that names its health service is watched (grpc.health.v1.Health/Watch), which shows its end and NOT_SERVING at
once, and checked at intervals (Check), which shows that it hangs. A replica that names none is only connected to.
Times are of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from balancer.fleet import Health
from balancer.registration import Registration
from balancer.replica_tls import ReplicaTls, open_channel

# The interval of a replica that serves, and of one that is held.
SERVING_SECONDS, HELD_SECONDS = 0.5, 0.2
# The interval of an ejected replica is this part of the time since its ejection, within these bounds.
AGAIN_SECONDS, AGAIN_MOST_SECONDS, AGAIN_PART = 0.1, 5.0, 0.03
TIMEOUT_SECONDS = 0.5
# After this time without answers a new connection is made, because TCP sends ever more seldom during a partition.
_SILENT_SECONDS = 2.0
# The costs of a question, in units of about 0.2 ms of processor time.
_CHECK_COST, _CONNECTION_COST = 1.0, 4.0
# A watch takes about 100 KB. Further replicas are only checked.
MAX_WATCHES = 1000
# A server that has as many calls as it takes must not lose one of them to the balancer's watch.
_SATURATED_SECONDS = 60.0
# An open connection does not show that a certificate has expired or was replaced by a wrong one, which ends each new
# connection of nginx.
_VERIFY_SECONDS = 10.0
# Gossip takes less to find that a host is dead, and to remove its replicas from the catalogue. A replica without a
# health service waits for that, because another program may have its address.
_GOSSIP_SECONDS = 10.0
# The shortest time between two messages of a watch. After this number in quick succession it doubles with each
# message, up to 3.2 s.
_WATCH_SECONDS, _QUICK, _DOUBLINGS = 0.05, 20, 6

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.http2.bdp_probe", 0),
    # What a server may send of a watch before it is read. By default it is 64 KiB, of which a server that floods it
    # makes 9,000 messages, each of which takes time.
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.max_receive_message_length", 64 * 1024),
    # The timeout of a connection. A channel that is closed meanwhile keeps the connection as long, 20 s by default.
    ("grpc.min_reconnect_backoff_ms", int(2 * TIMEOUT_SECONDS * 1000)),
]
_STATUS = {
    health_pb2.HealthCheckResponse.SERVING: Health.SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN: Health.WRONG_SERVICE,
}


@dataclass(kw_only=True)
class Context:
    """The objects that all probes share.

    Attributes:
        report: gets the key of a replica and its health after each question, and after each message of a watch.
        clock: seconds of a monotonic clock.
        tasks: the tasks that run.
        watches: the tasks among them that are watches.
        tls: the files for TLS with replicas; None before they are read.
    """

    report: Callable[[str, Health], None]
    clock: Callable[[], float] = time.monotonic
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    watches: set[asyncio.Task[None]] = field(default_factory=set)
    tls: ReplicaTls | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task, and keeps it until it ends."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


@dataclass(kw_only=True, eq=False)
class Probe:
    """The probe of one replica.

    Attributes:
        asked: the end of the last question.
        changed: the last time that the replica was ejected or restored.
        turn: the question that runs.
        reason: why the certificate of the replica is not accepted; empty if it is.
    """

    context: Context
    registration: Registration
    health: Health
    asked: float
    changed: float
    held: bool = False
    turn: asyncio.Task[None] | None = None
    reason: str = ""
    _gone: float = float("-inf")
    _channel: grpc.aio.Channel | None = None
    _watch: asyncio.Task[None] | None = None
    _watch_due: float = float("-inf")
    _closed: bool = False
    _verified_with: ReplicaTls | None = None
    _verify_due: float = float("-inf")

    def compute_interval(self, now: float, fair: float) -> float:
        """Returns the seconds between two questions; ``fair`` is the shortest interval that all replicas can have."""
        if self.health is not Health.SERVING:
            return min(max((now - self.changed) * AGAIN_PART, AGAIN_SECONDS), AGAIN_MOST_SECONDS)
        return max(HELD_SECONDS if self.held else SERVING_SECONDS, fair)

    @property
    def cost(self) -> float:
        """The cost of the next question."""
        return _CHECK_COST if self.registration.health else _CONNECTION_COST

    def start(self) -> None:
        """Starts a question, unless one runs."""
        if self.turn is None and not self._closed:
            self.turn = self.context.spawn(self._take_turn())

    def close(self) -> None:
        """Ends the question, the watch and the connection."""
        self._closed = True
        self.context.spawn(self._finish())

    async def _finish(self) -> None:
        # The question ends first, because it may still make a channel, and must not use a closed one.
        if self.turn is not None:
            self.turn.cancel()
            await asyncio.wait([self.turn])
        await self._drop_channel()

    async def _take_turn(self) -> None:
        try:
            health = await self._ask()
            self._record(health)
            if health is Health.SERVING and self.registration.health:
                self._start_watch()
        finally:
            self.asked = self.context.clock()
            self.turn = None

    def _record(self, health: Health) -> None:
        if self._closed:
            return
        now = self.context.clock()
        if not self.registration.health:
            if health in (Health.REFUSED, Health.WRONG_SERVICE):
                self._gone = now
            elif health is Health.SERVING and now < self._gone + _GOSSIP_SECONDS:
                health = Health.REFUSED
        if health is not self.health:
            if Health.SERVING in (health, self.health):
                self.changed = now
            self.health = health
        self.context.report(self.registration.key, health)

    async def _verify(self) -> Health:
        """Makes a handshake of TLS before the first connection, at intervals, and with new files."""
        tls, now = self.context.tls, self.context.clock()
        if tls is None:
            return Health.CERTIFICATE
        if tls is not self._verified_with:
            await self._drop_channel()
        elif self._channel is not None and now < self._verify_due:
            return Health.SERVING
        health, self.reason = await tls.verify(self.registration, TIMEOUT_SECONDS)
        self._verified_with, self._verify_due = tls, now + _VERIFY_SECONDS
        return health

    async def _ask(self) -> Health:
        if self.registration.tls:
            health = await self._verify()
            if health is not Health.SERVING:
                await self._drop_channel()
                return health
        fresh = self._channel is None
        if self._channel is None:
            # Costs a tenth of a channel if nothing listens.
            health = await _connect(self.registration)
            if health is not Health.SERVING:
                return health
            tls = self._verified_with if self.registration.tls else None
            self._channel = open_channel(self.registration.target, self.registration.application, tls, _OPTIONS)
        channel = self._channel
        if not self.registration.health:
            health = await _shake_hands(channel)
            await self._drop_channel()
            return health
        health, code = await _check(channel, self.registration.health)
        if code is grpc.StatusCode.UNKNOWN:
            # An ejected replica is not restored by the answer of another server, such as one of web pages. (But gRPC's
            # C core makes INTERNAL of a replica's frames that it does not know, such as padded ones.)
            health = self.health
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._watch_due = self.context.clock() + _SATURATED_SECONDS
            self._end_watch()
        silent = self.health is Health.TIMEOUT and self.context.clock() > self.changed + _SILENT_SECONDS
        ready = channel.get_state() is grpc.ChannelConnectivity.READY
        lost = health is Health.TIMEOUT and (silent or not ready)
        unwatched = self._watch is None and len(self.context.watches) >= MAX_WATCHES
        if lost or unwatched or health is Health.REFUSED:
            await self._drop_channel()
        if health is Health.REFUSED and not fresh:
            # Servers end old connections; a new one shows whether the replica is there.
            return await self._ask()
        return health

    async def _drop_channel(self) -> None:
        self._end_watch()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _start_watch(self) -> None:
        watches = self.context.watches
        due = self._watch is None and self.context.clock() >= self._watch_due
        if due and self._channel is not None and len(watches) < MAX_WATCHES:
            self._watch = self.context.spawn(self._follow_watch(self._channel))
            watches.add(self._watch)
            self._watch.add_done_callback(watches.discard)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _follow_watch(self, channel: grpc.aio.Channel) -> None:
        clock = self.context.clock
        request = health_pb2.HealthCheckRequest(service=self.registration.health)
        call = health_pb2_grpc.HealthStub(channel).Watch(request)
        try:
            quick, due = 0, float("-inf")
            async for response in call:
                if response is None:
                    break  # grpcio returns it for bytes that are not such a message.
                self._record(_STATUS.get(response.status, Health.NOT_SERVING))
                # HTTP/2's flow control makes a replica wait that sends messages all the time.
                quick = quick + 1 if clock() < due else 0
                await asyncio.sleep(_WATCH_SECONDS * 2 ** min(max(quick - _QUICK, 0), _DOUBLINGS))
                due = clock() + 2 * _WATCH_SECONDS
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        finally:
            call.cancel()
        self._watch = None
        if code is grpc.StatusCode.UNIMPLEMENTED:
            # This health service has only Check.
            self._watch_due = float("inf")
            return
        saturated = code is grpc.StatusCode.RESOURCE_EXHAUSTED
        self._watch_due = clock() + (_SATURATED_SECONDS if saturated else SERVING_SECONDS)
        # Most often the replica has ended.
        self.start()


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


async def _shake_hands(channel: grpc.aio.Channel) -> Health:
    """Returns SERVING if a server of HTTP/2 is there."""
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


# Any other error comes from a server that knows the name, or does not say; it may have too many calls.
_ERRORS = {
    grpc.StatusCode.UNAVAILABLE: Health.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Health.TIMEOUT,
    grpc.StatusCode.NOT_FOUND: Health.WRONG_SERVICE,
    grpc.StatusCode.UNIMPLEMENTED: Health.WRONG_SERVICE,
}


async def _check(channel: grpc.aio.Channel, service: str) -> tuple[Health, grpc.StatusCode]:
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return _ERRORS.get(error.code(), Health.SERVING), error.code()
    # grpcio returns None for bytes that are not such a message.
    status = Health.WRONG_SERVICE if response is None else _STATUS.get(response.status, Health.NOT_SERVING)
    return status, grpc.StatusCode.OK
