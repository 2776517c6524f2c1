"""The resources that Envoy has beside those of gRPC's clients: its listeners, its routes, and its clusters.

Envoy asks for all listeners and clusters (a wildcard); a client names the ones that it wants. So a wildcard is answered
with the resources of this module, and both have the same endpoints. envoy_listeners.py and envoy_routes.py make the
listeners and the routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf import any_pb2
from google.protobuf.json_format import ParseDict

from balancer.engine import EnvoySettings
from balancer.xds import resources
from balancer.xds.envoy_listeners import HTTP2_OPTIONS, build_listener
from balancer.xds.envoy_routes import NAME, build_routes
from balancer.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources

# In seconds, as in nginx.
_KEEPALIVE = {"keepalive_time": 60, "keepalive_interval": 10, "keepalive_probes": 6}
_UNLIMITED = 2**31 - 1
# At least this long, and until the next document.
_LINGER_SECONDS = 5.0


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
