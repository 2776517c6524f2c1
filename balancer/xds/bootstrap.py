"""The bootstrap file that gRPC's clients need for xDS (gRFC A27; A29 and A65 for TLS)."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.environment import parse_host_port

# The name of the files for TLS with replicas, which resources refer to.
CERTIFICATES = "replicas"
_RENEWAL = "60s"


class Tls(NamedTuple):
    """The paths of a client's files: the CA of the other side, a certificate and its key; those may be missing."""

    authority: str
    certificate: str = ""
    key: str = ""


def add_bootstrap(commands: Any) -> None:
    """Adds the command to argparse's commands."""
    parser = commands.add_parser(
        "bootstrap",
        help="print the bootstrap file of gRPC's clients for xDS",
        description="Prints the file that GRPC_XDS_BOOTSTRAP names for gRPC's clients of xDS; they read the files of "
        "certificates again each minute.",
    )
    parser.add_argument("servers", metavar="HOST:PORT", nargs="+", help="balancers with XDS_PORT, the first one first")
    for side, who in (("", "the balancer"), ("replica-", "the replicas")):
        parser.add_argument(f"--{side}cacert", metavar="FILE", default="", help=f"TLS with {who}: the CA, in PEM")
        parser.add_argument(f"--{side}cert", metavar="FILE", default="", help="the client's certificate, in PEM")
        parser.add_argument(f"--{side}key", metavar="FILE", default="", help="its key")


def print_bootstrap(arguments: argparse.Namespace) -> int:
    """Prints the file, and returns the exit code: 0, or 2 for wrong options."""
    try:
        for one in arguments.servers:
            parse_host_port(one, "")
        balancer, replicas = _read_tls(arguments, ""), _read_tls(arguments, "replica-", whole=True)
    except ValueError as error:
        print(f"balancer: {error}", file=sys.stderr)
        return 2
    print(make_bootstrap(arguments.servers, balancer, replicas))
    return 0


def make_bootstrap(servers: Sequence[str], balancer: Tls | None = None, replicas: Tls | None = None) -> str:
    """Returns the file, in JSON.

    Args:
        servers: ``host:port`` of balancers; a client tries them in this order.
        balancer: files for TLS with the balancers; None for none.
        replicas: files for TLS with replicas; None for none.
    """
    credentials = {"type": "tls", "config": _name_files(balancer)} if balancer else {"type": "insecure"}
    # A target that is gone for a moment would otherwise end the calls of running clients (gRFC A53).
    features = ["xds_v3", "ignore_resource_deletion"]
    entries = [{"server_uri": one, "channel_creds": [credentials], "server_features": features} for one in servers]
    # @grpc/grpc-js-xds refuses a node without locality.
    node = {"id": socket.gethostname(), "locality": {}}
    found: dict[str, Any] = {"xds_servers": entries, "node": node}
    if replicas:
        provider = {"plugin_name": "file_watcher", "config": _name_files(replicas)}
        found["certificate_providers"] = {CERTIFICATES: provider}
    return json.dumps(found, indent=2)


def _name_files(tls: Tls) -> dict[str, str]:
    names = {"ca_certificate_file": tls.authority}
    if tls.certificate:
        names |= {"certificate_file": tls.certificate, "private_key_file": tls.key}
    return {**names, "refresh_interval": _RENEWAL}


def _read_tls(arguments: argparse.Namespace, side: str, *, whole: bool = False) -> Tls | None:
    """Reads the files of one side; all three are needed if ``whole``."""
    texts = []
    for name in ("cacert", "cert", "key"):
        path = getattr(arguments, f"{side}{name}".replace("-", "_"))
        if path and not Path(path).is_file():
            raise ValueError(f"--{side}{name}: must be a file (got {path!r})")
        # The client may run elsewhere in the file system.
        texts.append(str(Path(path).absolute()) if path else "")
    authority, certificate, key = texts
    if bool(certificate) != bool(key):
        raise ValueError(f"--{side}cert: goes with --{side}key")
    if certificate and not authority:
        raise ValueError(f"--{side}cert: needs --{side}cacert")
    if whole and authority and not certificate:
        raise ValueError(f"--{side}cacert: needs --{side}cert")
    return Tls(authority, certificate, key) if authority else None
