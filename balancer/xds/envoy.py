"""The resources of Envoy: the endpoints of gRPC's clients, and listeners, routes and clusters of its own.

Envoy has a Unix socket of its own (server.py). envoy_listeners.py and envoy_routes.py make the listeners and routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf.json_format import ParseDict

from balancer.engine import EnvoySettings
from balancer.xds import resources
from balancer.xds.envoy_listeners import HTTP2_OPTIONS, build_listener
from balancer.xds.envoy_routes import build_routes
from balancer.xds.envoy_tls import connect_with_tls
from balancer.xds.resource_set import LISTENER, ROUTE, Resources

# In seconds, as in nginx.
_KEEPALIVE = {"keepalive_time": 60, "keepalive_interval": 10, "keepalive_probes": 6}
_UNLIMITED = 2**31 - 1


def build(document: Mapping[str, Any], settings: EnvoySettings) -> Resources:
    """Builds the resources of a document.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
    """
    built = Resources()
    make = partial(_build_cluster, settings=settings)
    weights = resources.add_clusters(built, document, make)
    for routes in build_routes(document, weights, verifies=bool(settings.tls_addresses) and settings.verifies):
        built.add(ROUTE, routes.name, "", routes)
    for host, port in settings.addresses:
        name = f"calls/{host}:{port}"
        built.add(LISTENER, name, "", build_listener(name, (host, port), settings))
    return built


def _build_cluster(name: str, tls_name: str, settings: EnvoySettings) -> Any:
    """Builds a cluster with what only Envoy takes; a client would apply some of it in another way."""
    cluster = resources.build_cluster(name, tls_name)
    cluster.MergeFrom(_CLUSTER)
    # Envoy would take what follows a dot for a part of the metric's name, and an underscore for a colon, which
    # applications' names may have.
    cluster.alt_stat_name = name.replace(".", "_").replace(":", "/")
    if tls_name:
        cluster.connect_timeout.FromSeconds(_TLS_CONNECT_SECONDS)
        # With the balancer's files in place of a client's.
        cluster.transport_socket.Clear()
        ParseDict(connect_with_tls(tls_name, own=settings.replica_certificate), cluster.transport_socket)
    return cluster


# As in lua/balancer.lua: TLS's handshake waits for a busy server.
_TLS_CONNECT_SECONDS = 3
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
            # Not the only replica of a pool: it is called as long as nothing better is known.
            "max_ejection_percent": 50,
        },
        "typed_extension_protocol_options": {
            resources.HTTP2: {
                "@type": f"type.googleapis.com/{resources.HTTP2}",
                "explicit_http_config": {"http2_protocol_options": HTTP2_OPTIONS},
            }
        },
        # No PINGs of HTTP/2: gRPC's servers end connections that have them more often than once in five minutes.
        "upstream_connection_options": {"tcp_keepalive": _KEEPALIVE},
    },
    cluster_pb2.Cluster(),
)
