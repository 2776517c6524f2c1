"""Many connections of clients: memory, the time to accept them, and calls beside them and on them."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.sections.throughput import Target, started
from testbed import programs
from testbed.balancers import Envoy, HAProxy
from testbed.errors import BenchmarkError
from testbed.load import Shape, ghz_command, timed_h2load
from testbed.processes import pss_bytes
from testbed.stats import Spread, percentile

_NAME = "hello_server-1"
_CALLS = 1_000
_CALL_SECONDS = 10
# RFC 9113: the preface of a client, and SETTINGS without a parameter.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_ANSWER_SECONDS = 60
# Of any program here, beside one for each connection.
_OTHER_FILES = 1_000
_KILO, _MILLI = 1_000, 1_000


@contextmanager
def idle(target: str, count: int) -> Iterator[float]:
    """Opens HTTP/2 connections, which stay open until the block ends; yields the seconds until all were answered."""
    host, _, port = target.rpartition(":")
    begin = time.monotonic()
    with ExitStack() as opened:
        sockets = []
        for _ in range(count):
            sockets.append(opened.enter_context(socket.create_connection((host, int(port)), _ANSWER_SECONDS)))
            sockets[-1].sendall(_PREFACE)
        for each in sockets:
            if not each.recv(1):
                raise BenchmarkError(f"{target} closed one of {count} connections")
        yield time.monotonic() - begin


def run(bench: Bench) -> report.Section:
    """Measures all candidates, round by round."""
    _allow_files(max(bench.plan.connections) + _OTHER_FILES)
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    candidates = [one for one in bench.candidates() if isinstance(one, (HAProxy, Envoy))]
    counts = bench.plan.connections
    with started(bench, candidates) as (targets, missing):
        for number in range(bench.plan.long_rounds):
            bench.say(f"connections: round {number + 1} of {bench.plan.long_rounds}")
            for count in counts:
                for name, target in targets.items():
                    for what, value in _measure(bench, target, count).items():
                        found[name, count][what].append(value)
            for count in counts:
                for name, target in targets.items():
                    found[name, count]["busy"].append(_busy(bench, target.address, count, counts[0]))
    return _section(counts[0], found, missing)


def _allow_files(count: int) -> None:
    """Lets this process and those that it starts open so many files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, hard), max(count, hard)))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{count} open files are needed, the limit is {hard} (ulimit -n): {error}") from error


def _measure(bench: Bench, target: Target, count: int) -> dict[str, float]:
    before = sum(map(pss_bytes, target.pids))
    with idle(target.address, count) as seconds:
        memory = (sum(map(pss_bytes, target.pids)) - before) / count
        _, times = timed_h2load(bench.processes, target.address, _CALLS, Shape(1, 1), "hello", f"Hello from {_NAME}.")
    return {"seconds": seconds, "memory": memory / _KILO, "p99": percentile(times, 99) * _MILLI}


def _busy(bench: Bench, target: str, count: int, rate: int) -> float:
    """Returns the p99, in milliseconds, of so many calls a second on so many connections in turn."""
    command = ghz_command(programs.ghz(), _CALL_SECONDS, count, count)
    command += ["--rps", str(rate), "--format", "json", target]
    done = json.loads(bench.processes.run(command, cwd=bench.processes.directory, timeout_seconds=120))
    if failed := sum(calls for code, calls in done["statusCodeDistribution"].items() if code != "OK"):
        raise BenchmarkError(f"{target}: {failed} calls failed")
    return percentile([one["latency"] for one in done["details"]], 99) / 1e6


def _section(
    first: int, found: dict[tuple[str, int], dict[str, list[float]]], missing: dict[str, str]
) -> report.Section:
    section = report.Section(
        title="Many connections",
        method=(
            "A client opens HTTP/2 connections one after the other and waits for the first byte on each. With all of "
            "them open and idle, memory is the Pss of the balancer's processes (of the stack: nginx), and "
            f"{_CALLS:,} calls are made one at a time on one more connection. Then ghz makes {first:,} calls a second "
            f"for {_CALL_SECONDS} s on so many connections, which is one a second on each of {first:,}. One a second "
            "on each of 10,000 is more than the replicas answer on this machine, with any balancer or none."
        ),
    )
    rows = []
    for (name, count), figures in found.items():
        medians = {what: report.number(Spread.of(values).median) for what, values in figures.items()}
        rows.append([f"{count:,}", name, *(medians.get(what, "-") for what in ("seconds", "memory", "p99", "busy"))])
    rows += [["", name, f"not installed ({why.partition(': ')[2]})", "", "", ""] for name, why in missing.items()]
    columns = ["connections", "balancer", "all answered, s", "memory of one, KB", "idle beside: p99 of a call, ms"]
    section.tables.append(report.Table(columns=[*columns, f"{first:,} calls a second: p99, ms"], rows=rows))
    return section
