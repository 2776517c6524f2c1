"""The resources of a document, and which of them a stream gets when."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("xds", reason="xds-protos is not installed")
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from balancer.xds import resources
from balancer.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources
from balancer.xds.server import Stream


def replica(number: int, *, weight: int = 1, serves: bool = True, may_serve: bool = True) -> dict[str, Any]:
    address = f"10.0.0.{number}"
    return {"address": address, "port": 7777, "weight": weight, "serves": serves, "may_serve": may_serve}


def document(*replicas: dict[str, Any], **routes: int) -> dict[str, Any]:
    """A document with one pool of all replicas, the second of none."""
    return {
        "replicas": list(replicas),
        "pools": [{"name": "shop", "replicas": list(range(1, len(replicas) + 1))}, {"name": "", "replicas": []}],
        "applications": {"shop": 1},
        "routes": {name: {"pool": pool} for name, pool in routes.items()},
    }


def endpoints(found: Resources, name: str = "shop") -> list[tuple[str, int, bool]]:
    """Address, weight and health of each replica of a cluster."""
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(found.found[ENDPOINTS][name].value)
    return [
        (
            one.lb_endpoints[0].endpoint.address.socket_address.address,
            one.load_balancing_weight.value,
            one.lb_endpoints[0].health_status == health_check_pb2.HEALTHY,
        )
        for one in assignment.endpoints
    ]


def test_each_replica_is_a_locality_with_its_weight_and_its_health() -> None:
    found = resources.build(document(replica(1, weight=9), replica(2, serves=False)))
    assert endpoints(found) == [("10.0.0.1", 9, True), ("10.0.0.2", 1, False)]


def test_if_none_serves_those_that_may_be_present_are_tried() -> None:
    found = resources.build(document(replica(1, serves=False), replica(2, serves=False, may_serve=False)))
    assert [healthy for _, _, healthy in endpoints(found)] == [True, False]


def test_the_cluster_of_an_application_that_is_gone_has_no_replica() -> None:
    found = resources.build(document(replica(1))).select(ENDPOINTS, ["shop", "gone"])
    assignments = [endpoint_pb2.ClusterLoadAssignment.FromString(one.value) for one in found]
    assert {one.cluster_name: len(one.endpoints) for one in assignments} == {"shop": 1, "gone": 0}


@pytest.mark.parametrize(("weight", "published"), [(0, 1), (-3, 1), (65_536, 65_535)])
def test_a_weight_that_clients_would_refuse_is_not_published(weight: int, published: int) -> None:
    assert endpoints(resources.build(document(replica(1, weight=weight))))[0][1] == published


def test_applications_and_services_lead_to_the_cluster_of_their_pool() -> None:
    found = resources.build(document(replica(1), Ping=1, Gone=0))
    assert found.found[LISTENER].keys() == found.found[ROUTE].keys() == {"shop", "Ping"}
    route = route_pb2.RouteConfiguration.FromString(found.found[ROUTE]["Ping"].value)
    assert route.virtual_hosts[0].routes[0].route.cluster == "shop"
    assert listener_pb2.Listener.FromString(found.found[LISTENER]["Ping"].value).name == "Ping"


def request(kind: str, *names: str) -> Any:
    return discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names)


def sent(stream: Stream, found: Resources) -> list[tuple[str, int]]:
    """Type and number of resources of each response that is due."""
    return [(one.type_url, len(one.resources)) for one in stream.answers(found)]


def test_a_stream_gets_what_it_asks_for_in_the_order_of_types_and_again_when_it_changes() -> None:
    before = resources.build(document(replica(1)))
    stream = Stream()
    for kind in (ROUTE, LISTENER, ENDPOINTS, CLUSTER):
        stream.take(request(kind, "shop"))
    assert sent(stream, before) == [(CLUSTER, 1), (ENDPOINTS, 1), (LISTENER, 1), (ROUTE, 1)]
    # The client accepts them.
    for kind in (CLUSTER, ENDPOINTS, LISTENER, ROUTE):
        stream.take(request(kind, "shop"))
    assert sent(stream, before) == []
    assert sent(stream, resources.build(document(replica(1), replica(2)))) == [(ENDPOINTS, 1)]


def test_other_names_are_answered_though_nothing_has_changed() -> None:
    found = resources.build(document(replica(1), Ping=1))
    stream = Stream()
    stream.take(request(LISTENER, "shop"))
    assert sent(stream, found) == [(LISTENER, 1)]
    stream.take(request(LISTENER, "shop", "Ping"))
    assert sent(stream, found) == [(LISTENER, 2)]


def test_a_refused_resource_is_logged_and_not_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    found = resources.build(document(replica(1)))
    stream = Stream()
    stream.take(request(CLUSTER, "shop"))
    assert sent(stream, found) == [(CLUSTER, 1)]
    refusal = request(CLUSTER, "shop")
    refusal.error_detail.message = "no such policy"
    stream.take(refusal)
    assert "no such policy" in caplog.text
    assert sent(stream, found) == []
