"""Requests to the HTTP API of the local Consul agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from urllib3.exceptions import ProtocolError

from common.consul_access import ConsulAccess

TIMEOUT_SECONDS = 5.0


class AgentError(Exception):
    """A request to the agent failed; the message says why. It may succeed when it is repeated."""


class AgentApi:
    """The HTTP API of the agent at an address."""

    def __init__(self, address: str, port: int, access: ConsulAccess) -> None:
        self._base = access.make_url(address, port)
        self._session = access.make_session()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        data: str | None = None,
        unknown_is_fine: bool = False,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> requests.Response:
        """Sends a request; with ``unknown_is_fine`` an answer of 404 is returned too.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        try:
            response = self._session.request(method, self._base + path, json=json, data=data, timeout=timeout_seconds)
        except requests.exceptions.SSLError as error:
            raise AgentError(f"no TLS with the agent at {self._base}: {error}") from error
        except requests.ConnectionError as error:
            if isinstance(error.args[0], ProtocolError):
                raise AgentError(f"{self._base}{path}: the agent closed the connection without an answer") from error
            raise AgentError(f"no agent at {self._base}") from error
        except requests.RequestException as error:
            raise AgentError(f"{self._base}{path}: {error}") from error
        if unknown_is_fine and response.status_code == requests.codes.not_found:
            return response
        if not response.ok:
            raise AgentError(f"{self._base}{path}: {response.status_code} {response.text.strip()}")
        return response
