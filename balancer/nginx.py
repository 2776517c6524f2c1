"""The client of nginx's status port."""

from __future__ import annotations

from typing import Any

import requests

from balancer.errors import BalancerError, RefusedError
from common import http

# A worker that hangs keeps its connections; another one takes the next.
_TIMEOUT_SECONDS = 2.0


class Nginx:
    """The data plane.

    Args:
        url: of its status port.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = http.session()

    def publish(self, text: bytes) -> None:
        """Posts a document.

        Raises:
            RefusedError: nginx does not take this document.
            BalancerError: nginx is out of reach.
        """
        self._call("POST", "/configuration", text)

    def read_version(self) -> str:
        """Returns the version of its document; empty if it has none.

        Raises:
            BalancerError: nginx is out of reach.
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
