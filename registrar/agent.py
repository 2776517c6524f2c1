"""The local Consul agent's HTTP API, as far as the registrar needs it."""

from __future__ import annotations

import datetime
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import consul
import requests

from registrar.config import NODE_CHECK, SERVICES_KEYS, SINCE, RegistrarConfig
from registrar.consul_client import connect
from registrar.environment import host_port

LOG = logging.getLogger("registrar")
_TIMEOUT_SECONDS = 5.0
_SINCE_SECONDS = 1.0
# Serf's number for a member that is there.
_ALIVE = 1
# All but a few of the agents know who left; so do most of any three.
_MET = 3


class AgentError(Exception):
    """The agent did not do what was asked; the message says why. Asking again may help."""


@dataclass(frozen=True)
class Node:
    """A node of the catalogue.

    Attributes:
        alive: whether the cluster holds it for alive, by its serfHealth.
    """

    address: str
    alive: bool


class Agent:
    """A local Consul agent.

    Registering is a plain PUT: python-consul2's ``register`` knows no weights. Reading the catalogue is
    python-consul2's.
    """

    def __init__(self, config: RegistrarConfig) -> None:
        self._base = f"http://{host_port(config.consul_address, config.consul_port)}"
        self._session = requests.Session()
        # A proxy of the environment is not for the agent next door.
        self._session.trust_env = False
        self._catalogue = connect(config.consul_address, config.consul_port)
        self._self: dict[str, Any] = {}
        self._session_id = ""
        self._since = ""

    def register(self, config: RegistrarConfig, grpc_services: Sequence[str], *, passing: bool) -> None:
        """Registers the service, by Consul's API page "Register Service"; its metadata say when that was.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        body = registration(config, grpc_services, passing=passing)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        meta = {**config.metadata(grpc_services), "registered": now}
        if grpc_services:
            meta["grpc_since"] = self._services_since(config.app_name, grpc_services, now)
        self._call("PUT", "/v1/agent/service/register", json={**body, "Meta": meta})

    def deregister(self, service_id: str) -> None:
        """Deregisters the service; one that the agent doesn't know is no error.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        self._call("PUT", f"/v1/agent/service/deregister/{service_id}", unknown_is_fine=True)

    def knows(self, service_id: str) -> bool:
        """Whether the agent has the service.

        Raises:
            AgentError: the agent is out of reach.
        """
        path = f"/v1/agent/service/{service_id}"
        return bool(self._call("GET", path, unknown_is_fine=True).status_code != requests.codes.not_found)

    def in_catalogue(self, service_id: str) -> bool:
        """Whether the cluster's catalogue lists the instance as one of this agent's.

        Raises:
            AgentError: the agent or the catalogue is out of reach.
        """
        found = self._own_entry()
        return found is not None and found["Node"]["ID"] == self._own()["NodeID"] and service_id in found["Services"]

    def other_of_its_name(self) -> Node | None:
        """The node that the catalogue has under this agent's name and that is another; None where there is none.

        Raises:
            AgentError: the agent or the catalogue is out of reach.
        """
        found = self._own_entry()
        if found is None or found["Node"]["ID"] == self._own()["NodeID"]:
            return None
        checks = self._call("GET", f"/v1/health/node/{self.name()}").json()
        alive = any(check["CheckID"] == NODE_CHECK and check["Status"] == "passing" for check in checks)
        return Node(address=found["Node"]["Address"], alive=alive)

    def meet(self) -> None:
        """Exchanges states with some other agents, so that none holds this one for gone.

        An agent that comes back begins with a low incarnation, which those who saw it leave ignore; it hears of that,
        and refutes it, only when it exchanges states with one of them. It joins the servers, and they have forgotten
        who left when they were restarted since. Until one of its regular exchanges, which are 30 s apart, the cluster
        may take it for left, and the leader deregisters it (memberlist's ``aliveNode``, ``gossip`` and ``Join``).

        Raises:
            AgentError: the agent is out of reach.
        """
        own = self.name()
        members = self._call("GET", "/v1/agent/members").json()
        others = [one for one in members if one["Name"] != own and one["Status"] == _ALIVE]
        clients = [one["Addr"] for one in others if one["Tags"].get("role") != "consul"]
        for address in random.sample(clients, min(_MET, len(clients))):
            try:
                self._call("PUT", f"/v1/agent/join/{address}")
            except AgentError as error:
                LOG.debug("not met address=%s reason=%s", address, error)

    def leader(self) -> str:
        """The address of the cluster's leader, empty where there is none.

        Raises:
            AgentError: the agent is out of reach.
        """
        return str(self._call("GET", "/v1/status/leader").json())

    def _services_since(self, application: str, grpc_services: Sequence[str], now: str) -> str:
        """Since when the application has had its services: as its other replicas say, or now.

        By it balancers decide whose a service is that two applications register (balancer/routes.py).
        """
        try:
            # Any server's answer will do, without a leader too: nothing waits for it.
            path = f"/v1/catalog/service/{application}?stale"
            found = self._call("GET", path, timeout_seconds=_SINCE_SECONDS).json()
            metas = [one["ServiceMeta"] or {} for one in found]
            # Only of replicas that have all of these services: a version with a new one is not senior for that.
            known = [str(meta.get("grpc_since") or "") for meta in metas if set(grpc_services) <= _services(meta)]
        except (AgentError, ValueError) as error:
            LOG.debug("the catalogue was not asked since when reason=%s", error)
            known = []
        self._since = min(filter(None, [self._since, now, *(one for one in known if SINCE.fullmatch(one))]))
        return self._since

    def name(self) -> str:
        """The agent's name in the cluster.

        Raises:
            AgentError: the agent is out of reach.
        """
        return str(self._own()["NodeName"])

    def in_gossip(self) -> bool:
        """Whether the agent takes part in the cluster's gossip, which one stops for good that has lost its name.

        Raises:
            AgentError: the agent is out of reach.
        """
        try:
            self._call("PUT", f"/v1/agent/join/{self.address()}")
        except AgentError as error:
            # Serf's Join.
            if "after Leave or Shutdown" in str(error):
                return False
            raise
        return True

    def remove_node(self) -> None:
        """Removes what the catalogue has under this agent's name; the agent puts itself there again.

        Raises:
            AgentError: the agent or the catalogue is out of reach.
        """
        self._call("PUT", "/v1/catalog/deregister", json={"Node": self.name()})

    def address(self) -> str:
        """Where the cluster reaches the agent.

        Raises:
            AgentError: the agent is out of reach.
        """
        return str(self._own()["Address"])

    def keep(self, key: str, value: str, seconds: int) -> None:
        """Keeps a value in Consul's key-value store; it is gone twice so many seconds after the last call of this.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        if self._session_id:
            renewed = self._call("PUT", f"/v1/session/renew/{self._session_id}", unknown_is_fine=True)
            if renewed.status_code != requests.codes.not_found:
                return
        session = {"TTL": f"{seconds}s", "Behavior": "delete", "LockDelay": "0s"}
        new = str(self._call("PUT", "/v1/session/create", json=session).json()["ID"])
        # The session of a registrar that was killed may have the key for a while.
        if self._call("PUT", f"/v1/kv/{key}?acquire={new}", data=value).json() is True:
            self._session_id = new
        else:
            self._call("PUT", f"/v1/session/destroy/{new}")

    def forget(self) -> None:
        """Ends what :meth:`keep` does; the store forgets it at once.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        if self._session_id:
            self._call("PUT", f"/v1/session/destroy/{self._session_id}")
            self._session_id = ""

    def _own_entry(self) -> dict[str, Any] | None:
        """What the catalogue has under this agent's name: ``Node`` and ``Services``."""
        try:
            _, found = self._catalogue.catalog.node(self.name())
        except (consul.ConsulException, requests.RequestException) as error:
            raise AgentError(f"the catalogue can't be read: {error}") from error
        return found  # type: ignore[no-any-return]

    def _own(self) -> dict[str, Any]:
        """What the agent is, asked for once: a leave needs it 20 times a second, and the answer is all its settings."""
        if not self._self:
            answer = self._call("GET", "/v1/agent/self").json()
            self._self = {**answer["Config"], "Address": answer["Member"]["Addr"]}
        return self._self

    def _call(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        data: str | None = None,
        unknown_is_fine: bool = False,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> requests.Response:
        try:
            response = self._session.request(method, self._base + path, json=json, data=data, timeout=timeout_seconds)
        except requests.ConnectionError as error:
            raise AgentError(f"no agent at {self._base}") from error
        except requests.RequestException as error:
            raise AgentError(f"{self._base}{path}: {error}") from error
        if unknown_is_fine and response.status_code == requests.codes.not_found:
            return response
        if not response.ok:
            raise AgentError(f"{self._base}{path}: {response.status_code} {response.text.strip()}")
        return response


def _services(meta: Mapping[str, str]) -> set[str]:
    return {name.strip() for key in SERVICES_KEYS if key in meta for name in meta[key].split(",")}


def registration(config: RegistrarConfig, grpc_services: Sequence[str], *, passing: bool) -> dict[str, object]:
    """The body of ``/v1/agent/service/register``; ``passing`` is the check's status until Consul has run it."""
    body: dict[str, object] = {
        "ID": config.service_id,
        "Name": config.app_name,
        "Port": config.app_port,
        "Tags": list(config.tags),
        "Weights": {"Passing": config.weight, "Warning": 1},
        "Meta": config.metadata(grpc_services),
    }
    if config.app_address:
        body["Address"] = config.app_address
    if config.check:
        body["Check"] = {**config.check.definition(), "Status": "passing" if passing else "critical"}
    return body
