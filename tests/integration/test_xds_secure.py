"""xDS in the secure stack: TLS with the balancer and with replicas, and which client may have which application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest
import requests

pytest.importorskip("xds", reason="xds-protos is not installed")
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from balancer.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from security.files import CLIENTS, Secrets
from testbed.errors import MissingError
from testbed.wait import wait_for
from tests.foreign.programs import go
from tests.support.drivers import ROOT
from tests.support.load import round_robin
from tests.support.local import SLOT, short_home
from tests.support.missing import missing
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SecureDriver

pytestmark = pytest.mark.timeout(600)
PORT = 18000
TARGET = "xds:///hello_server"


@pytest.fixture(scope="module")
def secure(tools: None) -> Iterator[SecureDriver]:  # noqa: ARG001
    """A secure stack with xDS for the clients billing and reports, and two replicas."""
    with SecureDriver(
        short_home("xdstls"), address_base=f"127.{140 + SLOT}.80.0", port=16250 + SLOT, consul_port=19250 + SLOT
    ) as driver:
        driver.env |= {
            "XDS_PORT": str(PORT),
            "XDS_ALLOW": "billing:hello_server,reports:*",
            "GRPC_TLS_CLIENT_NAME": "load-balancer,billing",
        }
        driver.up(2)
        wait_for_replicas(driver, 2)
        # Certificates for clients, and another one of the balancer, which has its address.
        names = [driver.address("load-balancer")]
        Secrets(driver.secrets, names=names, clients=["billing", "reports", "other"]).create(rotate=True)
        wait_for(lambda: applications(driver, "billing"), {"hello_server", "protos.Ping"}.__eq__, 30, "xDS answers")
        yield driver


def directory(stack: SecureDriver, client: str) -> Path:
    return stack.secrets / CLIENTS / client


def bootstrap(stack: SecureDriver, client: str, balancer_flags: Sequence[str] | None = None) -> str:
    """Returns the bootstrap file of a client, as the command prints it."""
    files = directory(stack, client)
    balancer = {"cacert": "callers-ca.pem", "cert": "tls.pem", "key": "tls-key.pem"}
    replicas = {"replica-cacert": "ca.pem", "replica-cert": "replica.pem", "replica-key": "replica-key.pem"}
    flags = [part for name, file in (balancer | replicas).items() for part in (f"--{name}", str(files / file))]
    address = f"{stack.address('load-balancer')}:{PORT}"
    command = [sys.executable, "-m", "balancer", "bootstrap", address, *(balancer_flags or flags)]
    return subprocess.run(command, cwd=ROOT, stdout=PIPE, text=True, check=True).stdout


@contextmanager
def configured(text: str, path: Path) -> Iterator[None]:
    """Clients that start in the block have this bootstrap file."""
    path.write_text(text)
    os.environ["GRPC_XDS_BOOTSTRAP"] = str(path)
    try:
        yield
    finally:
        del os.environ["GRPC_XDS_BOOTSTRAP"]


@contextmanager
def opened(stack: SecureDriver, client: str) -> Iterator[Any]:
    """Opens a stream as a client of xDS; the block gets it."""
    files = directory(stack, client)
    pems = [(files / name).read_bytes() for name in ("callers-ca.pem", "tls-key.pem", "tls.pem")]
    address = f"{stack.address('load-balancer')}:{PORT}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(*pems)) as channel:
        stream = channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            discovery_pb2.DiscoveryRequest.SerializeToString,
            discovery_pb2.DiscoveryResponse.FromString,
        )
        yield stream


def ask(stream: Any, kind: str, *names: str) -> set[str]:
    """Returns the names of the resources of a type that a stream has."""
    request = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names)
    answer = next(iter(stream(iter([request]), timeout=5)))
    unpacked = {one.value for one in answer.resources}
    return {value.split(b"\n", 1)[1][1 : 1 + value[1]].decode() for value in unpacked}


def applications(stack: SecureDriver, client: str) -> set[str]:
    """Returns the targets that a client may have; none while the port is closed."""
    try:
        with opened(stack, client) as stream:
            return ask(stream, LISTENER)
    except grpc.RpcError:
        return set()


def test_a_client_gets_the_applications_that_it_may_have_and_no_other(secure: SecureDriver) -> None:
    address = f"{secure.address('hello_server-1')}:7777"
    secure.register(address, application="orders")
    try:
        wait_for(lambda: applications(secure, "reports"), {"hello_server", "protos.Ping", "orders"}.__eq__, 30, "orders")
        with opened(secure, "billing") as stream:
            for kind, names in ((LISTENER, {"hello_server", "protos.Ping"}), (ROUTE, {"hello_server", "protos.Ping"})):
                assert ask(stream, kind) == names
                assert ask(stream, kind, "orders", "hello_server") == {"hello_server"}
            for kind in (CLUSTER, ENDPOINTS):
                assert ask(stream, kind, "orders:tls", "hello_server:tls") == {"hello_server:tls"}
    finally:
        secure.deregister(address, application="orders")


def test_a_client_without_rights_or_without_a_certificate_gets_nothing(secure: SecureDriver) -> None:
    with opened(secure, "other") as stream, pytest.raises(grpc.RpcError) as error:
        ask(stream, LISTENER)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    authority = (directory(secure, "billing") / "callers-ca.pem").read_bytes()
    for credentials in (grpc.ssl_channel_credentials(authority), None):
        address = f"{secure.address('load-balancer')}:{PORT}"
        channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        with channel, pytest.raises(grpc.RpcError) as error:
            stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
            next(iter(stub.StreamAggregatedResources(iter([discovery_pb2.DiscoveryRequest()]), timeout=5)))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def report(*flags: str) -> dict[str, Any]:
    """Calls the target with grpc_client, and returns its report."""
    command = [sys.executable, "-m", "grpc_client", "--target", TARGET, "--json", "--count", "50", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    return dict(json.loads(done.stdout))


def test_clients_call_replicas_with_tls_through_changes_and_renewals(secure: SecureDriver, tmp_path: Path) -> None:
    with configured(bootstrap(secure, "billing"), tmp_path / "bootstrap.json"):
        assert set(report()["replicas"]) == {"hello_server-1", "hello_server-2"}
        try:
            command = [*go("greet"), TARGET]
        except MissingError as error:
            missing(str(error))
        with (
            subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as client,
            round_robin(TARGET, retry=False) as outcome,
        ):
            secure.scale(3)
            wait_for(lambda: len(report()["replicas"]), (3).__eq__, 30, "three replicas answer")
            addresses = {f"{secure.address(name)}:7777" for name in secure.replicas()}
            Secrets(secure.secrets, names=[secure.address("load-balancer")]).create(rotate=True)
            secure.scale(2)
            wait_for(lambda: len(report()["replicas"]), (2).__eq__, 30, "two replicas answer")
            seen = json.loads(client.communicate(timeout=30)[0])
        assert outcome.lost == 0, outcome
        assert seen.keys() == addresses, seen


def test_a_replica_takes_no_call_of_a_client_that_it_does_not_know(secure: SecureDriver, tmp_path: Path) -> None:
    with configured(bootstrap(secure, "reports"), tmp_path / "bootstrap.json"):
        errors = report()["errors"]
    assert set(errors) == {"PERMISSION_DENIED"}, errors


def test_a_client_without_files_for_replicas_calls_none_in_clear_text(secure: SecureDriver, tmp_path: Path) -> None:
    files = directory(secure, "billing")
    flags = ["--cacert", "callers-ca.pem", "--cert", "tls.pem", "--key", "tls-key.pem"]
    named = [one if one.startswith("--") else str(files / one) for one in flags]
    with configured(bootstrap(secure, "billing", named), tmp_path / "bootstrap.json"):
        assert "OK" not in report("--timeout", "3").get("errors", {"OK": 0})


def test_a_refused_resource_is_in_status_and_metrics_until_the_client_takes_one(secure: SecureDriver) -> None:
    def metrics() -> set[str]:
        text = requests.get(f"http://{secure.address('load-balancer')}:9464/metrics", timeout=10).text
        return {line for line in text.splitlines() if line.startswith("grpc_lb_xds_")}

    with opened(secure, "billing") as stream:
        requests_: Any = Questions()
        requests_.put(discovery_pb2.DiscoveryRequest(type_url=CLUSTER, resource_names=["hello_server:tls"]))
        requests_.queue[-1].node.id = "billing-1"
        answers = stream(requests_, timeout=60)
        answer = next(answers)
        for message, refusing in (("no such policy", 1), ("", 0)):
            request = discovery_pb2.DiscoveryRequest(type_url=CLUSTER, resource_names=["hello_server:tls"])
            request.response_nonce = answer.nonce
            if message:
                request.error_detail.message = message
            requests_.put(request)
            expected = {"grpc_lb_xds_clients 1", f"grpc_lb_xds_refusing_clients {refusing}", "grpc_lb_xds_refused_total 1"}
            wait_for(metrics, expected.__eq__, 10, "the metrics have it")
            shown = secure.local_stack("status")
            assert ("! xDS: billing-1 refuses a Cluster: no such policy" in shown) == bool(message)
        answers.cancel()
