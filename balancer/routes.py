"""Which application gets the calls of which gRPC service: a rule that every balancer computes alike.

Of the applications that have a service, the one gets its calls that has had it for longest: by the earliest metadata
``grpc_since`` of its replicas with that service, which the registrar carries from one replica to the next. Those that
do not say come last, and among equals the first by name. So no application takes the calls of a service away by having
it too, and what a balancer saw first does not matter. (Metadata can be forged, by whoever can register a replica under
any name.)
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
        application: gets them.
        also: the other applications that have the service, ten at the most.
    """

    application: str
    also: tuple[str, ...] = ()


def compute_routes(registrations: Iterable[Registration]) -> dict[str, Route]:
    """The route of each service that a replica has, by the service's name.

    Of very many services those that have an application for longest: nobody takes calls away by registering others.
    """
    # By service and application, since when: an application is not senior for a service that it has only just got.
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
    """Services that no replica has any more, for ten minutes: their calls are UNAVAILABLE, which clients try again.

    Without it they would be UNIMPLEMENTED as soon as the last replica has gone.

    Args:
        known: application by service, of an earlier run.
        now: seconds of a monotonic clock.
    """

    SECONDS = 600.0

    def __init__(self, known: Mapping[str, str], now: float) -> None:
        self._seen = {service: (application, now) for service, application in known.items()}

    def update(self, present: Mapping[str, Route], now: float) -> dict[str, Route]:
        """All routes, the present ones and those that are remembered."""
        self._seen = {service: seen for service, seen in self._seen.items() if now < seen[1] + self.SECONDS}
        self._seen |= {service: (route.application, now) for service, route in present.items()}
        remembered = {service: Route(application=application) for service, (application, _) in self._seen.items()}
        # Nobody fills the memory with names: what is there comes first.
        room = MAX_SERVICES - len(present)
        extra = [(service, route) for service, route in remembered.items() if service not in present]
        kept = dict(extra[-room:] if room > 0 else [])
        self._seen = {service: seen for service, seen in self._seen.items() if service in present or service in kept}
        return {**kept, **present}
