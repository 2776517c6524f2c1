"""Envoy's TLS, with callers and with replicas, as nginx has it (tls.conf, replica_tls.conf).

Envoy reads the copies of balancer/certificates.py by the files of etc/envoy/certificates, and again when they change.
"""

from __future__ import annotations

from typing import Any

# The message types that the dictionaries below refer to by name.
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2 as _tls  # noqa: F401

from balancer.certificates import CALLERS_COPIES, REPLICAS_COPIES

_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
# Mozilla's, as in tls.conf.
_PARAMETERS = {
    "tls_minimum_protocol_version": "TLSv1_2",
    "tls_maximum_protocol_version": "TLSv1_3",
    "cipher_suites": [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ],
    "ecdh_curves": ["X25519", "P-256", "P-384"],
}
_HANDSHAKE_SECONDS = 10


def accept_tls(*, verifies: bool) -> dict[str, Any]:
    """Returns the part of a listener's filter chain; with ``verifies`` callers are asked for a certificate.

    The routes refuse the calls of a caller without one, or with a wrong one, because gRPC's clients do not tell why a
    handshake failed.
    """
    certificate, authority = CALLERS_COPIES
    common = {
        "tls_params": _PARAMETERS,
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [_read_secret(certificate)],
        **({"validation_context_sds_secret_config": _read_secret(authority)} if verifies else {}),
    }
    context = {
        "@type": f"{_TYPE}.DownstreamTlsContext",
        "common_tls_context": common,
        # A resumed session would skip the check of the caller's certificate.
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
    }
    return {
        "transport_socket": {"name": "tls", "typed_config": context},
        "transport_socket_connect_timeout": f"{_HANDSHAKE_SECONDS}s",
    }


def connect_with_tls(name: str, *, own: bool) -> dict[str, Any]:
    """Returns the TLS of a cluster's connections.

    Args:
        name: a replica's certificate must have it as a DNS name.
        own: whether the balancer has a certificate of its own.
    """
    certificate, authority = REPLICAS_COPIES
    matcher = {"san_type": "DNS", "matcher": {"exact": name}}
    common = {
        "tls_params": _PARAMETERS,
        "alpn_protocols": ["h2"],
        **({"tls_certificate_sds_secret_configs": [_read_secret(certificate)]} if own else {}),
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
            "validation_context_sds_secret_config": _read_secret(authority),
        },
    }
    # A resumed session would skip the check of the replica's certificate.
    context = {
        "@type": f"{_TYPE}.UpstreamTlsContext",
        "common_tls_context": common,
        "sni": name,
        "max_session_keys": 0,
    }
    return {"name": "tls", "typed_config": context}


def _read_secret(copy: str) -> dict[str, Any]:
    path = f"etc/envoy/certificates/{copy.removesuffix('.pem')}.yaml"
    return {"name": copy, "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"}}
