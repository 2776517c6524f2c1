"""The secure stack's other ports: gossip, status, metrics and DNS, and who gets an answer there."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from common.http import make_session
from security.files import Secrets
from testbed.processes import Processes
from testbed.programs import tool
from testbed.wait import wait_for
from tests.support.local import SLOT, short_home
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SecureDriver

pytestmark = pytest.mark.timeout(300)
PORT = 31300 + 6 * SLOT
NETWORK = f"127.{(SLOT + 40) % 50 + 50}"


@pytest.fixture(scope="module")
def secure(tools: None) -> Iterator[SecureDriver]:  # noqa: ARG001
    """A secure stack with two replicas."""
    with SecureDriver(
        short_home("network"), address_base=f"{NETWORK}.128.0", port=PORT, consul_port=PORT + 1
    ) as driver:
        driver.up(2)
        wait_for_replicas(driver, 2)
        yield driver


class Stranger:
    """A Consul agent that is not one of the stack's.

    Args:
        stack: the stack that it wants to join.
        processes: what starts it.
        number: makes its name and address.
        gossip_key: the key of its gossip; None for gossip in clear text.
        files: the directory of its certificate, its key and its CA; None for RPC in clear text.
    """

    def __init__(
        self, stack: SecureDriver, processes: Processes, number: int, gossip_key: str | None, files: Path | None
    ) -> None:
        self.name = f"stranger-{number}"
        self._processes = processes
        self._url = f"http://{NETWORK}.250.{number}:8500"
        settings: dict[str, Any] = {
            "node_name": self.name,
            "data_dir": str(processes.directory / self.name),
            "bind_addr": f"{NETWORK}.250.{number}",
            "client_addr": f"{NETWORK}.250.{number}",
            "ports": {"http": 8500, "dns": -1, "grpc": -1, "grpc_tls": -1},
            "retry_join": [stack.address("server-1")],
            "retry_interval": "1s",
            "acl": {"enabled": True, "default_policy": "deny"},
            "disable_update_check": True,
        }
        if gossip_key:
            settings["encrypt"] = gossip_key
        if files:
            names = {"ca_file": "ca.pem", "cert_file": "consul.pem", "key_file": "consul-key.pem"}
            settings["tls"] = {
                "defaults": {**{name: str(files / file) for name, file in names.items()}, "verify_outgoing": True},
                "internal_rpc": {"verify_server_hostname": True},
            }
        path = processes.directory / f"{self.name}.json"
        path.write_text(json.dumps(settings))
        command: list[str | Path] = [tool("consul"), "agent", f"-config-file={path}"]
        self._process = processes.start(self.name, command, cwd=processes.directory)

    def wait_for_log(self, text: str) -> None:
        """Waits until it has logged a text."""
        wait_for(lambda: self._processes.tail(self.name), lambda found: text in found, 30, f"{self.name}: {text}")

    def ask(self, method: str, path: str, token: str, **body: Any) -> requests.Response:
        """Sends a request to its own HTTP API."""
        with make_session() as session:
            return session.request(
                method, self._url + path, json=body or None, headers={"X-Consul-Token": token}, timeout=40
            )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as processes:
        yield processes


def members(stack: SecureDriver) -> set[str]:
    """Returns the members of the gossip that Consul's servers see alive."""
    answer = stack.consul_session().get(f"{stack.consul}/v1/agent/members", timeout=10)
    return {one["Name"] for one in answer.json() if one["Status"] == 1}


@pytest.mark.parametrize("key", [None, "wrong"])
def test_an_agent_without_the_gossip_key_does_not_join(
    secure: SecureDriver, started: Processes, key: str | None
) -> None:
    wrong = base64.b64encode(secrets.token_bytes(32)).decode() if key else None
    stranger = Stranger(secure, started, 2 if key else 1, wrong, secure.secrets / "hello_server")
    stranger.wait_for_log("Join cluster failed")
    stranger.wait_for_log("couldn't join: number_of_nodes=0")
    assert stranger.name not in members(secure)


def test_the_gossip_key_alone_shows_members_and_gives_no_access_to_the_catalogue(
    secure: SecureDriver, started: Processes, tmp_path: Path
) -> None:
    """Consul's gossip has no certificates: docs/security.md says so."""
    Secrets(tmp_path / "other", ["hello_server"]).create()
    key = (secure.secrets / "gossip-key").read_text().strip()
    of_another_ca = Stranger(secure, started, 3, key, tmp_path / "other" / "hello_server")
    in_clear_text = Stranger(secure, started, 4, key, None)
    strangers = {of_another_ca.name, in_clear_text.name}
    wait_for(lambda: members(secure), strangers.issubset, 30, "they are members")
    of_another_ca.wait_for_log("certificate signed by unknown authority")
    in_clear_text.wait_for_log("rpc error")
    for one in (of_another_ca, in_clear_text):
        # With a good token, too.
        for method, path, body in (
            ("GET", "/v1/catalog/services", {}),
            ("PUT", "/v1/catalog/register", {"Node": one.name, "Address": "127.0.0.2", "Service": {"Service": "x"}}),
        ):
            answer = one.ask(method, path, secure.token("management"), **body)
            assert answer.status_code in (403, 500), (path, answer.text)
    assert set(secure.replicas()) == {"hello_server-1", "hello_server-2"}


def test_the_status_port_answers_and_takes_no_changes(secure: SecureDriver) -> None:
    """It is on 127.0.0.1 in a container, and on the balancer's own loopback address without Docker."""
    base = f"http://{secure.address('load-balancer')}:8080"
    changes = ("POST", "PUT", "DELETE")
    with make_session() as session:

        def status(method: str, path: str, **headers: str) -> int:
            return session.request(method, base + path, json={"replicas": []}, headers=headers, timeout=5).status_code

        assert [status("GET", path) for path in ("/health", "/state", "/replicas", "/peers")] == [200, 200, 200, 404]
        assert {status(method, "/replicas") for method in changes} == {403}
        assert {status(method, "/peers") for method in changes} <= {404, 405}
        # The control plane's document: not from a web page, and not by any other path.
        assert status("POST", "/configuration", Origin="http://localhost:8080") == 403
        assert {status(method, "/state") for method in changes} == {200}
        state = session.get(f"{base}/state", timeout=5).json()
        assert [one["state"] for one in state["replicas"]] == ["serving", "serving"]


@pytest.mark.parametrize("path", ["state", "peers", "replicas", "metrics"])
def test_callers_reach_no_status_and_no_metrics(secure: SecureDriver, path: str) -> None:
    """At the port of calls each path is a call; without a certificate it is refused as one."""
    caller = secure.secrets / "caller"
    certificate = ["--cert", str(caller / "tls.pem"), "--key", str(caller / "tls-key.pem")]
    for more, refused in (([], True), (certificate, False)):
        url = f"https://localhost:{secure.port}/{path}"
        command = ["curl", "-sS", "-D", "-", "--cacert", str(caller / "callers-ca.pem"), *more, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        assert ("grpc-message: a client certificate is required" in done.stdout) == refused, done.stdout
        # No message, and an error as its status.
        assert done.stdout.rstrip().splitlines()[-1].startswith("grpc-message: "), done.stdout
        assert "grpc-status: 0" not in done.stdout


@pytest.mark.parametrize("container", ["load-balancer", "hello_server-1"])
def test_metrics_are_in_clear_text_at_their_own_address_only(secure: SecureDriver, container: str) -> None:
    with make_session() as session:
        answer = session.get(f"http://{secure.address(container)}:9464/metrics", timeout=5)
    assert answer.ok
    assert "grpc_" in answer.text
    # Neither at the address of callers, which is 127.0.0.1 here.
    with socket.socket() as client:
        client.settimeout(5)
        assert client.connect_ex(("127.0.0.1", 9464)) != 0


def resolve(agent: str, name: str) -> list[str]:
    """Returns the addresses that an agent's DNS answers (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    question = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!B2H", 0, 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(question, (agent, 8600))
        answer = client.recv(4096)
    (count,) = struct.unpack("!H", answer[6:8])
    # Each answer is a pointer to the name, type, class, TTL and length, and then the address.
    records = [answer[start : start + 16] for start in range(len(question), len(question) + 16 * count, 16)]
    return [socket.inet_ntoa(record[12:]) for record in records]


@pytest.mark.parametrize("container", ["hello_server-1", "load-balancer", "server-1"])
def test_dns_of_an_agent_has_a_token(secure: SecureDriver, container: str) -> None:
    found = resolve(secure.address(container), "load-balancer.service.consul")
    assert found == [secure.address("load-balancer")]
    assert resolve(secure.address(container), "nothing.service.consul") == []
