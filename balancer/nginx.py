"""nginx, as far as the control plane speaks with it: its status port."""

from __future__ import annotations

from typing import Any

import requests

from balancer.errors import BalancerError, RefusedError

# A worker that hangs keeps its connections; another one takes the next.
_TIMEOUT_SECONDS = 2.0


class Nginx:
    """The data plane.

    Args:
        url: of its status port.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        # A proxy of the environment is not for the program next door.
        self._session.trust_env = False

    def publish(self, text: bytes) -> None:
        """Gives it a document.

        Raises:
            RefusedError: it does not take this one.
            BalancerError: it is out of reach.
        """
        self._call("POST", "/configuration", text)

    def version(self) -> str:
        """The version of the document that it has; empty where it has none.

        Raises:
            BalancerError: it is out of reach.
        """
        return str(self._call("GET", "/configuration").get("version", ""))

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            response = self._session.request(
                method, self._url + path, data=body, headers=headers, timeout=_TIMEOUT_SECONDS
            )
            answer = response.json()
        except requests.ConnectionError as error:
            raise BalancerError(f"no nginx at {self._url}") from error
        except (requests.RequestException, ValueError) as error:
            raise BalancerError(f"{self._url}{path}: {error}") from error
        if not response.ok or not isinstance(answer, dict):
            reason = answer.get("error", "") if isinstance(answer, dict) else ""
            raise RefusedError(f"{self._url}{path}: {response.status_code} {reason}".rstrip())
        return answer
