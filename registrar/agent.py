"""The local Consul agent's HTTP API, as far as the registrar needs it."""

from __future__ import annotations

import datetime
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import consul
import requests

from registrar.config import SERVICES_KEYS, SINCE, RegistrarConfig
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
        self._catalogue = consul.Consul(host=config.consul_address, port=config.consul_port)
        self._catalogue.http.session.trust_env = False
        self._node_name = ""
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
        try:
            _, found = self._catalogue.catalog.node(self._node())
        except (consul.ConsulException, requests.RequestException) as error:
            raise AgentError(f"the catalogue can't be read: {error}") from error
        return found is not None and service_id in found["Services"]

    def meet(self) -> None:
        """Exchanges states with some other agents, so that none holds this one for gone.

        An agent that comes back begins with a low incarnation, which those who saw it leave ignore; it hears of that,
        and refutes it, only when it exchanges states with one of them. It joins the servers, and they have forgotten
        who left when they were restarted since. Until one of its regular exchanges, which are 30 s apart, the cluster
        may take it for left, and the leader deregisters it (memberlist's ``aliveNode``, ``gossip`` and ``Join``).

        Raises:
            AgentError: the agent is out of reach.
        """
        own = self._node()
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

    def _node(self) -> str:
        """The agent's name, asked for once: a leave needs it 20 times a second, and the answer is all its settings."""
        if not self._node_name:
            self._node_name = str(self._call("GET", "/v1/agent/self").json()["Member"]["Name"])
        return self._node_name

    def _call(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        unknown_is_fine: bool = False,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> requests.Response:
        try:
            response = self._session.request(method, self._base + path, json=json, timeout=timeout_seconds)
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
