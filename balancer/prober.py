"""The schedule of the health probes: the replicas that are asked next, within a budget of processor time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from balancer.fleet import Health, Replica
from balancer.probe import SERVING_SECONDS, Context, Probe
from balancer.registration import Registration
from balancer.replica_tls import ReplicaTls

# The cost of all probes in a second, in the units of probe.py: 40 ms.
BUDGET = 200.0
_TICK_SECONDS, _TICK_SECONDS_A_REPLICA = 0.05, 0.00002


class Prober:
    """Probes all replicas.

    Args:
        report: gets the key of a replica and its health after each question, and after each message of a watch.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, report: Callable[[str, Health], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._context = Context(report=report, clock=clock)
        self._probes: dict[str, Probe] = {}

    @property
    def tls(self) -> ReplicaTls | None:
        """The files for TLS with replicas; a change is in use with the next question."""
        return self._context.tls

    @tls.setter
    def tls(self, tls: ReplicaTls | None) -> None:
        self._context.tls = tls

    def find_reason(self, key: str) -> str:
        """Returns why the certificate of a replica is not accepted; empty for any other state."""
        probe = self._probes.get(key)
        return probe.reason if probe else ""

    def update(self, replicas: Iterable[Replica]) -> None:
        """Takes the present replicas; a new one starts with its last known health."""
        before, self._probes = self._probes, {}
        now = self._context.clock()
        for number, replica in enumerate(replicas):
            registration = replica.registration
            probe = before.pop(registration.key, None)
            if probe and _ways(probe.registration) != _ways(registration):
                probe.close()
                probe = None
            if probe is None:
                # New replicas are not all asked at the same moment.
                asked = now - number % 10 * 0.1 * SERVING_SECONDS
                probe = Probe(
                    context=self._context, registration=registration, health=replica.health, asked=asked, changed=now
                )
            probe.registration, probe.held = registration, replica.held
            self._probes[registration.key] = probe
        for probe in before.values():
            probe.close()

    async def run(self) -> None:
        """Asks for ever."""
        allowance, last = BUDGET, self._context.clock()
        while True:
            await asyncio.sleep(_TICK_SECONDS + len(self._probes) * _TICK_SECONDS_A_REPLICA)
            now = self._context.clock()
            allowance = self._start_due(now, min(allowance + (now - last) * BUDGET, BUDGET))
            last = now

    async def close(self) -> None:
        """Ends all watches and connections."""
        self.update([])
        while self._context.tasks:
            await asyncio.wait(self._context.tasks)

    def _start_due(self, now: float, allowance: float) -> float:
        """Starts the questions that are due, and returns the rest of the allowance.

        Replicas that serve come first, however many others there are. Of the others, those that have served lately come
        more often, because they are the likeliest to be back.
        """
        fair = sum(probe.cost for probe in self._probes.values()) / BUDGET
        due = []
        for probe in self._probes.values():
            if probe.turn is None:
                waited, interval = now - probe.asked, probe.compute_interval(now, fair)
                if waited >= interval:
                    due.append((probe.health is not Health.SERVING, -waited / interval**2, probe))
        due.sort(key=lambda one: one[:2])
        for _, _, probe in due:
            if allowance < probe.cost:
                break
            allowance -= probe.cost
            probe.start()
        return allowance


def _ways(registration: Registration) -> tuple[str, bool]:
    """Returns the parts of a registration by which its probe works."""
    return registration.health, registration.tls
