"""The gathered lines of the server's log."""

from __future__ import annotations

import io
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from common import log
from grpc_server.lines import MOST_BYTES, GatheredLines
from local_stack.settings import ROOT


class Pipe:
    """Gathered lines, and each write of them."""

    def __init__(self) -> None:
        # With O_DIRECT a read returns what one write has written.
        self.reader, self.writer = os.pipe2(os.O_DIRECT)
        # So long that no line is written before its test expects it.
        self.lines = GatheredLines(self.writer, 60)

    def shorten(self, seconds: float) -> None:
        """Gathers for so long instead."""
        self.lines = GatheredLines(self.writer, seconds)

    def write(self, within_seconds: float = 0) -> str:
        """Returns the next write, empty if there is none in time."""
        ready, _, _ = select.select([self.reader], [], [], within_seconds)
        return os.read(self.reader, 2 * MOST_BYTES).decode() if ready else ""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.lines.flush()
    for descriptor in (made.reader, made.writer):
        os.close(descriptor)


def test_a_line_after_a_quiet_second_is_written_at_once(pipe: Pipe) -> None:
    pipe.lines.write("one\n")
    assert pipe.write() == "one\n"


def test_lines_that_follow_are_written_together_in_time(pipe: Pipe) -> None:
    pipe.shorten(3)
    began = time.monotonic()
    pipe.lines.write("one\n")
    pipe.lines.write("two\n")
    pipe.lines.write("three\n")
    assert pipe.write() == "one\n"
    assert pipe.write(20) == "two\nthree\n"
    assert time.monotonic() - began >= 3


def test_a_later_burst_is_gathered_again(pipe: Pipe) -> None:
    pipe.shorten(0.2)
    for number in range(3):
        pipe.lines.write(f"first {number}\n")
        pipe.lines.write(f"second {number}\n")
        seen = pipe.write(20)
        while f"second {number}" not in seen:
            more = pipe.write(20)
            assert more, seen
            seen += more
        assert seen == f"first {number}\nsecond {number}\n"


def test_a_write_has_whole_lines_and_up_to_4_kib(pipe: Pipe) -> None:
    given = [f"{number} {'é' * 40}\n" for number in range(100)]
    for line in given:
        pipe.lines.write(line)
    pipe.lines.flush()
    writes = []
    while found := pipe.write():
        writes.append(found)
    assert "".join(writes) == "".join(given)
    sizes = [len(found.encode()) for found in writes]
    assert max(sizes) <= MOST_BYTES
    # The first line is alone, the last write has the rest; the others are as large as their lines allow.
    assert all(size > MOST_BYTES - 100 for size in sizes[1:-1])
    assert len(sizes) == 4
    assert all(found.endswith("\n") for found in writes)


def test_a_long_line_is_written_as_it_is(pipe: Pipe) -> None:
    pipe.lines.write("short\n")
    pipe.lines.write("long " * 2000 + "\n")
    pipe.lines.flush()
    found = ""
    while more := pipe.write():
        found += more
    assert found == "short\n" + "long " * 2000 + "\n"


def test_lines_that_cannot_be_written_are_lost_and_later_ones_are_not() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lines = GatheredLines(full)
    lines.write("lost\n")
    lines.write("lost too\n")
    lines.flush()
    reader, writer = os.pipe()
    os.dup2(writer, full)
    lines.write("written\n")
    lines.flush()
    assert os.read(reader, 100) == b"written\n"
    for descriptor in (full, reader, writer):
        os.close(descriptor)


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(3)",
        "raise ValueError('a bug')",
        "workers.exit_code(fail, None)",
        "asyncio.run(crash())",
    ],
)
def test_no_line_is_lost_at_an_exit(end: str) -> None:
    script = f"""
import asyncio, logging, sys
from common import log
from grpc_server import lines, workers
def fail(config):
    raise ValueError("a bug")
async def crash():
    raise ValueError("a bug")
log.configure(lines.STDERR)
calls = log.Lines(lines.STDERR, "grpc_server")
for number in range(1000):
    calls.info(f"line {{number}}")
{end}
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert re.findall(r" line (\d+)\n", done.stderr) == [str(number) for number in range(1000)]
    if "exit_code" in end:
        assert done.stderr.index("line 999") < done.stderr.index("Traceback")


def test_logged_lines_are_not_gathered_and_keep_their_order(pipe: Pipe) -> None:
    logger = logging.getLogger("tests.lines")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(pipe.lines)
    logger.addHandler(handler)
    calls = log.Lines(pipe.lines, "grpc_server")
    pipe.lines.write("a line\n")
    calls.info("a call")
    logger.info("a change")
    logger.removeHandler(handler)
    assert pipe.write() == "a line\n"
    assert re.fullmatch(r"\S+ INFO grpc_server a call\na change\n", pipe.write())


def test_a_line_of_a_call_has_the_form_of_logging() -> None:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        log.configure(stream)
        lines = log.Lines(stream, "grpc_server")
        for _ in range(2):
            logging.getLogger("grpc_server").info("received greeting=%r", "é\n")
            lines.info(f"received greeting={'é' + chr(10)!r}")
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
    found = [re.sub(r"\d", "0", line) for line in stream.getvalue().splitlines()]
    assert found == [r"0000-00-00T00:00:00.000Z INFO grpc_server received greeting='é\n'"] * 4
