"""Envoy as the balancer (LB_ENGINE=envoy) decides as nginx does, and loses no call that nginx keeps."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
import requests

from testbed import programs
from testbed.balancers import FedEnvoy
from testbed.calls import answers, open_channel, say_hello
from testbed.errors import MissingError
from testbed.processes import Processes
from testbed.stack import BALANCER
from testbed.wait import wait_for, wait_for_death
from tests.support.balancer import peers
from tests.support.chaos import kill_program, lose_catalogue
from tests.support.drivers import Driver, LocalDriver
from tests.support.load import CALLERS, FEW_CALLS_A_SECOND, round_robin, two_clients
from tests.support.local import SLOT, short_home
from tests.support.missing import missing
from tests.support.registered import Registration, running_server
from tests.support.scenarios import first_answer, leader, no_replica, target, wait_for_replicas
from tests.support.server import SERVICE

pytest.importorskip("xds", reason="xds-protos is not installed")
PING = "protos.Ping"
SERVERS = ("server-1", "server-2", "server-3")
few_clients = partial(two_clients, rate=FEW_CALLS_A_SECOND)


@pytest.fixture(scope="module")
def envoy(tools: None) -> Iterator[LocalDriver]:  # noqa: ARG001
    """A stack with Envoy, one replica and the access log."""
    try:
        programs.program("envoy")
    except MissingError as error:
        missing(str(error))
    ports = {"port": 16400 + 2 * SLOT, "consul_port": 19400 + SLOT}
    with LocalDriver(short_home("envoy"), address_base=f"127.{140 + SLOT}.96.0", **ports) as driver:
        driver.env |= {"LB_ENGINE": "envoy", "LB_ACCESS_LOG": "on"}
        driver.up(1)
        wait_for_replicas(driver, 1)
        yield driver


def call(stack: LocalDriver, path: str | bytes, message: bytes = b"", **metadata: str) -> tuple[str, bytes]:
    """The status of one call, and its answer or the status's message."""
    return call_at(target(stack), path, message, **metadata)


def call_at(address: str, path: str | bytes, message: bytes = b"", **metadata: str) -> tuple[str, bytes]:
    """The same at an address."""
    with open_channel(address) as channel:
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        try:
            return "OK", channel.unary_unary(path)(message, metadata=pairs, timeout=10)
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "").encode()


def supervisorctl(stack: LocalDriver, *arguments: str) -> None:
    stack.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", *arguments)


def envoys(stack: LocalDriver) -> list[int]:
    """The processes of Envoy itself."""
    return [pid for pid in stack.pids()[BALANCER] if Path(f"/proc/{pid}/comm").read_text().strip() == "envoy"]


def scaled(stack: LocalDriver, count: int) -> set[str]:
    """Gives the stack so many replicas, and returns their names."""
    if len(stack.replicas()) != count:
        stack.scale(count)
    return wait_for_replicas(stack, count)


def accepts(stack: LocalDriver, number: int = 0) -> bool:
    """Whether the port of a balancer, the first by default, is open."""
    try:
        socket.create_connection(("127.0.0.1", stack.port + number), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("scenario", [first_answer, no_replica], ids=lambda scenario: scenario.__name__)
def test_a_scenario_of_every_stack(envoy: LocalDriver, scenario: Callable[[Driver], None]) -> None:
    scaled(envoy, 1)
    scenario(envoy)


def test_nginx_has_no_port_for_calls(envoy: LocalDriver) -> None:
    configuration = (envoy.home / "containers" / BALANCER / "etc/nginx/conf.d/load-balancer.conf").read_text()
    assert "grpc_pass" not in configuration
    assert f":{envoy.port}" not in configuration


def test_scaling_and_a_rollout_lose_no_call(envoy: LocalDriver) -> None:
    with few_clients(envoy) as load:
        for replicas in (4, 2):
            envoy.scale(replicas)
            wait_for_replicas(envoy, replicas)
        # For the commands of later tests too, which would replace the replicas otherwise.
        envoy.env["HELLO_SERVER_VERSION"] = "2"
        done = envoy.attempt("rollout", "hello_server")
    assert done.returncode == 0, done.stderr
    load.assert_no_failed_calls()


def test_a_replicas_share_is_its_weight(envoy: LocalDriver) -> None:
    scaled(envoy, 1)
    address = envoy.run_server("canary")
    canary = Registration(stack=envoy, address=address, app="hello_server", service=PING)

    def share() -> float:
        return answers(target(envoy), 400)["canary"] / 400

    with canary.registered():
        wait_for_replicas(envoy, 2)
        wait_for(share, lambda found: 0.45 < found < 0.55, 10, "half of the calls")
        with few_clients(envoy) as load:
            replace(canary, more={"Weights": {"Passing": 9, "Warning": 1}}).register()
            wait_for(lambda: [peer["weight"] for peer in peers(envoy)], lambda found: 9 in found, 5, "it is live")
        load.assert_no_failed_calls()
        wait_for(share, lambda found: 0.85 < found < 0.95, 10, "nine tenths of the calls")
    envoy.stop_extras()


def test_each_service_goes_to_its_application(envoy: LocalDriver) -> None:
    health, reflection = "/grpc.health.v1.Health/Check", "grpc.reflection.v1alpha.ServerReflection"
    with running_server(envoy, 41) as server:
        wait_for(partial(call, envoy, f"/{SERVICE}/Unary", b"echo"), ("OK", b"echo").__eq__, 10, "it is called")
        assert say_hello(target(envoy)).startswith("hello_server")
        assert call(envoy, "/shop.Orders/List") == ("UNIMPLEMENTED", b"no application has this service")
        # It would end a server of grpcio's asyncio API.
        assert call(envoy, f"/{SERVICE}/".encode() + b"\xff\xfe") == ("UNIMPLEMENTED", b"no such method")
        assert call(envoy, f"/{SERVICE}/Unary", b"echo") == ("OK", b"echo")
        # For all applications, and of the one that the caller names.
        listed = call(envoy, f"/{reflection}/ServerReflectionInfo", b"\x3a\x01*")[1]
        assert PING.encode() in listed
        assert SERVICE.encode() in listed
        named = call(envoy, f"/{reflection}/ServerReflectionInfo", b"\x3a\x01*", x_application="hello_server")[1]
        assert PING.encode() in named
        assert SERVICE.encode() not in named
        assert call(envoy, health)[0] == "OK"
        server.deregister()
        unavailable = ("UNAVAILABLE", b"no replica could be reached")
        wait_for(partial(call, envoy, f"/{SERVICE}/Unary"), unavailable.__eq__, 10, "it has no replica")


def test_a_replica_sees_the_callers_metadata_and_an_id(envoy: LocalDriver) -> None:
    with running_server(envoy, 42):
        wait_for(partial(call, envoy, f"/{SERVICE}/Unary", b"echo"), ("OK", b"echo").__eq__, 10, "it is called")
        given = {"some_thing": "1", "x_request_id": "made-by-me", "x_client_certificate_subject": "CN=somebody"}
        status, answer = call(envoy, f"/{SERVICE}/Seen", b"", **given, x_envoy_retry_on="5xx")
        assert status == "OK", answer
        seen = dict(json.loads(answer)["metadata"])
        assert seen["some-thing"] == "1"
        assert seen["x-request-id"] == "made-by-me"
        assert seen.keys() <= {"some-thing", "x-request-id", "user-agent", "host", "te"}
        assert len(dict(json.loads(call(envoy, f"/{SERVICE}/Seen")[1])["metadata"])["x-request-id"]) == 36


def test_each_call_is_a_line_of_json_and_in_envoys_metrics(envoy: LocalDriver) -> None:
    def lines() -> list[dict[str, Any]]:
        found = [line.partition("envoy | ")[2] for line in envoy.logs(BALANCER)]
        parsed = [json.loads(line) for line in found if line.startswith("{")]
        return [one for one in parsed if one["request_id"] == "logged"]

    assert call(envoy, f"/{PING}/SayHello", x_request_id="logged")[0] == "OK"
    assert call(envoy, f'/{PING}/No"Such', x_request_id="logged")[0] == "UNIMPLEMENTED"
    first, second = wait_for(lines, lambda found: len(found) == 2, 10, "two lines")
    assert (first["method"], first["grpc_status"]) == (f"/{PING}/SayHello", "OK")
    assert first["replica"] == f"{envoy.address('hello_server-1')}:7777"
    assert first["client"] == "127.0.0.1"
    assert first["request_bytes"] > 5
    assert 0 <= first["milliseconds"] < 10_000
    assert (second["method"], second["grpc_status"]) == (f'/{PING}/No"Such', "Unimplemented")
    # As Prometheus asks with native histograms; nginx's part is text.
    headers = {"Accept": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"}
    metrics = requests.get(f"http://{envoy.address(BALANCER)}:9464/metrics", headers=headers, timeout=10).text
    assert 'grpc_lb_replicas{application="hello_server",state="serving"}' in metrics
    assert 'envoy_cluster_grpc_success{envoy_cluster_name="hello_server"}' in metrics


def test_the_control_plane_killed_for_ten_seconds_costs_no_call(envoy: LocalDriver) -> None:
    scaled(envoy, 1)
    with few_clients(envoy) as load:
        supervisorctl(envoy, "signal", "KILL", "balancer", "answers")
        supervisorctl(envoy, "stop", "balancer", "answers")
        time.sleep(10)
        supervisorctl(envoy, "start", "balancer", "answers")
        envoy.scale(2)
        wait_for_replicas(envoy, 2)
    load.assert_no_failed_calls()


def test_a_killed_leader_and_a_lost_catalogue_cost_no_call(envoy: LocalDriver) -> None:
    names = scaled(envoy, 2)
    with few_clients(envoy) as load:
        first = wait_for(lambda: leader(envoy), bool, 30, "a leader")
        envoy.local_stack("kill", first)
        wait_for(lambda: leader(envoy), lambda name: name not in ("", first), 60, "another leader")
        lose_catalogue(envoy, SERVERS)
        wait_for(lambda: leader(envoy), bool, 60, "a leader")
        # The document keeps the replicas that the new catalogue does not have.
        assert wait_for_replicas(envoy, 2) == names
    load.assert_no_failed_calls()
    states = ["serving"] * 2
    wait_for(lambda: [one["state"] for one in peers(envoy)], states.__eq__, 60, "both are registered again")


def test_a_graceful_stop_closes_the_port_and_lets_calls_end(envoy: LocalDriver) -> None:
    with running_server(envoy, 43), open_channel(target(envoy)) as channel:
        wait_for(partial(call, envoy, f"/{SERVICE}/Unary", b"echo"), ("OK", b"echo").__eq__, 10, "it is called")
        before = envoys(envoy)
        sending: SimpleQueue[bytes] = SimpleQueue()
        stream = channel.stream_stream(f"/{SERVICE}/Bidi")(iter(sending.get, b""), timeout=60)
        sending.put(b"before")
        assert next(stream) == b"before"
        restart = envoy.begin("exec", BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "envoy")
        wait_for(lambda: accepts(envoy), lambda open_: not open_, 20, "its port is closed", 0.005)
        sending.put(b"during")
        assert next(stream) == b"during"
        sending.put(b"")
        assert list(stream) == [b"end"]
        assert restart.wait(60) == 0
    wait_for(lambda: accepts(envoy), bool, 20, "its port is open again")
    assert len(envoys(envoy)) == 1
    assert not set(envoys(envoy)) & set(before)


def test_one_of_two_that_ends_costs_a_client_with_both_addresses_no_call(envoy: LocalDriver) -> None:
    second = "load-balancer-2"
    envoy.local_stack("scale", "load-balancer=2")
    try:
        for verb in ("stop", "kill"):
            with round_robin(f"ipv4:127.0.0.1:{envoy.port},127.0.0.1:{envoy.port + 1}") as outcome:
                envoy.local_stack(verb, second)
                envoy.local_stack("start", second)
                wait_for(lambda: accepts(envoy, 1), bool, 30, "the second one is back")
            assert outcome.lost == 0, (verb, outcome)
            assert outcome.calls > 100
    finally:
        envoy.local_stack("scale", "load-balancer=1")


def test_a_killed_envoy_is_back_at_once(envoy: LocalDriver) -> None:
    names = scaled(envoy, 2)
    finds: list[Callable[[], int]] = [lambda: envoys(envoy)[0], lambda: envoy.pid(BALANCER, "envoy")]
    for find in finds:
        started, old = envoy.pid(BALANCER, "envoy"), envoys(envoy)
        os.kill(find(), signal.SIGKILL)
        wait_for(partial(envoy.pid, BALANCER, "envoy"), lambda now: now not in (0, started), 30, "it is started again")  # noqa: B023
        wait_for_death(set(old))
        assert wait_for_replicas(envoy, 2) == names
        assert len(envoys(envoy)) == 1


def test_a_killed_replica_costs_at_most_the_calls_in_flight_at_it(envoy: LocalDriver) -> None:
    scaled(envoy, 2)
    with few_clients(envoy, retry=True) as load:
        kill_program(envoy, "hello_server-2", "grpc_server")
        wait_for_replicas(envoy, 2)
    assert load.lost <= 2 * CALLERS, load


class ClosedEnvoy(FedEnvoy):
    """One for callers of other networks."""

    variables: Mapping[str, str] = {"LB_ALLOW": "10.0.0.0/8 ::1"}


def test_calls_from_other_networks_are_refused(processes: Processes, tools: None) -> None:  # noqa: ARG001
    one = ClosedEnvoy(processes, 16500 + SLOT)
    try:
        one.require()
    except MissingError as error:
        missing(str(error))
    refused = ("PERMISSION_DENIED", b"calls from this address are not allowed")
    one.start([], ready=lambda address: wait_for(partial(call_at, address, "/a.B/C"), refused.__eq__, 15, "it refuses"))
    one.stop()
