"""The secure stack: who may do what, what travels in clear text, and changes while calls are made."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import requests

from protos import api_pb2_grpc
from security.files import Secrets
from testbed.calls import greet, open_channel, say_hello
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.capture import captured
from tests.support.drivers import ROOT
from tests.support.load import two_clients
from tests.support.local import SLOT, short_home
from tests.support.prometheus import TOKEN, Discovery, configure, expected_targets
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SecureDriver

pytestmark = pytest.mark.timeout(600)
PORT = 15500 + SLOT
# No token has this secret.
WRONG = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def secure(tools: None) -> Iterator[SecureDriver]:  # noqa: ARG001
    """A secure stack with two replicas."""
    with SecureDriver(
        short_home("secure"), address_base=f"127.{(SLOT + 30) % 50 + 50}.128.0", port=PORT, consul_port=18900 + SLOT
    ) as driver:
        driver.up(2)
        wait_for_replicas(driver, 2)
        yield driver


def failure(stack: SecureDriver, credentials: grpc.ChannelCredentials | None) -> str:
    """Returns the status of a call with these credentials, or without TLS."""
    channel = open_channel(stack.target, credentials) if credentials else grpc.insecure_channel(stack.target)
    with channel:
        try:
            return greet(api_pb2_grpc.PingStub(channel), timeout=3)
        except grpc.RpcError as error:
            return str(error.code().name)


def pair(directory: Path, name: str) -> tuple[bytes, bytes]:
    """Returns the key and the certificate of a directory of secrets, as grpc takes them."""
    return (directory / f"{name}-key.pem").read_bytes(), (directory / f"{name}.pem").read_bytes()


def test_only_callers_with_a_certificate_of_their_own_ca_are_served(secure: SecureDriver, tmp_path: Path) -> None:
    ca = (secure.secrets / "caller" / "callers-ca.pem").read_bytes()
    assert say_hello(secure.target) in secure.replicas()
    assert failure(secure, None) == "UNAVAILABLE"
    assert failure(secure, grpc.ssl_channel_credentials(ca)) == "UNAUTHENTICATED"
    # A replica's certificate, of the stack's inner CA; and one of a stranger's CA.
    inner = pair(secure.secrets / "hello_server", "tls")
    assert failure(secure, grpc.ssl_channel_credentials(ca, *inner)) == "UNAUTHENTICATED"
    Secrets(tmp_path / "other", ["hello_server"]).create()
    stranger = pair(tmp_path / "other" / "caller", "tls")
    assert failure(secure, grpc.ssl_channel_credentials(ca, *stranger)) == "UNAUTHENTICATED"
    wrong_ca = (tmp_path / "other" / "caller" / "callers-ca.pem").read_bytes()
    assert failure(secure, grpc.ssl_channel_credentials(wrong_ca, *stranger)) == "UNAVAILABLE"


def service(name: str) -> dict[str, object]:
    return {"Name": name, "ID": f"{name}-matrix", "Port": 7777, "Address": "127.0.0.2"}


# What may be asked of Consul: method, path, body.
ACTIONS: dict[str, tuple[str, str, object]] = {
    "read hello_server": ("GET", "/v1/health/service/hello_server", None),
    "read all services": ("GET", "/v1/catalog/services", None),
    "read nodes": ("GET", "/v1/catalog/nodes", None),
    "register hello_server": ("PUT", "/v1/agent/service/register", service("hello_server")),
    "register another": ("PUT", "/v1/agent/service/register", service("shop")),
    "register in the catalogue": (
        "PUT",
        "/v1/catalog/register",
        {"Node": "rogue", "Address": "127.0.0.2", "Service": {"Service": "hello_server", "Port": 7777}},
    ),
    "deregister the balancer": ("PUT", "/v1/catalog/deregister", {"Node": "load-balancer"}),
    "write a key": ("PUT", "/v1/kv/rogue", "text"),
    "read the agent": ("GET", "/v1/agent/self", None),
    "leave the cluster": ("PUT", "/v1/agent/force-leave/server-1", None),
    "make a token": ("PUT", "/v1/acl/token", {"Description": "rogue"}),
}
READS = {"read hello_server", "read all services", "read nodes"}
# What each may do: everything else must be refused, or be answered with nothing.
RIGHTS: dict[str, set[str]] = {
    "anonymous": set(),
    "wrong token": set(),
    "reader": READS,
    "dns": READS,
    "prometheus": READS | {"read the agent"},
    "ui-user": READS,
    "server-health": set(),
    "hello_server-agent": READS,
    "hello_server-registrar": {
        "read hello_server", "read all services", "read nodes", "register hello_server", "read the agent",
    },
    "load-balancer-registrar": {"read all services", "read nodes", "deregister the balancer"},
}  # fmt: skip


def allows(response: requests.Response) -> bool:
    """Returns whether an answer is what was asked for; Consul answers filtered lists without their contents."""
    if response.status_code in (401, 403):
        return False
    assert response.ok, (response.status_code, response.text)
    return response.request.method == "PUT" or response.json() not in ([], {})


@pytest.mark.parametrize("who", RIGHTS)
def test_each_token_may_do_what_its_program_needs_and_nothing_else(secure: SecureDriver, who: str) -> None:
    headers = {"anonymous": {}, "wrong token": {"X-Consul-Token": WRONG}}.get(who)
    if headers is None:
        headers = {"X-Consul-Token": secure.token(who)}
    # At a replica's own agent, whose HTTPS wants a certificate of the inner CA.
    base = f"https://{secure.address('hello_server-1')}:8500"
    allowed = set()
    with requests.Session() as session:
        session.trust_env = False
        session.verify = False
        files = [secure.secrets / "hello_server" / name for name in ("consul.pem", "consul-key.pem")]
        session.cert = (str(files[0]), str(files[1]))
        session.headers.update(headers)
        for name, (method, path, body) in ACTIONS.items():
            if name == "deregister the balancer" and name in RIGHTS[who]:
                continue
            sent = {"data": body} if isinstance(body, str) else {"json": body}
            if allows(session.request(method, base + path, timeout=10, **sent)):
                allowed.add(name)
        session.headers["X-Consul-Token"] = secure.token("management")
        session.put(f"{base}/v1/agent/service/deregister/hello_server-matrix", timeout=10)
    assert allowed == RIGHTS[who] - {"deregister the balancer"}


# Its program may have to be built first.
@pytest.mark.timeout(900)
def test_prometheus_finds_its_targets_with_its_token_and_nothing_without(
    secure: SecureDriver, processes: Processes, tmp_path: Path
) -> None:
    configuration, expected = configure(secure), expected_targets(secure)
    found = Discovery(processes, "its-token", configuration)
    wait_for(found.targets, expected.__eq__, 60, "all targets")
    for name, content in (("no-right", secure.token("server-health")), ("no-token", ""), ("wrong-token", WRONG)):
        (tmp_path / name).write_text(content)
        own = configuration.replace(str(secure.secrets / "prometheus" / TOKEN), str(tmp_path / name))
        assert own != configuration
        without = Discovery(processes, name, own)
        wait_for(without.log, lambda text: re.search(r"\b403\b", text) is not None, 60, "Consul refuses it")
        assert without.targets() == set()
    # The rights of the last one come while it runs, as when the stack starts.
    (tmp_path / "wrong-token").write_text(secure.token("prometheus"))
    wait_for(without.targets, expected.__eq__, 60, "all targets with a token that came later")


def test_no_call_registration_check_or_token_is_in_clear_text(secure: SecureDriver) -> None:
    # The status port is on 127.0.0.1 in a container.
    prefix = socket.inet_aton(secure.address_base)[:2]
    with captured([prefix], without_ports=[8080]) as packets:
        # Registrations and deregistrations, checks of each second, and calls.
        secure.scale(3)
        for _ in range(20):
            say_hello(secure.target, "a very private greeting")
        secure.scale(2)
    together = b"\n".join(packets)
    tokens = [secure.token(role) for role in RIGHTS if "-" in role]
    secrets = ["a very private greeting", "Hello from", "protos.Ping", "grpc_server", "grpc_since", *tokens]
    assert len(packets) > 500
    assert [one for one in secrets if one.encode() in together] == []


def test_changes_of_the_fleet_lose_no_call(secure: SecureDriver) -> None:
    with two_clients(secure) as load:
        for replicas in (4, 2):
            secure.up(replicas)
            wait_for_replicas(secure, replicas)
        secure.local_stack("restart", "hello_server-1")
        wait_for_replicas(secure, 2)
    load.assert_no_failed_calls()


def served_certificate(address: str, port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((address, port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")


def test_rotated_certificates_are_in_use_without_an_outage(secure: SecureDriver) -> None:
    places = {
        "load-balancer/tls.pem": ("127.0.0.1", secure.port),
        "hello_server/tls.pem": (secure.address("hello_server-1"), 7777),
        "hello_server/consul.pem": (secure.address("hello_server-1"), 8500),
        "consul-server/consul.pem": (secure.address("server-1"), 8300),
    }
    del places["consul-server/consul.pem"]  # Consul's RPC port has a protocol of its own in front of TLS.
    before = {name: served_certificate(*place) for name, place in places.items()}
    kept = {name: (secure.secrets / name).read_bytes() for name in ("ca.pem", "gossip-key", "acl/tokens.json")}
    with two_clients(secure) as load:
        secure.local_stack("secure", "--rotate")
        for name, place in places.items():
            written = (secure.secrets / name).read_text()
            assert written != before[name]
            wait_for(lambda: served_certificate(*place), written.__eq__, 10, name)  # noqa: B023 - called at once
        # The programs still work with Consul.
        secure.scale(3)
        wait_for_replicas(secure, 3)
        secure.scale(2)
    load.assert_no_failed_calls()
    assert {name: (secure.secrets / name).read_bytes() for name in kept} == kept


def test_a_wrong_key_of_the_replicas_agents_costs_no_call_and_no_registration(
    secure: SecureDriver, tmp_path: Path
) -> None:
    key, new = (secure.secrets / "hello_server" / name for name in ("consul-key.pem", "consul-key.new"))
    Secrets(tmp_path / "other", ["hello_server"]).create()
    names = secure.replicas()
    logs = [secure.home / "logs" / f"{name}.log" for name in names]
    with two_clients(secure) as load:
        new.write_bytes((tmp_path / "other" / "hello_server" / key.name).read_bytes())
        new.replace(key)
        for log in logs:
            wait_for(log.read_text, lambda text: "continues with the last good files" in text, 10, "it says so")
        secure.local_stack("secure", "--rotate")
        written = key.with_name("consul.pem").read_text()
        for name in names:
            address = secure.address(name)
            wait_for(lambda: served_certificate(address, 8500), written.__eq__, 10, name)  # noqa: B023 - called at once
    load.assert_no_failed_calls()
    assert not any("lost the service" in log.read_text() for log in logs)


def test_what_makes_the_secrets_and_the_tokens_may_run_again(secure: SecureDriver) -> None:
    files = {path: path.read_bytes() for path in secure.secrets.rglob("*") if path.is_file()}
    printed = secure.local_stack("secure")
    assert printed.startswith("0 files written")
    assert not any(secure.token(role) in printed for role in ("management", "ui-user"))
    secure.up(2)
    assert "created" not in (secure.home / "logs" / "consul-acl.log").read_text()
    assert {path: path.read_bytes() for path in files} == files
    assert (secure.secrets.stat().st_mode & 0o777, (secure.secrets / "ca-key.pem").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_no_token_and_no_key_is_in_an_environment_or_a_command_line(secure: SecureDriver) -> None:
    tokens = json.loads((secure.secrets / "acl" / "tokens.json").read_text())["tokens"].values()
    secrets = [token["secret"].encode() for token in tokens]
    secrets.append((secure.secrets / "gossip-key").read_bytes().strip())
    seen = 0
    for pids in secure.pids().values():
        for pid in pids:
            for name in ("environ", "cmdline"):
                text = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not [secret for secret in secrets if secret in text], (pid, name)
                seen += len(text)
    assert seen > 10_000


def test_without_secrets_the_stack_says_what_makes_them(tmp_path: Path) -> None:
    env = {"SECRETS": str(tmp_path / "none"), "LOCAL_STACK_HOME": str(short_home("none"))}
    command = [sys.executable, "-m", "local_stack", "up", "-d", "--secure", "--port", str(PORT + 100)]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is not there; python -m local_stack secure makes it")
