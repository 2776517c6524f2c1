"""The resources of a document, and which of them a stream gets when."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xds", reason="xds-protos is not installed")
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.service.discovery.v3 import discovery_pb2

from balancer.xds import resources
from balancer.xds.bootstrap import add_bootstrap, print_bootstrap
from balancer.xds.report import Report
from balancer.xds.resource_set import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources
from balancer.xds.rights import find_rights, parse_allowed
from balancer.xds.server import Discovery
from balancer.xds.stream import Stream


def replica(number: int, *, weight: int = 1, serves: bool = True, tls: bool = False) -> dict[str, Any]:
    """A replica that may serve unless its address is that of number 9."""
    health = {"serves": serves, "may_serve": number != 9}
    place = {"application": "shop", "address": f"10.0.0.{number}", "port": 7777}
    return {**place, **health, "weight": weight, **({"tls": True} if tls else {})}


def document(*replicas: dict[str, Any], **routes: int) -> dict[str, Any]:
    """A document with one pool of all replicas, the second of none."""
    numbers = list(range(1, len(replicas) + 1))
    return {
        "replicas": list(replicas),
        "pools": [
            {"name": "shop", "application": "shop", "replicas": numbers},
            {"name": "", "application": "", "replicas": []},
        ],
        "applications": {"shop": 1},
        "routes": {name: {"pool": pool, "application": "shop"} for name, pool in routes.items()},
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
    found = resources.build(document(replica(1, serves=False), replica(9, serves=False)))
    assert [healthy for _, _, healthy in endpoints(found)] == [True, False]


def test_the_cluster_of_an_application_that_is_gone_has_no_replica() -> None:
    found = resources.build(document(replica(1))).select(ENDPOINTS, ["shop", "gone"])
    assignments = [endpoint_pb2.ClusterLoadAssignment.FromString(one.value) for one in found]
    assert {one.cluster_name: len(one.endpoints) for one in assignments} == {"shop": 1, "gone": 0}


@pytest.mark.parametrize(("weight", "published"), [(0, 1), (-3, 1), (65_536, 65_535)])
def test_a_weight_that_clients_would_refuse_is_not_published(weight: int, published: int) -> None:
    assert endpoints(resources.build(document(replica(1, weight=weight))))[0][1] == published


def test_an_address_that_is_there_twice_is_published_once() -> None:
    assert endpoints(resources.build(document(replica(1), replica(1)))) == [("10.0.0.1", 1, True)]


def routed(found: Resources, target: str) -> dict[str, int]:
    """The clusters of a target with their weights; 0 for the only one."""
    action = route_pb2.RouteConfiguration.FromString(found.found[ROUTE][target].value).virtual_hosts[0].routes[0].route
    several = {one.name: one.weight.value for one in action.weighted_clusters.clusters}
    return several or {action.cluster: 0}


def test_replicas_with_tls_are_a_cluster_of_their_own_with_the_sum_of_their_weights() -> None:
    found = resources.build(document(replica(1, weight=3), replica(2, tls=True), replica(3, tls=True, weight=4)))
    assert routed(found, "shop") == {"shop": 3, "shop:tls": 5}
    assert endpoints(found, "shop:tls") == [("10.0.0.2", 1, True), ("10.0.0.3", 4, True)]
    cluster = cluster_pb2.Cluster.FromString(found.found[CLUSTER]["shop:tls"].value)
    context = tls_pb2.UpstreamTlsContext()
    assert cluster.transport_socket.typed_config.Unpack(context)
    validation = context.common_tls_context.combined_validation_context.default_validation_context
    assert [one.exact for one in validation.match_subject_alt_names] == ["shop"]
    assert not cluster_pb2.Cluster.FromString(found.found[CLUSTER]["shop"].value).HasField("transport_socket")


def test_a_cluster_without_a_healthy_replica_gets_no_call_if_the_other_has_one() -> None:
    found = resources.build(document(replica(1, serves=False), replica(2, tls=True)))
    assert routed(found, "shop") == {"shop:tls": 0}
    found = resources.build(document(replica(9, serves=False), replica(9, serves=False, tls=True) | {"port": 1}))
    assert routed(found, "shop") == {"shop": 1, "shop:tls": 1}


@pytest.mark.parametrize(("marked", "retries"), [((), 0), ((1,), 0), ((1, 2), 4)])
def test_calls_are_repeated_only_if_all_replicas_say_that_they_may_be(marked: Sequence[int], retries: int) -> None:
    replicas = [replica(number) | ({"idempotent": True} if number in marked else {}) for number in (1, 2)]
    found = resources.build(document(*replicas))
    route = route_pb2.RouteConfiguration.FromString(found.found[ROUTE]["shop"].value).virtual_hosts[0].routes[0].route
    assert route.retry_policy.num_retries.value == retries
    assert route.retry_policy.retry_on == ("unavailable" if retries else "")


def test_applications_and_services_lead_to_the_cluster_of_their_pool() -> None:
    found = resources.build(document(replica(1), Ping=1, Gone=0))
    assert found.found[LISTENER].keys() == found.found[ROUTE].keys() == {"shop", "Ping"}
    assert routed(found, "Ping") == {"shop": 0}
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


def test_a_client_whose_application_goes_has_it_again_when_it_comes_back() -> None:
    stream, there = Stream(), resources.build(document(replica(1)))
    gone = resources.build(document() | {"pools": [], "applications": {}, "routes": {}, "default": 0})
    for kind in (LISTENER, ROUTE, CLUSTER, ENDPOINTS):
        stream.take(request(kind, "shop"))
    assert len(sent(stream, there)) == 4
    sent(stream, gone)
    # The client has no listener, and unsubscribes from what that led to.
    for kind in (ROUTE, CLUSTER, ENDPOINTS):
        stream.take(request(kind))
    assert sent(stream, gone) == []
    assert sent(stream, there) == [(LISTENER, 1)]
    for kind in (ROUTE, CLUSTER, ENDPOINTS):
        stream.take(request(kind, "shop"))
    assert sent(stream, there) == [(CLUSTER, 1), (ENDPOINTS, 1), (ROUTE, 1)]


def test_the_replicas_with_tls_of_each_application_are_a_cluster_whose_certificates_have_its_name() -> None:
    given = document(replica(1), replica(2, tls=True), replica(3, tls=True))
    given["replicas"][2]["application"] = "till"
    given["pools"].append({"name": "", "application": "", "replicas": [1, 2, 3]})
    found = resources.build(given).found[CLUSTER]
    names = {}
    for name in (":default:tls:shop", ":default:tls:till"):
        context = tls_pb2.UpstreamTlsContext()
        assert cluster_pb2.Cluster.FromString(found[name].value).transport_socket.typed_config.Unpack(context)
        validation = context.common_tls_context.combined_validation_context.default_validation_context
        names[name] = [one.exact for one in validation.match_subject_alt_names]
    assert names == {":default:tls:shop": ["shop"], ":default:tls:till": ["till"]}


def test_other_names_are_answered_though_nothing_has_changed() -> None:
    found = resources.build(document(replica(1), Ping=1))
    stream = Stream()
    stream.take(request(LISTENER, "shop"))
    assert sent(stream, found) == [(LISTENER, 1)]
    stream.take(request(LISTENER, "shop", "Ping"))
    assert sent(stream, found) == [(LISTENER, 2)]


def test_a_refused_resource_is_logged_and_noted_until_the_client_takes_one(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.take(request(CLUSTER))
    answer = request(CLUSTER)
    answer.node.id = "client-1"
    answer.error_detail.message = "no such policy"
    for nonce, tls in (("1", False), ("2", True)):
        found = resources.build(document(replica(1, tls=tls)))
        assert sent(stream, found) == [(CLUSTER, 2)]
        answer.response_nonce = nonce
        stream.take(answer)
        assert sent(stream, found) == []
        assert stream.refusals == ["client-1 refuses a Cluster: no such policy"]
    assert "no such policy" in caplog.text
    assert stream.refused == 2
    answer.ClearField("error_detail")
    answer.response_nonce = "1"
    stream.take(answer)
    assert stream.refusals
    answer.response_nonce = "2"
    stream.take(answer)
    assert not stream.refusals


def test_a_client_has_what_its_certificates_names_may_have() -> None:
    allowed = parse_allowed(["billing:shop", "billing:orders", "reports:*"])
    found = resources.build(document(replica(1), Ping=1))
    for names, expected in ((["billing"], 2), (["x", "reports"], 2), (["orders"], 0), ([], 0)):
        rights = find_rights(allowed, names)
        assert len(found.select(LISTENER, None, rights)) == expected
        assert len(found.select(CLUSTER, ["shop"], rights)) == bool(expected)
        known, unknown = (found.select(ENDPOINTS, [name], rights)[0].value for name in ("shop", "none"))
        assert (b"10.0.0.1" in known, b"10.0.0.1" in unknown) == (bool(expected), False)
    assert not found.select(LISTENER, None, find_rights(parse_allowed(["billing:orders"]), ["billing"]))
    assert len(found.select(LISTENER, None, find_rights({}, []))) == 2


@pytest.mark.parametrize("word", ["billing", ":shop", "billing:"])
def test_a_right_without_name_or_application_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse_allowed([word])


def test_a_cluster_that_is_gone_stays_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("balancer.xds.server._LINGER_SECONDS", 0.2)
    both = document(replica(1))
    both["pools"].append({"name": "shop/Ping", "application": "shop", "replicas": [1]})

    async def publish() -> None:
        report = Report(tmp_path / "xds.json")
        stream = Stream()
        discovery = Discovery(report, {})
        discovery.streams.add(stream)
        stream.take(request(CLUSTER))

        def names() -> set[str]:
            assert discovery.current
            return set(discovery.current.found[CLUSTER])

        both["pools"].append({"name": "orders", "application": "orders", "replicas": [1]})
        discovery.publish(resources.build(both))
        # The application orders has no cluster at all any more; its clients must learn that.
        for one in (document(replica(1)), document(replica(2))):
            discovery.publish(resources.build(one))
            assert names() == {"shop", "shop/Ping", ":default"}
        stream.changed.clear()
        await asyncio.wait_for(stream.changed.wait(), 5)
        assert names() == {"shop", ":default"}

    asyncio.run(publish())


def test_the_report_has_clients_and_what_they_refuse(tmp_path: Path) -> None:
    report = Report(tmp_path / "xds.json")
    streams = [Stream(name=f"client-{number}") for number in range(2)]
    for stream in streams:
        report.add(stream)
        stream.take(request(CLUSTER, "shop"))
        assert sent(stream, resources.build(document(replica(1))))
    refusal = request(CLUSTER, "shop")
    refusal.response_nonce, refusal.error_detail.code = "1", 3
    streams[1].take(refusal)
    expected = {"clients": 2, "refusing": 1, "refused": 1}
    assert report.describe() == {**expected, "refusals": ["client-1 refuses a Cluster: no reason is given"]}
    report.remove(streams[1])
    assert report.describe() == {"clients": 1, "refusing": 0, "refused": 1, "refusals": []}


def test_the_bootstrap_file_names_balancers_and_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("cacert", "cert", "key")}
    for file in files.values():
        file.touch()
    parser = argparse.ArgumentParser()
    add_bootstrap(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, str]:
        code = print_bootstrap(parser.parse_args(["bootstrap", *arguments]))
        output = capsys.readouterr()
        return code, output.out if code == 0 else output.err.strip()

    code, text = run("10.0.0.1:18000", "[fd00::1]:18000")
    assert code == 0
    plain = json.loads(text)
    assert [one["server_uri"] for one in plain["xds_servers"]] == ["10.0.0.1:18000", "[fd00::1]:18000"]
    assert "certificate_providers" not in plain
    flags = [
        part for side in ("", "replica-") for name, file in files.items() for part in (f"--{side}{name}", str(file))
    ]
    code, text = run("lb:18000", *flags)
    credentials = json.loads(text)["xds_servers"][0]["channel_creds"]
    assert credentials[0]["config"]["certificate_file"] == str(files["cert"])
    assert json.loads(text)["certificate_providers"]["replicas"]["config"]["private_key_file"] == str(files["key"])
    for wrong, message in (
        (["lb"], "lb"),
        (["lb:1", "--cacert", "none"], "--cacert: must be a file (got 'none')"),
        (["lb:1", *flags[2:4]], "--cert: goes with --key"),
        (["lb:1", *flags[2:6]], "--cert: needs --cacert"),
        (["lb:1", *flags[6:8]], "--replica-cacert: needs --replica-cert"),
    ):
        code, text = run(*wrong)
        assert code == 2
        assert message in text
