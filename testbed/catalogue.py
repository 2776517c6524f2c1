"""A short-lived Consul, with the peers that consul-template renders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from common.http import make_session
from testbed import programs
from testbed.ports import free_ports
from testbed.processes import Processes
from testbed.wait import wait_for

_START_SECONDS = 30.0
# The most that a transaction of Consul takes (API documentation, "Txn").
_OPERATIONS = 64
_NODE, _NODE_ADDRESS = "bench", "127.0.0.1"
# Not 127.0.0.1, because the connections of a load take free ports there.
_ADDRESS = "127.0.0.3"


@contextmanager
def catalogue(processes: Processes, peers: Sequence[str]) -> Iterator[str]:
    """Runs an agent on loopback whose catalogue has these peers; gives the address of its HTTP API.

    Raises:
        BenchmarkError: it does not start, or refuses a peer.
    """
    http, server, serf = free_ports(3, _ADDRESS)
    command: list[str | Path] = [
        programs.tool("consul"),
        *("agent", "-dev", "-log-level=err", f"-bind={_ADDRESS}", f"-client={_ADDRESS}"),
        *(f"-http-port={http}", f"-server-port={server}"),
        *(f"-serf-lan-port={serf}", "-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"),
    ]
    agent = processes.start("catalogue", command, cwd=processes.directory)
    try:
        client = make_session()
        base = f"http://{_ADDRESS}:{http}/v1"
        with processes.explained("the catalogue", "catalogue"):
            wait_for(lambda: _has_leader(client, base), bool, _START_SECONDS, "the catalogue's leader")
            node = {"Node": _NODE, "Address": _NODE_ADDRESS}
            client.put(f"{base}/catalog/register", json=node, timeout=10).raise_for_status()
            transact(base.removesuffix("/v1"), [_operation(peer) for peer in peers])
        yield f"{_ADDRESS}:{http}"
    finally:
        processes.stop(agent)


def _has_leader(client: requests.Session, base: str) -> bool:
    try:
        return bool(client.get(f"{base}/status/leader", timeout=5).json())
    except (requests.ConnectionError, requests.JSONDecodeError):
        return False


def transact(url: str, operations: Sequence[Mapping[str, object]]) -> None:
    """Changes the catalogue through an agent's HTTP API, in as few transactions as Consul takes.

    Raises:
        requests.RequestException: the agent is out of reach or refuses.
    """
    with make_session() as client:
        for begin in range(0, len(operations), _OPERATIONS):
            part = operations[begin : begin + _OPERATIONS]
            client.put(f"{url}/v1/txn", json=part, timeout=10).raise_for_status()


def _operation(peer: str) -> dict[str, object]:
    address, _, port = peer.rpartition(":")
    service = {"ID": peer, "Service": "bench", "Address": address, "Port": int(port), "Tags": ["grpc_server"]}
    return {"Service": {"Verb": "set", "Node": _NODE, "Service": service}}
