"""The control plane's health prober, in a thread or as a program.

As a program it reads a list of registrations (JSON), and prints a line for each change of a replica's health.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from balancer.fleet import Health, Replica
from balancer.prober import Prober
from balancer.registration import Registration
from testbed.wait import wait_for

_START_SECONDS = 10


@dataclass(frozen=True)
class Report:
    """A report of the prober on a replica."""

    time: float
    key: str
    health: Health


class Probing:
    """Runs a prober; an error in its event loop fails the test.

    Args:
        registrations: the replicas, which were known as ``known`` before.
        clock: the prober's.
    """

    def __init__(
        self,
        *registrations: Registration,
        known: Health = Health.TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = known
        self._first = registrations
        self._prober: Prober
        self._clock = clock
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.reports: list[Report] = []
        self.faults: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_SECONDS)
        if kind is None:
            assert not self._thread.is_alive()
            assert not self.faults, self.faults

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self._stop = asyncio.Event()
        self._prober = Prober(report=self._heard, clock=self._clock)
        self._take(self._first)
        running = asyncio.create_task(self._prober.run())
        self._ready.set()
        await self._stop.wait()
        running.cancel()
        await self._prober.close()
        # asyncio reports a task's unread exception when the task is collected.
        gc.collect()
        await asyncio.sleep(0)

    def _take(self, registrations: tuple[Registration, ...]) -> None:
        self._prober.update(Replica(registration=one, since=0, health=self._known) for one in registrations)

    def _heard(self, key: str, health: Health) -> None:
        self.reports.append(Report(time.monotonic(), key, health))

    def update(self, *registrations: Registration) -> None:
        """Replaces the replicas."""

        async def work() -> None:
            self._take(registrations)

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(_START_SECONDS)

    def of(self, registration: Registration, since: float = 0) -> list[Health]:
        """Returns the reports on a replica since then."""
        return [one.health for one in list(self.reports) if one.key == registration.key and one.time >= since]

    def wait_for_answers(self, registration: Registration, count: int, since: float = 0) -> set[Health]:
        """Waits until so much was said of a replica since then, and returns all that was said."""
        said = wait_for(lambda: self.of(registration, since), lambda seen: len(seen) >= count, 5, "it is asked again")
        return set(said)

    def wait(
        self, registration: Registration, health: Health, seconds: float, after: Callable[[], object] = lambda: None
    ) -> float:
        """Calls ``after``, waits for a report of a replica, and returns the seconds that it took."""
        began = time.monotonic()
        after()

        def found() -> list[Report]:
            return [one for one in list(self.reports) if one.key == registration.key and one.time >= began]

        what = f"{registration.key} is {health.value}"
        reports = wait_for(found, lambda seen: any(one.health is health for one in seen), seconds, what)
        return next(one.time for one in reports if one.health is health) - began


async def _main() -> None:
    registrations = [Registration(**fields) for fields in json.loads(sys.stdin.readline())]
    last: dict[str, Health] = {}

    def heard(key: str, health: Health) -> None:
        if last.get(key) is not health:
            last[key] = health
            print(json.dumps([time.monotonic(), key, health.value]), flush=True)

    prober = Prober(report=heard)
    prober.update(Replica(registration=one, since=0) for one in registrations)
    await prober.run()


def as_json(registrations: list[Registration]) -> str:
    """Returns a line for the program."""
    return json.dumps([asdict(one) for one in registrations]) + "\n"


if __name__ == "__main__":
    asyncio.run(_main())
