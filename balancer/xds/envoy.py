"""The resources that Envoy has beside those of gRPC's clients: its listeners, its routes, and its clusters.

Envoy asks for all listeners and clusters (a wildcard); a client names the ones that it wants. So a wildcard is answered
with the resources of this module, and both have the same endpoints. envoy_routes.py has the routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

# The message types that the dictionaries below refer to by name.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.rbac.v3 import rbac_pb2 as _rbac  # noqa: F401
from envoy.extensions.access_loggers.stream.v3 import stream_pb2 as _stream  # noqa: F401
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as _grpc_stats  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as _http_rbac  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2 as _router  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as _manager  # noqa: F401
from google.protobuf import any_pb2
from google.protobuf.json_format import ParseDict

from balancer.engine import EnvoySettings
from balancer.xds import resources
from balancer.xds.envoy_routes import NAME, build_routes
from balancer.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources

_TYPES = "type.googleapis.com/envoy.extensions."
# As in nginx (load-balancer.tpl): the calls of a connection, and TCP's keepalive in seconds.
STREAMS = 8192 + 128
_KEEPALIVE = {"keepalive_time": 60, "keepalive_interval": 10, "keepalive_probes": 6}
# By level and name of setsockopt(2) on Linux: SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT. Connections have
# the options of their listener.
_LISTENER_OPTIONS = ((1, 9, 1), (6, 4, 60), (6, 5, 10), (6, 6, 6))
# A stream's window is HTTP/2's own, because Envoy keeps what its other side does not read; a connection's is the
# largest, because streams that nobody reads would otherwise stop the others of their connection.
_HTTP2 = {"initial_stream_window_size": 65_535, "initial_connection_window_size": 2**31 - 1}
_UNLIMITED = 2**31 - 1
# At least this long, and until the next document.
_LINGER_SECONDS = 5.0
_LOG = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "method": "%REQ(:PATH):200%",
    "grpc_status": "%GRPC_STATUS%",
    "milliseconds": "%DURATION%",
    "replica": "%UPSTREAM_HOST%",
    "request_bytes": "%DOWNSTREAM_WIRE_BYTES_RECEIVED%",
    "response_bytes": "%DOWNSTREAM_WIRE_BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "request_id": "%REQ(X-REQUEST-ID):128%",
    "traceparent": "%REQ(TRACEPARENT):128%",
    # Envoy's reason for a call that ended otherwise than by its replica's answer.
    "flags": "%RESPONSE_FLAGS%",
}
_INTERNAL = {"header": {"key": "grpc-status", "value": "13"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
_NO_ANSWER = {
    "header": {"key": "grpc-message", "value": "the replica did not answer"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}


class Builder:
    """Builds the resources of one document after the other.

    A cluster that no route leads to any more stays for a while: the clusters are sent before the routes, and calls that
    still take the old route would be lost.

    Args:
        settings: the settings of Envoy.
        clock: the monotonic clock in seconds.
    """

    def __init__(self, settings: EnvoySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._present: dict[str, tuple[any_pb2.Any, any_pb2.Any]] = {}
        # With the time at which each left.
        self._left: dict[str, tuple[float, any_pb2.Any, any_pb2.Any]] = {}

    def build(self, document: Mapping[str, Any]) -> Resources:
        """Builds the resources of a document; raises as :func:`build` does."""
        made, now = build(document, self._settings), self._clock()
        clusters, endpoints = made.wildcard[CLUSTER], made.found[ENDPOINTS]
        left = {**{name: (now, *one) for name, one in self._present.items()}, **self._left}
        self._left = {
            name: one for name, one in left.items() if name not in clusters and now < one[0] + _LINGER_SECONDS
        }
        self._present = {name: (one, endpoints[name]) for name, one in clusters.items()}
        return Resources(
            {**made.found, ENDPOINTS: {**endpoints, **{name: one for name, (_, _, one) in self._left.items()}}},
            {**made.wildcard, CLUSTER: {**clusters, **{name: one for name, (_, one, _) in self._left.items()}}},
        )


def build(document: Mapping[str, Any], settings: EnvoySettings) -> Resources:
    """Builds the resources of a document, for Envoy and for clients.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
    """
    found = resources.build(document)
    clusters = {name: _extend(packed) for name, packed in found.found[CLUSTER].items()}
    listeners = {
        name: resources.pack(LISTENER, build_listener(name, address, settings))
        for name, address in ((f"calls/{host}:{port}", (host, port)) for host, port in settings.addresses)
    }
    routes = {NAME: resources.pack(ROUTE, build_routes(document))}
    return Resources({**found.found, ROUTE: {**found.found[ROUTE], **routes}}, {CLUSTER: clusters, LISTENER: listeners})


def _extend(packed: any_pb2.Any) -> any_pb2.Any:
    """Adds to a cluster what only Envoy takes; a client would apply some of it in another way."""
    cluster = cluster_pb2.Cluster.FromString(packed.value)
    cluster.MergeFrom(_CLUSTER)
    # Envoy would take what follows a dot in a pool's name for a part of the metric's.
    cluster.alt_stat_name = cluster.name.replace(".", "_")
    return resources.pack(CLUSTER, cluster)


# As nginx has them: the time for a connection, and a replica that can't be reached is ejected for a second. Longer
# ejections are the control plane's.
_CLUSTER = ParseDict(
    {
        "connect_timeout": "0.5s",
        # Envoy would otherwise wait for the endpoints of a cluster only so long, and then take it for empty.
        "eds_cluster_config": {"eds_config": {"initial_fetch_timeout": "0s"}},
        "common_lb_config": {
            # Envoy would otherwise call ejected replicas as soon as they are the half.
            "healthy_panic_threshold": {"value": 0},
            # An ejection is not kept back to merge it with others.
            "update_merge_window": "0s",
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _UNLIMITED,
                    "max_pending_requests": _UNLIMITED,
                    "max_requests": _UNLIMITED,
                    "max_retries": _UNLIMITED,
                }
            ]
        },
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "0.5s",
            "base_ejection_time": "1s",
            "max_ejection_time": "1s",
            "max_ejection_percent": 100,
        },
        "typed_extension_protocol_options": {
            resources.HTTP2: {
                "@type": f"type.googleapis.com/{resources.HTTP2}",
                "explicit_http_config": {"http2_protocol_options": _HTTP2},
            }
        },
        # No PINGs of HTTP/2: gRPC's servers end connections that have them more often than once in five minutes.
        "upstream_connection_options": {"tcp_keepalive": _KEEPALIVE},
    },
    cluster_pb2.Cluster(),
)


def build_listener(name: str, address: tuple[str, int], settings: EnvoySettings) -> Any:
    """Builds the listener of an address."""
    host, port = address
    listener = {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "tcp_backlog_size": 4096,
        "socket_options": [
            {"level": level, "name": option, "int_value": value, "state": "STATE_PREBIND"}
            for level, option, value in _LISTENER_OPTIONS
        ],
        "filter_chains": [
            {"filters": [{"name": "http_connection_manager", "typed_config": _build_manager(settings)}]},
        ],
    }
    return ParseDict(listener, listener_pb2.Listener())


def _build_manager(settings: EnvoySettings) -> dict[str, Any]:
    return {
        "@type": f"{_TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "HTTP2",
        "stat_prefix": "calls",
        "rds": {
            "route_config_name": NAME,
            # Without an end: a listener without its routes would answer UNIMPLEMENTED.
            "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "http_filters": [*_build_filters(settings)],
        "http2_protocol_options": {
            **_HTTP2,
            "max_concurrent_streams": STREAMS,
            # A request that Envoy refuses must not end the other calls of its connection.
            "override_stream_error_on_invalid_http_message": True,
        },
        # Calls and connections live as long as their client, as in nginx (calls.conf).
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": 1000},
        "max_request_headers_kb": 512,
        "request_headers_timeout": "10s",
        # The time between the two GOAWAY of a stop, in which calls arrive that were on their way.
        "drain_timeout": "1s",
        # The headers x-envoy-... of a client that Envoy takes for internal choose timeouts and retries. No client has
        # this address; without one they would be all of private networks.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 32}]},
        "skip_xff_append": True,
        "server_header_transformation": "PASS_THROUGH",
        "preserve_external_request_id": True,
        "local_reply_config": {"mappers": [_NOT_ANSWERED]},
        **({"access_log": [_build_log()]} if settings.access_log else {}),
    }


# A call that had been sent to its replica when the connection or the stream ended: a handler may have it, and
# UNAVAILABLE, which is Envoy's status here, would make clients send it again.
_NOT_ANSWERED = {
    "filter": {"response_flag_filter": {"flags": ["UC", "UR"]}},
    "headers_to_add": [_INTERNAL, _NO_ANSWER],
}


def _build_filters(settings: EnvoySettings) -> list[dict[str, Any]]:
    filters = []
    if settings.allowed:
        networks = [
            {"direct_remote_ip": {"address_prefix": str(one.network_address), "prefix_len": one.prefixlen}}
            for one in settings.allowed
        ]
        policy = {"permissions": [{"any": True}], "principals": networks}
        rules = {"action": "ALLOW", "policies": {"LB_ALLOW": policy}}
        filters.append(
            {"name": "allow", "typed_config": {"@type": f"{_TYPES}filters.http.rbac.v3.RBAC", "rules": rules}}
        )
    # Counts statuses for each cluster. Methods are left out, because callers choose their names.
    stats = {"@type": f"{_TYPES}filters.http.grpc_stats.v3.FilterConfig", "stats_for_all_methods": False}
    router = {"@type": f"{_TYPES}filters.http.router.v3.Router", "suppress_envoy_headers": True}
    filters.append({"name": "grpc_stats", "typed_config": stats})
    filters.append({"name": "router", "typed_config": router})
    return filters


def _build_log() -> dict[str, Any]:
    line = {"@type": f"{_TYPES}access_loggers.stream.v3.StdoutAccessLog", "log_format": {"json_format": _LOG}}
    return {"name": "stdout", "typed_config": line}
