"""What Envoy gets of a document: listeners, routes and clusters; and in which order."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

pytest.importorskip("xds", reason="xds-protos is not installed")
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from balancer.engine import EnvoySettings
from balancer.xds import envoy, resources
from balancer.xds.envoy_routes import ANSWERS, CERTIFIED, NAME
from balancer.xds.resource_set import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from balancer.xds.stream import Stream
from tests.unit.test_xds import replica, request, sent

SETTINGS = EnvoySettings(addresses=(("10.0.0.1", 5000), ("::1", 5001)))
NO_POOL = {"name": "", "application": ""}
SHARED = {f"/grpc.{name}/" for name in ("health.v1.Health", "reflection.v1.ServerReflection")}


def document(**more: Any) -> dict[str, Any]:
    """Two applications with a service each, and one whose application has no replica."""
    return {
        "replicas": [replica(1), replica(2)],
        "pools": [
            {"name": "shop", "application": "shop", "replicas": [1]},
            {"name": "till", "application": "till", "replicas": [2]},
        ],
        "applications": {"shop": 1, "till": 2},
        "routes": {
            "shop.Orders": {"pool": 1, "application": "shop"},
            "till.Bills": {"pool": 2, "application": "till"},
            "gone.Gone": {"pool": 0, "application": "gone"},
        },
        **more,
    }


def calls(given: dict[str, Any], settings: EnvoySettings = SETTINGS, name: str = NAME) -> Any:
    """The routes of a configuration."""
    (packed,) = envoy.build(given, settings).select(ROUTE, [name])
    return route_pb2.RouteConfiguration.FromString(packed.value).virtual_hosts[0].routes


def routes(given: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Prefix, application and cluster or answer of each route after the first, which refuses paths."""
    found = []
    for one in calls(given)[1:]:
        header = one.match.headers[0] if one.match.headers else None
        wanted = "" if header is None else "none" if header.invert_match else header.string_match.exact
        found.append((one.match.prefix, wanted, one.route.cluster or str(one.direct_response.status)))
    return found


def test_a_call_goes_to_the_pool_of_its_service_then_of_the_application_that_it_names() -> None:
    found = routes(document())
    assert {one for one in found if one[2] == ANSWERS} >= {(prefix, "none", ANSWERS) for prefix in SHARED}
    assert [one for one in found if one[2] != ANSWERS] == [
        ("/shop.Orders/", "", "shop"),
        ("/till.Bills/", "", "till"),
        ("/gone.Gone/", "", "503"),
        ("", "shop", "shop"),
        ("", "till", "till"),
        ("", "", "404"),
    ]


def test_the_only_application_gets_every_call() -> None:
    given = {
        "pools": [{"name": "shop", "application": "shop", "replicas": [1]}],
        "applications": {"shop": 1},
        "default": 1,
    }
    assert routes(document(**given, routes={"shop.Orders": {"pool": 1, "application": "shop"}})) == [("", "", "shop")]


def test_without_a_replica_calls_are_unavailable() -> None:
    given = {
        "replicas": [],
        "pools": [NO_POOL | {"replicas": []}],
        "applications": {},
        "routes": {},
        "default": 1,
    }
    assert routes(document(**given)) == [("", "", "503")]


def test_applications_without_services_share_the_calls_and_keep_their_health() -> None:
    given = {
        "pools": [*document()["pools"], NO_POOL | {"replicas": [1, 2]}],
        "routes": {},
        "default": 3,
    }
    assert routes(document(**given))[-2:] == [
        ("/grpc.reflection.v1alpha.ServerReflection/", "none", ANSWERS),
        ("", "", ":default"),
    ]


def test_only_calls_that_no_handler_has_are_sent_again() -> None:
    action = calls(document())[-2].route
    assert action.retry_policy.retry_on == "connect-failure,refused-stream,reset-before-request"
    assert [one.name for one in action.retry_policy.retry_host_predicate] == ["previous_hosts"]
    assert action.HasField("timeout")
    assert action.timeout.ToMilliseconds() == 0


def test_calls_of_an_application_that_may_be_executed_twice_are() -> None:
    given = document(replicas=[replica(1) | {"idempotent": True}, replica(2)])
    of = {one.match.prefix: one.route.retry_policy.retry_on for one in calls(given)}
    assert of["/shop.Orders/"] == "connect-failure,refused-stream,reset-before-request,reset,unavailable"
    assert of["/till.Bills/"] == "connect-failure,refused-stream,reset-before-request"


def test_a_path_that_is_not_printable_is_refused_before_all_routes() -> None:
    first = calls(document())[0]
    assert first.match.headers[0].invert_match
    assert first.direct_response.status == 404


def listeners(settings: EnvoySettings) -> dict[str, Any]:
    found = envoy.build(document(), settings).select(LISTENER, None)
    return {one.name: one for one in (listener_pb2.Listener.FromString(packed.value) for packed in found)}


def manager(settings: EnvoySettings, number: int = 0) -> Any:
    """The HTTP connection manager of a listener."""
    packed = list(listeners(settings).values())[number].filter_chains[0].filters[0].typed_config
    found = http_connection_manager_pb2.HttpConnectionManager()
    packed.Unpack(found)
    return found


def test_each_address_is_a_listener() -> None:
    found = envoy.build(document(), SETTINGS)
    places = [
        (one.address.socket_address.address, one.address.socket_address.port_value)
        for one in listeners(SETTINGS).values()
    ]
    assert places == [("10.0.0.1", 5000), ("::1", 5001)]
    (configuration,) = found.select(ROUTE, [NAME])
    assert route_pb2.RouteConfiguration.FromString(configuration.value).name == NAME


def test_log_metrics_and_allowed_networks_are_those_of_the_settings() -> None:
    assert [one.name for one in manager(SETTINGS).access_log] == ["stdout"]
    assert [one.name for one in manager(SETTINGS).http_filters] == ["router"]
    closed = manager(EnvoySettings(access_log=False, metrics=True, allowed=(ip_network("10.0.0.0/8"),)))
    assert not closed.access_log
    assert [one.name for one in closed.http_filters] == ["allow", "grpc_stats", "router"]


def test_a_listener_with_tls_has_the_routes_of_callers_with_certificates() -> None:
    settings = EnvoySettings(
        addresses=SETTINGS.addresses, tls_addresses=frozenset(SETTINGS.addresses[:1]), verifies=True
    )
    first, second = listeners(settings).values()
    context = tls_pb2.DownstreamTlsContext()
    assert first.filter_chains[0].transport_socket.typed_config.Unpack(context)
    (certificate,) = context.common_tls_context.tls_certificate_sds_secret_configs
    assert certificate.name == "certificate.pem"
    assert context.common_tls_context.validation_context_sds_secret_config.name == "client-ca.pem"
    assert not second.filter_chains[0].HasField("transport_socket")
    assert [manager(settings, number).rds.route_config_name for number in (0, 1)] == [CERTIFIED, NAME]
    (without, wrong, *_), (other, *_) = (calls(document(), settings, name) for name in (CERTIFIED, NAME))
    assert without.match.tls_context.HasField("presented")
    assert wrong.match.tls_context.HasField("validated")
    assert without.direct_response.status == wrong.direct_response.status == 401
    assert not other.match.HasField("tls_context")
    assert manager(replace(settings, verifies=False)).rds.route_config_name == NAME


def test_replicas_with_tls_have_their_weight_of_the_calls_and_must_have_their_applications_name() -> None:
    given = document(replicas=[replica(1, weight=3), replica(2)])
    given["replicas"].append(replica(3, tls=True))
    given["pools"][0]["replicas"] = [1, 3]
    route = next(one for one in calls(given) if one.match.prefix == "/shop.Orders/")
    weights = {one.name: one.weight.value for one in route.route.weighted_clusters.clusters}
    assert weights == {"shop": 3, "shop:tls": 1}
    found = envoy.build(given, SETTINGS).select(CLUSTER, None)
    clusters = {one.name: one for one in (cluster_pb2.Cluster.FromString(packed.value) for packed in found)}
    context = tls_pb2.UpstreamTlsContext()
    assert clusters["shop:tls"].transport_socket.typed_config.Unpack(context)
    validation = context.common_tls_context.combined_validation_context
    assert validation.validation_context_sds_secret_config.name == "replica-ca.pem"
    (name,) = validation.default_validation_context.match_typed_subject_alt_names
    assert (name.san_type, name.matcher.exact, context.sni) == (name.DNS, "shop", "shop")
    assert not context.common_tls_context.tls_certificate_sds_secret_configs
    assert not clusters["shop"].HasField("transport_socket")
    # An application may be called shop_tls.
    assert clusters["shop:tls"].alt_stat_name == "shop/tls"


def test_a_cluster_of_envoys_has_what_a_clients_has_not() -> None:
    found = envoy.build(document(), SETTINGS)
    (theirs,) = resources.build(document()).select(CLUSTER, ["shop"])
    assert not cluster_pb2.Cluster.FromString(theirs.value).HasField("outlier_detection")
    ours = found.select(CLUSTER, None)
    assert len(ours) == 2
    for cluster in (cluster_pb2.Cluster.FromString(one.value) for one in ours):
        assert cluster.outlier_detection.base_ejection_time.seconds == 1
        assert cluster.common_lb_config.HasField("locality_weighted_lb_config")
        assert cluster.common_lb_config.healthy_panic_threshold.value == 0


def test_routes_wait_until_envoy_has_asked_for_the_endpoints_of_each_cluster() -> None:
    stream, found = Stream(), envoy.build(document(), SETTINGS)
    for kind, names in ((CLUSTER, ()), (ENDPOINTS, ("shop",)), (LISTENER, ()), (ROUTE, (NAME,))):
        stream.take(request(kind, *names))
    assert sent(stream, found) == [(CLUSTER, 2), (ENDPOINTS, 1)]
    stream.take(request(ENDPOINTS, "shop", "till"))
    assert sent(stream, found) == [(ENDPOINTS, 2), (LISTENER, 2), (ROUTE, 1)]
