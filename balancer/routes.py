"""Finds the application that gets the calls of a gRPC service, by a rule that has the same result on every balancer.

The application that has had the service for the longest time gets its calls: the one whose replicas with that service
have the earliest metadata ``grpc_since``, which the registrar copies from one replica to the next. Applications without
it come last, and among equals the first by name. So an application can't take the calls of a service away by having it
too, and the order of the registrations does not matter. (Metadata can be forged by a program that can register a
replica under any name.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from balancer.registration import Registration

MAX_SERVICES = 5000
_MAX_OTHERS = 10
# Later than any time in ISO 8601.
_UNKNOWN = "~"


@dataclass(frozen=True, kw_only=True)
class Route:
    """The calls of a service.

    Attributes:
        application: the application that gets them.
        also: the other applications that have the service, ten at the most.
    """

    application: str
    also: tuple[str, ...] = ()


def compute_routes(registrations: Iterable[Registration]) -> dict[str, Route]:
    """Returns the route of each service that a replica has, by the service's name.

    Beyond ``MAX_SERVICES`` the oldest services are kept, so that new ones do not displace them.
    """
    # The time is that of the application's replicas with the service, because others may be older.
    claims: dict[str, dict[str, str]] = {}
    for application, services, since in {(one.application, one.services, one.since) for one in registrations}:
        for service in services:
            claim = claims.setdefault(service, {})
            claim[application] = min(claim.get(application, _UNKNOWN), since or _UNKNOWN)
    ranked = {
        service: [name for _, name in sorted((since, name) for name, since in claim.items())]
        for service, claim in claims.items()
    }
    kept = sorted(ranked, key=lambda service: (claims[service][ranked[service][0]], service))[:MAX_SERVICES]
    return {
        service: Route(application=ranked[service][0], also=tuple(sorted(ranked[service][1:])[:_MAX_OTHERS]))
        for service in sorted(kept)
    }


class RouteMemory:
    """Remembers services without replicas for ten minutes.

    Their calls are UNAVAILABLE, which clients retry; otherwise they would be UNIMPLEMENTED.

    Args:
        known: application by service, of an earlier run.
        now: seconds of a monotonic clock.
    """

    SECONDS = 600.0

    def __init__(self, known: Mapping[str, str], now: float) -> None:
        self._seen = {service: (application, now) for service, application in known.items()}

    def update(self, present: Mapping[str, Route], now: float) -> dict[str, Route]:
        """Takes the present routes, and returns them with the remembered ones."""
        self._seen = {service: seen for service, seen in self._seen.items() if now < seen[1] + self.SECONDS}
        self._seen |= {service: (route.application, now) for service, route in present.items()}
        remembered = {service: Route(application=application) for service, (application, _) in self._seen.items()}
        # The present services come first, so that names that come and go do not fill the memory.
        room = MAX_SERVICES - len(present)
        extra = [(service, route) for service, route in remembered.items() if service not in present]
        kept = dict(extra[-room:] if room > 0 else [])
        self._seen = {service: seen for service, seen in self._seen.items() if service in present or service in kept}
        return {**kept, **present}
