"""NGINX_UPDATE=reload and restart: the replicas are servers of an nginx upstream, and calls meet no Lua."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from testbed.calls import answers, open_channel, status
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.balancer import Nginx
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.local import with_replicas
from tests.support.scenarios import SERVER_NAME, replica_by_hand, target, tried_answers, wait_for_replicas
from tests.support.twin import twin

GOOD: dict[str, Any] = {"Name": "hello_server", "Port": 7777, "Tags": ["grpc_server"]}
# Each is registered as the address of a node, which a replica without an address of its own has.
HOSTILE_NODES = (
    *("1.2.3.4; }", "1.2.3.4\n", ":::", "fe80::1%eth0", "010.0.0.1"),
    *("8.8.8.8", "169.254.169.254", "::1", "fe80::1", "::ffff:7f00:1"),
)
HOSTILE_SERVICES: tuple[dict[str, Any], ...] = (
    {"Address": "1.2.3.4; }"},
    {"Address": "8.8.8.8"},
    {"Address": "::1"},
    {"Address": "localhost"},
    {"Address": "unix:/run/supervisor.sock"},
    # TLS needs Lua.
    {"Meta": {"grpc_tls": "true"}},
    {"Port": 8500},
    {"Port": 8600},
    {"Port": 0},
    {"Port": 65536},
    {"Name": "a; }"},
    {"Tags": ["grpc_server; }"]},
)


@pytest.fixture(scope="module", autouse=True)
def reload(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with NGINX_UPDATE=reload and the access log; afterwards with its own settings again."""
    yield from with_replicas(stack, 1, NGINX_UPDATE="reload", LB_ACCESS_LOG="on")


def test_weights_are_shares_of_the_calls(stack: LocalDriver) -> None:
    with replica_by_hand(stack, weight=9, forget_seconds=10) as address:
        assert f"server {address}:7777 weight=9 " in Nginx(stack).configuration
        # nginx leaves out a replica for a second when a connection takes too long, as on a busy machine.
        wait_for(
            lambda: answers(target(stack), 500)[SERVER_NAME],
            lambda share: 440 <= share <= 460,
            30,
            "shares follow weights",
        )


def test_there_is_no_lua_in_the_configuration(stack: LocalDriver) -> None:
    directory = stack.home / "containers" / BALANCER / "etc/nginx"
    for text in (Nginx(stack).configuration, (directory / "nginx.conf").read_text()):
        directives = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert [line for line in directives if "lua" in line] == []


def test_an_nginx_without_the_lua_module_serves_it(stack: LocalDriver, tmp_path: Path) -> None:
    names = wait_for_replicas(stack, 1)
    with twin(stack, tmp_path, modules=False) as (address, port):
        assert set(answers(f"{address}:{port}", 20)) == names


def test_nothing_that_anybody_registers_reaches_the_configuration_unchecked(stack: LocalDriver) -> None:
    names = wait_for_replicas(stack, 1)
    replica = stack.address(stack.replicas()[0])
    api, nginx = ConsulApi(stack), Nginx(stack)
    workers, before = nginx.workers, nginx.configuration
    services = [{**GOOD, "ID": f"hostile-{number}", **body} for number, body in enumerate(HOSTILE_SERVICES)]
    services.append({**GOOD, "ID": "loop", "Address": stack.address(BALANCER), "Port": 5000})
    try:
        for body in services:
            api.put("/v1/agent/service/register", {"Address": replica, **body})
        for number, address in enumerate(HOSTILE_NODES):
            service = {"ID": f"node-{number}", "Service": "hello_server", "Port": 7777, "Tags": ["grpc_server"]}
            api.put("/v1/catalog/register", {"Node": f"hostile-{number}", "Address": address, "Service": service})
        # A well-formed registration behind them shows that they have been seen.
        address = stack.run_server("behind-them")
        services.append({**GOOD, "ID": "behind"})
        api.put("/v1/agent/service/register", {**services[-1], "Address": address})
        assert wait_for_replicas(stack, 2) == names | {"behind-them"}
        line = f"    server {address}:7777 weight=1 max_fails=1 fail_timeout=1s;\n"
        assert nginx.configuration.replace(line, "") == before
    finally:
        for body in services:
            api.put(f"/v1/agent/service/deregister/{body['ID']}")
        for number in range(len(HOSTILE_NODES)):
            api.put("/v1/catalog/deregister", {"Node": f"hostile-{number}"})
        wait_for(lambda: set(tried_answers(stack, 20)), lambda seen: seen == names, 20, "all as before")
        stack.stop_extras()
    assert nginx.configuration == before
    assert nginx.workers != workers, "it has been reloaded"
    assert nginx.trouble() == []


def test_a_configuration_that_has_not_changed_is_not_applied_again(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)
    nginx = Nginx(stack)
    workers = nginx.workers
    stack.execute(BALANCER, "nginx-update", "structure")
    assert nginx.workers == workers


def test_the_access_log_has_the_status_of_grpc(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)
    with open_channel(target(stack)) as channel:
        for path in ("/protos.Ping/SayHello", "/protos.Ping/Nothing", "/protos.Größe/Nothing"):
            with contextlib.suppress(grpc.RpcError):
                channel.unary_unary(path)(b"", timeout=10, metadata=(("x-request-id", "static"),))
    lines = wait_for(
        lambda: [line for line in stack.logs(BALANCER) if '"request_id":"static"' in line],
        lambda found: len(found) == 3,
        10,
        "three lines",
    )
    seen = [json.loads(line.partition("nginx | ")[2])["grpc_status"] for line in lines]
    assert seen == ["OK", "Unimplemented", "Unimplemented"]


def test_the_status_port_answers_without_a_control_plane(stack: LocalDriver) -> None:
    base = f"http://{stack.address(BALANCER)}:8080"
    assert requests.get(f"{base}/health", timeout=5).text == "serving\n"
    stack.execute(BALANCER, "sh", "-c", "[ ! -e run/balancer.sock ] || mv run/balancer.sock run/balancer.away")
    try:
        answer = requests.get(f"{base}/replicas", timeout=5)
        assert (answer.status_code, answer.json()) == (502, {"error": "the control plane is not running"})
    finally:
        stack.execute(BALANCER, "sh", "-c", "[ ! -e run/balancer.away ] || mv run/balancer.away run/balancer.sock")
    assert requests.post(f"{base}/replicas", timeout=5).status_code == 403


# Last: it leaves no replica.
def test_without_a_replica_a_call_is_unavailable_at_once(stack: LocalDriver) -> None:
    stack.up(0, NGINX_UPDATE="reload", LB_ACCESS_LOG="on")
    wait_for(lambda: status(target(stack))[0], lambda code: code == "UNAVAILABLE", 30, "no replica is left")
    assert "server 0.0.0.1:1 down;" in Nginx(stack).configuration
    code, seconds = status(target(stack))
    assert code == "UNAVAILABLE"
    assert seconds < 1
