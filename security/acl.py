"""Gives Consul the policies and tokens of all roles. It may run again at any time.

Requests go to the UI's agent, which passes them on to the servers. The token of the request has all rights; the servers
have made it at their first start, because it is their ``initial_management`` token.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import requests

from security.errors import SecurityError
from security.policies import Rules, list_roles

LOG = logging.getLogger("security")

_PREFIX = "grpc-"
_TIMEOUT_SECONDS, _AGAIN_SECONDS = 5.0, 0.1
# The servers elect a leader, which then makes the first token.
_START_SECONDS = 120.0


class _NotYetError(Exception):
    """Consul is not ready for the request."""


class AccessControl:
    """Consul's ACL system.

    Args:
        url: the HTTP API of an agent.
        session: verifies the agent, and has the certificate for it.
        token: the secret ID of the token with all rights.
    """

    def __init__(self, url: str, session: requests.Session, token: str) -> None:
        self._url = url
        self._session = session
        self._session.headers["X-Consul-Token"] = token

    def apply(self, document: Mapping[str, Any], seconds: float = _START_SECONDS) -> None:
        """Creates or updates the policy and the token of each role.

        Args:
            document: ``applications`` and ``tokens``, as ``security.files.read_tokens`` returns them.
            seconds: the longest time to wait for Consul.

        Raises:
            SecurityError: Consul refuses, or is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                policies = {one["Name"]: one["ID"] for one in self._call("GET", "/v1/acl/policies")}
                tokens = {one["AccessorID"] for one in self._call("GET", "/v1/acl/tokens")}
                for role, rules in list_roles(document["applications"]).items():
                    name, token = _PREFIX + role, document["tokens"][role]
                    self._apply_policy(name, rules, policies.get(name))
                    self._apply_token(name, token, present=token["accessor"] in tokens)
            except _NotYetError as error:
                if time.monotonic() > deadline:
                    raise SecurityError(f"Consul at {self._url} is not ready: {error}") from error
                time.sleep(_AGAIN_SECONDS)
            else:
                return

    def _apply_policy(self, name: str, rules: Rules, identity: str | None) -> None:
        policy = {"Name": name, "Rules": json.dumps(rules)}
        if identity is None:
            self._call("PUT", "/v1/acl/policy", policy)
        elif self._call("GET", f"/v1/acl/policy/{identity}")["Rules"] != policy["Rules"]:
            LOG.info("changed the policy %s", name)
            self._call("PUT", f"/v1/acl/policy/{identity}", {**policy, "ID": identity})

    def _apply_token(self, name: str, token: Mapping[str, str], *, present: bool) -> None:
        body = {"AccessorID": token["accessor"], "Description": name, "Policies": [{"Name": name}]}
        if not present:
            self._call("PUT", "/v1/acl/token", {**body, "SecretID": token["secret"]})
            LOG.info("created the token %s", name)
            return
        known = self._call("GET", f"/v1/acl/token/{token['accessor']}")
        if known["SecretID"] != token["secret"]:
            raise SecurityError(f"the token {name} has another secret ID in Consul than in this file")
        if [one["Name"] for one in known.get("Policies") or []] != [name]:
            LOG.info("changed the token %s", name)
            self._call("PUT", f"/v1/acl/token/{token['accessor']}", body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = self._session.request(method, self._url + path, json=body, timeout=_TIMEOUT_SECONDS)
        except requests.exceptions.SSLError as error:
            raise SecurityError(f"{self._url}: TLS: {error}") from error
        except requests.RequestException as error:
            raise _NotYetError(f"{type(error).__name__}") from error
        text = response.text.strip()
        if response.ok:
            return response.json()
        # Without a leader; and before the first leader has made the token of the request.
        if response.status_code >= requests.codes.internal_server_error or "ACL not found" in text:
            raise _NotYetError(f"{response.status_code} {text}")
        raise SecurityError(f"{self._url}{path}: {response.status_code} {text}")
