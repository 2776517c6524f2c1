"""``python -m benchmarks``: measures, and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests

from benchmarks import machine, plot, report
from benchmarks.bench import Bench
from benchmarks.plan import FULL, QUICK
from benchmarks.sections import (
    connections,
    cpu,
    direct,
    fleet,
    kinds,
    latency,
    membership,
    memory,
    server,
    startup,
    throughput,
    workers,
)
from testbed.errors import BenchmarkError
from testbed.programs import ROOT

# In the order with the fewest changes of the stack.
SECTIONS: dict[str, Callable[[Bench], report.Section]] = {
    "startup": startup.run,
    "memory": memory.run,
    "throughput": throughput.run,
    "connections": connections.run,
    "latency": latency.run,
    "membership": membership.run,
    "fleet": fleet.run,
    "cpu": cpu.run,
    "kinds": kinds.run,
    "server": server.run,
    "direct": direct.run,
    "workers": workers.run,
}
_CONFIGS = "../testbed/configs"
CONFIGS = [
    ("nginx as in this stack", "../build/config/consul-template/etc/consul-templates/load-balancer.tpl"),
    ("nginx, the original's settings", f"{_CONFIGS}/original.conf"),
    ("HAProxy", f"{_CONFIGS}/haproxy.cfg"),
    ("Envoy", f"{_CONFIGS}/envoy.yaml"),
    ("the backend that costs next to nothing", f"{_CONFIGS}/backend.conf"),
    ("the servers of other kinds", "../benchmarks/servers"),
]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the stack beside other balancers and writes docs/benchmarks.md and docs/benchmarks.svg.",
    )
    result.add_argument("--quick", action="store_true", help="about four minutes, report to stdout (default: full)")
    result.add_argument(
        "--only",
        action="append",
        choices=list(SECTIONS),
        help="only this section, report to stdout; may be given again (default: all)",
    )
    result.add_argument("--output", type=Path, metavar="FILE", help="the report's file (default: see above)")
    result.add_argument("--address-base", default="127.61.0.0", help="loopback addresses (default: %(default)s)")
    result.add_argument("--port", type=int, default=6100, help="first of 30 ports on 127.0.0.1 (default: %(default)s)")
    result.add_argument("--consul-port", type=int, default=6850, help="the Consul UI's port (default: %(default)s)")
    return result


def main() -> int:
    """Parses, wires and runs. Exit code: 0 measured (targets met or not), 1 failed, 2 usage."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sections: list[report.Section] = []
    try:
        measure(arguments, sections)
        write(arguments, sections)
    except (BenchmarkError, requests.RequestException) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        # A whole run takes an hour, so that what it has measured is not lost.
        if sections:
            print(render(arguments, sections))
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


def measure(arguments: argparse.Namespace, found: list[report.Section]) -> None:
    """Runs the chosen sections, adds each to the list as soon as it is measured, and ends all processes.

    Raises:
        BenchmarkError: a section can't be measured.
    """
    # A short path, because it has the Unix sockets of the stack.
    with tempfile.TemporaryDirectory(prefix="glb-", ignore_cleanup_errors=True) as directory:
        bench = Bench(
            QUICK if arguments.quick else FULL,
            Path(directory),
            address_base=arguments.address_base,
            port=arguments.port,
            consul_port=arguments.consul_port,
        )
        try:
            bench.check_ports()
            for name, run in SECTIONS.items():
                if not arguments.only or name in arguments.only:
                    began = time.monotonic()
                    found.append(run(bench))
                    bench.say(f"{name}: {time.monotonic() - began:.0f} s")
        finally:
            # A second signal must not cut the end short.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            bench.close()


def render(arguments: argparse.Namespace, sections: Sequence[report.Section], plot_file: str = "") -> str:
    """Returns the report in Markdown."""
    words = ["make bench"] if not (arguments.quick or arguments.only) else ["python -m benchmarks"]
    words += ["--quick"] if arguments.quick else []
    words += [f"--only {name}" for name in arguments.only or ()]
    return report.render(sections, machine=machine.table(), command=" ".join(words), plot=plot_file, configs=CONFIGS)


def write(arguments: argparse.Namespace, sections: Sequence[report.Section]) -> None:
    """Writes the report: a full run's to docs, any other to stdout or to ``--output``."""
    full = not (arguments.quick or arguments.only or arguments.output)
    text = render(arguments, sections, "benchmarks.svg" if full else "")
    if full:
        (ROOT / "docs" / "benchmarks.md").write_text(text)
        charts = [chart for section in sections for chart in section.charts]
        (ROOT / "docs" / "benchmarks.svg").write_text(plot.svg(charts))
        print("wrote docs/benchmarks.md and docs/benchmarks.svg", file=sys.stderr)
    elif arguments.output:
        arguments.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
