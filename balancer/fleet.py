"""The replicas that the balancer has, and what is decided about each."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from balancer.registration import Registration


class Health(enum.Enum):
    """What a replica's last health probe has found; the value completes the state ``ejected: ...``."""

    SERVING = "serving"
    # Nobody answers at its address.
    REFUSED = "refused"
    # No answer in time: a stopped process (its kernel still accepts connections), or a host that is out of reach.
    TIMEOUT = "timeout"
    # Another program has its address: its health service does not know the name.
    WRONG_SERVICE = "wrong service"
    # It says so itself.
    NOT_SERVING = "not serving"


@dataclass(kw_only=True)
class Replica:
    """One replica.

    Attributes:
        since: when it began to serve, in seconds of a monotonic clock.
        held: it has left a catalogue that has lost its data.
    """

    registration: Registration
    since: float
    health: Health = Health.SERVING
    held: bool = False

    @property
    def serves(self) -> bool:
        """Whether it gets calls."""
        return self.health is Health.SERVING

    @property
    def may_serve(self) -> bool:
        """Whether it is tried when no other replica serves.

        One that names its health service gets no call until that has said again that it serves: another program may
        have its address by now. One that names none can't be told from another.
        """
        return not self.registration.health or self.health not in (Health.REFUSED, Health.WRONG_SERVICE)

    @property
    def state(self) -> str:
        """In a word: ``serving``, ``held`` (and serving), or ``ejected: `` and why."""
        if not self.serves:
            return f"ejected: {self.health.value}"
        return "held" if self.held else Health.SERVING.value


class Fleet:
    """All replicas, in the order of their keys.

    A replica that is no longer registered stays until :meth:`remove` or :meth:`hold` says what becomes of it.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._registered: set[str] = set()

    def __iter__(self) -> Iterator[Replica]:
        """The replicas."""
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, key: str) -> Replica | None:
        """The replica with a key."""
        return self._replicas.get(key)

    def is_registered(self, key: str) -> bool:
        """Whether a replica was among the registrations that were taken last."""
        return key in self._registered

    @property
    def absent(self) -> list[Replica]:
        """Those that are not registered."""
        return [one for key, one in self._replicas.items() if key not in self._registered]

    def restore(self, replicas: Iterable[Replica]) -> None:
        """Takes those of an earlier run; all are registered until something else is known."""
        self._replicas = {one.registration.key: one for one in replicas}
        self._registered = set(self._replicas)

    def apply(self, registrations: Iterable[Registration], now: float) -> bool:
        """Takes what is registered now; whether anything has changed for those that are."""
        wanted = {one.key: one for one in registrations}
        changed = False
        for key, registration in wanted.items():
            replica = self._replicas.get(key)
            if replica is None:
                self._replicas[key] = Replica(registration=registration, since=now)
                changed = True
            elif replica.registration != registration or replica.held:
                replica.registration = registration
                replica.held = False
                changed = True
        self._registered = set(wanted)
        if changed:
            self._replicas = dict(sorted(self._replicas.items()))
        return changed

    def hold(self, keys: Iterable[str]) -> list[Replica]:
        """Keeps absent replicas; those that were not held before."""
        found = [one for key in keys if (one := self._replicas.get(key)) and not one.held]
        for one in found:
            one.held = True
        return found

    def remove(self, keys: Iterable[str]) -> list[Replica]:
        """Forgets replicas; those that were there."""
        return [one for key in keys if (one := self._replicas.pop(key, None))]

    def set_health(self, key: str, health: Health, now: float) -> bool:
        """Notes what a health probe has found; whether that is new."""
        replica = self._replicas.get(key)
        if replica is None or replica.health is health:
            return False
        replica.health = health
        if replica.serves:
            replica.since = now
        return True
