"""Many connections of clients: memory, the time to accept them, and calls beside them and on them."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.sections.throughput import OURS, REPLICAS
from testbed import programs
from testbed.balancers import Envoy, HAProxy
from testbed.errors import BenchmarkError, MissingError
from testbed.load import Shape, ghz_command, timed_h2load
from testbed.processes import descendants, pss_bytes
from testbed.stats import Spread, percentile

_NAME = "hello_server-1"
_CALLS = 1_000
_CALL_SECONDS = 10
# RFC 9113: the preface of a client, and SETTINGS without a parameter.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_ANSWER_SECONDS = 60
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
    _allow_files(3 * max(bench.plan.connections))
    bench.stack.ensure(REPLICAS)
    peers = [f"{row['address']}:7777" for row in bench.stack.rows() if row["service"] == "hello_server"]
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    missing: dict[str, str] = {}
    with ExitStack() as stops:
        targets = {OURS: (bench.stack.target, bench.stack.nginx())}
        for one in bench.candidates():
            if not isinstance(one, (HAProxy, Envoy)):
                continue
            try:
                one.start(peers)
            except MissingError as error:
                missing[one.name] = str(error)
                continue
            stops.callback(one.stop)
            assert one.process is not None  # noqa: S101 - it has just been started
            targets[one.name] = (one.target, descendants(one.process.pid))
        for number in range(bench.plan.long_rounds):
            bench.say(f"connections: round {number + 1} of {bench.plan.long_rounds}")
            for count in bench.plan.connections:
                for name, (target, pids) in targets.items():
                    for what, value in _measure(bench, target, pids, count).items():
                        found[name, count][what].append(value)
            for name, (target, _) in targets.items():
                found[name, 0]["busy"].append(_busy(bench, target, bench.plan.connections[0]))
    return _section(bench, found, missing)


def _allow_files(count: int) -> None:
    """Lets this process and those that it starts open so many files; HAProxy wants two for each connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, hard), max(count, hard)))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{count} open files are needed, the limit is {hard} (ulimit -n): {error}") from error


def _measure(bench: Bench, target: str, pids: Sequence[int], count: int) -> dict[str, float]:
    before = sum(map(pss_bytes, pids))
    with idle(target, count) as seconds:
        memory = (sum(map(pss_bytes, pids)) - before) / count
        _, times = timed_h2load(bench.processes, target, _CALLS, Shape(1, 1), "hello", f"Hello from {_NAME}.")
    return {"seconds": seconds, "memory": memory / _KILO, "p99": percentile(times, 99) * _MILLI}


def _busy(bench: Bench, target: str, count: int) -> float:
    """Returns the p99, in milliseconds, of one call a second on each of so many connections."""
    command = ghz_command(programs.ghz(), _CALL_SECONDS, count, count)
    command += ["--rps", str(count), "--format", "json", target]
    done = json.loads(bench.processes.run(command, cwd=bench.processes.directory, timeout_seconds=120))
    if failed := sum(calls for code, calls in done["statusCodeDistribution"].items() if code != "OK"):
        raise BenchmarkError(f"{target}: {failed} calls failed")
    return percentile([one["latency"] for one in done["details"]], 99) / 1e6


def _section(
    bench: Bench, found: dict[tuple[str, int], dict[str, list[float]]], missing: dict[str, str]
) -> report.Section:
    first = bench.plan.connections[0]
    section = report.Section(
        title="Many connections",
        method=(
            "A client opens HTTP/2 connections one after the other and waits for the first byte on each. With all of "
            "them open and idle, memory is the Pss of the balancer's processes (of the stack: nginx), and "
            f"{_CALLS:,} calls are made one at a time on one more connection. Then ghz makes {first:,} calls a second "
            f"on {first:,} connections for {_CALL_SECONDS} s. A call a second on each of 10,000 connections is more "
            "than the replicas answer on this machine, with any balancer or none."
        ),
    )
    rows = []
    for (name, count), figures in found.items():
        if not count:
            continue
        busy = found[name, 0]["busy"] if count == first else []
        rows.append(
            [f"{count:,}", name]
            + [report.number(Spread.of(figures[what]).median) for what in ("seconds", "memory", "p99")]
            + [report.number(Spread.of(busy).median) if busy else "-"]
        )
    rows += [["", name, f"not installed ({why.partition(': ')[2]})", "", "", ""] for name, why in missing.items()]
    columns = ["connections", "balancer", "all answered, s", "memory of one, KB", "idle beside: p99 of a call, ms"]
    section.tables.append(report.Table(columns=[*columns, "a call a second each: p99, ms"], rows=rows))
    return section
