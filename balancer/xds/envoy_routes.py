"""Envoy's routes: the pool of a call by its path and metadata, as lua/router.lua finds it in nginx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from google.protobuf import any_pb2
from google.protobuf.json_format import ParseDict

from balancer.xds.resources import choose_clusters, may_repeat

# The names of the route configurations, of which the second is for TLS with callers' certificates, and the cluster of
# balancer/answers.py in envoy.yaml. No pool has such a name.
NAME = "stack:calls"
CERTIFIED = "stack:certified-calls"
ANSWERS = "stack:answers"
# The services that every application has, as in load-balancer.tpl.
_SHARED = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_APPLICATION = "x-application"
# Which Envoy answers to gRPC as these statuses.
_UNAUTHENTICATED, _UNIMPLEMENTED, _UNAVAILABLE = 401, 404, 503
_SUBJECT = "x-client-certificate-subject"


def build_routes(
    document: Mapping[str, Any], weights: Mapping[int, Mapping[str, int]], *, verifies: bool
) -> Iterator[Any]:
    """Yields the route configurations of a document.

    Args:
        document: the document.
        weights: by the number of a pool, the weights of its clusters by name.
        verifies: whether there is one for callers that need a certificate, whose subject replicas get.
    """
    routes = [_refuse_path(), *_find_routes(document, weights)]
    yield _configure(NAME, routes)
    if verifies:
        certified = _configure(CERTIFIED, [*_refuse_callers(), *routes])
        # As RFC 2253 has it, like nginx's.
        subject = base_pb2.HeaderValue(key=_SUBJECT, value="%DOWNSTREAM_PEER_SUBJECT%")
        action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        certified.request_headers_to_add.add(header=subject, append_action=action)
        yield certified


def _configure(name: str, routes: Sequence[Any]) -> Any:
    host = route_components_pb2.VirtualHost(name="calls", domains=["*"], routes=routes)
    # A caller can't set the first, which the balancer sets; the others are Envoy's own, which a replica did not get
    # from its caller.
    removed = [_SUBJECT, "x-envoy-external-address", "x-forwarded-proto"]
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host], request_headers_to_remove=removed)


def _find_routes(document: Mapping[str, Any], weights: Mapping[int, Mapping[str, int]]) -> Iterator[Any]:
    """Yields the routes in the order in which Envoy tries them."""
    default, applications = document.get("default", 0), document["applications"]

    def to_pool(match: Any, number: int) -> Any:
        if not number or not document["pools"][number - 1]["replicas"]:
            return _answer(match, _UNAVAILABLE, "no replica could be reached")
        return _to_clusters(match, weights[number], repeats=may_repeat(document, number))

    if len(applications) > 1:
        for service in _SHARED:
            match = _match(f"/{service}/")
            match.headers.add(name=_APPLICATION, present_match=True, invert_match=True)
            yield _to_clusters(match, {ANSWERS: 1})
    # Otherwise one pool has all calls.
    if not default or any(route["pool"] != default for route in document["routes"].values()):
        for service, route in document["routes"].items():
            yield to_pool(_match(f"/{service}/"), route["pool"])
        for application, number in applications.items():
            match = _match("")
            match.headers.add(name=_APPLICATION).string_match.exact = application
            yield to_pool(match, number)
    if default:
        yield to_pool(_match(""), default)
    else:
        yield _answer(_match(""), _UNIMPLEMENTED, "no application has this service")


def _match(prefix: str) -> Any:
    return route_components_pb2.RouteMatch(prefix=prefix)


def _refuse_callers() -> Iterator[Any]:
    """Yields the routes of callers without a certificate, and with one that is not valid."""
    for what, message in (
        ("presented", "a client certificate is required"),
        ("validated", "the client certificate is not accepted"),
    ):
        match = _match("")
        getattr(match.tls_context, what).value = False
        yield _answer(match, _UNAUTHENTICATED, message)


def _refuse_path() -> Any:
    """A path that is not printable ASCII, for the reason in grpc_answers.conf."""
    match = _match("")
    header = match.headers.add(name=":path", invert_match=True)
    header.string_match.safe_regex.regex = "[!-~]+"
    return _answer(match, _UNIMPLEMENTED, "no such method")


def _to_clusters(match: Any, clusters: Mapping[str, int], *, repeats: bool = False) -> Any:
    route = route_components_pb2.Route(match=match)
    route.route.CopyFrom(_REPEATING_ACTION if repeats else _ACTION)
    choose_clusters(route.route, clusters)
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
