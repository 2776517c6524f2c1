"""Load from cheap programs, and its results."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import programs, render
from testbed.errors import BenchmarkError, MissingError
from testbed.processes import Processes

GREETING = "hello"
_METHOD = "/protos.Ping/SayHello"
CONNECTIONS = 8
STREAMS = 16


@dataclass(frozen=True)
class Shape:
    """How many connections a load has, and how many calls at a time on each."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"{self.connections}x{self.streams}"


USUAL = Shape(CONNECTIONS, STREAMS)


@dataclass(frozen=True, kw_only=True)
class Load:
    """The result of a load.

    Attributes:
        answered: calls with an answer and the status OK.
        failed: all other calls.
        seconds: its duration.
    """

    answered: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Returns answered calls a second."""
        return self.answered / self.seconds


def h2load(
    processes: Processes, target: str, calls: int, answer: str, shape: Shape = USUAL, *, tls: bool = False
) -> Load:
    """Makes a fixed number of calls with a short greeting.

    Args:
        processes: starts it.
        target: address and port.
        calls: how many.
        answer: a greeting of the length that every answer has: h2load sees no gRPC status, so the bytes of the
            answers are counted.
        shape: connections and calls at a time.
        tls: with TLS, whose handshakes belong to the time; h2load does not check certificates.
    """
    url = f"{'https' if tls else 'http'}://{target}{_METHOD}"
    return read_h2load(_h2load(processes, url, calls, shape, GREETING, []), calls, answer)


def timed_h2load(
    processes: Processes, target: str, calls: int, shape: Shape, greeting: str, answer: str = ""
) -> tuple[Load, list[float]]:
    """Makes calls of servers that answer with the greeting, or ``answer``, and returns the seconds of each call too."""
    log = processes.directory / "h2load.tsv"
    log.unlink(missing_ok=True)
    url = f"http://{target}{_METHOD}"
    output = _h2load(processes, url, calls, shape, greeting, ["--log-file", log])
    return read_h2load(output, calls, answer or greeting), read_times(log.read_text())


def _h2load(processes: Processes, url: str, calls: int, shape: Shape, greeting: str, more: Sequence[str | Path]) -> str:
    request = processes.directory / "request"
    request.write_bytes(render.message(greeting))
    command: list[str | Path] = [programs.program("h2load"), "-n", str(calls), "-c", str(shape.connections)]
    command += ["-m", str(shape.streams), "-t", "1", "-d", request, *more]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]
    return processes.run(command, cwd=processes.directory, timeout_seconds=300)


def read_times(log: str) -> list[float]:
    """Returns the seconds of each call from a log file of h2load, whose lines have start, HTTP status and microseconds.

    Raises:
        BenchmarkError: a line is of another form.
    """
    lines = [line.split("\t") for line in log.splitlines()]
    if not all(len(line) == 3 and line[2].isdecimal() for line in lines):
        raise BenchmarkError(f"h2load's log file is not understood:\n{log[:500]}")
    return [int(micros) / 1e6 for _, _, micros in lines]


def read_h2load(output: str, calls: int, answer: str) -> Load:
    """Returns the result in h2load's output.

    Raises:
        BenchmarkError: the output has another form.
    """
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m|h)\b", output)
    data = re.search(r"space savings [^)]*\), \S+ \((\d+)\) data", output)
    if not finished or not data:
        raise BenchmarkError(f"h2load's output is not understood:\n{output[-1500:]}")
    seconds = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[finished[2]]
    answered = int(data[1]) // len(render.message(answer))
    return Load(answered=answered, failed=calls - answered, seconds=seconds)


def grpc_load(target: str, seconds: float, concurrency: int, connections: int) -> tuple[str, Sequence[str | Path]]:
    """Returns name and command of a gRPC client without retries: ghz, or the project's own."""
    try:
        ghz = programs.ghz()
    except MissingError as error:
        print(f"benchmarks: {error}; grpc_client takes its place", file=sys.stderr)
        port = int(target.rpartition(":")[2])
        return "grpc_client", [*client_command(port, seconds, concurrency, connections), "--no-retry"]
    return "ghz", [*ghz_command(ghz, seconds, concurrency, connections), "--format", "summary", target]


def client_command(port: int, seconds: float, concurrency: int, connections: int) -> list[str]:
    """Returns the command of the project's own client, with a report in JSON."""
    command = [sys.executable, "-m", "grpc_client", "--host", "127.0.0.1", "--port", str(port), "--json"]
    command += ["--duration", f"{seconds:g}", "--concurrency", str(concurrency)]
    return [*command, "--connections", str(connections)]


def ghz_command(
    ghz: Path, seconds: float, concurrency: int, connections: int, security: Sequence[str] = ("--insecure",)
) -> list[str]:
    """Returns the command of ghz, which waits for its calls in flight; format and target must follow."""
    command = [str(ghz), *security, "--proto", str(programs.ROOT / "protos" / "api.proto")]
    command += ["--call", "protos.Ping.SayHello", "--data", json.dumps({"greeting": GREETING})]
    command += ["--concurrency", str(concurrency), "--connections", str(connections)]
    return [*command, "--duration", f"{seconds:g}s", "--duration-stop", "wait"]
