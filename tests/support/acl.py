"""A Consul server with ACLs, by HTTP or with TLS only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from common.consul_access import ConsulAccess
from testbed.processes import Processes
from testbed.programs import tool
from testbed.wait import wait_for
from tests.support.certificates import Authority

MANAGEMENT = "00000000-0000-0000-0000-000000000001"
ANONYMOUS = "00000000-0000-0000-0000-000000000002"
# The name in the server's certificate, which has no address.
SERVER_NAME = "server.dc1.consul"


class AclConsul:
    """A Consul server on loopback, which denies what no policy allows.

    Args:
        processes: what starts it.
        http: the port of its HTTP API; the three behind it are in use too.
        expect: the number of servers of its cluster; with more than one there is no leader.
        authority: the CA of its certificate and of its clients; None for clear text.

    Attributes:
        tls: the variables of a client's certificates.
        leads: whether it is a cluster of its own, with a leader.
    """

    def __init__(self, processes: Processes, http: int, *, expect: int = 1, authority: Authority | None = None) -> None:
        self._processes = processes
        self._http = http
        self._expect, self.leads = expect, expect == 1
        self._number = 0
        self.tls: Mapping[str, str] = {}
        self._settings: dict[str, Any] = {}
        if authority:
            self._use_tls(authority)
        self._access = ConsulAccess.from_env({"CONSUL_HTTP_TOKEN": MANAGEMENT, **self.tls})
        self._url = self._access.make_url("127.0.0.1", http)
        self.start()

    def _use_tls(self, authority: Authority) -> None:
        own, client = authority.issue(SERVER_NAME), authority.issue("client")
        files = {"ca_file": authority.path, "cert_file": own.certificate, "key_file": own.key}
        self._settings["tls"] = {"defaults": {name: str(path) for name, path in files.items()}}
        self._settings["tls"]["defaults"] |= {"verify_incoming": True, "verify_outgoing": True}
        self.tls = {
            "CONSUL_HTTP_SSL": "true",
            "CONSUL_CACERT": str(authority.path),
            "CONSUL_CLIENT_CERT": str(client.certificate),
            "CONSUL_CLIENT_KEY": str(client.key),
            "CONSUL_TLS_SERVER_NAME": SERVER_NAME,
        }

    def start(self) -> None:
        """Starts one without data."""
        self._number += 1
        home = self._processes.directory / f"consul-{self._number}"
        home.mkdir()
        api = {"http": -1, "https": self._http} if self.tls else {"http": self._http}
        ports = {**api, "server": self._http + 1, "serf_lan": self._http + 2, "serf_wan": self._http + 3}
        settings = {
            "server": True,
            "bootstrap_expect": self._expect,
            "data_dir": str(home),
            "bind_addr": "127.0.0.1",
            "ports": {**ports, "dns": -1, "grpc": -1, "grpc_tls": -1},
            "acl": {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {"initial_management": MANAGEMENT, "agent": MANAGEMENT},
            },
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            **self._settings,
        }
        (home / "config.json").write_text(json.dumps(settings))
        command: list[str | Path] = [tool("consul"), "agent", f"-config-file={home / 'config.json'}", "-node=acl"]
        self.process = self._processes.start(f"consul-{self._number}", command, cwd=home)
        if self.leads:
            wait_for(self._answers, bool, 30, "it leads")

    def restart_empty(self) -> None:
        """Comes back without its data."""
        self._processes.stop(self.process)
        self.start()

    def call(self, method: str, path: str, **body: Any) -> requests.Response:
        """Sends a request with all rights."""
        with self._access.make_session() as session:
            response = session.request(method, self._url + path, json=body or None, timeout=10)
        assert response.ok, f"{path}: {response.text}"
        return response

    def put(self, path: str, **body: Any) -> None:
        """PUT with all rights."""
        self.call("PUT", path, **body)

    def write_policy(self, name: str, rules: str) -> None:
        """Creates a policy."""
        self.put("/v1/acl/policy", Name=name, Rules=rules)

    def create_token(self, identity: str, *policies: str, **more: Any) -> None:
        """Creates a token; ``identity`` is its accessor and its secret."""
        names = [{"Name": one} for one in policies]
        self.put("/v1/acl/token", AccessorID=identity, SecretID=identity, Policies=names, **more)

    def allow(self, *policies: str, token: str = ANONYMOUS) -> None:
        """Sets the policies of the anonymous token, or of another."""
        self.put(f"/v1/acl/token/{token}", Policies=[{"Name": policy} for policy in policies])

    def revoke(self, token: str) -> None:
        """Deletes a token."""
        self.call("DELETE", f"/v1/acl/token/{token}")

    def knows(self, token: str) -> bool:
        """Returns whether a token is one of Consul's and has not expired."""
        with ConsulAccess.from_env({"CONSUL_HTTP_TOKEN": token, **self.tls}).make_session() as session:
            return session.get(f"{self._url}/v1/acl/token/self", timeout=5).ok

    def _answers(self) -> bool:
        try:
            with self._access.make_session() as session:
                return session.get(f"{self._url}/v1/acl/policies", timeout=5).ok
        except requests.RequestException:
            return False
