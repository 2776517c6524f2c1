"""Calls without a proxy: gRPC's client that has its servers by xDS, beside one that knows them, and by balancers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import le
from pathlib import Path

from balancer.xds.bootstrap import make_bootstrap
from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.servers import measure
from benchmarks.servers.start import GO
from testbed import programs, render
from testbed.balancers import Balancer, FedEnvoy, HAProxy, LuaNginx, start_available
from testbed.errors import BenchmarkError, MissingError
from testbed.load import CONNECTIONS, STREAMS
from testbed.programs import ROOT
from testbed.stats import Spread, ratios

LEAST = 0.9
_CLIENT = Path(__file__).parent.parent / "client"
_KNOWN, _XDS = "a client that knows the servers", "xDS"
_APPLICATION = "bench"
_TURNS = 4
_METHOD = (
    "A client of grpc-go ([client](../benchmarks/client)) calls three servers of grpc-go, "
    f"{CONNECTIONS * STREAMS} at a time on {CONNECTIONS} channels: round robin over their addresses, as the control "
    f"plane says by xDS, or through a balancer. In a round each has {_TURNS} turns, in a changing order. Client, "
    "servers and balancer share the machine. A call that fails ends the run."
)


def run(bench: Bench) -> report.Section:
    """Measures all ways, round by round."""
    try:
        client = programs.go_program("grpc-go-client", programs.digest(_CLIENT), _CLIENT, ".", file="client")
        with measure.running(bench, GO, 0) as peers, _ways(bench, peers) as (targets, env, missing):
            rates = _measure(bench, client, targets, env)
    except MissingError as error:
        section = report.Section(title=_TITLE, method=_METHOD)
        section.targets.append(report.absent(_WHAT, _TARGET, str(error)))
        return section
    return _section({name: Spread.of(values) for name, values in rates.items()}, missing)


@contextmanager
def _ways(bench: Bench, peers: list[str]) -> Iterator[tuple[dict[str, str], dict[str, str], dict[str, str]]]:
    """Runs the control plane's xDS and the balancers; yields targets, the client's environment and what is missing."""
    targets = {_KNOWN: f"static:///{','.join(peers)}", _XDS: f"xds:///{_APPLICATION}"}
    with ExitStack() as stops:
        bootstrap = stops.enter_context(_control_plane(bench, peers))
        kinds: list[type[Balancer]] = [LuaNginx, HAProxy, FedEnvoy]
        # A balancer has up to three ports.
        candidates = [kind(bench.processes, bench.port + 1 + 3 * number) for number, kind in enumerate(kinds)]
        found, missing = start_available(candidates, peers, stops)
        targets |= {one.name: f"passthrough:///{one.target}" for one in found}
        yield targets, {"GRPC_XDS_BOOTSTRAP": str(bootstrap)}, missing


@contextmanager
def _control_plane(bench: Bench, peers: list[str]) -> Iterator[Path]:
    """Serves xDS for the peers; yields the bootstrap file of clients."""
    directory = bench.processes.directory / "xds"
    (directory / "run").mkdir(parents=True)
    (directory / "run" / "document.json").write_text(render.snapshot(peers))
    address, port = "127.0.0.1", bench.port + 28
    env = {"PYTHONPATH": str(ROOT), "BIND_ADDRESS": address, "XDS_PORT": str(port), "PEER_CIDR": "127.0.0.0/8"}
    command = [sys.executable, "-m", "balancer", "answers"]
    process = bench.processes.start("xds", command, cwd=directory, env=env)
    file = directory / "bootstrap.json"
    file.write_text(make_bootstrap([f"{address}:{port}"]))
    try:
        yield file
    finally:
        bench.processes.stop(process)


def _measure(bench: Bench, client: Path, targets: dict[str, str], env: Mapping[str, str]) -> dict[str, list[float]]:
    """Returns the calls a second of each way, one a round."""
    rates: dict[str, list[float]] = {name: [] for name in targets}
    calls = max(bench.plan.throughput_calls // _TURNS, CONNECTIONS * STREAMS)
    for number in range(bench.plan.rounds):
        bench.say(f"without a proxy: round {number + 1} of {bench.plan.rounds}")
        seconds = dict.fromkeys(targets, 0.0)
        for turn in range(_TURNS):
            for name in list(targets) if turn % 2 == 0 else reversed(targets):
                seconds[name] += _turn(bench, client, targets[name], env, calls)
        for name in targets:
            rates[name].append(calls * _TURNS / seconds[name])
    return rates


def _turn(bench: Bench, client: Path, target: str, env: Mapping[str, str], calls: int) -> float:
    """Makes calls, and returns their time in seconds."""
    command: list[str | Path] = [client, target, str(CONNECTIONS), str(CONNECTIONS * STREAMS), str(calls)]
    found = json.loads(bench.processes.run(command, cwd=bench.processes.directory, env=env))
    if found["failed"]:
        raise BenchmarkError(f"{target}: {found['failed']} of {calls} calls failed")
    return float(found["seconds"])


_TITLE = "Calls without a proxy"
_WHAT = f"Calls a second with grpc-go's client and servers, {_XDS} over {_KNOWN}"
_TARGET = f"at least {LEAST} times"


def _section(rates: Mapping[str, Spread], missing: Mapping[str, str]) -> report.Section:
    section = report.Section(title=_TITLE, method=_METHOD)
    values = ratios(rates[_XDS], rates[_KNOWN])
    section.targets.append(report.judge(_WHAT, values, "times", _TARGET, partial(le, LEAST)))
    rows = []
    for name, rate in rates.items():
        share = ratios(rate, rates[_KNOWN])
        row = [name, report.number(rate.median), report.spread(rate), report.number(share.median), report.spread(share)]
        rows.append(row)
    columns = ["", "calls a second", "spread", "of the client that knows the servers", "spread"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    section.notes += [f"{name} was not measured: {why}" for name, why in missing.items()]
    return section
