"""Makes the configuration files of the candidates: texts in, texts out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from balancer import document
from balancer.fleet import Replica
from balancer.registration import Registration
from protos import api_pb2
from testbed.errors import BenchmarkError

CONFIGS = Path(__file__).parent / "configs"


def fill(name: str, values: Mapping[str, str]) -> str:
    """A file of ``configs`` with every ``@NAME@`` filled in.

    Raises:
        BenchmarkError: the file names something that is not in ``values``.
    """
    text = (CONFIGS / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    left = re.search(r"@[A-Z]+@", text)
    if left:
        raise BenchmarkError(f"{name}: nothing fills {left[0]}")
    return text


def servers(peers: Sequence[str]) -> str:
    """The lines of a static nginx upstream."""
    return "\n        ".join(f"server {peer};" for peer in peers)


def snapshot(peers: Sequence[str]) -> str:
    """The control plane's document of some peers."""
    replicas = []
    for peer in peers:
        address, _, port = peer.rpartition(":")
        registration = Registration(application="bench", address=address, port=int(port), weight=1)
        replicas.append(Replica(registration=registration, since=0))
    return json.dumps(document.build(document.Content(replicas=replicas, routes={}, version="bench")))


def endpoints(peers: Sequence[str]) -> str:
    """Envoy's EDS file; JSON is YAML too."""
    found = []
    for peer in peers:
        address, _, port = peer.rpartition(":")
        socket_address = {"address": address, "port_value": int(port)}
        found.append({"endpoint": {"address": {"socket_address": socket_address}}})
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "grpc_servers",
        "endpoints": [{"lb_endpoints": found}],
    }
    return json.dumps({"version_info": "1", "resources": [assignment]}, indent=1) + "\n"


def message(text: str) -> bytes:
    """Returns a PingMessage as it goes over the wire: gRPC's prefix of five bytes, then the message."""
    field = api_pb2.PingMessage(greeting=text).SerializeToString()
    return b"\0" + len(field).to_bytes(4, "big") + field
