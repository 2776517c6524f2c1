"""The registrar's requests to the local Consul agent."""

from __future__ import annotations

import datetime
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import consul
import requests

from common.consul_client import connect
from common.names import NODE_CHECK, SERVICES_KEYS, SINCE
from registrar.agent_api import TIMEOUT_SECONDS, AgentApi, AgentError
from registrar.config import RegistrarConfig

LOG = logging.getLogger("registrar")
_SINCE_SECONDS = 1.0
# Serf's number for a member that is alive.
_ALIVE = 1
# Most agents know which members left, and so does nearly always one of any three.
_JOINED = 3


@dataclass(frozen=True)
class Node:
    """A node of the catalogue; it is alive when its serfHealth check passes."""

    address: str
    alive: bool


class Agent:
    """A local Consul agent.

    Registering is a plain PUT because python-consul2's ``register`` has no weights. All methods raise
    :class:`AgentError` when the agent or the catalogue is out of reach, or refuses.
    """

    def __init__(self, config: RegistrarConfig) -> None:
        self.api = AgentApi(config.consul_address, config.consul_port, config.access)
        self._catalogue = connect(config.consul_address, config.consul_port, config.access, TIMEOUT_SECONDS)
        self._self: dict[str, Any] = {}
        self._since = ""

    def register(self, config: RegistrarConfig, grpc_services: Sequence[str], *, passing: bool) -> None:
        """Registers the service, by Consul's API page "Register Service", with the time in its metadata."""
        body = build_registration(config, grpc_services, passing=passing)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        body["Meta"]["registered"] = now
        if grpc_services:
            body["Meta"]["grpc_since"] = self._find_services_since(config.app_name, grpc_services, now)
        self.api.call("PUT", "/v1/agent/service/register", json=body)

    def deregister(self, service_id: str) -> None:
        """Deregisters the service, if the agent has it."""
        self.api.call("PUT", f"/v1/agent/service/deregister/{service_id}", unknown_is_fine=True)

    def has_service(self, service_id: str) -> bool:
        """Returns whether the agent has the service."""
        return self.api.call("GET", f"/v1/agent/service/{service_id}", unknown_is_fine=True).ok

    def is_in_catalogue(self, service_id: str) -> bool:
        """Returns whether the cluster's catalogue has the replica at this agent."""
        found = self._read_own_entry()
        return (
            found is not None and found["Node"]["ID"] == self._read_self()["NodeID"] and service_id in found["Services"]
        )

    def find_namesake(self) -> Node | None:
        """Returns another node that the catalogue has under this agent's name, or None."""
        found = self._read_own_entry()
        if found is None or found["Node"]["ID"] == self._read_self()["NodeID"]:
            return None
        checks = self.api.call("GET", f"/v1/health/node/{self.read_name()}").json()
        alive = any(check["CheckID"] == NODE_CHECK and check["Status"] == "passing" for check in checks)
        return Node(address=found["Node"]["Address"], alive=alive)

    def rejoin_gossip(self) -> None:
        """Exchanges states with some other agents, so that the cluster knows that this agent is alive.

        An agent that comes back starts with a low incarnation number, which agents that saw it leave ignore. It
        learns that, and refutes it, only when it exchanges states with one of them. At its start it joins the servers,
        which do not know that it left when they were restarted since. Its regular exchanges are 30 s apart; until one
        of them the cluster may take it for left, and the leader deregisters it (memberlist's ``aliveNode``, ``gossip``
        and ``Join``).
        """
        own = self.read_name()
        members = self.api.call("GET", "/v1/agent/members").json()
        others = [one for one in members if one["Name"] != own and one["Status"] == _ALIVE]
        clients = [one["Addr"] for one in others if one["Tags"].get("role") != "consul"]
        for address in random.sample(clients, min(_JOINED, len(clients))):
            self._try_to_join(address)

    def join_server(self, servers: Sequence[str]) -> None:
        """Joins one of the Consul servers by its name, if that can be reached.

        The agent looks up the names at its start only. Servers that are all replaced at once, with other addresses,
        don't know it, and it would never find them.
        """
        if servers:
            self._try_to_join(random.choice(servers))  # noqa: S311 - any of them

    def _try_to_join(self, address: str) -> None:
        try:
            self.api.call("PUT", f"/v1/agent/join/{address}")
        except AgentError as error:
            LOG.debug("not joined address=%s reason=%s", address, error)

    def find_leader(self) -> str:
        """Returns the address of the cluster's leader; empty without a leader."""
        return str(self.api.call("GET", "/v1/status/leader").json())

    def _find_services_since(self, application: str, grpc_services: Sequence[str], now: str) -> str:
        """Returns the time since which the application has had its gRPC services: the earliest of its replicas, or now.

        When two applications register one gRPC service, balancers route it to the earlier one (balancer/routes.py).
        """
        try:
            # Stale: an answer from any server is enough, and it comes without a leader too.
            path = f"/v1/catalog/service/{application}?stale"
            found = self.api.call("GET", path, timeout_seconds=_SINCE_SECONDS).json()
            metas = [one["ServiceMeta"] or {} for one in found]
            # Only replicas that have all of these services count: a new service of a later version is new.
            known = [str(meta.get("grpc_since") or "") for meta in metas if set(grpc_services) <= _read_services(meta)]
        except (AgentError, ValueError) as error:
            LOG.debug("the time of the gRPC services is not known from the catalogue reason=%s", error)
            known = []
        self._since = min(filter(None, [self._since, now, *(one for one in known if SINCE.fullmatch(one))]))
        return self._since

    def read_name(self) -> str:
        """Returns the agent's name in the cluster."""
        return str(self._read_self()["NodeName"])

    def is_in_gossip(self) -> bool:
        """Returns whether the agent takes part in the cluster's gossip; without its name it leaves for good."""
        try:
            self.api.call("PUT", f"/v1/agent/join/{self.read_address()}")
        except AgentError as error:
            # Serf's Join.
            if "after Leave or Shutdown" in str(error):
                return False
            raise
        return True

    def remove_node(self) -> None:
        """Removes this agent's name from the catalogue; the agent registers itself again."""
        self.api.call("PUT", "/v1/catalog/deregister", json={"Node": self.read_name()})

    def read_address(self) -> str:
        """Returns the address at which the cluster reaches the agent."""
        return str(self._read_self()["Address"])

    def _read_own_entry(self) -> dict[str, Any] | None:
        """Returns the catalogue's ``Node`` and ``Services`` under this agent's name."""
        try:
            _, found = self._catalogue.catalog.node(self.read_name())
        except (consul.ConsulException, requests.RequestException) as error:
            raise AgentError(f"the catalogue is unavailable: {error}") from error
        return found  # type: ignore[no-any-return]

    def _read_self(self) -> dict[str, Any]:
        """Reads the agent's identity, once, because a deregistration needs it 20 times a second."""
        if not self._self:
            answer = self.api.call("GET", "/v1/agent/self").json()
            self._self = {**answer["Config"], "Address": answer["Member"]["Addr"]}
        return self._self


def _read_services(meta: Mapping[str, str]) -> set[str]:
    return {name.strip() for key in SERVICES_KEYS if key in meta for name in meta[key].split(",")}


def build_registration(config: RegistrarConfig, grpc_services: Sequence[str], *, passing: bool) -> dict[str, Any]:
    """Builds the body of ``/v1/agent/service/register``; ``passing`` is the check's status until Consul has run it."""
    body: dict[str, Any] = {
        "ID": config.service_id,
        "Name": config.app_name,
        "Port": config.app_port,
        "Tags": list(config.tags),
        "Weights": {"Passing": config.weight, "Warning": 1},
        "Meta": config.build_metadata(grpc_services),
    }
    if config.app_address:
        body["Address"] = config.app_address
    if config.check:
        body["Check"] = {**config.check.build_definition(), "Status": "passing" if passing else "critical"}
    return body
