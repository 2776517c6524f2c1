"""A set of xDS resources, and what a client gets of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import any_pb2

from balancer.xds.rights import ALL, Rights

_PREFIX = "type.googleapis.com/envoy.config."
CLUSTER = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "listener.v3.Listener"
ROUTE = _PREFIX + "route.v3.RouteConfiguration"
# The order in which a change is sent, so that nothing refers to what is not there yet.
TYPES = (CLUSTER, ENDPOINTS, LISTENER, ROUTE)
_Named = dict[str, any_pb2.Any]


@dataclass(frozen=True)
class Resources:
    """The resources of one document, for gRPC's clients or for Envoy.

    Attributes:
        found: them, by type and name.
        owners: their applications, by type and name; empty for those of several.
    """

    found: Mapping[str, _Named] = field(default_factory=lambda: {kind: {} for kind in TYPES})
    owners: Mapping[str, dict[str, str]] = field(default_factory=lambda: {kind: {} for kind in TYPES})

    def add(self, kind: str, name: str, application: str, message: Any) -> None:
        """Adds a resource."""
        self.found[kind][name] = pack(kind, message)
        self.owners[kind][name] = application

    def select(self, kind: str, names: Iterable[str] | None, rights: Rights = ALL) -> list[any_pb2.Any]:
        """Returns the resources of a type with these names, all for None, as far as the rights allow."""
        found, owners = self.found[kind], self.owners[kind]
        if names is None:
            return [one for name, one in found.items() if rights.allow(owners[name])]
        wanted = list(names)
        allowed = {name for name in wanted if name in found and rights.allow(owners[name])}
        if kind == ENDPOINTS:
            # Clients keep the cluster of an application that is gone, and must learn that it has no replica.
            return [found[name] if name in allowed else _empty(name) for name in wanted]
        return [found[name] for name in wanted if name in allowed]

    def keep(self, before: Resources, clusters: Iterable[str]) -> Resources:
        """Returns these resources with some clusters of earlier ones."""
        found, owners = ({kind: dict(named) for kind, named in part.items()} for part in (self.found, self.owners))
        kept = Resources(found, owners)  # type: ignore[arg-type] # the generator has both kinds
        for name in clusters:
            for kind in (CLUSTER, ENDPOINTS):
                kept.found[kind][name] = before.found[kind][name]
                kept.owners[kind][name] = before.owners[kind][name]
        return kept


def pack(kind: str, message: Any) -> any_pb2.Any:
    """Returns a resource of a type; the same text for the same message."""
    return any_pb2.Any(type_url=kind, value=message.SerializeToString(deterministic=True))


def version(resources: Iterable[any_pb2.Any]) -> str:
    """Returns a version that is the same for the same resources."""
    digest = hashlib.sha256()
    for one in resources:
        digest.update(one.value)
    return digest.hexdigest()[:16]


def _empty(name: str) -> any_pb2.Any:
    return pack(ENDPOINTS, endpoint_pb2.ClusterLoadAssignment(cluster_name=name))
