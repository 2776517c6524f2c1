"""xDS in the secure stack: TLS with the balancer and with replicas, and which client may have which application."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

pytest.importorskip("xds", reason="xds-protos is not installed")
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from balancer.xds.resource_set import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from security.files import CLIENTS, Secrets
from testbed.wait import wait_for
from tests.foreign.programs import Command
from tests.support.drivers import ROOT
from tests.support.greeter import greeting, wait_for_each
from tests.support.local import SLOT, short_home
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SecureDriver
from tests.support.xds import PORT, bootstrap

pytestmark = pytest.mark.timeout(600)
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


def flags(stack: SecureDriver, client: str, *, replicas: bool = True) -> list[str]:
    """Returns the flags of the bootstrap command for a client, with or without its files for replicas."""
    named = {"cacert": "callers-ca.pem", "cert": "tls.pem", "key": "tls-key.pem"}
    if replicas:
        named |= {"replica-cacert": "ca.pem", "replica-cert": "replica.pem", "replica-key": "replica-key.pem"}
    files = directory(stack, client)
    return [part for name, file in named.items() for part in (f"--{name}", str(files / file))]


def credentials(stack: SecureDriver, client: str) -> grpc.ChannelCredentials:
    """Returns those of a client for the balancer."""
    files = directory(stack, client)
    pems = [(files / name).read_bytes() for name in ("callers-ca.pem", "tls-key.pem", "tls.pem")]
    return grpc.ssl_channel_credentials(*pems)


@contextmanager
def opened(stack: SecureDriver, known: grpc.ChannelCredentials | None) -> Iterator[Any]:
    """Opens a connection to the port of xDS; the block gets the method."""
    address = f"{stack.address('load-balancer')}:{PORT}"
    with grpc.secure_channel(address, known) if known else grpc.insecure_channel(address) as channel:
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources


def read(stream: Any, kind: str, *names: str) -> Sequence[Any]:
    """Returns the resources of a type that a stream gets."""
    request = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names)
    found: Sequence[Any] = next(iter(stream(iter([request]), timeout=5))).resources
    return found


def ask(stream: Any, kind: str, *names: str) -> set[str]:
    """Returns the names of the resources of a type that a stream gets; the name is the first field."""
    return {one.value[2 : 2 + one.value[1]].decode() for one in read(stream, kind, *names)}


def applications(stack: SecureDriver, client: str) -> set[str]:
    """Returns the targets that a client may have; none while the port is closed."""
    try:
        with opened(stack, credentials(stack, client)) as stream:
            return ask(stream, LISTENER)
    except grpc.RpcError:
        return set()


def test_a_client_gets_the_applications_that_it_may_have_and_no_other(secure: SecureDriver) -> None:
    address = f"{secure.address('hello_server-1')}:7777"
    secure.register(address, application="orders")
    try:
        wait_for(
            lambda: applications(secure, "reports"), {"hello_server", "protos.Ping", "orders"}.__eq__, 30, "orders"
        )
        with opened(secure, credentials(secure, "billing")) as stream:
            # All listeners; routes have names always.
            assert ask(stream, LISTENER) == {"hello_server", "protos.Ping"}
            for kind in (LISTENER, ROUTE):
                assert ask(stream, kind, "orders", "hello_server") == {"hello_server"}
            assert ask(stream, CLUSTER, "orders:tls", "hello_server:tls") == {"hello_server:tls"}
            # As of an application that does not exist: it has no replica.
            assert read(stream, ENDPOINTS, "orders:tls", "none")[0].value == b"\n\norders:tls"
    finally:
        secure.deregister(address, application="orders")


def test_a_client_without_rights_or_without_a_certificate_gets_nothing(secure: SecureDriver) -> None:
    authority = grpc.ssl_channel_credentials((directory(secure, "billing") / "callers-ca.pem").read_bytes())
    for known, status in (
        (credentials(secure, "other"), grpc.StatusCode.PERMISSION_DENIED),
        (authority, grpc.StatusCode.UNAVAILABLE),
        (None, grpc.StatusCode.UNAVAILABLE),
    ):
        with opened(secure, known) as stream, pytest.raises(grpc.RpcError) as error:
            ask(stream, LISTENER)
        assert error.value.code() is status


def are_of(count: int, calls: Counter[str]) -> bool:
    """Returns whether the calls are of so many replicas."""
    return len(calls) == count


def test_clients_call_replicas_with_tls_through_changes_and_renewals(
    secure: SecureDriver, greeters: Mapping[str, Command], tmp_path: Path
) -> None:
    # The libraries that have gRFC A65; grpc-java and grpc-js can't give the balancer a certificate.
    able = {name: greeters[name] for name in ("grpc-go", "grpcio-threads") if name in greeters}
    environment = bootstrap(secure, tmp_path, flags=flags(secure, "billing"))
    with greeting(able, [TARGET], environment, secure.home / "logs") as started:
        for count in (3, 2):
            secure.scale(count)
            wait_for_each(started, TARGET, partial(are_of, count), f"{count} replicas answer")
            Secrets(secure.secrets, names=[secure.address("load-balancer")]).create(rotate=True)
    assert not {name: lost for name, greeter in started.items() if (lost := greeter.errors(TARGET))}


def error_of_a_call(environment: Mapping[str, str]) -> str:
    """Calls the target once with grpc_client, which fails; returns its message."""
    command = [sys.executable, "-m", "grpc_client", "--target", TARGET, "--timeout", "5"]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_a_replica_takes_no_call_of_a_client_that_it_does_not_know(secure: SecureDriver, tmp_path: Path) -> None:
    message = error_of_a_call(bootstrap(secure, tmp_path, flags=flags(secure, "reports")))
    assert "PERMISSION_DENIED: the caller's certificate must have the name load-balancer or billing" in message


def test_a_client_without_files_for_replicas_calls_none_in_clear_text(secure: SecureDriver, tmp_path: Path) -> None:
    message = error_of_a_call(bootstrap(secure, tmp_path, flags=flags(secure, "billing", replicas=False)))
    assert "CDS resource hello_server:tls: invalid resource" in message


def test_a_refused_resource_is_in_status_and_metrics_until_the_client_takes_one(secure: SecureDriver) -> None:
    def metrics() -> list[int]:
        text = requests.get(f"http://{secure.address('load-balancer')}:9464/metrics", timeout=10).text
        found = dict(re.findall(r"^grpc_lb_xds_(\w+) (\d+)$", text, re.MULTILINE))
        return [int(found[name]) for name in ("clients", "refusing_clients", "refused_total")]

    def settled() -> list[int]:
        """The metrics once they have what the clients of the other tests have refused at their end."""
        first = metrics()
        time.sleep(1.5)
        return first if metrics() == first else []

    def answer(nonce: str, message: str) -> discovery_pb2.DiscoveryRequest:
        """The client's answer to a response: a refusal with a message, else that it takes it."""
        found = discovery_pb2.DiscoveryRequest(type_url=CLUSTER, resource_names=["hello_server:tls"])
        found.node.id, found.response_nonce = "billing-1", nonce
        if message:
            found.error_detail.message = message
        return found

    with opened(secure, credentials(secure, "billing")) as stream:
        requests_: queue.Queue[discovery_pb2.DiscoveryRequest] = queue.Queue()
        requests_.put(answer("", ""))
        answers = stream(iter(requests_.get, None), timeout=60)
        nonce = next(answers).nonce
        before = wait_for(settled, lambda found: found[:2] == [1, 0], 20, "no other client is left")[2]
        for message, refusing in (("no such policy", 1), ("", 0)):
            requests_.put(answer(nonce, message))
            wait_for(metrics, [1, refusing, before + 1].__eq__, 10, "the metrics have it")
            shown = secure.local_stack("status")
            assert ("! xDS: billing-1 refuses a Cluster: no such policy" in shown) == bool(message)
        answers.cancel()
