"""Builds the xDS resources of a document (balancer/document.py).

Each application and each gRPC service is a target, ``xds:///hello_server`` or ``xds:///protos.Ping``: a listener and a
route of that name lead to the cluster of a pool. gRPC's round robin ignores the weights of endpoints, so that each
replica is a locality of its own and the weight is the locality's (gRFC A27, "EDS").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2, health_check_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import any_pb2

from balancer.xds.bootstrap import CERTIFICATES
from balancer.xds.resource_set import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources

HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# No application has such names.
_TLS, _DEFAULT = ":tls", ":default"
# Weights of localities; the sum of all must fit in 32 bits too.
_MOST_WEIGHT = 65_535


# As grpc_client's retry policy: five attempts in about 1.5 s.
_RETRIES = route_components_pb2.RetryPolicy(retry_on="unavailable")
_RETRIES.num_retries.value = 4
_RETRIES.retry_back_off.base_interval.FromMilliseconds(100)
_RETRIES.retry_back_off.max_interval.FromSeconds(1)


def build(document: Mapping[str, Any]) -> Resources:
    """Builds the resources.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
    """
    built = Resources()
    weights = add_clusters(built, document, build_cluster)
    for target, application, number in _find_targets(document):
        if number:
            route = _build_route(target, weights[number], repeats=may_repeat(document, number))
            built.add(LISTENER, target, application, _build_listener(target))
            built.add(ROUTE, target, application, route)
    return built


def add_clusters(
    built: Resources, document: Mapping[str, Any], make: Callable[[str, str], Any]
) -> dict[int, dict[str, int]]:
    """Adds the clusters of all pools, with their endpoints.

    A pool has one of its replicas without TLS, and one of each application's with TLS.

    Args:
        built: gets them.
        document: the document.
        make: makes a cluster of its name, and of the name that the certificates of its replicas must have; without TLS
            that is empty.

    Returns:
        The weights of the clusters by name, by the number of the pool.
    """
    numbers = range(1, len(document["pools"]) + 1)
    return {number: _add_pool(built, document, number, make) for number in numbers}


def _add_pool(
    built: Resources, document: Mapping[str, Any], number: int, make: Callable[[str, str], Any]
) -> dict[str, int]:
    pool, replicas = document["pools"][number - 1], document["replicas"]
    # A client refuses the whole of a cluster that has an address twice.
    members = {(one["address"], one["port"]): one for one in (replicas[index - 1] for index in pool["replicas"])}
    # As in nginx: those that may be present are tried if none serves.
    serving = "serves" if any(one["serves"] for one in members.values()) else "may_serve"
    parts: dict[str, list[Mapping[str, Any]]] = {} if members else {"": []}
    for one in members.values():
        parts.setdefault(one["application"] if one.get("tls") else "", []).append(one)
    weights: dict[str, int] = {}
    for application, part in sorted(parts.items()):
        name = pool["name"] or _DEFAULT
        if application:
            name += _TLS if application == pool["application"] else f"{_TLS}:{application}"
        built.add(CLUSTER, name, pool["application"], make(name, application))
        built.add(ENDPOINTS, name, pool["application"], _build_endpoints(name, part, serving))
        weights[name] = sum(_limit(one["weight"]) for one in part if one[serving])
    return weights


def choose_clusters(action: Any, clusters: Mapping[str, int]) -> None:
    """Leads a route to clusters, by name with their weights."""
    # If no replica is healthy, all clusters say so.
    weights = {one: weight for one, weight in clusters.items() if weight} or dict.fromkeys(clusters, 1)
    if len(weights) == 1:
        action.cluster = next(iter(weights))
        return
    for one, weight in weights.items():
        action.weighted_clusters.clusters.add(name=one).weight.value = weight


def may_repeat(document: Mapping[str, Any], number: int) -> bool:
    """Returns whether all replicas of a pool say that their calls may be executed twice."""
    replicas = document["replicas"]
    return all(replicas[index - 1].get("idempotent") for index in document["pools"][number - 1]["replicas"])


def _find_targets(document: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields targets, their applications and the numbers of their pools; an application hides a service of its name."""
    for service, route in document["routes"].items():
        if service not in document["applications"]:
            yield service, route["application"], route["pool"]
    for name, number in document["applications"].items():
        yield name, name, number


def _limit(weight: int) -> int:
    return min(max(weight, 1), _MOST_WEIGHT)


def _ads() -> Any:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def build_cluster(name: str, tls_name: str) -> Any:
    """Builds a cluster; its replicas have TLS with a name unless that is empty."""
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
    if tls_name:
        cluster.transport_socket.name = "envoy.transport_sockets.tls"
        cluster.transport_socket.typed_config.Pack(_build_tls(tls_name))
    return cluster


def _build_tls(name: str) -> Any:
    """Builds TLS with the client's own files (gRFC A29); a replica's certificate must have the name."""
    provider = common_pb2.CertificateProviderPluginInstance(instance_name=CERTIFICATES)
    validation = common_pb2.CertificateValidationContext(
        ca_certificate_provider_instance=provider,
        match_subject_alt_names=[string_pb2.StringMatcher(exact=name)],
    )
    combined = tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(default_validation_context=validation)
    return tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_certificate_provider_instance=provider, combined_validation_context=combined
        )
    )


def _build_endpoints(name: str, replicas: Iterable[Mapping[str, Any]], serving: str) -> Any:
    """Builds the endpoints; those with ``serving`` are healthy."""
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
        locality.load_balancing_weight.value = _limit(one["weight"])
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


def _build_route(name: str, clusters: Mapping[str, int], *, repeats: bool) -> Any:
    """Builds a route to clusters, by name with their weights.

    Args:
        name: that of the target.
        clusters: the weights by name.
        repeats: whether a call that fails may be executed again (gRFC A44).
    """
    action = route_components_pb2.RouteAction()
    choose_clusters(action, clusters)
    if repeats:
        action.retry_policy.CopyFrom(_RETRIES)
    route = route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix=""), route=action)
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], routes=[route])
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])
