"""The local Consul agent's HTTP API, as far as the registrar needs it."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import consul
import requests

from registrar.config import RegistrarConfig
from registrar.environment import host_port

LOG = logging.getLogger("registrar")
_TIMEOUT_SECONDS = 5.0


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

    def register(self, config: RegistrarConfig, grpc_services: Sequence[str], *, passing: bool) -> None:
        """Registers the service, by Consul's API page "Register Service"; its metadata say when that was.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        body = registration(config, grpc_services, passing=passing)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        meta = {**config.metadata(grpc_services), "registered": now}
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

    def in_catalogue(self, name: str, service_id: str) -> bool:
        """Whether the cluster's catalogue lists the instance.

        Raises:
            AgentError: the catalogue is out of reach.
        """
        try:
            _, instances = self._catalogue.catalog.service(name)
        except (consul.ConsulException, requests.RequestException) as error:
            raise AgentError(f"the catalogue can't be read: {error}") from error
        return any(instance["ServiceID"] == service_id for instance in instances)

    def leader(self) -> str:
        """The address of the cluster's leader, empty where there is none.

        Raises:
            AgentError: the agent is out of reach.
        """
        return str(self._call("GET", "/v1/status/leader").json())

    def _call(
        self, method: str, path: str, *, json: Mapping[str, Any] | None = None, unknown_is_fine: bool = False
    ) -> requests.Response:
        try:
            response = self._session.request(method, self._base + path, json=json, timeout=_TIMEOUT_SECONDS)
        except requests.ConnectionError as error:
            raise AgentError(f"no agent at {self._base}") from error
        except requests.RequestException as error:
            raise AgentError(f"{self._base}{path}: {error}") from error
        if unknown_is_fine and response.status_code == requests.codes.not_found:
            return response
        if not response.ok:
            raise AgentError(f"{self._base}{path}: {response.status_code} {response.text.strip()}")
        return response


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
