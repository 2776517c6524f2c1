"""Membership changes under load: how many calls fail when nothing but the balancer's list changes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks import report
from benchmarks.bench import Bench
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError, MissingError
from testbed.load import grpc_load
from testbed.stats import Spread

BACKENDS = 5
CALLERS = 32
CONNECTIONS = 4
_INTERVAL_SECONDS = 0.3
# The client has to be under way, on a busy machine too.
_LEAD_SECONDS = 1.5
_MODES = ("dynamic", "reload", "restart")
# In mode restart, nginx may take 30 s to stop (stopwaitsecs): 1.22 forgets a connection that is being made when it is
# told to (1.27.4 does not).
_READY_SECONDS = 60.0


@dataclass
class Figures:
    """A candidate's, one of each a round."""

    answered: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)


def run(bench: Bench) -> report.Section:
    """Measures all candidates, round by round."""
    peers = bench.cheap_backend(BACKENDS)
    figures: dict[tuple[str, str], Figures] = {}
    missing: dict[tuple[str, str], str] = {}
    client = ""
    for number in range(bench.plan.long_rounds):
        for mode in _MODES:
            bench.say(f"membership: round {number + 1} of {bench.plan.long_rounds}: this stack, {mode}")
            with ExitStack() as leave:
                change = _stack(bench, mode, peers, leave)
                key = ("this stack", f"NGINX_UPDATE={mode}")
                client = _measure(bench, bench.stack.target, peers, change, figures.setdefault(key, Figures()))
        for one in bench.candidates():
            bench.say(f"membership: round {number + 1} of {bench.plan.long_rounds}: {one.name}")
            try:
                one.start(peers)
            except MissingError as error:
                missing[one.name, one.how] = str(error)
                continue
            try:
                found = figures.setdefault((one.name, one.how), Figures())
                _measure(bench, one.target, peers, one.change, found)
            finally:
                one.stop()
    return _section(bench, figures, missing, client)


def _stack(bench: Bench, mode: str, peers: list[str], leave: ExitStack) -> Callable[[list[str]], None]:
    """Makes the peers the stack's only replicas; returns what changes them, through Consul."""
    stack = bench.stack
    stack.ensure(0, mode)
    registered: set[str] = set()

    def change(wanted: list[str]) -> None:
        for peer in registered - set(wanted):
            stack.deregister(peer)
        for peer in set(wanted) - registered:
            stack.register(peer)
        registered.clear()
        registered.update(wanted)

    leave.callback(lambda: change([]))
    change(peers)
    wait_for_answers(stack.target, len(peers), _READY_SECONDS)
    return change


def _measure(bench: Bench, target: str, peers: list[str], change: Callable[[list[str]], None], figures: Figures) -> str:
    changes = bench.plan.changes
    seconds = changes * _INTERVAL_SECONDS + _LEAD_SECONDS + _INTERVAL_SECONDS
    client, command = grpc_load(target, seconds, CALLERS, CONNECTIONS)
    load = bench.processes.start("load", command, cwd=bench.processes.directory)
    begin = time.monotonic() + _LEAD_SECONDS
    try:
        for number in range(changes):
            time.sleep(max(0.0, begin + number * _INTERVAL_SECONDS - time.monotonic()))
            # One goes, then it comes back; each in its turn.
            gone = peers[number // 2 % len(peers)] if number % 2 == 0 else ""
            change([peer for peer in peers if peer != gone])
        # The client waits for the calls in flight; it exits non-zero when some have failed.
        load.wait(seconds + 120)
    finally:
        bench.processes.stop(load)
    answered, failed = read_load(client, bench.processes.log("load").read_text(errors="replace"))
    if not answered + failed:
        raise BenchmarkError(f"{target}: no call was made\n{bench.processes.tail('load')}")
    figures.answered.append(answered)
    figures.failed.append(failed)
    return client


def read_load(client: str, output: str) -> tuple[int, int]:
    """Answered and failed calls of a client's output.

    Raises:
        BenchmarkError: the output says nothing of them.
    """
    if client == "grpc_client":
        found = json.loads(output)
        return int(found["ok"]), int(found["failed"])
    statuses = re.findall(r"^\s*\[(\w+)\]\s+(\d+) responses", output, re.MULTILINE)
    if not statuses:
        raise BenchmarkError(f"ghz's output is not understood:\n{output[-1500:]}")
    answered = sum(int(count) for status, count in statuses if status == "OK")
    return answered, sum(int(count) for _, count in statuses) - answered


def _section(
    bench: Bench, figures: dict[tuple[str, str], Figures], missing: dict[tuple[str, str], str], client: str
) -> report.Section:
    changes = f"{bench.plan.changes} membership changes {_INTERVAL_SECONDS} s apart"
    section = report.Section(
        title="Membership changes under load",
        method=(
            f"{changes}, while {CALLERS} callers on {CONNECTIONS} connections call as fast as they can ({client}, no "
            f"retry policy). The {BACKENDS} backends, addresses of the nginx that answers every call itself, never "
            "stop: only the balancer's list changes. The backends leave it and come back, one after the other. In "
            "this stack a change is a registration in Consul; the other balancers are told directly. The original's "
            "nginx is stopped with SIGTERM and started at once, without the seconds that supervisorctl would add."
        ),
    )
    rows = []
    for (name, how), found in figures.items():
        answered, failed = Spread.of(found.answered), Spread.of(found.failed)
        row = [name, how]
        for values in (answered, failed):
            row += [f"{values.median:,.0f}", f"{values.low:,.0f} to {values.high:,.0f}"]
        rows.append(row)
        if how == "NGINX_UPDATE=dynamic":
            # Of all rounds: a median of 0 would hide a round with failures.
            lost = Spread.of([failed.high])
            judged = report.judge("Calls lost in membership changes, this stack, worst round", lost, "", "0", _none)
            section.targets.append(judged)
    rows += [[name, how, "not installed", "", "", ""] for name, how in missing]
    columns = ["balancer", "update", "calls answered", "spread", "calls failed", "spread"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    failures = [(f"{name}, {how}", Spread.of(found.failed).median) for (name, how), found in figures.items()]
    section.charts.append(report.Chart(title="Calls failed in membership changes", unit="calls", values=failures))
    return section


def _none(value: float) -> bool:
    return value == 0
