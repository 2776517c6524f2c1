"""The live view, drawn without a terminal."""

import re

import pytest

from grpc_client.options import Options
from grpc_client.tally import Tally
from protos.api_pb2 import PingMessage

pytest.importorskip("rich", reason="the live view needs the extra cli")

from grpc_client.live import WINDOW_SECONDS, LiveView


class Load:
    """A load whose clock a test moves, and its view."""

    def __init__(self, options: Options) -> None:
        self.now = 0.0
        self.tally = Tally(lambda: self.now)
        self.view = LiveView(options, self.tally)

    def answered(self, replica: str, times: int) -> None:
        answer = PingMessage(greeting=f"Hello from {replica}.").SerializeToString()
        for _ in range(times):
            self.tally.answered(answer, started=self.now, ended=self.now + 0.002)

    def lines_at(self, seconds: float) -> list[str]:
        self.now = seconds
        return self.view.draw().plain.splitlines()


@pytest.fixture
def load() -> Load:
    started = Load(Options(duration_seconds=60))
    started.tally.start()
    return started


def bar(lines: list[str], replica: str) -> str:
    """Finds a replica's line, without its name and with one space between its parts."""
    [line] = [line for line in lines if line.startswith(replica)]
    return " ".join(line.removeprefix(replica).split())


def test_before_the_first_call_the_view_says_where_it_connects() -> None:
    assert Load(Options(count=2)).lines_at(0) == ["connecting to localhost:10000"]


def test_each_replica_has_a_bar_as_long_as_its_share(load: Load) -> None:
    load.answered("aaa", 100)
    load.answered("bbb", 50)
    lines = load.lines_at(1)
    assert bar(lines, "aaa") == "█" * 36 + " 100/s 66.7%"
    assert bar(lines, "bbb") == "█" * 18 + " 50/s 33.3%"
    assert lines[1] == "150 OK, 0 failed, 150 calls/s"
    assert re.fullmatch(r"latency: p50 (2\.0|1\.9)\d ms .*", lines[2])


def test_the_figures_are_those_of_the_last_seconds(load: Load) -> None:
    load.answered("aaa", 1000)
    for second in range(1, 8):
        load.lines_at(second)
        load.answered("bbb", 10)
    assert "1070 OK, 0 failed, 10 calls/s" in load.lines_at(8)


def test_a_replica_that_went_away_says_since_when_and_is_forgotten_later(load: Load) -> None:
    load.answered("aaa", 10)
    load.lines_at(1)
    load.answered("bbb", 10)
    load.lines_at(1 + WINDOW_SECONDS)
    load.answered("bbb", 10)
    assert bar(load.lines_at(2 + WINDOW_SECONDS), "aaa") == "no answer for 6 s"
    load.answered("bbb", 10)
    assert not [line for line in load.lines_at(50) if line.startswith("aaa")]


def test_a_replica_that_comes_gets_a_bar(load: Load) -> None:
    load.answered("aaa", 10)
    load.lines_at(1)
    load.answered("new", 10)
    assert bar(load.lines_at(2), "new").endswith("50.0%")


def test_a_pause_of_all_replicas_is_told(load: Load) -> None:
    load.answered("aaa", 10)
    load.lines_at(1)
    load.lines_at(2)
    assert "no answer in the last seconds" in load.lines_at(2 + WINDOW_SECONDS)


def test_errors_are_shown_with_their_first_message(load: Load) -> None:
    load.tally.refused("UNAVAILABLE", "no backend", started=0, ended=0.1)
    assert "UNAVAILABLE 1  no backend" in load.lines_at(1)


def test_progress_counts_calls_or_seconds(load: Load) -> None:
    assert load.lines_at(30)[0] == "localhost:10000  " + "█" * 36 + "  30 of 60 s"
    counted = Load(Options(count=4))
    counted.tally.start()
    counted.answered("aaa", 1)
    assert counted.lines_at(1)[0].endswith("  1 of 4 calls")


def test_every_line_fits_a_terminal_of_80_columns(load: Load) -> None:
    load.answered("a" * 63, 100_000)
    assert max(map(len, load.lines_at(1))) <= 80
