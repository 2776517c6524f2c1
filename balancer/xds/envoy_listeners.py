"""Envoy's listeners: an address of LB_LISTEN each, with the limits and statuses of nginx."""

from __future__ import annotations

from typing import Any

from envoy.config.listener.v3 import listener_pb2

# The message types that the dictionaries below refer to by name.
from envoy.config.rbac.v3 import rbac_pb2 as _rbac  # noqa: F401
from envoy.extensions.access_loggers.stream.v3 import stream_pb2 as _stream  # noqa: F401
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as _grpc_stats  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as _http_rbac  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2 as _router  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as _manager  # noqa: F401
from google.protobuf.json_format import ParseDict

from balancer.engine import EnvoySettings
from balancer.xds.envoy_routes import CERTIFIED, NAME
from balancer.xds.envoy_tls import accept_tls

_TYPES = "type.googleapis.com/envoy.extensions."
# As in nginx (load-balancer.tpl): the calls of a connection.
_STREAMS = 8192 + 128
# By level and name of setsockopt(2) on Linux: SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT. Connections have
# the options of their listener.
_LISTENER_OPTIONS = ((1, 9, 1), (6, 4, 60), (6, 5, 10), (6, 6, 6))
# A stream's window is HTTP/2's own, because Envoy keeps what its other side does not read; a connection's is the
# largest, because streams that nobody reads would otherwise stop the others of their connection.
HTTP2_OPTIONS = {"initial_stream_window_size": 65_535, "initial_connection_window_size": 2**31 - 1}
# An address that no client has.
_NOBODY = "0.0.0.0"  # noqa: S104
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


def build_listener(name: str, address: tuple[str, int], settings: EnvoySettings) -> Any:
    """Builds the listener of an address."""
    host, port = address
    tls = address in settings.tls_addresses
    routes = CERTIFIED if tls and settings.verifies else NAME
    manager = {"name": "http_connection_manager", "typed_config": _build_manager(settings, routes)}
    listener = {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "tcp_backlog_size": 4096,
        "socket_options": [
            {"level": level, "name": option, "int_value": value, "state": "STATE_PREBIND"}
            for level, option, value in _LISTENER_OPTIONS
        ],
        "filter_chains": [{"filters": [manager], **(accept_tls(verifies=settings.verifies) if tls else {})}],
    }
    return ParseDict(listener, listener_pb2.Listener())


def _build_manager(settings: EnvoySettings, routes: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "HTTP2",
        "stat_prefix": "calls",
        "rds": {
            "route_config_name": routes,
            # Without an end: a listener without its routes would answer UNIMPLEMENTED.
            "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "http_filters": _build_filters(settings),
        "http2_protocol_options": {
            **HTTP2_OPTIONS,
            "max_concurrent_streams": _STREAMS,
            # A client that does not answer a PING, or has never said anything, is gone.
            "connection_keepalive": {"interval": "60s", "timeout": "60s"},
            # A request that Envoy refuses must not end the other calls of its connection.
            "override_stream_error_on_invalid_http_message": True,
        },
        # Calls and connections live as long as their client, as in nginx (calls.conf).
        "stream_idle_timeout": "0s",
        # Frees the buffers of a client that reads nothing of an answer for this time.
        "stream_flush_timeout": "3600s",
        "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": 1000},
        "max_request_headers_kb": 512,
        "request_headers_timeout": "10s",
        # The time between the two GOAWAY of a stop, in which calls arrive that were on their way.
        "drain_timeout": "1s",
        # The headers x-envoy-... of a client that Envoy takes for internal choose timeouts and retries. No client has
        # this address; without one they would be all of private networks.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": _NOBODY, "prefix_len": 32}]},
        "skip_xff_append": True,
        "server_header_transformation": "PASS_THROUGH",
        "preserve_external_request_id": True,
        "local_reply_config": {"mappers": _ANSWERS},
        **({"access_log": [_build_log()]} if settings.access_log else {}),
    }


# The statuses and messages of calls that no replica has answered, by Envoy's response flags, as nginx has them
# (lua/outcome.lua). All are UNAVAILABLE but those that a replica has reset, of which a handler may be at work.
_ANSWERS = [
    {
        "filter": {"response_flag_filter": {"flags": flags}},
        "body": {"inline_string": message},
        **({"headers_to_add": [_INTERNAL]} if "UR" in flags else {}),
    }
    for flags, message in (
        (["UF", "UH"], "no replica could be reached"),
        (["UC"], "the connection to the replica ended before it answered"),
        (["UR"], "the replica has reset the call"),
    )
] + [
    {
        "filter": {
            "status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 403, "runtime_key": "lb.403"}}}
        },
        "body": {"inline_string": "calls from this address are not allowed"},
    }
]


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
    if settings.metrics:
        # For each cluster. Methods are left out, because callers choose their names.
        stats = {"@type": f"{_TYPES}filters.http.grpc_stats.v3.FilterConfig", "stats_for_all_methods": False}
        filters.append({"name": "grpc_stats", "typed_config": stats})
    # Without its counts of HTTP's statuses, which gRPC does not use.
    router = {
        "@type": f"{_TYPES}filters.http.router.v3.Router",
        "suppress_envoy_headers": True,
        "dynamic_stats": False,
    }
    filters.append({"name": "router", "typed_config": router})
    return filters


def _build_log() -> dict[str, Any]:
    line = {"@type": f"{_TYPES}access_loggers.stream.v3.StdoutAccessLog", "log_format": {"json_format": _LOG}}
    return {"name": "stdout", "typed_config": line}
