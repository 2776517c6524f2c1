"""A value in Consul's key-value store that lives as long as the registrar renews it."""

from __future__ import annotations

import requests

from registrar.agent_api import AgentApi


class StoredValue:
    """A value that a session of Consul holds."""

    def __init__(self, api: AgentApi) -> None:
        self._api = api
        self._session_id = ""

    def store(self, key: str, value: str, seconds: int) -> None:
        """Stores the value, or renews it; Consul removes it at most ``2 * seconds`` after the last call.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        if self._session_id:
            renewed = self._api.call("PUT", f"/v1/session/renew/{self._session_id}", unknown_is_fine=True)
            if renewed.status_code != requests.codes.not_found:
                return
        settings = {"TTL": f"{seconds}s", "Behavior": "delete", "LockDelay": "0s"}
        new = str(self._api.call("PUT", "/v1/session/create", json=settings).json()["ID"])
        # The session of a registrar that was killed may hold the key for a while.
        if self._api.call("PUT", f"/v1/kv/{key}?acquire={new}", data=value).json() is True:
            self._session_id = new
        else:
            self._api.call("PUT", f"/v1/session/destroy/{new}")

    def remove(self) -> None:
        """Removes the value at once.

        Raises:
            AgentError: the agent is out of reach or refuses.
        """
        if self._session_id:
            self._api.call("PUT", f"/v1/session/destroy/{self._session_id}")
            self._session_id = ""
