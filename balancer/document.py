"""The document that nginx balances by: JSON, posted to nginx and kept on disk as the snapshot.

``version``       differs from document to document.
``changed``       the time of the last change of the set of replicas, by the monotonic clock; ``updated`` by the wall
                  clock.
``replicas``      a list of objects: ``application``, ``address``, ``port``, ``weight``, ``state``, ``serves``,
                  ``may_serve``, ``since`` (monotonic clock), ``tls`` and ``idempotent`` (true, or missing), and for
                  the control plane's own start ``held``, ``health``, ``services`` (a number in
                  ``service_sets``) and ``registered_since``.
``service_sets``  lists of gRPC services: the sets that replicas refer to, from 0.
``pools``         a list of objects: ``name``, ``application`` and ``replicas``, numbers from 1 in the list above.
``applications``  by name, the number (from 1) of the pool of all replicas of an application.
``routes``        by gRPC service: ``pool`` (0 if its application has no replica), ``application``, and ``also``, the
                  other applications that register it, separated by commas.
``default``       the number of the pool of all other calls; missing if they have none.
``catalogue``     the state of Consul's catalogue (see catalogue.py); ``access`` is empty while Consul answers in full.
``certificates``  by variable, the end of a certificate's validity, in seconds since 1970.
``crowded``       a list of client addresses with too many connections; missing if there are none.
``xds``           the numbers of xds/report.py: ``clients``, ``refusing`` and ``refused``; missing without xDS.

nginx reads it in lua/configuration.lua, lua/fleet.lua and lua/crowd.lua.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route
from common.names import EJECTED

_Sets = Mapping[tuple[str, ...], list[int]]
# If an application's versions have more sets of services, all its replicas get all its calls, because each set may
# double the number of pools.
_MAX_SETS = 6


class _Pools:
    """Numbers pools; pools of the same replicas are one."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, tuple[int, ...]], int] = {}

    def number(self, name: str, application: str, replicas: Sequence[int]) -> int:
        """Returns the number, from 1, of the pool of these replicas of an application."""
        key = (application, tuple(replicas))
        if key not in self._numbers:
            self.entries.append({"name": name, "application": application, "replicas": list(replicas)})
            self._numbers[key] = len(self.entries)
        return self._numbers[key]


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of a document, as the docstring of the module describes it."""

    replicas: Sequence[Replica]
    routes: Mapping[str, Route]
    version: str
    changed: float = 0.0
    updated: float = 0.0
    catalogue: Mapping[str, Any] = field(default_factory=dict)
    certificates: Mapping[str, float] = field(default_factory=dict)
    crowded: Sequence[str] = ()
    xds: Mapping[str, int] = field(default_factory=dict)


class Encoder:
    """Writes documents as JSON, and keeps the text of each replica for the next document."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def encode(self, content: Content) -> bytes:
        """Returns a document as JSON."""
        sets = _number_sets(content.replicas)
        before, self._entries = self._entries, {}
        for one in content.replicas:
            registration, number = one.registration, sets[one.registration.services]
            state = (one.since, one.health, one.held, number)
            entry = before.get(registration.key)
            # Registrations are compared by identity, because a comparison by value costs more than an equal text.
            if entry is None or entry.registration is not registration or entry.state != state:
                entry = _Entry(registration, state, _to_json(_describe(one, number)))
            self._entries[registration.key] = entry
        entries = ",".join(entry.text for entry in self._entries.values())
        # A frame is never empty.
        return f'{_to_json(_build_frame(content, sets))[:-1]},"replicas":[{entries}]}}'.encode()


class _Entry(NamedTuple):
    """The text of a replica, and its origin."""

    registration: Registration
    state: tuple[float, Health, bool, int]
    text: str


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _build_frame(content: Content, sets: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Builds a document without its replicas."""
    members = _group(content.replicas)
    pools = _Pools()
    applications = {name: pools.number(name, name, _merge(sets)) for name, sets in members.items()}
    routes = {}
    for service, route in content.routes.items():
        name = route.application
        pool = _find_pool(service, name, members.get(name, {}), pools) or applications.get(name, 0)
        routes[service] = {"pool": pool, "application": name, "also": ",".join(route.also)}
    default = _find_default(members, applications, pools)
    return {
        "version": content.version,
        "changed": content.changed,
        "updated": content.updated,
        "service_sets": list(sets),
        "applications": applications,
        "routes": routes,
        "catalogue": dict(content.catalogue),
        "certificates": dict(content.certificates),
        **({"crowded": list(content.crowded)} if content.crowded else {}),
        **({"xds": dict(content.xds)} if content.xds else {}),
        **({"default": default} if default else {}),
        "pools": pools.entries,
    }


def _number_sets(replicas: Iterable[Replica]) -> dict[tuple[str, ...], int]:
    sets: dict[tuple[str, ...], int] = {}
    for one in replicas:
        sets.setdefault(one.registration.services, len(sets))
    return sets


def _describe(replica: Replica, services: int) -> dict[str, Any]:
    registration = replica.registration
    return {
        **({"tls": True} if registration.tls else {}),
        **({"idempotent": True} if registration.idempotent else {}),
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


def _group(replicas: Iterable[Replica]) -> dict[str, dict[tuple[str, ...], list[int]]]:
    """Returns the numbers of the replicas by application and set of services."""
    found: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for number, one in enumerate(replicas, 1):
        found.setdefault(one.registration.application, {}).setdefault(one.registration.services, []).append(number)
    return found


def _merge(sets: _Sets) -> list[int]:
    return sorted(number for numbers in sets.values() for number in numbers)


def _find_pool(service: str, application: str, sets: _Sets, pools: _Pools) -> int | None:
    """Returns the pool of the replicas that have a service, or None if that is the whole application.

    The replicas of an application differ in their services while a new version is rolled out.

    A replica that registers no services, such as one registered by hand, counts as one that has them all. If no replica
    has the service any more, all get its calls and answer UNIMPLEMENTED.
    """
    if not 1 < len(sets) <= _MAX_SETS:
        return None
    having = {services: numbers for services, numbers in sets.items() if not services or service in services}
    if not any(having) or len(having) == len(sets):
        return None
    return pools.number(f"{application}/{service}", application, _merge(having))


def _find_default(members: Mapping[str, _Sets], applications: Mapping[str, int], pools: _Pools) -> int:
    """Returns the pool of all other calls: the only application, or those of several that register no services.

    Without any application it is an empty pool, so that calls are UNAVAILABLE instead of UNIMPLEMENTED.
    """
    if len(members) == 1:
        return next(iter(applications.values()))
    rest = sorted(number for sets in members.values() if not any(sets) for number in _merge(sets))
    return pools.number("", "", rest) if rest or not members else 0


def read_replicas(document: Mapping[str, Any]) -> list[Replica]:
    """Reads the replicas of a document.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
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
                tls=bool(entry.get("tls")),
                idempotent=bool(entry.get("idempotent")),
            ),
            since=float(entry["since"]),
            health=_read_health(str(entry["state"])),
            held=bool(entry["held"]),
        )
        for entry in document["replicas"]
    ]


def _read_health(state: str) -> Health:
    return Health(state.removeprefix(EJECTED)) if state.startswith(EJECTED) else Health.SERVING
