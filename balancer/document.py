"""The document that nginx balances by: JSON, posted to nginx and kept on disk as the snapshot.

``version``       names it; another document has another one.
``changed``       when the set of replicas changed last, by the monotonic clock; ``updated`` by the wall clock.
``replicas``      a list of objects: ``application``, ``address``, ``port``, ``weight``, ``state``, ``serves``,
                  ``may_serve``, ``since`` (monotonic clock), and for the control plane's own start ``held``,
                  ``health``, ``services`` (a number in ``service_sets``) and ``registered_since``.
``service_sets``  lists of gRPC services: the sets that replicas refer to, from 0.
``pools``         a list of objects: ``name``, ``application`` and ``replicas``, numbers from 1 in the list above.
``applications``  by name, the number (from 1) of the pool of all replicas of an application.
``routes``        by gRPC service: ``pool`` (0 where no replica can get its calls now), ``application``, and ``also``,
                  the other applications that register it, separated by commas.
``default``       the number of the pool of all other calls; missing where they have none.
``catalogue``     what the control plane knows of Consul (see catalogue.py).

nginx's side of it is lua/configuration.lua and lua/fleet.lua.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route

# So many sets of services an application's versions may have at once; with more, all its replicas get all its calls.
# Each set may double the number of pools.
_MAX_SETS = 6


class _Pools:
    """Collects pools of numbers of replicas, each under one name once."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, tuple[int, ...]], int] = {}

    def number(self, name: str, application: str, replicas: Sequence[int]) -> int:
        """The number of the pool of these replicas of an application, from 1."""
        key = (application, tuple(replicas))
        if key not in self._numbers:
            self.entries.append({"name": name, "application": application, "replicas": list(replicas)})
            self._numbers[key] = len(self.entries)
        return self._numbers[key]


def build(
    replicas: Sequence[Replica],
    routes: Mapping[str, Route],
    *,
    version: str,
    changed: float,
    updated: float,
    catalogue: Mapping[str, Any],
) -> dict[str, Any]:
    """The document of some replicas."""
    members = _members(replicas)
    pools = _Pools()
    applications = {name: pools.number(name, name, _all(sets)) for name, sets in members.items()}
    document: dict[str, Any] = {
        "version": version,
        "changed": changed,
        "updated": updated,
        **_replicas(replicas),
        "applications": applications,
        "routes": {service: _route(service, route, members, applications, pools) for service, route in routes.items()},
        "catalogue": dict(catalogue),
    }
    default = _default(members, applications, pools)
    if default:
        document["default"] = default
    document["pools"] = pools.entries
    return document


def _replicas(replicas: Sequence[Replica]) -> dict[str, Any]:
    sets: dict[tuple[str, ...], int] = {}
    return {
        "replicas": [
            {
                "application": one.registration.application,
                "address": one.registration.address,
                "port": one.registration.port,
                "weight": one.registration.weight,
                "state": one.state,
                "serves": one.serves,
                "may_serve": one.may_serve,
                "since": round(one.since, 3),
                "held": one.held,
                "health": one.registration.health,
                "services": sets.setdefault(one.registration.services, len(sets)),
                "registered_since": one.registration.since,
            }
            for one in replicas
        ],
        "service_sets": list(sets),
    }


def _members(replicas: Sequence[Replica]) -> dict[str, dict[tuple[str, ...], list[int]]]:
    """By application and set of services, the numbers of the replicas."""
    found: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for number, one in enumerate(replicas, 1):
        found.setdefault(one.registration.application, {}).setdefault(one.registration.services, []).append(number)
    return found


def _all(sets: Mapping[tuple[str, ...], list[int]]) -> list[int]:
    return sorted(number for numbers in sets.values() for number in numbers)


def _route(
    service: str,
    route: Route,
    members: Mapping[str, Mapping[tuple[str, ...], list[int]]],
    applications: Mapping[str, int],
    pools: _Pools,
) -> dict[str, Any]:
    """The replicas of an application that have a service: all but while a version with other services is rolled out.

    One that says nothing of its services, such as a replica registered by hand, is taken to have its application's; and
    a service that no replica has any more is asked of all, which answer UNIMPLEMENTED.
    """
    sets = members.get(route.application, {})
    pool = applications.get(route.application, 0)
    if 1 < len(sets) <= _MAX_SETS:
        having = {services: numbers for services, numbers in sets.items() if not services or service in services}
        if any(having) and len(having) < len(sets):
            pool = pools.number(f"{route.application}/{service}", route.application, _all(having))
    return {"pool": pool, "application": route.application, "also": ",".join(route.also)}


def _default(
    members: Mapping[str, Mapping[tuple[str, ...], list[int]]], applications: Mapping[str, int], pools: _Pools
) -> int:
    """A single application gets all other calls; of several, those that do not say which services they have.

    Without any, a pool of nobody: UNAVAILABLE, not UNIMPLEMENTED.
    """
    if len(members) == 1:
        return next(iter(applications.values()))
    rest = sorted(number for sets in members.values() if not any(sets) for number in _all(sets))
    return pools.number("", "", rest) if rest or not members else 0


def replicas_of(document: Mapping[str, Any]) -> list[Replica]:
    """The replicas of a document.

    Raises:
        KeyError, TypeError, ValueError: it is no document.
    """
    sets = [tuple(map(str, services)) for services in document["service_sets"]]
    return [
        Replica(
            registration=Registration(
                application=str(entry["application"]),
                address=str(entry["address"]),
                port=int(entry["port"]),
                weight=int(entry["weight"]),
                services=sets[entry["services"]],
                health=str(entry["health"]),
                since=str(entry["registered_since"]),
            ),
            since=float(entry["since"]),
            health=_health(str(entry["state"])),
            held=bool(entry["held"]),
        )
        for entry in document["replicas"]
    ]


def _health(state: str) -> Health:
    return Health(state.removeprefix("ejected: ")) if state.startswith("ejected: ") else Health.SERVING
