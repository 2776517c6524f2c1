"""``python -m grpc_client`` as a process, against a server in the test's own event loop."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.api_pb2 import PingMessage
from testbed.wait import wait_for
from tests.support.served import Answer, Context, ping_handler, run_client, served, start_client

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def scripted(*outcomes: str | grpc.StatusCode) -> Answer:
    """Answers with each outcome in turn, over and over: a replica's name or a status."""
    turn = itertools.cycle(outcomes)

    async def answer(_request: PingMessage, context: Context) -> PingMessage:
        outcome = next(turn)
        if isinstance(outcome, grpc.StatusCode):
            await context.abort(outcome, f"told to fail with {outcome.name}")
        return PingMessage(greeting=f"Hello from {outcome}.")

    return answer


def run(outcomes: tuple[str | grpc.StatusCode, ...], *arguments: object) -> tuple[int | None, str, str]:
    """Runs the client against a scripted server."""

    async def scenario() -> tuple[int | None, str, str]:
        async with served(ping_handler(scripted(*outcomes))) as port:
            return await run_client("--port", port, *arguments)

    return asyncio.run(scenario())


@pytest.fixture
def refused_port() -> Iterator[int]:
    """Reserves a port on which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listens, but never say a word of HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_the_answer_is_printed_as_it_came() -> None:
    assert run(("1b40646880d9",)) == (0, "Response from server: Hello from 1b40646880d9.\n", "")


def test_the_greeting_reaches_the_server() -> None:
    greetings = []

    async def answer(request: PingMessage, _context: Context) -> PingMessage:
        greetings.append(request.greeting)
        return request

    async def scenario() -> None:
        async with served(ping_handler(answer)) as port:
            await run_client("--port", port, "--greeting", "good evening")

    asyncio.run(scenario())
    assert greetings == ["good evening"]


@pytest.mark.parametrize("load", [[], ["--count", "50", "--concurrency", "8", "--connections", "4"]])
def test_a_server_that_is_not_there_is_one_line_within_the_timeout(load: list[str], refused_port: int) -> None:
    began = time.monotonic()
    code, output, errors = asyncio.run(run_client("--port", refused_port, *load))
    assert (code, output) == (1, "")
    assert re.fullmatch(rf"grpc_client: 127\.0\.0\.1:{refused_port}: UNAVAILABLE: .*\n", errors)
    assert "Connection refused" in errors
    assert time.monotonic() - began < 5 + 10  # the timeout, and this machine may be slow to start Python


@pytest.mark.parametrize("load", [[], ["--duration", "60", "--connections", "2"]])
def test_a_server_that_says_nothing_is_one_line_within_the_timeout(load: list[str], silent_port: int) -> None:
    code, output, errors = asyncio.run(run_client("--port", silent_port, "--timeout", "0.5", *load))
    assert (code, output) == (1, "")
    line = f"grpc_client: 127.0.0.1:{silent_port}: DEADLINE_EXCEEDED: no connection within 0.5 s\n"
    assert errors == line


def test_wrong_usage_is_one_line_and_exit_code_2() -> None:
    assert asyncio.run(run_client("--port", "70000")) == (
        2,
        "",
        "grpc_client: --port: must be an integer from 1 to 65535 (got '70000')\n",
    )


def test_a_failed_call_is_one_line_and_exit_code_1() -> None:
    code, output, errors = run((grpc.StatusCode.INTERNAL,))
    assert (code, output) == (1, "")
    assert errors.endswith(": INTERNAL: told to fail with INTERNAL\n")
    assert errors.count("\n") == 1


def test_calls_are_retried_while_the_server_is_unavailable() -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE
    code, output, _ = run((unavailable, unavailable, "aaa"))
    assert (code, output) == (0, "Response from server: Hello from aaa.\n")


def test_no_retry_fails_at_the_first_unavailable() -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE
    code, _, errors = run((unavailable, unavailable, "aaa"), "--no-retry")
    assert code == 1
    assert "UNAVAILABLE: told to fail" in errors


def test_a_load_counts_answers_by_replica_and_errors_by_status() -> None:
    outcomes = ("aaa", grpc.StatusCode.INTERNAL, "bbb", grpc.StatusCode.NOT_FOUND, "aaa")
    code, output, errors = run(outcomes, "--count", 100, "--concurrency", 4)
    assert (code, errors) == (1, "")
    assert output.startswith("100 calls in ")
    assert ": 60 OK, 40 failed, " in output
    for line in (
        r"aaa +40 +66\.7%",
        r"bbb +20 +33\.3%",
        r"INTERNAL +20 +told to fail with INTERNAL",
        r"NOT_FOUND +20 +told to fail with NOT_FOUND",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), line


def test_json_is_one_document_and_nothing_else() -> None:
    code, output, errors = run(("aaa", "bbb"), "--count", 100, "--concurrency", 8, "--json")
    assert (code, errors) == (0, "")
    document = json.loads(output)
    assert (document["calls"], document["ok"], document["failed"]) == (100, 100, 0)
    assert document["replicas"] == {"aaa": 50, "bbb": 50}
    assert document["errors"] == document["error_samples"] == {}
    latency = document["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert document["calls_per_second"] == pytest.approx(100 / document["seconds"], rel=0.1)


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_load_with_its_report_and_loses_no_call(stop_signal: signal.Signals) -> None:
    calls, gate = 0, asyncio.Event()

    async def answer(_request: PingMessage, _context: Context) -> PingMessage:
        nonlocal calls
        calls += 1
        if calls > 20:
            await gate.wait()
        return PingMessage(greeting="Hello from aaa.")

    async def scenario() -> tuple[int | None, dict[str, Any]]:
        async with served(ping_handler(answer)) as port:
            process = await start_client("--port", port, "--duration", 300, "--concurrency", 4, "--json")
            await asyncio.to_thread(wait_for, lambda: calls, lambda seen: seen == 24, 30, "four calls in flight")
            process.send_signal(stop_signal)
            gate.set()
            output, _ = await process.communicate()
            return process.returncode, json.loads(output)

    code, document = asyncio.run(scenario())
    assert (code, document["failed"]) == (0, 0)
    assert document["ok"] == calls
    assert document["seconds"] < 60


@pytest.mark.parametrize("arguments", [[], ["--duration", "300"]])
def test_signals_end_a_client_whose_calls_are_never_answered(arguments: list[str]) -> None:
    called = asyncio.Event()

    async def answer(request: PingMessage, _context: Context) -> PingMessage:
        called.set()
        await asyncio.Event().wait()
        return request

    async def scenario() -> tuple[int | None, bytes, bytes]:
        async with served(ping_handler(answer)) as port:
            process = await start_client("--port", port, "--timeout", 600, *arguments)
            await called.wait()
            ended = asyncio.ensure_future(process.communicate())
            # One is enough for a single call; a load ends at the second one.
            while not ended.done():
                process.send_signal(signal.SIGINT)
                await asyncio.wait([ended], timeout=0.3)
            return process.returncode, *await ended

    assert asyncio.run(scenario()) == (1, b"", b"grpc_client: interrupted\n")


async def on_a_terminal(port: int, *arguments: object, **environment: str) -> tuple[int | None, str]:
    """Runs the client on a terminal of 100 columns; give its exit code and the text that was drawn."""
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    try:
        process = await start_client(
            "--port",
            port,
            *arguments,
            stdout=inside,
            stderr=inside,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment},
        )
    finally:
        os.close(inside)
    drawn = await asyncio.to_thread(read_terminal, terminal)
    return await process.wait(), ESCAPES.sub("", drawn)


def read_terminal(terminal: int) -> str:
    """Reads until the last process has closed the other side."""
    drawn = b""
    with contextlib.suppress(OSError):  # Linux says EIO at the end
        while chunk := os.read(terminal, 65536):
            drawn += chunk
    os.close(terminal)
    return drawn.decode()


def test_a_terminal_shows_a_bar_for_each_replica_and_then_the_table() -> None:
    async def scenario() -> tuple[int | None, str]:
        async with served(ping_handler(scripted("aaa", "bbb"))) as port:
            return await on_a_terminal(port, "--duration", 1.5, "--rate", 100, "--concurrency", 4)

    code, drawn = asyncio.run(scenario())
    assert code == 0
    for replica in ("aaa", "bbb"):
        assert re.search(rf"{replica} +█+ \d+/s [45]\d\.\d%", drawn), drawn
        assert re.search(rf"│ {replica} +│ +\d+ │ [45]\d\.\d% │", drawn), drawn
    assert re.search(r"█+  \d of 1\.5 s", drawn)
    assert re.search(r"^latency: p50 .* max .* ms\r$", drawn, re.MULTILINE)


def test_without_rich_a_terminal_gets_the_plain_report_and_a_word_about_the_extra(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(name='rich')\n")

    async def scenario() -> tuple[int | None, str]:
        async with served(ping_handler(scripted("aaa"))) as port:
            return await on_a_terminal(port, "--count", 5, PYTHONPATH=str(tmp_path))

    code, drawn = asyncio.run(scenario())
    assert code == 0
    assert "no live view without rich: install grpc-load-balancing[cli]" in drawn
    assert re.search(r"^aaa +5 +100\.0%\r$", drawn, re.MULTILINE)
