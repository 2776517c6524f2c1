"""The scenarios in containers."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import grpc
import pytest

from protos import api_pb2_grpc
from testbed.calls import CREDENTIALS, greet, open_channel
from testbed.wait import wait_for
from tests.support import scenarios
from tests.support.capture import captured
from tests.support.certificates import Authority
from tests.support.drivers import ComposeDriver, ConsulApi, Driver, run
from tests.support.missing import missing
from tests.support.scenarios import calls_going_on, wait_for_replicas

pytestmark = pytest.mark.timeout(1800)


def compose_stack(
    engine: dict[str, list[str]], version: str, project: str = "glbtest", overrides: Sequence[str] = (), **env: str
) -> Iterator[ComposeDriver]:
    """The stack of docker-compose.yaml by one major version of Compose, built from this checkout."""
    if version not in engine:
        missing(f"Compose {version}.x is not here")
    files = [part for file in ("docker-compose.yaml", *overrides) for part in ("-f", file)]
    driver = ComposeDriver([*engine[version], *files], f"{project}{version}", port=25000, consul_port=28500)
    driver.env |= env
    driver.down()
    driver.compose("build")
    try:
        driver.up(1)
        yield driver
    finally:
        if overrides:
            driver.hurry()
        driver.down()
    assert driver.leftovers() == []


def run_server(stack: ComposeDriver, **variables: str) -> subprocess.CompletedProcess[str]:
    """A container of the server's image with these variables, to its end."""
    env = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    command = ["docker", "run", "--rm", *env, "--network", f"{stack.project}_default", "server"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="class")
def stack_by_compose_1(engine: dict[str, list[str]]) -> Iterator[ComposeDriver]:
    yield from compose_stack(engine, "1")


@pytest.fixture(scope="class")
def stack_by_compose_2(engine: dict[str, list[str]]) -> Iterator[ComposeDriver]:
    yield from compose_stack(engine, "2")


@pytest.fixture(scope="class")
def secure_stack(engine: dict[str, list[str]]) -> Iterator[ComposeDriver]:
    yield from secure_compose_stack(engine)


@pytest.fixture(scope="class")
def secure_envoy(engine: dict[str, list[str]]) -> Iterator[ComposeDriver]:
    if not os.environ.get("BASE_IMAGE", "").startswith("debian"):
        pytest.skip("Envoy's program from PyPI needs BASE_IMAGE=debian:...")
    yield from secure_compose_stack(engine, LB_EXTRA="envoy", LB_ENGINE="envoy")


def secure_compose_stack(engine: dict[str, list[str]], **env: str) -> Iterator[ComposeDriver]:
    """The stack of secure.yaml by Compose 2, with secrets of its own, which build/secure makes."""
    if "2" not in engine:
        missing("Compose 2.x is not here")
    files = [part for file in ("docker-compose.yaml", "secure.yaml") for part in ("-f", file)]
    driver = ComposeDriver([*engine["2"], *files], "glbsecure", port=25000, consul_port=28500)
    with tempfile.TemporaryDirectory() as directory:
        driver.env |= {"SECRETS": directory, **env}
        driver.down()
        driver.compose("build")
        run(["sh", "build/secure"], {"SECRETS": directory})
        caller = Path(directory, "caller")
        pems = [(caller / name).read_bytes() for name in ("callers-ca.pem", "tls-key.pem", "tls.pem")]
        CREDENTIALS[scenarios.target(driver)] = grpc.ssl_channel_credentials(*pems)
        try:
            driver.up(1)
            yield driver
        finally:
            del CREDENTIALS[scenarios.target(driver)]
            driver.hurry()
            driver.down()
    assert driver.leftovers() == []


def rolled_out(stack: ComposeDriver) -> None:
    """build/rollout replaces every replica and loses no call; one that does not become healthy changes nothing."""
    stack.up(2)
    before = wait_for_replicas(stack, 2)
    with calls_going_on(stack) as seen:
        done = stack.rollout(HELLO_SERVER_VERSION="2")
        assert done.returncode == 0, done.stdout + done.stderr
        after = wait_for_replicas(stack, 2)
        assert not after & before
        done = stack.rollout(GRPC_WORKERS="none", ROLLOUT_SECONDS="10")
        assert done.returncode == 1
        assert "is not in service after 10 s" in done.stderr
        assert wait_for_replicas(stack, 2) == after
    assert set(seen) == {"OK"}, seen
    registered = ConsulApi(stack).get("/v1/catalog/service/hello_server")
    assert {one["ServiceMeta"].get("version") for one in registered} == {"2"}


def called_over_tls(stack: ComposeDriver, directory: Path) -> None:
    """The balancer has a certificate from a mounted directory, and a renewed one without a restart."""
    directory.chmod(0o755)
    authority = Authority(directory)
    pair = authority.issue("balancer", ["127.0.0.1"])
    files = {"LB_TLS_CERTIFICATE": pair.certificate, "LB_TLS_KEY": pair.key}
    service = {
        "environment": {name: f"/tls/{path.name}" for name, path in files.items()},
        "volumes": [f"{directory}:/tls:ro"],
    }
    override = directory / "tls.yaml"
    override.write_text(json.dumps({"services": {"load-balancer": service}}))
    stack.compose("-f", str(override), "up", "-d", "--no-deps", "load-balancer")
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())

    def call() -> str:
        with open_channel(scenarios.target(stack), credentials) as channel:
            try:
                return greet(api_pb2_grpc.PingStub(channel))
            except grpc.RpcError:
                return ""

    wait_for(call, bool, 60, "an answer over TLS")
    pair.replace_with(authority.issue("balancer", ["127.0.0.1"], file="renewed"))
    address = ("127.0.0.1", stack.port)
    wait_for(
        lambda: ssl.get_server_certificate(address), pair.certificate.read_text().__eq__, 5, "the renewed certificate"
    )
    stack.up(1)
    wait_for_replicas(stack, 1)


def wait_until_healthy(stack: ComposeDriver) -> None:
    """Waits until all containers of one replica are healthy."""
    for service in ("load-balancer", "hello_server", "server-1", "server-2", "server-3", "consul-ui"):
        command = ["docker", "inspect", "--format", "{{.State.Health.Status}}", stack.container(service)]
        wait_for(partial(run, command), lambda status: status.strip() == "healthy", 60, service)


ADDRESSES = "import socket, sys; print(*sorted({found[4][0] for found in socket.getaddrinfo(sys.argv[1], 80)}))"
CALL = """
import grpc
from protos import api_pb2, api_pb2_grpc
with grpc.insecure_channel("load-balancer.service.consul:5000") as channel:
    print(api_pb2_grpc.PingStub(channel).SayHello(api_pb2.PingMessage(greeting="from inside"), timeout=10).greeting)
"""


def names_resolve(stack: ComposeDriver) -> None:
    """Services by their names in Consul, containers by their names in Docker, from inside of a replica."""
    stack.up(2)
    names = wait_for_replicas(stack, 2)
    inside = stack.replicas()[0]
    registered = ConsulApi(stack).get("/v1/catalog/service/hello_server")
    replicas = sorted(one["ServiceAddress"] or one["Address"] for one in registered)
    found = wait_for(
        lambda: stack.execute(inside, "python3", "-c", ADDRESSES, "hello_server.service.consul").split(),
        lambda addresses: addresses == replicas,
        30,
        "all replicas by one name",
    )
    assert len(found) == 2
    assert stack.execute(inside, "python3", "-c", ADDRESSES, "server-1").split()
    answer = stack.execute(inside, "python3", "-c", CALL).strip()
    assert answer in {f"Hello from {name}." for name in names}
    assert stack.execute("load-balancer", "python3", "-c", ADDRESSES, "consul.service.consul").split()


def scaled(stack: ComposeDriver) -> None:
    """Changes of the number of replicas lose no call."""
    wait_for_replicas(stack, 1)
    with calls_going_on(stack) as seen:
        stack.up(3)
        wait_for_replicas(stack, 3)
        stack.up(2)
        wait_for_replicas(stack, 2)
    assert set(seen) == {"OK"}, seen


def clear_text_is_refused(stack: ComposeDriver) -> None:
    """A stack with TLS does not answer calls without it."""
    with grpc.insecure_channel(scenarios.target(stack)) as channel, pytest.raises(grpc.RpcError):
        greet(api_pb2_grpc.PingStub(channel))


class TestSecure:
    """secure.yaml, by Compose 2."""

    def test_replicas_are_found_and_no_call_is_lost(self, secure_stack: ComposeDriver) -> None:
        scaled(secure_stack)

    def test_calls_without_tls_are_refused(self, secure_stack: ComposeDriver) -> None:
        clear_text_is_refused(secure_stack)

    def test_every_container_becomes_healthy(self, secure_stack: ComposeDriver) -> None:
        wait_until_healthy(secure_stack)

    def test_nothing_of_calls_registrations_and_tokens_is_in_clear_text(self, secure_stack: ComposeDriver) -> None:
        tokens = json.loads(Path(secure_stack.env["SECRETS"], "acl", "tokens.json").read_text())["tokens"].values()
        with captured([bytes([10, 213])]) as packets:
            secure_stack.up(3)
            wait_for_replicas(secure_stack, 3)
            with open_channel(scenarios.target(secure_stack)) as channel:
                greet(api_pb2_grpc.PingStub(channel), "a very private greeting")
        together = b"\n".join(packets)
        secrets = ["a very private greeting", "Hello from", "protos.Ping", "grpc_since"]
        secrets += [token["secret"] for token in tokens]
        assert len(packets) > 500
        assert [one for one in secrets if one.encode() in together] == []

    def test_a_container_is_in_the_networks_that_it_needs(self, secure_stack: ComposeDriver) -> None:
        wanted = {
            "load-balancer": {"callers", "consul", "monitoring", "replicas"},
            "hello_server": {"consul", "monitoring", "replicas"},
            "server-1": {"consul"},
            "consul-ui": {"consul", "monitoring"},
        }
        for service, names in wanted.items():
            form = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
            found = run(["docker", "inspect", "--format", form, secure_stack.container(service)]).split()
            assert set(found) == {f"glbsecure_{name}" for name in names}, service

    def test_no_token_is_in_what_docker_shows(self, secure_stack: ComposeDriver) -> None:
        tokens = json.loads(Path(secure_stack.env["SECRETS"], "acl", "tokens.json").read_text())["tokens"].values()
        for service in ("load-balancer", "hello_server", "server-1", "consul-ui"):
            container = secure_stack.container(service)
            shown = run(["docker", "inspect", container]) + run(["docker", "top", container, "-eo", "pid,args"])
            assert not [token for token in tokens if token["secret"] in shown], service


class TestSecureEnvoy:
    """secure.yaml with Envoy in nginx's place: an image with the extra, and all of its TLS."""

    def test_replicas_are_found_and_no_call_is_lost(self, secure_envoy: ComposeDriver) -> None:
        scaled(secure_envoy)

    def test_calls_without_tls_are_refused(self, secure_envoy: ComposeDriver) -> None:
        clear_text_is_refused(secure_envoy)

    def test_every_container_becomes_healthy(self, secure_envoy: ComposeDriver) -> None:
        wait_until_healthy(secure_envoy)

    def test_envoy_has_the_calls(self, secure_envoy: ComposeDriver) -> None:
        found = run(["docker", "top", secure_envoy.container("load-balancer"), "-eo", "pid,comm"])
        assert "envoy" in {line.split()[-1] for line in found.splitlines()}


class TestCompose1:
    """Compose 1.29: what it could do differently."""

    @pytest.mark.parametrize("scenario", scenarios.COMPOSE_SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_in_containers(self, stack_by_compose_1: ComposeDriver, scenario: Callable[[Driver], None]) -> None:
        scenario(stack_by_compose_1)

    def test_names_resolve(self, stack_by_compose_1: ComposeDriver) -> None:
        names_resolve(stack_by_compose_1)

    def test_a_rollout_loses_no_call(self, stack_by_compose_1: ComposeDriver) -> None:
        rolled_out(stack_by_compose_1)


class TestCompose2:
    """Compose 2.x: all of it."""

    @pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda scenario: scenario.__name__)
    def test_in_containers(self, stack_by_compose_2: ComposeDriver, scenario: Callable[[Driver], None]) -> None:
        scenario(stack_by_compose_2)

    def test_names_resolve(self, stack_by_compose_2: ComposeDriver) -> None:
        names_resolve(stack_by_compose_2)

    def test_a_rollout_loses_no_call(self, stack_by_compose_2: ComposeDriver) -> None:
        rolled_out(stack_by_compose_2)

    def test_calls_over_tls(self, stack_by_compose_2: ComposeDriver, tmp_path: Path) -> None:
        called_over_tls(stack_by_compose_2, tmp_path)

    def test_no_process_is_root(self, stack_by_compose_2: ComposeDriver) -> None:
        for service in ("load-balancer", "hello_server", "server-1", "consul-ui"):
            container = stack_by_compose_2.container(service)
            owners = run(["docker", "top", container, "-eo", "uid,pid,comm"]).splitlines()[1:]
            assert owners, service
            assert not [line for line in owners if line.split()[0] == "0"], owners

    def test_every_container_becomes_healthy(self, stack_by_compose_2: ComposeDriver) -> None:
        wait_until_healthy(stack_by_compose_2)

    def test_a_container_with_wrong_variables_starts_nothing_and_names_them(
        self, stack_by_compose_2: ComposeDriver
    ) -> None:
        done = run_server(stack_by_compose_2, APP_PORT="0", CONSUL_SERVER="server-1")
        assert done.returncode == 2
        wrong = {"APP_NAME", "APP_PORT", "CONSUL_PORT", "TAGS"}
        assert {line.split(":")[0] for line in done.stderr.splitlines()} == wrong

    def test_a_program_that_cannot_start_ends_its_container_with_the_reason(
        self, stack_by_compose_2: ComposeDriver
    ) -> None:
        service = {"APP_NAME": "a", "APP_PORT": "7777", "TAGS": "b", "CONSUL_PORT": "8500", "CONSUL_SERVER": "server-1"}
        # An address that no machine has (RFC 5737).
        done = run_server(stack_by_compose_2, **service, BIND_ADDRESS="192.0.2.1")
        assert "192.0.2.1:7777" in done.stdout + done.stderr
        assert "exit-on-fatal | a program can't be started" in done.stdout + done.stderr
