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
from dataclasses import dataclass
from typing import Any

import pytest

from local_stack.settings import ROOT
from testbed.calls import open_channel
from testbed.wait import wait_for
from tests.support import frames
from tests.support.attacker import KINDS
from tests.support.balancer import Nginx, descriptors
from tests.support.chaos import FULL, note, record
from tests.support.drivers import LocalDriver
from tests.support.load import FEW_CALLS_A_SECOND, Load, measure, two_clients
from tests.support.registered import RegisteredServer, running_server
from tests.support.scenarios import target, wait_for_replicas
from tests.support.secure import SECURE
from tests.support.server import SERVICE
from tests.support.twin import twin

SILENT = 2000
# client_header_timeout, and some more for a busy machine.
SILENT_SECONDS = 25.0
ATTACK_SECONDS = 10.0 if FULL else 3.0
BASELINE_SECONDS = 10.0 if FULL else 1.5
ROUNDS = 5 if FULL else 1
# One of those that nginx ends by itself, and the two that cost the balancer most.
SHORT_KINDS = ("rapid-resets", "continuations", "never-reads")
# The factor by which calls may take longer.
MORE_TIME = 2
CANCELLED = 10_000 if FULL else 1_000
MEMORY_SECONDS = 60.0
# A part of a call's headers, and the balancer's answer, PROTOCOL_ERROR.
PART_OF_A_CALL = frames.frame(frames.HEADERS, 0, 1, frames.HEAD)
RESET = frames.frame(frames.RST_STREAM, 0, 1, b"\0\0\0\1")
# A pause of the machine, not of the balancer.
MARGIN_MILLISECONDS = 25.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(stack: LocalDriver) -> Iterator[RegisteredServer]:
    wait_for_replicas(stack, 1)
    with running_server(stack, 21) as server:
        yield server


@pytest.fixture(scope="module")
def other_victim(
    stack: LocalDriver,
    server: RegisteredServer,  # noqa: ARG001 - it is one of the peers
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A second nginx with the same configuration, which only the attacker calls."""
    with twin(stack, tmp_path_factory.mktemp("twin") / "twin") as address:
        yield address


class Silent:
    """A connection that sends its start only."""

    def __init__(self, connection: socket.socket, start: bytes) -> None:
        self._connection = connection
        self._answer = b""
        connection.sendall(start)
        connection.setblocking(False)

    def ended(self) -> bool:
        """Returns whether the balancer has closed it, or has reset its call."""
        with contextlib.suppress(BlockingIOError):
            try:
                while part := self._connection.recv(65_536):
                    self._answer += part
            except ConnectionError:
                pass
            return True
        return self._answer.endswith(RESET)


def test_connections_that_stay_silent_are_closed_and_keep_nobody_out(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)
    nginx = Nginx(stack)
    before = nginx.descriptors
    # Nothing at all, a part of the preface, no call, a part of a frame, a part of a call. The last stays as a
    # connection without a call, and those may be idle for long.
    starts = (b"", frames.MAGIC[:9], frames.PREFACE, frames.PREFACE + frames.CALL[:5], frames.PREFACE + PART_OF_A_CALL)
    with ExitStack() as resources, two_clients(stack, rate=FEW_CALLS_A_SECOND) as load:
        connections = []
        for number in range(SILENT):
            connection = resources.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=5))
            connections.append(Silent(connection, starts[number % len(starts)]))
        opened = time.monotonic()
        wait_for(lambda: nginx.descriptors - before, lambda more: more > SILENT * 0.9, 10, "all are open at once")
        silent = connections
        while silent and time.monotonic() < opened + SILENT_SECONDS:
            silent = [connection for connection in silent if not connection.ended()]
            time.sleep(0.1)
        seconds = time.monotonic() - opened
    remark = f"{SILENT - len(silent)} are ended after {seconds:.1f} s"
    record(f"{SILENT} connections that open and stay silent", load, remark)
    load.assert_no_failed_calls()
    assert not silent
    wait_for(lambda: nginx.descriptors, lambda now: now < before + 100, 10, "the descriptors are free again")


def attack(kind: str, address: tuple[str, int], seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.attacker", kind, address[0], str(address[1]), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def under_attack(stack: LocalDriver, kind: str, address: tuple[str, int], seconds: float) -> tuple[Load, Any]:
    """Returns the load of the balancer during an attack on ``address``, and the attack's result."""
    with two_clients(stack, rate=FEW_CALLS_A_SECOND) as load, attack(kind, address, seconds) as attacker:
        output, _ = attacker.communicate(timeout=seconds + 60)
    load.assert_no_failed_calls()
    return load, json.loads(output)


@dataclass(frozen=True)
class Round:
    """The p99 of the callers, in milliseconds: alone, while another nginx is the victim, while the balancer is.

    Attacker, victim and callers share the processors here. In the control nginx is not the balancer but the
    processors are as busy; what is slower than that is the balancer's doing.
    """

    alone: float
    control: float
    attacked: float
    calls: int

    @property
    def ratio(self) -> float:
        """The factor by which calls take longer than in the worse of the other two, without a pause of the machine."""
        return (self.attacked - MARGIN_MILLISECONDS) / max(self.alone, self.control)

    def __str__(self) -> str:
        return (
            f"p99 {self.alone:.0f} ms before, {self.control:.0f} beside an attack on another nginx, {self.attacked:.0f}"
        )


def one_round(stack: LocalDriver, kind: str, other_victim: tuple[str, int]) -> Round:
    alone = measure(stack, BASELINE_SECONDS)
    alone.assert_no_failed_calls()
    control, _ = under_attack(stack, kind, other_victim, BASELINE_SECONDS)
    attacked, count = under_attack(stack, kind, ("127.0.0.1", stack.port), ATTACK_SECONDS)
    done = Round(
        alone=alone.p99_seconds * 1000,
        control=control.p99_seconds * 1000,
        attacked=attacked.p99_seconds * 1000,
        calls=attacked.calls,
    )
    print(f"{kind}: {done}; {count}")
    return done


@pytest.mark.skipif(SECURE, reason="these speak clear text; test_tls_hostile.py has others")
@pytest.mark.parametrize("kind", KINDS if FULL else SHORT_KINDS)
def test_an_attacker_costs_other_callers_no_call_and_little_time(
    stack: LocalDriver, server: RegisteredServer, other_victim: tuple[str, int], kind: str
) -> None:
    assert server.process.poll() is None
    nginx = Nginx(stack)
    memory, workers = nginx.memory_mib, nginx.workers
    rounds: list[Round] = []
    # Other work of the machine can make a round worse, but not better.
    while len(rounds) < ROUNDS and not any(done.ratio <= MORE_TIME for done in rounds):
        rounds.append(one_round(stack, kind, other_victim))
    best = min(rounds, key=lambda done: done.ratio)
    peak, began = nginx.memory_mib, time.monotonic()
    wait_for(lambda: nginx.memory_mib, lambda now: now < memory * 1.3 + 8, MEMORY_SECONDS, f"back at {memory} MiB")
    seconds = time.monotonic() - began
    remark = (
        f"{best}; nginx {memory:.0f} MiB before, {peak:.0f} at the end, {nginx.memory_mib:.0f} {seconds:.0f} s later"
    )
    note(f"one attacker for {ATTACK_SECONDS:g} s: {kind}", sum(done.calls for done in rounds), 0, "", remark)
    print(remark)
    assert nginx.workers == workers
    assert nginx.trouble() == []
    # Other work of the machine decides this one when attacker, callers and balancer share two cores: the short form
    # only prints it.
    assert not FULL or best.ratio <= MORE_TIME, rounds


def cancel_calls(port: int, count: int) -> None:
    """Opens endless calls and cancels them, some of them before they reach the server."""

    def cancel(numbers: range) -> None:
        with open_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary(f"/{SERVICE}/Hang")
            for number in numbers:
                call = method.future(b"cancelled")
                if number % 2:
                    time.sleep(0.005)
                call.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cancel, [range(count // 8)] * 8))


def test_cancelled_calls_leave_no_descriptor_behind(stack: LocalDriver, server: RegisteredServer) -> None:
    nginx = Nginx(stack)
    cancel_calls(stack.port, 100)
    time.sleep(1)
    before = (nginx.descriptors, descriptors(server.process.pid))
    with two_clients(stack, rate=FEW_CALLS_A_SECOND) as load:
        cancel_calls(stack.port, CANCELLED)
    load.assert_no_failed_calls()
    # The connections that the callers' calls took stay for others, at most one a caller and worker.
    after = wait_for(
        lambda: (nginx.descriptors, descriptors(server.process.pid)),
        lambda now: now[0] <= before[0] + 64 and now[1] <= before[1] + 16,
        20,
        f"descriptors are back at {before}",
    )
    remark = f"descriptors of the balancer {before[0]} before, {after[0]} after; of the server {before[1]}, {after[1]}"
    record(f"{CANCELLED} calls cancelled", load, remark)
    with open_channel(target(stack)) as hanging:
        assert int(hanging.unary_unary(f"/{SERVICE}/Hanging")(b"")) == 0
