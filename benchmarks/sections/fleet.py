"""What the size of the fleet costs: how soon a change is known, the balancer's processor time for it, its memory."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.sections import latency
from benchmarks.sections.memory import program_of
from testbed import catalogue
from testbed.errors import BenchmarkError
from testbed.processes import cpu_seconds, pss_bytes
from testbed.stack import BALANCER
from testbed.stats import Spread, percentile
from testbed.wait import wait_for

_APPLICATION = "hello_server"
# The fleet has a service of its own, so that calls of the newcomer's service reach the newcomer alone.
_FLEET_SERVICE, _SERVICE = "bench.Fleet", "protos.Ping"
_REGISTERED_SECONDS = 60.0
_INTERVAL_SECONDS = 0.3
# Each worker of nginx builds its view of the fleet when it has a call: all have several between two changes.
_CONNECTIONS, _PAUSE_SECONDS = 8, 0.1
# Those that look for the newcomer's answers leave the processors to what is measured.
_CALLERS_PAUSE_SECONDS = 0.002
_MILLI, _MEGA = 1000, 1_000_000
_JUDGED = 1000
_SHOWN_MILLISECONDS = 0.5
_MOST_MILLISECONDS, _MOST_CPU_MILLISECONDS = 100.0, 60.0


@dataclass
class Figures:
    """Those of one size, a value for each round.

    Attributes:
        joined: milliseconds from registered to served, of each registration.
        left: milliseconds from deregistered to the last answer.
        cpu: milliseconds of processor time a change, by program.
        memory: MB of the balancer's container.
    """

    joined: list[Spread] = field(default_factory=list)
    left: list[Spread] = field(default_factory=list)
    cpu: list[Mapping[str, float]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def total_cpu(self) -> Spread:
        """Of all programs."""
        return Spread.of([sum(used.values()) for used in self.cpu])

    def of_programs(self, names: Collection[str]) -> float:
        """The median of some programs."""
        return Spread.of([sum(used.get(name, 0.0) for name in names) for used in self.cpu]).median


def run(bench: Bench) -> report.Section:
    """Registers more and more replicas, and at each size measures the changes that one more makes."""
    stack = bench.stack
    # Only what is registered here.
    stack.kill()
    stack.ensure(0)
    sizes = bench.plan.fleets
    peers = bench.cheap_backend(max(sizes))
    figures: dict[int, Figures] = {}
    registered = 0
    try:
        with latency.newcomer(bench, peers[-1].rpartition(":")[0]) as newcomer:
            for size in sizes:
                bench.say(f"fleet: {size:,} replicas")
                _register(bench, peers[registered:size], registered)
                registered = size
                _wait_until_known(bench, size)
                figures[size] = Figures()
                for _ in range(bench.plan.fleet_rounds):
                    _measure(bench, newcomer, figures[size])
    finally:
        stack.kill()
    return _section(bench, figures)


def _metadata(service: str) -> dict[str, str]:
    """As a registrar's."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"grpc_services": service, "grpc_since": now, "metrics_port": "9464", "registered": now}


def _register(bench: Bench, peers: Sequence[str], first: int) -> None:
    """As agents register them: each with a Consul node of its own, gossip's check of that, and a check of its own."""
    operations: list[dict[str, object]] = []
    for number, peer in enumerate(peers, first):
        address, _, port = peer.rpartition(":")
        node, identity = f"bench-{number:04}", f"{_APPLICATION}-bench-{number:04}-{port}"
        service = {
            "ID": identity,
            "Service": _APPLICATION,
            "Address": address,
            "Port": int(port),
            "Tags": ["grpc_server"],
            "TaggedAddresses": {name: {"Address": address, "Port": int(port)} for name in ("lan_ipv4", "wan_ipv4")},
            "Meta": _metadata(_FLEET_SERVICE),
        }
        host = {
            "Node": node,
            "Address": address,
            "TaggedAddresses": dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), address),
            "Meta": {"consul-network-segment": "", "consul-version": "1.22.7"},
        }
        # Not called serfHealth: the leader removes a node with a check of that name that gossip does not know.
        alive = {
            "Node": node,
            "CheckID": "bench",
            "Name": "Serf Health Status",
            "Status": "passing",
            "Output": "Agent alive and reachable",
        }
        check = {
            "Node": node,
            "CheckID": f"service:{identity}",
            "Name": f"gRPC health of {peer}/{_FLEET_SERVICE}",
            "Status": "passing",
            "ServiceID": identity,
            "Type": "grpc",
        }
        operations += [
            {"Node": {"Verb": "set", "Node": host}},
            {"Service": {"Verb": "set", "Node": node, "Service": service}},
            {"Check": {"Verb": "set", "Check": alive}},
            {"Check": {"Verb": "set", "Check": check}},
        ]
    catalogue.transact(bench.stack.consul, operations)


def _wait_until_known(bench: Bench, size: int) -> None:
    """Waits until nginx has so many replicas."""
    what = f"{size} replicas in nginx"
    wait_for(lambda: len(bench.stack.state()["replicas"]), size.__eq__, _REGISTERED_SECONDS, what, 0.2)


def _measure(bench: Bench, newcomer: str, figures: Figures) -> None:
    metadata = _metadata(_SERVICE)
    joined, left = latency.measure(
        bench, newcomer, bench.plan.fleet_registrations, metadata=metadata, pause_seconds=_CALLERS_PAUSE_SECONDS
    )
    figures.joined.append(Spread.of(joined))
    figures.left.append(Spread.of(left))
    changes = bench.plan.fleet_changes
    with latency.Callers(bench.stack.target, _PAUSE_SECONDS, _CONNECTIONS) as calls:
        idle, idle_seconds = _used(bench, newcomer, _rest)
        used, used_seconds = _used(bench, newcomer, _change)
    if calls.failures:
        raise BenchmarkError(f"{len(calls.failures)} calls failed while a replica came and went: {calls.failures[0]}")
    part = used_seconds / idle_seconds
    figures.cpu.append({name: (used[name] - idle.get(name, 0.0) * part) / changes * _MILLI for name in used})
    figures.memory.append(sum(map(pss_bytes, bench.stack.pids()[BALANCER])) / _MEGA)


def _rest(bench: Bench, _newcomer: str, _number: int) -> None:
    """No change, for as long as one takes."""


def _change(bench: Bench, newcomer: str, number: int) -> None:
    """The replica comes or goes; returns when nginx knows."""
    before = bench.stack.version()
    if number % 2 == 0:
        bench.stack.register(newcomer, _metadata(_SERVICE))
    else:
        bench.stack.deregister(newcomer)
    wait_for(lambda: bench.stack.version() != before, bool, _REGISTERED_SECONDS, "a change in nginx", 0.02)


def _used(bench: Bench, newcomer: str, change: Callable[[Bench, str, int], None]) -> tuple[dict[str, float], float]:
    """Seconds of processor time by program while so many changes are made, and how many seconds that took."""
    # What went on before ends meanwhile.
    time.sleep(2 * _INTERVAL_SECONDS)
    before, begin = _cpu(bench), time.monotonic()
    due = begin
    for number in range(bench.plan.fleet_changes):
        change(bench, newcomer, number)
        # No sooner than after the last one is known: two changes at once cost less than one after the other.
        due = max(due + _INTERVAL_SECONDS, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    used = {name: seconds - before.get(name, 0.0) for name, seconds in _cpu(bench).items()}
    return used, time.monotonic() - begin


def _cpu(bench: Bench) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for pid in bench.stack.pids()[BALANCER]:
        # One that has just ended was short-lived: of no account.
        with suppress(OSError):
            found[program_of(pid)] += cpu_seconds([pid])
    return dict(found)


def _section(bench: Bench, figures: Mapping[int, Figures]) -> report.Section:
    plan = bench.plan
    section = report.Section(
        title=f"Fleets of {min(figures):,} to {max(figures):,} replicas",
        method=(
            "The catalogue of the whole stack has so many replicas of one application, which are addresses of the "
            "nginx that answers every call itself. Each has all that agents and registrars register, a node, two "
            "checks, addresses and metadata, but not `grpc_health`: that nginx has no health service, so the control "
            f"plane only connects to it. {plan.fleet_registrations} times a round, one more replica of the "
            "application, a `grpc_server`, is registered with an agent as passing and deregistered again. It alone "
            "has the gRPC service of the calls: all calls go to it as soon as nginx knows it, and without it to the "
            'fleet. The times are those of "From registered to served", with a pause of '
            f"{_CALLERS_PAUSE_SECONDS * _MILLI:.0f} ms between two calls of a caller. Processor time is that of all "
            f"processes of the balancer's container in {plan.fleet_changes} changes, at least {_INTERVAL_SECONDS} s "
            f"apart, at {_CONNECTIONS / _PAUSE_SECONDS:.0f} calls a second, less that of an equal time without a "
            "change just before. Memory is the container's Pss at the end."
        ),
    )
    section.targets += _targets(figures)
    rows = []
    for size, one in figures.items():
        times = [
            report.number(Spread.of([percentile(values.values, percent) for values in rounds]).median)
            for rounds in (one.joined, one.left)
            for percent in (50, 99)
        ]
        memory = report.number(Spread.of(one.memory).median)
        rows.append([f"{size:,}", *times, report.number(one.total_cpu.median), report.spread(one.total_cpu), memory])
    columns = [
        *("replicas", "registered to served: p50, ms", "p99, ms", "deregistered to last answer: p50, ms", "p99, ms"),
        *("processor time a change, ms", "spread", "memory, MB"),
    ]
    section.tables.append(report.Table(columns=columns, rows=rows))
    section.tables.append(_by_program(figures))
    return section


def _targets(figures: Mapping[int, Figures]) -> list[report.Target]:
    served = f"Passing to served with {_JUDGED:,} replicas, p99"
    gone = f"Deregistered to its last answer with {_JUDGED:,} replicas, p99"
    cpu = f"The balancer's processor time a change with {_JUDGED:,} replicas"
    time_target, cpu_target = f"under {_MOST_MILLISECONDS:.0f} ms", f"at most {_MOST_CPU_MILLISECONDS:.0f} ms"
    found = figures.get(_JUDGED)
    if found is None:
        absent = ((served, time_target), (gone, time_target), (cpu, cpu_target))
        return [report.absent(what, target, "a quick run has fewer") for what, target in absent]
    targets = []
    for what, rounds in ((served, found.joined), (gone, found.left)):
        worst = Spread.of([percentile(one.values, 99) for one in rounds])
        targets.append(report.judge(what, worst, "ms", time_target, lambda value: value < _MOST_MILLISECONDS))
    targets.append(report.judge(cpu, found.total_cpu, "ms", cpu_target, lambda value: value <= _MOST_CPU_MILLISECONDS))
    return targets


def _by_program(figures: Mapping[int, Figures]) -> report.Table:
    """Where the processor time goes: programs by what they take at the greatest size, those of next to none as one."""
    greatest = figures[max(figures)]
    every = {name for one in figures.values() for used in one.cpu for name in used}
    some = {name for name in every if any(one.of_programs({name}) >= _SHOWN_MILLISECONDS for one in figures.values())}
    rows = [
        [name, *(report.number(one.of_programs({name})) for one in figures.values())]
        for name in sorted(some, key=lambda name: (-greatest.of_programs({name}), name))
    ]
    rows.append(["others", *(report.number(one.of_programs(every - some)) for one in figures.values())])
    columns = ["processor time a change, ms", *(f"{size:,} replicas" for size in figures)]
    return report.Table(columns=columns, rows=rows)
