"""The resources that Envoy has beside those of gRPC's clients: its listeners, its routes, and its clusters.

Envoy asks for all listeners and clusters (a wildcard); a client names the ones that it wants. So a wildcard is answered
with the resources of this module, and both have the same endpoints. envoy_listeners.py and envoy_routes.py make the
listeners and the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf import any_pb2
from google.protobuf.json_format import ParseDict

from balancer.engine import EnvoySettings
from balancer.xds import resources
from balancer.xds.envoy_listeners import HTTP2_OPTIONS, build_listener
from balancer.xds.envoy_routes import CERTIFIED, NAME, build_routes
from balancer.xds.envoy_tls import connect_with_tls
from balancer.xds.resource_set import CLUSTER, LISTENER, ROUTE, Resources, pack

# In seconds, as in nginx.
_KEEPALIVE = {"keepalive_time": 60, "keepalive_interval": 10, "keepalive_probes": 6}
_UNLIMITED = 2**31 - 1


def build(document: Mapping[str, Any], settings: EnvoySettings) -> Resources:
    """Builds the resources of a document, for Envoy and for clients.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the value is not a document.
    """
    built = resources.build(document)
    for name in (NAME, CERTIFIED) if settings.tls_addresses and settings.verifies else (NAME,):
        built.add(ROUTE, name, "", build_routes(document, name))
    built.wildcard[CLUSTER] = {name: _extend(packed, settings) for name, packed in built.found[CLUSTER].items()}
    built.wildcard[LISTENER] = {
        name: pack(LISTENER, build_listener(name, address, settings))
        for name, address in ((f"calls/{host}:{port}", (host, port)) for host, port in settings.addresses)
    }
    return built


def _extend(packed: any_pb2.Any, settings: EnvoySettings) -> any_pb2.Any:
    """Adds to a cluster what only Envoy takes; a client would apply some of it in another way."""
    cluster = cluster_pb2.Cluster.FromString(packed.value)
    cluster.MergeFrom(_CLUSTER)
    # Envoy would take what follows a dot in a pool's name for a part of the metric's.
    cluster.alt_stat_name = cluster.name.replace(".", "_")
    if cluster.HasField("transport_socket"):
        # With the balancer's files in place of a client's.
        tls = tls_pb2.UpstreamTlsContext()
        cluster.transport_socket.typed_config.Unpack(tls)
        validation = tls.common_tls_context.combined_validation_context.default_validation_context
        names = [one.exact for one in validation.match_subject_alt_names]
        socket = connect_with_tls(names, own=settings.replica_certificate)
        cluster.transport_socket.Clear()
        ParseDict(socket, cluster.transport_socket)
    return pack(CLUSTER, cluster)


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
