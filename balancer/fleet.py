"""The replicas that the balancer has, and the state of each."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from balancer.registration import Registration
from common import names


class Health(enum.Enum):
    """The result of a replica's last health probe; the value completes the state ``ejected: ...``."""

    SERVING = names.SERVING
    REFUSED = names.REFUSED
    # Its process is stopped (the kernel still accepts connections), or its host is out of reach.
    TIMEOUT = names.TIMEOUT
    # The program at its address does not know the name of its health service.
    WRONG_SERVICE = names.WRONG_SERVICE
    NOT_SERVING = names.NOT_SERVING
    # With TLS: its certificate is not verified (yet), or it refuses the balancer's.
    CERTIFICATE = names.CERTIFICATE


@dataclass(kw_only=True)
class Replica:
    """One replica.

    Attributes:
        since: the time at which it began to serve, in seconds of a monotonic clock.
        held: whether it gets calls although the catalogue has lost it.
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

        A replica that names its health service gets no call before that has answered again, because another program may
        have its address. A replica that names none can't be told from another program.
        """
        if self.health is Health.CERTIFICATE:
            return False
        return not self.registration.health or self.health not in (Health.REFUSED, Health.WRONG_SERVICE)

    @property
    def state(self) -> str:
        """The state, as docs/glossary.md lists it."""
        if not self.serves:
            return names.EJECTED + self.health.value
        return names.HELD if self.held else names.SERVING


class Fleet:
    """All replicas, in the order of their keys.

    A replica that is no longer registered stays until it is removed.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._registered: set[str] = set()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, key: str) -> Replica | None:
        """Returns the replica with a key."""
        return self._replicas.get(key)

    def is_registered(self, key: str) -> bool:
        """Returns whether a replica is in the last registrations."""
        return key in self._registered

    @property
    def absent(self) -> list[Replica]:
        """The replicas that are not registered."""
        return [one for key, one in self._replicas.items() if key not in self._registered]

    @property
    def held(self) -> list[Replica]:
        """The replicas that are held."""
        return [one for one in self if one.held]

    def restore(self, replicas: Iterable[Replica]) -> None:
        """Takes the replicas of an earlier run; all count as registered until the next :meth:`apply`."""
        self._replicas = {one.registration.key: one for one in replicas}
        self._registered = set(self._replicas)

    def apply(self, registrations: Iterable[Registration], now: float) -> bool:
        """Takes the present registrations, and returns whether a registered replica is new or has changed."""
        wanted = {one.key: one for one in registrations}
        changed = False
        for key, registration in wanted.items():
            replica = self._replicas.get(key)
            if replica is None:
                self._replicas[key] = Replica(registration=registration, since=now, health=_first_health(registration))
                changed = True
            elif replica.registration != registration or replica.held:
                if replica.registration.tls != registration.tls:
                    replica.health = _first_health(registration)
                replica.registration, replica.held = registration, False
                changed = True
        self._registered = set(wanted)
        if changed:
            self._replicas = dict(sorted(self._replicas.items()))
        return changed

    def hold(self, keys: Iterable[str]) -> list[Replica]:
        """Marks replicas as held, and returns those that were not held before."""
        found = [one for key in keys if (one := self._replicas.get(key)) and not one.held]
        for one in found:
            one.held = True
        return found

    def remove(self, keys: Iterable[str]) -> list[Replica]:
        """Removes replicas, and returns those that were there."""
        return [one for key in keys if (one := self._replicas.pop(key, None))]

    def set_health(self, key: str, health: Health, now: float) -> bool:
        """Takes the result of a health probe, and returns whether it differs from the last one."""
        replica = self._replicas.get(key)
        if replica is None or replica.health is health:
            return False
        replica.health = health
        if replica.serves:
            replica.since = now
        return True


def _first_health(registration: Registration) -> Health:
    """Returns the health of a replica before its first probe.

    With TLS it gets no call before its certificate is verified. nginx verifies new connections only, and may have one
    to this address from another application.
    """
    return Health.CERTIFICATE if registration.tls else Health.SERVING
