"""Envoy's routes: the pool of a call by its path and metadata, as lua/router.lua finds it in nginx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from google.protobuf import any_pb2
from google.protobuf.json_format import ParseDict

from balancer.xds.resources import may_repeat, name_pool

# The name of the route configuration, and the cluster of balancer/answers.py in envoy.yaml. No pool has such a name.
NAME = "stack:calls"
ANSWERS = "stack:answers"
# The services that every application has, as in load-balancer.tpl.
_SHARED = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_APPLICATION = "x-application"
_UNIMPLEMENTED, _UNAVAILABLE = 404, 503  # which Envoy answers to gRPC as these statuses


def build_routes(document: Mapping[str, Any]) -> Any:
    """Builds the route configuration of a document."""
    routes = [_refuse_path(), *_find_routes(document)]
    host = route_components_pb2.VirtualHost(name="calls", domains=["*"], routes=routes)
    # A caller can't set the first, which is nginx's with TLS; the others are Envoy's own, which a replica did not get
    # from its caller.
    removed = ["x-client-certificate-subject", "x-envoy-external-address", "x-forwarded-proto"]
    return route_pb2.RouteConfiguration(name=NAME, virtual_hosts=[host], request_headers_to_remove=removed)


def _find_routes(document: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes in the order in which Envoy tries them."""
    default, applications = document.get("default", 0), document["applications"]
    if len(applications) > 1:
        for service in _SHARED:
            match = _match(f"/{service}/")
            match.headers.add(name=_APPLICATION, present_match=True, invert_match=True)
            yield _to_cluster(match, ANSWERS)
    # Otherwise one pool has all calls.
    if not default or any(route["pool"] != default for route in document["routes"].values()):
        for service, route in document["routes"].items():
            yield _to_pool(_match(f"/{service}/"), document, route["pool"])
        for application, number in applications.items():
            match = _match("")
            match.headers.add(name=_APPLICATION).string_match.exact = application
            yield _to_pool(match, document, number)
    if default:
        yield _to_pool(_match(""), document, default)
    else:
        yield _answer(_match(""), _UNIMPLEMENTED, "no application has this service")


def _match(prefix: str) -> Any:
    return route_components_pb2.RouteMatch(prefix=prefix)


def _refuse_path() -> Any:
    """A path that is not printable ASCII, for the reason in grpc_answers.conf."""
    match = _match("")
    header = match.headers.add(name=":path", invert_match=True)
    header.string_match.safe_regex.regex = "[!-~]+"
    return _answer(match, _UNIMPLEMENTED, "no such method")


def _to_pool(match: Any, document: Mapping[str, Any], number: int) -> Any:
    if not number or not document["pools"][number - 1]["replicas"]:
        return _answer(match, _UNAVAILABLE, "no replica could be reached")
    return _to_cluster(match, name_pool(document, number), repeats=may_repeat(document, number))


def _to_cluster(match: Any, cluster: str, *, repeats: bool = False) -> Any:
    route = route_components_pb2.Route(match=match)
    route.route.CopyFrom(_REPEATING_ACTION if repeats else _ACTION)
    route.route.cluster = cluster
    return route


def _answer(match: Any, status: int, message: str) -> Any:
    return route_components_pb2.Route(
        match=match,
        direct_response=route_components_pb2.DirectResponseAction(
            status=status, body=base_pb2.DataSource(inline_string=message)
        ),
    )


def _make_action(retry_on: str) -> Any:
    previous = any_pb2.Any()
    previous.Pack(previous_hosts_pb2.PreviousHostsPredicate())
    action = {
        # A call's deadline is its client's.
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        "retry_policy": {
            "retry_on": retry_on,
            "num_retries": 4,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.01s"},
            "host_selection_retry_max_attempts": 16,
        },
    }
    parsed = ParseDict(action, route_components_pb2.RouteAction())
    parsed.retry_policy.retry_host_predicate.add(name="previous_hosts", typed_config=previous)
    return parsed


# Only calls that no handler has. "reset-before-request" is a connection that ended before the call was sent.
_UNTOUCHED = "connect-failure,refused-stream,reset-before-request"
_ACTION = _make_action(_UNTOUCHED)
# Of applications whose calls may be executed twice.
_REPEATING_ACTION = _make_action(f"{_UNTOUCHED},reset,unavailable")
