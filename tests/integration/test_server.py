"""``python -m grpc_server`` as a process."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_stack import processes
from local_stack.settings import ROOT
from protos import api_pb2, api_pb2_grpc
from testbed.calls import open_channel
from testbed.ports import free_ports
from testbed.wait import wait_for
from tests.support.load import round_robin

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def channel(self) -> Any:
        """Opens a channel to the server."""
        return open_channel(f"127.0.0.1:{self.port}")

    def say_hello(self, greeting: str = "hello") -> str:
        """Calls Ping; returns the greeting of the answer."""
        with self.channel() as channel:
            request = api_pb2.PingMessage(greeting=greeting)
            ping = api_pb2_grpc.PingStub(channel)
            return str(ping.SayHello(request, timeout=10, wait_for_ready=True).greeting)

    def wait_for_no_process(self) -> None:
        """Waits until neither the server nor one of its workers is left."""
        wait_for(lambda: session(self.process.pid), lambda left: not left, 20, "no process is left")


def watch_health(channel: grpc.Channel) -> Any:
    """Returns a watch of the health of Ping, which has begun with SERVING."""
    request = health_pb2.HealthCheckRequest(service="protos.Ping")
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=30, wait_for_ready=True)
    assert next(watch).status == SERVING
    return watch


def environment(port: int, **variables: str) -> dict[str, str]:
    """Returns the environment of a server."""
    known = ("PATH", "PYTHONPATH", "LANG", "TMPDIR")
    base = {name: os.environ[name] for name in known if name in os.environ}
    return {**base, "HOSTNAME": "box", "BIND_ADDRESS": "127.0.0.1", "APP_PORT": str(port), **variables}


@contextmanager
def running(log: Path, **variables: str) -> Iterator[Server]:
    """Starts a server and waits until it serves; kills it and its workers at the end."""
    port = int(variables.pop("APP_PORT", free_ports(1)[0]))
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-m", "grpc_server"],
            cwd=ROOT,
            env=environment(port, **variables),
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            server = Server(process, port, log)
            workers = int(variables.get("GRPC_WORKERS", "1"))
            wait_for(log.read_text, lambda text: text.count("serving address=") == workers, 60, "serving")
            yield server
        finally:
            if session(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Returns the running processes of a session."""
    return [pid for pid, fields in processes.running() if int(fields[3]) == leader]


def ended(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a server that can't run."""
    command = [sys.executable, "-m", "grpc_server"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "log") as server:
        yield server


def test_answer_is_the_hosts_name_and_the_greeting_is_logged(server: Server) -> None:
    assert server.say_hello("good\nmorning") == "Hello from box."
    logged = wait_for(server.log.read_text, lambda text: "received" in text, 5, "the log line")
    assert r"INFO grpc_server received greeting='good\nmorning'" in logged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_loses_no_line_of_a_call(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    with running(tmp_path / "log", GRPC_WORKERS=str(workers)) as server:
        expected = [f"{one} {each}" for one in range(60) for each in range(5)]
        for one in range(60):
            with server.channel() as channel:
                ping = api_pb2_grpc.PingStub(channel)
                for each in range(5):
                    request = api_pb2.PingMessage(greeting=f"{one} {each}")
                    ping.SayHello(request, timeout=10, wait_for_ready=True)
        server.process.send_signal(number)
        server.process.wait(30)
        logged = re.findall(r"INFO grpc_server received greeting='(.*)'\n", server.log.read_text())
        # Workers write in turns.
        assert sorted(logged) == sorted(expected)


def test_a_line_of_a_call_is_written_within_a_second_or_so(server: Server) -> None:
    with server.channel() as channel:
        ping = api_pb2_grpc.PingStub(channel)
        for number in range(3):
            ping.SayHello(api_pb2.PingMessage(greeting=f"call {number}"), timeout=10, wait_for_ready=True)
    wait_for(server.log.read_text, lambda text: "call 2" in text, 10, "the last line")
    # What is written is not lost with the process.
    server.process.kill()
    server.process.wait()
    assert server.log.read_text().count("received greeting='call ") == 3


@pytest.mark.parametrize("service", ["", "protos.Ping"])
def test_health_is_serving(server: Server, service: str) -> None:
    with server.channel() as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10, wait_for_ready=True)
    assert answer.status == SERVING


def test_health_of_an_unknown_service_is_not_found(server: Server) -> None:
    request = health_pb2.HealthCheckRequest(service="protos.Nothing")
    with server.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(request, timeout=10, wait_for_ready=True)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(server: Server) -> None:
    command = [sys.executable, "-m", "grpc_client", "--port", str(server.port), "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for service in ("protos.Ping", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"):
        assert service in done.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_port_in_use_is_told_in_one_line(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        done = ended(environment(port, GRPC_WORKERS=workers))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"ERROR grpc_server can't listen on 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}")


def test_wrong_environment_is_told_at_once_without_a_stack_trace() -> None:
    done = ended(environment(0, GRPC_WORKERS="x", GRPC_GRACE_SECONDS="-1", BIND_ADDRESS="a b"))
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "BIND_ADDRESS",
        "APP_PORT",
        "GRPC_WORKERS",
        "GRPC_GRACE_SECONDS",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_makes_health_not_serving_and_ends_the_server(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "log", GRPC_GRACE_SECONDS="2") as server:
        with server.channel() as channel:
            watch = watch_health(channel)
            server.process.send_signal(number)
            assert next(watch).status == NOT_SERVING
            watch.cancel()
        assert server.process.wait(30) == 0
        assert "stopped" in server.log.read_text().splitlines()[-1]
        assert "Traceback" not in server.log.read_text()


def test_calls_are_answered_until_the_balancer_has_seen_that_health_is_not_serving(tmp_path: Path) -> None:
    with running(tmp_path / "log", GRPC_GRACE_SECONDS="30") as server, server.channel() as channel:
        watch = watch_health(channel)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        answered, code = 0, grpc.StatusCode.OK
        began = time.monotonic()
        while code is grpc.StatusCode.OK and time.monotonic() < began + 20:
            try:
                api_pb2_grpc.PingStub(channel).SayHello(api_pb2.PingMessage(greeting="hi"), timeout=10)
                answered += 1
                time.sleep(0.1)
            except grpc.RpcError as error:
                code = error.code()
        # A caller that doesn't stop is sent away long before the grace has gone by, and Watch doesn't hold the server.
        assert code is grpc.StatusCode.UNAVAILABLE
        assert 3 < time.monotonic() - began < 15
        assert answered > 10
        assert server.process.wait(5) == 0
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_callers_that_do_not_know_of_the_stop_go_to_another_server(tmp_path: Path) -> None:
    with (
        running(tmp_path / "stays") as stays,
        running(tmp_path / "goes", HOSTNAME="goes") as goes,
        round_robin(f"ipv4:127.0.0.1:{stays.port},127.0.0.1:{goes.port}", retry=False) as outcome,
    ):
        goes.process.terminate()
        goes.process.wait(20)
    assert outcome.replicas.keys() == {"box", "goes"}
    # gRPC may cancel a call that comes while it stops.
    assert outcome.lost <= 2, outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_share_a_port_and_leave_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "log", GRPC_WORKERS="2") as server:
        assert {server.say_hello() for _ in range(10)} == {"Hello from box."}
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        server.wait_for_no_process()
        assert "Traceback" not in server.log.read_text()


def test_worker_that_dies_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path / "log", GRPC_WORKERS="2") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        serving = [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(serving) == 2
        os.kill(serving[0], signal.SIGKILL)
        assert server.process.wait(60) == 1
        server.wait_for_no_process()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with running(tmp_path / "log", GRPC_WORKERS="2") as server:
        server.process.kill()
        server.process.wait(10)
        server.wait_for_no_process()
    with running(tmp_path / "log2", GRPC_WORKERS="2", APP_PORT=str(server.port)) as again:
        assert again.say_hello() == "Hello from box."


def test_a_message_above_the_limit_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server, server.channel() as channel:
        ping = api_pb2_grpc.PingStub(channel)
        answered = ping.SayHello(api_pb2.PingMessage(greeting="x" * 10_000_000), timeout=20)
        assert answered.greeting == "Hello from box."
        with pytest.raises(grpc.RpcError) as refused:
            ping.SayHello(api_pb2.PingMessage(greeting="x" * 17_000_000), timeout=20)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        most = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
        assert most < 400_000
        assert max(map(len, server.log.read_text().splitlines())) < 1000


def test_the_limit_of_a_message_can_be_set(tmp_path: Path) -> None:
    with running(tmp_path / "log", GRPC_MAX_MESSAGE_BYTES="1000") as server:
        with pytest.raises(grpc.RpcError) as refused:
            server.say_hello("x" * 2000)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.say_hello("x" * 500) == "Hello from box."


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_count_the_calls_of_all_workers(tmp_path: Path, workers: int) -> None:
    port = free_ports(1)[0]
    with running(tmp_path / "log", METRICS_PORT=str(port), GRPC_WORKERS=str(workers)) as server:
        for _ in range(20):
            server.say_hello()

        def counts() -> dict[str, float]:
            found: dict[str, float] = {}
            for line in requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text.splitlines():
                name, _, value = line.rpartition(" ")
                if 'grpc_method="SayHello"' in name:
                    found[name] = float(value)
            return found

        method = 'grpc_method="SayHello",grpc_service="protos.Ping",grpc_type="unary"'
        expected = {
            f"grpc_server_started_total{{{method}}}": 20,
            f'grpc_server_handled_total{{grpc_code="OK",{method}}}': 20,
            f"grpc_server_msg_received_total{{{method}}}": 20,
            f"grpc_server_msg_sent_total{{{method}}}": 20,
            f"grpc_server_handling_seconds_count{{{method}}}": 20,
        }

        def counted() -> dict[str, float]:
            # Labels are in another order for workers.
            ordered = {_with_ordered_labels(name): value for name, value in counts().items()}
            return {name: value for name, value in ordered.items() if name in expected}

        wait_for(counted, lambda found: found == expected, 5, "all calls are counted")
        buckets = {name: value for name, value in counts().items() if "_bucket" in name}
        assert len(buckets) == 15
        assert max(buckets.values()) == 20


def _with_ordered_labels(name: str) -> str:
    """Returns a metric's name with its labels by name."""
    metric, _, labels = name.rstrip("}").partition("{")
    return f"{metric}{{{','.join(sorted(labels.split(',')))}}}"


def test_idle_connections_to_the_metrics_have_no_threads(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    with running(tmp_path / "log", METRICS_PORT=str(port)) as server, ExitStack() as connections:
        before = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
        for _ in range(300):
            connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
        assert "grpc_server_" in answer.text
        assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) <= before + 1
