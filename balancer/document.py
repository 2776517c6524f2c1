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

import json
from collections.abc import Iterable, Mapping, Sequence
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
    sets = _number_sets(replicas)
    return {
        **_build_frame(replicas, routes, sets, version=version, changed=changed, updated=updated, catalogue=catalogue),
        "replicas": [_describe(one, sets[one.registration.services]) for one in replicas],
    }


class Encoder:
    """Writes documents as JSON; a replica that is as it was in the last one costs next to nothing."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def encode(
        self,
        replicas: Sequence[Replica],
        routes: Mapping[str, Route],
        *,
        version: str,
        changed: float,
        updated: float,
        catalogue: Mapping[str, Any],
    ) -> bytes:
        """The same as :func:`build`, as JSON."""
        sets = _number_sets(replicas)
        frame = _build_frame(
            replicas, routes, sets, version=version, changed=changed, updated=updated, catalogue=catalogue
        )
        before, self._known = self._known, {}
        for one in replicas:
            number, key = sets[one.registration.services], one.registration.key
            known = before.get(key)
            if known is None or not known.holds_for(one, number):
                known = _Known(one, number)
            self._known[key] = known
        entries = ",".join(known.text for known in self._known.values())
        # A frame is never empty.
        return f'{_to_json(frame)[:-1]},"replicas":[{entries}]}}'.encode()


class _Known:
    """A replica's text, and what it was made of."""

    def __init__(self, replica: Replica, number: int) -> None:
        self.text = _to_json(_describe(replica, number))
        self._of = (replica.since, replica.health, replica.held, number)
        self._registration = replica.registration

    def holds_for(self, replica: Replica, number: int) -> bool:
        # Identity: an equal one is rare, and comparing costs more than writing the text of it now and then.
        return self._registration is replica.registration and self._of == (
            replica.since,
            replica.health,
            replica.held,
            number,
        )


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _build_frame(
    replicas: Sequence[Replica],
    routes: Mapping[str, Route],
    sets: Mapping[tuple[str, ...], int],
    *,
    version: str,
    changed: float,
    updated: float,
    catalogue: Mapping[str, Any],
) -> dict[str, Any]:
    """All but the replicas themselves."""
    members = _group(replicas)
    pools = _Pools()
    applications = {name: pools.number(name, name, _merge(sets)) for name, sets in members.items()}
    document: dict[str, Any] = {
        "version": version,
        "changed": changed,
        "updated": updated,
        "service_sets": list(sets),
        "applications": applications,
        "routes": {
            service: _describe_route(service, route, members, applications, pools) for service, route in routes.items()
        },
        "catalogue": dict(catalogue),
    }
    default = _add_default(members, applications, pools)
    if default:
        document["default"] = default
    document["pools"] = pools.entries
    return document


def _number_sets(replicas: Iterable[Replica]) -> dict[tuple[str, ...], int]:
    """The sets of services that replicas have, and the number of each."""
    sets: dict[tuple[str, ...], int] = {}
    for one in replicas:
        sets.setdefault(one.registration.services, len(sets))
    return sets


def _describe(replica: Replica, services: int) -> dict[str, Any]:
    registration = replica.registration
    return {
        "application": registration.application,
        "address": registration.address,
        "port": registration.port,
        "weight": registration.weight,
        "state": replica.state,
        "serves": replica.serves,
        "may_serve": replica.may_serve,
        "since": round(replica.since, 3),
        "held": replica.held,
        "health": registration.health,
        "services": services,
        "registered_since": registration.since,
    }


def _group(replicas: Sequence[Replica]) -> dict[str, dict[tuple[str, ...], list[int]]]:
    """By application and set of services, the numbers of the replicas."""
    found: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for number, one in enumerate(replicas, 1):
        found.setdefault(one.registration.application, {}).setdefault(one.registration.services, []).append(number)
    return found


def _merge(sets: Mapping[tuple[str, ...], list[int]]) -> list[int]:
    return sorted(number for numbers in sets.values() for number in numbers)


def _describe_route(
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
            pool = pools.number(f"{route.application}/{service}", route.application, _merge(having))
    return {"pool": pool, "application": route.application, "also": ",".join(route.also)}


def _add_default(
    members: Mapping[str, Mapping[tuple[str, ...], list[int]]], applications: Mapping[str, int], pools: _Pools
) -> int:
    """A single application gets all other calls; of several, those that do not say which services they have.

    Without any, a pool of nobody: UNAVAILABLE, not UNIMPLEMENTED.
    """
    if len(members) == 1:
        return next(iter(applications.values()))
    rest = sorted(number for sets in members.values() if not any(sets) for number in _merge(sets))
    return pools.number("", "", rest) if rest or not members else 0


def read_replicas(document: Mapping[str, Any]) -> list[Replica]:
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
            health=_read_health(str(entry["state"])),
            held=bool(entry["held"]),
        )
        for entry in document["replicas"]
    ]


def _read_health(state: str) -> Health:
    return Health(state.removeprefix("ejected: ")) if state.startswith("ejected: ") else Health.SERVING
