"""Builds the xDS resources of a document (balancer/document.py).

Each application and each gRPC service is a target, ``xds:///hello_server`` or ``xds:///protos.Ping``: a listener and a
route of that name lead to the cluster of a pool. gRPC's round robin ignores the weights of endpoints, so that each
replica is a locality of its own and the weight is the locality's (gRFC A27, "EDS").
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2, health_check_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as manager_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2

_PREFIX = "type.googleapis.com/envoy.config."
CLUSTER = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "listener.v3.Listener"
ROUTE = _PREFIX + "route.v3.RouteConfiguration"
# The order in which a change is sent, so that nothing refers to what is not there yet.
TYPES = (CLUSTER, ENDPOINTS, LISTENER, ROUTE)
HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Weights of localities; the sum of all must fit in 32 bits too.
_MOST_WEIGHT = 65_535


@dataclass(frozen=True)
class Resources:
    """The resources of one document, by type and name; ``wildcard`` has what a client gets that names none.

    Without an entry in ``wildcard`` that is all of a type.
    """

    found: Mapping[str, Mapping[str, any_pb2.Any]] = field(default_factory=lambda: {kind: {} for kind in TYPES})
    wildcard: Mapping[str, Mapping[str, any_pb2.Any]] = field(default_factory=dict)

    def select(self, kind: str, names: Iterable[str]) -> list[any_pb2.Any]:
        """Returns the resources of a type with these names; all for none."""
        found = self.found[kind]
        wanted = list(names)
        if is_wildcard(wanted):
            return list(self.wildcard.get(kind, found).values())
        return [found[name] for name in wanted if name in found]


def is_wildcard(names: Collection[str]) -> bool:
    """Returns whether a client with these names asks for all resources of a type."""
    return not names or "*" in names


def version(resources: Iterable[any_pb2.Any]) -> str:
    """Returns a version that is the same for the same resources."""
    digest = hashlib.sha256()
    for one in resources:
        digest.update(one.value)
    return digest.hexdigest()[:16]


def build(document: Mapping[str, Any]) -> Resources:
    """Builds the resources.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
    """
    found: dict[str, dict[str, any_pb2.Any]] = {kind: {} for kind in TYPES}
    replicas = document["replicas"]
    names = name_pools(document)
    for number, pool in enumerate(document["pools"], 1):
        members = [replicas[index - 1] for index in pool["replicas"]]
        _add(found, CLUSTER, names[number], _build_cluster(names[number]))
        _add(found, ENDPOINTS, names[number], _build_endpoints(names[number], members))
    for target, number in _find_targets(document):
        if number in names:
            _add(found, LISTENER, target, _build_listener(target))
            _add(found, ROUTE, target, _build_route(target, names[number]))
    return Resources(found)


def name_pools(document: Mapping[str, Any]) -> dict[int, str]:
    """Returns the clusters' names by the numbers of their pools."""
    return {number: pool["name"] or "default" for number, pool in enumerate(document["pools"], 1)}


def _find_targets(document: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the targets and the numbers of their pools; an application comes before a service of its name."""
    for service, route in document["routes"].items():
        if service not in document["applications"]:
            yield service, route["pool"]
    yield from document["applications"].items()


def _add(found: dict[str, dict[str, any_pb2.Any]], kind: str, name: str, message: Any) -> None:
    found[kind][name] = pack(kind, message)


def pack(kind: str, message: Any) -> any_pb2.Any:
    """Returns a resource of a type; the same text for the same message."""
    return any_pb2.Any(type_url=kind, value=message.SerializeToString(deterministic=True))


def _ads() -> Any:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def _build_cluster(name: str) -> Any:
    http2 = http_protocol_options_pb2.HttpProtocolOptions(
        explicit_http_config=http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(
            http2_protocol_options=protocol_pb2.Http2ProtocolOptions()
        )
    )
    options = any_pb2.Any()
    options.Pack(http2)
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=_ads()),
        lb_policy=cluster_pb2.Cluster.ROUND_ROBIN,
        typed_extension_protocol_options={HTTP2: options},
    )
    cluster.common_lb_config.locality_weighted_lb_config.SetInParent()
    return cluster


def _build_endpoints(name: str, replicas: list[Mapping[str, Any]]) -> Any:
    # As in nginx: those that may be present are tried if none serves.
    serving = "serves" if any(one["serves"] for one in replicas) else "may_serve"
    localities = []
    for one in replicas:
        address = address_pb2.Address(
            socket_address=address_pb2.SocketAddress(address=one["address"], port_value=one["port"])
        )
        status = health_check_pb2.HEALTHY if one[serving] else health_check_pb2.UNHEALTHY
        endpoint = endpoint_components_pb2.LbEndpoint(
            endpoint=endpoint_components_pb2.Endpoint(address=address), health_status=status
        )
        locality = endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[endpoint])
        locality.locality.sub_zone = f"{one['address']}:{one['port']}"
        locality.load_balancing_weight.value = min(max(one["weight"], 1), _MOST_WEIGHT)
        localities.append(locality)
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=localities)


def _build_listener(name: str) -> Any:
    router = any_pb2.Any()
    router.Pack(router_pb2.Router())
    manager = manager_pb2.HttpConnectionManager(
        rds=manager_pb2.Rds(config_source=_ads(), route_config_name=name),
        http_filters=[manager_pb2.HttpFilter(name="router", typed_config=router)],
    )
    packed = any_pb2.Any()
    packed.Pack(manager)
    return listener_pb2.Listener(name=name, api_listener=api_listener_pb2.ApiListener(api_listener=packed))


def _build_route(name: str, cluster: str) -> Any:
    route = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix=""), route=route_components_pb2.RouteAction(cluster=cluster)
    )
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], routes=[route])
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])
