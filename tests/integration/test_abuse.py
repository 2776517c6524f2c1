"""Clients that abuse the balancer, while others go on calling."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from local_stack.settings import ROOT
from tests.support import frames
from tests.support.attacker import KINDS
from tests.support.background import Load, calls_at_a_rate, measure
from tests.support.balancer import Nginx, descriptors
from tests.support.drivers import LocalDriver
from tests.support.probe import SERVICE
from tests.support.probes import OPTIONS, ProbeServer, running_probe
from tests.support.rounds import FULL
from tests.support.scenarios import target, wait_for_replicas
from tests.support.twin import twin
from tests.support.wait import wait_for

SILENT = 2000
# client_header_timeout, and some more for a busy machine.
SILENT_SECONDS = 20.0
ATTACK_SECONDS = 10.0 if FULL else 3.0
CANCELLED = 10_000 if FULL else 1_000
MEMORY_SECONDS = 60.0
# A pause of the machine, not of the balancer.
MARGIN_MILLISECONDS = 25.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def probe(stack: LocalDriver) -> Iterator[ProbeServer]:
    wait_for_replicas(stack, 1)
    with running_probe(stack, 21) as server:
        yield server


@pytest.fixture(scope="module")
def other_victim(stack: LocalDriver, probe: ProbeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: ARG001 - it is one of the peers
    """A second nginx with the same work, that nobody but the attacker calls."""
    with twin(stack, tmp_path_factory.mktemp("twin") / "twin") as address:
        yield address


def closed(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection that does not block; what came before is dropped."""
    with contextlib.suppress(BlockingIOError):
        try:
            while connection.recv(65_536):
                pass
        except ConnectionError:
            pass
        return True
    return False


def test_connections_that_stay_silent_are_closed_and_keep_nobody_out(stack: LocalDriver) -> None:
    nginx = Nginx(stack)
    before = nginx.descriptors
    # Nothing at all, a part of the preface, and a part of a frame.
    starts = (b"", frames.MAGIC[:9], frames.PREFACE + frames.CALL[:12])
    with ExitStack() as resources, calls_at_a_rate(stack.port) as load:
        connections = []
        for number in range(SILENT):
            connection = resources.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=5))
            connection.sendall(starts[number % len(starts)])
            connection.setblocking(False)
            connections.append(connection)
        opened = time.monotonic()
        wait_for(lambda: nginx.descriptors - before, lambda more: more > SILENT * 0.9, 10, "all are open at once")
        open_still = connections
        while open_still and time.monotonic() < opened + SILENT_SECONDS:
            open_still = [connection for connection in open_still if not closed(connection)]
            time.sleep(0.1)
        seconds = time.monotonic() - opened
    print(f"{SILENT} silent connections, {len(open_still)} open after {seconds:.1f} s")
    load.lost_nothing()
    assert not open_still
    wait_for(lambda: nginx.descriptors, lambda now: now < before + 100, 10, "the descriptors are free again")


def attack(kind: str, address: tuple[str, int], seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.attacker", kind, address[0], str(address[1]), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def under_attack(stack: LocalDriver, kind: str, address: tuple[str, int]) -> tuple[Load, dict[str, Any]]:
    """Callers of the balancer while an attacker is busy at ``address``, and what the attacker did."""
    with attack(kind, address, ATTACK_SECONDS + 1) as attacker:
        time.sleep(0.5)  # It has to start.
        load = measure(stack.port, ATTACK_SECONDS)
        output, _ = attacker.communicate(timeout=60)
    return load, json.loads(output)


def p99(load: Load) -> float:
    assert load.report.latency is not None
    return load.report.latency.p99


@pytest.mark.parametrize("kind", KINDS)
def test_an_attacker_costs_other_callers_no_call_and_little_time(
    stack: LocalDriver, probe: ProbeServer, other_victim: tuple[str, int], kind: str
) -> None:
    assert probe.process.poll() is None
    nginx = Nginx(stack)
    memory, workers = nginx.memory_mib, nginx.workers
    baseline = measure(stack.port, ATTACK_SECONDS)
    control, _ = under_attack(stack, kind, other_victim)
    attacked, count = under_attack(stack, kind, ("127.0.0.1", stack.port))
    peak = nginx.memory_mib
    began = time.monotonic()
    wait_for(
        lambda: nginx.memory_mib, lambda now: now < memory * 1.5 + 8, MEMORY_SECONDS, f"memory is back at {memory} MiB"
    )
    print(f"\n{kind}: {count}")
    print(f"p99 {p99(baseline):.1f} ms alone, {p99(control):.1f} beside an attack on another nginx, ", end="")
    print(f"{p99(attacked):.1f} attacked; memory {memory:.1f} MiB, {peak:.1f} at the end of the attack, ", end="")
    print(f"{nginx.memory_mib:.1f} after {time.monotonic() - began:.1f} s")
    for load in (baseline, control, attacked):
        load.lost_nothing()
    assert nginx.workers == workers
    assert nginx.trouble() == []
    assert p99(attacked) <= 2 * max(p99(baseline), p99(control)) + MARGIN_MILLISECONDS


def cancel_calls(port: int, count: int) -> None:
    """Opens calls that would never end and cancels them, some before they have reached the server."""

    def cancel(numbers: range) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as plain:
            channel: Any = plain
            method = channel.unary_unary(f"/{SERVICE}/Hang")
            for number in numbers:
                call = method.future(b"cancelled")
                if number % 2:
                    time.sleep(0.005)
                call.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cancel, [range(count // 8)] * 8))


def test_cancelled_calls_leave_no_descriptor_behind(stack: LocalDriver, probe: ProbeServer) -> None:
    nginx = Nginx(stack)
    cancel_calls(stack.port, 100)
    time.sleep(1)
    before = (nginx.descriptors, descriptors(probe.process.pid))
    with calls_at_a_rate(stack.port) as load:
        cancel_calls(stack.port, CANCELLED)
    load.lost_nothing()
    # The connections that the callers' calls took stay for others, at most one a caller and worker.
    after = wait_for(
        lambda: (nginx.descriptors, descriptors(probe.process.pid)),
        lambda now: now[0] <= before[0] + 64 and now[1] <= before[1] + 16,
        20,
        f"descriptors are back at {before}",
    )
    print(f"{CANCELLED} cancelled calls; descriptors of the balancer and the server {before} before, {after} after")
    with grpc.insecure_channel(target(stack), options=OPTIONS) as plain:
        hanging: Any = plain
        assert int(hanging.unary_unary(f"/{SERVICE}/Hanging")(b"")) == 0
