"""The balancer with Consul's ACLs: a token that is revoked or loses rights costs no call; and with TLS only."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import requests

from common.consul_access import ConsulAccess
from testbed import programs
from testbed.calls import answers
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.acl import AclConsul
from tests.support.certificates import Authority
from tests.support.control_plane import Balancer
from tests.support.drivers import ROOT
from tests.support.local import SLOT
from tests.support.scenarios import calls_going_on
from tests.support.server_process import NETWORK, PORT, ServerProcess

HTTP = 29500 + 10 * SLOT
LISTEN, METRICS = HTTP + 4, HTTP + 6
APP = "hello"
BALANCER, RENEWED = "10000000-0000-0000-0000-000000000000", "20000000-0000-0000-0000-000000000000"
REGISTRAR, EXPIRING = "30000000-0000-0000-0000-000000000000", "40000000-0000-0000-0000-000000000000"
# The shortest life of a token that Consul takes: ACLTokenMinExpirationTTL, which is no setting.
LIFE_SECONDS = 60
SERVICES, NODES = 'service_prefix "" { policy = "read" }', 'node_prefix "" { policy = "read" }'
POLICIES = {
    "balancer": f"{SERVICES} {NODES}",
    "without-app": f'{SERVICES} {NODES} service "{APP}" {{ policy = "deny" }}',
    "without-nodes": SERVICES,
    "registrar": f'{SERVICES} {NODES} service_prefix "{APP}" {{ policy = "write" }}'
    'agent_prefix "" { policy = "write" } session_prefix "" { policy = "write" }'
    'key_prefix "grpc-load-balancing/" { policy = "write" }',
}
# consul-template's waiting queries end after 10 s and a sixteenth.
RENDERED_SECONDS = 15


@dataclass
class Stack:
    """Two replicas with their registrars, the balancer with its consul-template, and Consul."""

    consul: AclConsul
    balancer: Balancer
    servers: list[ServerProcess]
    token: Path
    home: Path

    def metric(self) -> str:
        """Returns the value of grpc_lb_catalogue_access."""
        text = requests.get(f"http://127.0.0.1:{METRICS}/metrics", timeout=5).text
        return next(line.split()[1] for line in text.splitlines() if line.startswith("grpc_lb_catalogue_access "))

    def status(self, token: str = REGISTRAR) -> subprocess.CompletedProcess[str]:
        """Runs the registrar's status command."""
        command = [sys.executable, "-m", "registrar", "status"]
        addresses = ["--consul", f"127.0.0.1:{HTTP}", "--balancer", f"127.0.0.1:{LISTEN + 1}"]
        env = {**os.environ, **self.consul.tls, "CONSUL_HTTP_TOKEN": token}
        return subprocess.run([*command, *addresses], cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    def give(self, token: str) -> None:
        """Replaces the balancer's token in its file."""
        new = self.token.with_suffix(".new")
        new.write_text(token)
        new.replace(self.token)

    def rendered(self) -> int:
        """Returns the number of the application's replicas that consul-template has rendered."""
        return (self.home / "run/peers").read_text().count(f'"{APP}"')

    def states(self) -> list[str]:
        """Returns the states of nginx's replicas."""
        return sorted(self.balancer.states().values())

    def wait_for_states(self, *states: str, seconds: float = RENDERED_SECONDS) -> None:
        """Waits until nginx has replicas in exactly these states."""
        wait_for(self.states, lambda found: found == sorted(states), seconds, f"the states are {states}")

    def calls(self) -> Any:
        """Calls that go on in the background."""
        return calls_going_on(cast("Any", None), lambda: sum(answers(self.balancer.target, 20, 4).values()))


def start(processes: Processes, name: str, command: list[str | Path], cwd: Path, env: Mapping[str, str]) -> None:
    """Starts a program of the stack."""
    processes.start(name, command, cwd=cwd, env={**env, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def stack(request: pytest.FixtureRequest, processes: Processes, tools: None) -> Iterator[Stack]:  # noqa: ARG001
    """The stack; with the parameter ``tls`` Consul speaks TLS only and verifies its clients."""
    authority = Authority(processes.directory) if getattr(request, "param", "") == "tls" else None
    consul = AclConsul(processes, HTTP, authority=authority)
    for name, rules in POLICIES.items():
        consul.write_policy(name, rules)
    consul.create_token(BALANCER, "balancer")
    consul.create_token(REGISTRAR, "registrar")
    token = processes.directory / "token"
    token.write_text(f"{BALANCER}\n")
    access = {**consul.tls, "CONSUL_PORT": str(HTTP), "CONSUL_HTTP_ADDR": f"127.0.0.1:{HTTP}"}
    own = {**access, "CONSUL_HTTP_TOKEN_FILE": str(token), "METRICS_PORT": str(METRICS), "BIND_ADDRESS": "127.0.0.1"}
    servers = [ServerProcess(f"acl-{number}", f"{NETWORK}.7.{number}") for number in (1, 2)]
    try:
        for server in servers:
            start(
                processes,
                f"registrar-{server.name}",
                [sys.executable, "-m", "registrar"],
                ROOT,
                {
                    **access,
                    "CONSUL_HTTP_TOKEN": REGISTRAR,
                    "APP_NAME": APP,
                    "APP_PORT": str(PORT),
                    "APP_ADDRESS": server.address,
                    "HOSTNAME": server.name,
                    "TAGS": "grpc_server",
                    "HEALTH_CHECK_TYPE": "grpc",
                    "HEALTH_CHECK_ENDPOINT": "/protos.Ping",
                },
            )
        with Balancer(processes, LISTEN, own) as balancer:
            home = balancer.nginx.directory
            for name in ("consul-template", "consul-templates"):
                (home / "etc" / name).symlink_to(ROOT / "build/config/consul-template/etc" / name)
            command: list[str | Path] = [programs.tool("consul-template"), "-config=etc/consul-template/config.hcl"]
            start(processes, "consul-template", command, home, {**balancer.nginx.started_with, **own})
            made = Stack(consul, balancer, servers, token, home)
            made.wait_for_states("serving", "serving", seconds=30)
            yield made
    finally:
        for server in servers:
            server.kill()


def lose_all(stack: Stack) -> None:
    stack.consul.allow(token=BALANCER)


def lose_application(stack: Stack) -> None:
    stack.consul.allow("without-app", token=BALANCER)


def lose_nodes(stack: Stack) -> None:
    stack.consul.allow("without-nodes", token=BALANCER)


def assert_said_within_5_s(stack: Stack, since: float, text: str) -> None:
    """The log, the metric and status say that Consul does not answer in full."""
    wait_for(stack.balancer.control_plane.log, lambda log: text in log, 5, "the log says so")
    wait_for(stack.metric, lambda value: value == "0", 5, "the metric says so")
    assert time.monotonic() - since < 5
    shown = stack.status()
    assert f"! {text}" in shown.stdout, shown
    assert f"CONSUL_HTTP_TOKEN_FILE ({stack.token})" in shown.stdout


def assert_clears_within_5_s(stack: Stack) -> None:
    """Consul answers in full again."""
    wait_for(stack.metric, lambda value: value == "1", 5, "the metric says so")
    wait_for(stack.balancer.control_plane.log, lambda log: "Consul answers in full again" in log, 5, "the log says so")
    assert "Consul" not in stack.status().stdout


@pytest.mark.parametrize("lose", [lose_all, lose_application, lose_nodes])
def test_a_right_that_is_lost_costs_no_call(stack: Stack, lose: Callable[[Stack], None]) -> None:
    with stack.calls() as seen:
        since = time.monotonic()
        lose(stack)
        assert_said_within_5_s(stack, since, "Consul filters its answers by rights")
        # consul-template takes an answer of the same index for the same, and a query that waits has its first rights.
        numbers = itertools.count()

        def render_again() -> int:
            stack.consul.put("/v1/agent/service/register", Name=f"another-{next(numbers)}")
            return stack.rendered()

        wait_for(render_again, lambda count: count == 0, RENDERED_SECONDS, "consul-template renders no replica", 0.5)
        stack.wait_for_states("held", "held", seconds=5)
        stack.consul.allow("balancer", token=BALANCER)
        assert_clears_within_5_s(stack)
        stack.wait_for_states("serving", "serving", seconds=5)
    assert set(seen) == {"OK"}, seen
    assert stack.balancer.control_plane.log().count("Consul filters its answers") == 1


def revoke(stack: Stack) -> tuple[str, Callable[[], None]]:
    return BALANCER, lambda: stack.consul.revoke(BALANCER)


def expire(stack: Stack) -> tuple[str, Callable[[], None]]:
    made = time.monotonic()
    stack.consul.create_token(EXPIRING, "balancer", ExpirationTTL=f"{LIFE_SECONDS}s")
    stack.give(EXPIRING)
    wait_for(time.monotonic, lambda now: now > made + LIFE_SECONDS - 3, LIFE_SECONDS, "most of its life is over")
    assert stack.metric() == "1"
    return EXPIRING, lambda: None


@pytest.mark.parametrize("begin_to_end", [revoke, expire])
def test_a_token_that_ends_costs_no_call_and_a_new_one_in_its_file_is_used(
    stack: Stack, begin_to_end: Callable[[Stack], tuple[str, Callable[[], None]]]
) -> None:
    token, end = begin_to_end(stack)
    with stack.calls() as seen:
        end()
        wait_for(lambda: stack.consul.knows(token), lambda known: not known, 10, "the token has ended")
        since = time.monotonic()
        assert_said_within_5_s(stack, since, "Consul refuses requests")
        log = stack.home.parent / "consul-template.log"
        wait_for(log.read_text, lambda text: "ACL not found" in text, RENDERED_SECONDS, "consul-template is refused")
        assert (stack.rendered(), stack.states()) == (2, ["serving", "serving"])
    assert set(seen) == {"OK"}, seen
    # A replica that really ends is ejected as ever.
    stack.servers[1].kill()
    stack.wait_for_states("ejected: refused", "serving", seconds=5)
    stack.servers[1].start()
    stack.wait_for_states("serving", "serving", seconds=5)
    # So is what a command with the same token shows.
    assert "Consul refuses this command" in stack.status(token).stdout
    with stack.calls() as seen:
        stack.consul.create_token(RENEWED, "balancer")
        stack.give(RENEWED)
        assert_clears_within_5_s(stack)
        # consul-template has it too: it sees a replica that leaves.
        stack.consul.put(f"/v1/agent/service/maintenance/{APP}-acl-2-{PORT}?enable=true")
        wait_for(stack.rendered, lambda count: count == 1, 5, "consul-template reads with the new token")
        stack.wait_for_states("serving", seconds=5)
    assert set(seen) == {"OK"}, seen


@pytest.mark.parametrize("stack", ["tls"], indirect=True)
def test_every_program_speaks_tls_with_an_agent_that_verifies_its_clients(stack: Stack) -> None:
    assert sum(answers(stack.balancer.target, 20).values()) == 20
    for token in (REGISTRAR, BALANCER):
        # A replica that a busy machine keeps from answering its probe is ejected for a moment.
        wait_for(
            lambda token=token: stack.status(token),  # type: ignore[misc]
            lambda shown: (shown.returncode, shown.stdout.count("serving"), "!" in shown.stdout) == (0, 2, False),
            20,
            "status shows both replicas as serving",
        )
    assert stack.metric() == "1"
    # The commands of the scripts and of the health check.
    env = {**os.environ, **stack.consul.tls, "CONSUL_HTTP_ADDR": f"127.0.0.1:{HTTP}", "CONSUL_HTTP_TOKEN": REGISTRAR}
    command: list[str | Path] = [programs.tool("consul"), "members"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert "acl" in done.stdout, done
    # Without a certificate nobody gets an answer.
    without = {name: stack.consul.tls[name] for name in ("CONSUL_HTTP_SSL", "CONSUL_CACERT", "CONSUL_TLS_SERVER_NAME")}
    with ConsulAccess.from_env(without).make_session() as session, pytest.raises(requests.RequestException):
        session.get(f"https://127.0.0.1:{HTTP}/v1/status/leader", timeout=5)
    # The certificate has no address.
    unnamed = {name: value for name, value in stack.consul.tls.items() if name != "CONSUL_TLS_SERVER_NAME"}
    with ConsulAccess.from_env(unnamed).make_session() as session, pytest.raises(requests.exceptions.SSLError):
        session.get(f"https://127.0.0.1:{HTTP}/v1/status/leader", timeout=5)
