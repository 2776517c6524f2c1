"""The histogram, the tally and their report."""

import json
import random

import pytest

from grpc_client.errors import one_line
from grpc_client.histogram import LatencyHistogram
from grpc_client.report import LoadReport, text_report
from grpc_client.tally import MAX_ERROR_EVENTS, MAX_REPLICAS, OTHER_REPLICAS, Tally, replica_name
from protos.api_pb2 import PingMessage

HALF_A_PERCENT = 0.005


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> Tally:
    started = Tally(clock)
    started.start()
    return started


def answer(tally: Tally, message: str, *, seconds: float = 0.001, times: int = 1) -> None:
    now = tally.clock()
    for _ in range(times):
        tally.answered(PingMessage(greeting=message).SerializeToString(), started=now, ended=now + seconds)


def two_replicas_and_an_error(tally: Tally, clock: Clock) -> LoadReport:
    answer(tally, "Hello from aaa.", seconds=0.002, times=3)
    answer(tally, "Hello from bbb.", seconds=0.004)
    tally.refused("UNAVAILABLE", "no\nbackend", started=100.0, ended=100.5)
    tally.refused("UNAVAILABLE", "another", started=100.0, ended=101.0)
    clock.seconds = 102.0
    tally.end()
    return LoadReport.from_tally(tally)


@pytest.mark.parametrize("percent", [0, 1, 50, 95, 99, 99.9, 100])
def test_a_percentile_is_within_half_a_percent_of_the_exact_one(percent: float) -> None:
    chance = random.Random(1)  # noqa: S311 - test data
    latencies = sorted(chance.lognormvariate(-6, 1.5) for _ in range(10_000))
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(latency)
    exact = latencies[max(0, round(len(latencies) * percent / 100) - 1)]
    assert histogram.percentile_seconds(percent) == pytest.approx(exact, rel=HALF_A_PERCENT)


def test_the_percentiles_of_one_latency_are_that_latency() -> None:
    histogram = LatencyHistogram()
    histogram.add(0.0123)
    assert [histogram.percentile_seconds(percent) for percent in (1, 50, 100)] == [0.0123] * 3


@pytest.mark.parametrize("latency", [0.0, 1e-9, 1e-6, 3600.0, 1e6])
def test_latencies_beyond_the_buckets_are_counted_at_the_ends(latency: float) -> None:
    histogram = LatencyHistogram()
    histogram.add(latency)
    assert histogram.count == 1
    assert histogram.percentile_seconds(50) == latency


def test_no_latency_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no latency"):
        LatencyHistogram().percentile_seconds(50)


def test_a_histogram_since_a_copy_holds_only_what_came_after() -> None:
    histogram = LatencyHistogram()
    histogram.add(1.0)
    earlier = histogram.copy()
    histogram.add(0.01)
    recent = histogram.since(earlier)
    assert recent.count == 1
    assert recent.percentile_seconds(50) == pytest.approx(0.01, rel=HALF_A_PERCENT)
    assert recent.largest_seconds == pytest.approx(0.01, rel=0.01)
    assert earlier.count == 1


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Hello from 1b40646880d9.", "1b40646880d9"),
        ("Hello from host.example.org.", "host.example.org"),
        ("Hello from nobody", "Hello from nobody"),
        ("\x1b[31mred", "[31mred"),
        ("x" * 100, "x" * 59 + "…"),
        ("", "(empty)"),
    ],
)
def test_a_replica_is_named_by_its_answer(message: str, name: str) -> None:
    assert replica_name(message) == name


def test_an_answer_that_is_no_ping_message_is_counted_as_unreadable(tally: Tally) -> None:
    tally.answered(b"\xff\xff", started=0, ended=1)
    assert tally.replicas == {"(unreadable)": 1}


def test_what_servers_send_does_not_fill_the_memory(tally: Tally) -> None:
    for number in range(MAX_REPLICAS + 50):
        answer(tally, f"Hello from {number}.")
    for number in range(MAX_ERROR_EVENTS + 50):
        tally.refused("UNAVAILABLE", f"{number}", started=0, ended=1)
    assert len(tally.replicas) == MAX_REPLICAS + 1
    assert tally.replicas[OTHER_REPLICAS] == 50
    assert tally.ok == MAX_REPLICAS + 50
    assert len(tally.error_events) == MAX_ERROR_EVENTS
    assert tally.errors == {"UNAVAILABLE": MAX_ERROR_EVENTS + 50}
    assert tally.error_samples == {"UNAVAILABLE": "0"}


def test_a_text_from_the_network_becomes_one_printable_line() -> None:
    assert one_line("a\n\n b\x07\tc") == "a b c"
    assert len(one_line("x" * 1000)) == 200


def test_the_clock_stands_still_before_the_start_and_after_the_end(clock: Clock) -> None:
    tally = Tally(clock)
    clock.seconds = 200.0
    assert (tally.started, tally.seconds) == (False, 0.0)
    tally.start()
    clock.seconds = 201.5
    tally.end()
    clock.seconds = 300.0
    assert (tally.started, tally.seconds) == (True, 1.5)


def test_the_report_knows_when_calls_failed_and_which_was_slowest(tally: Tally, clock: Clock) -> None:
    report = two_replicas_and_an_error(tally, clock)
    assert [(event.seconds, event.status) for event in report.error_events] == [
        (0.5, "UNAVAILABLE"),
        (1.0, "UNAVAILABLE"),
    ]
    assert report.slowest.milliseconds == 1000
    assert report.slowest.started_seconds == 0


def test_the_json_report_has_exactly_the_documented_fields(tally: Tally, clock: Clock) -> None:
    document = json.loads(json.dumps(two_replicas_and_an_error(tally, clock).to_json()))
    assert document == {
        "calls": 6,
        "ok": 4,
        "failed": 2,
        "seconds": 2.0,
        "calls_per_second": 2.0,
        "latency_ms": {
            "p50": pytest.approx(2.0, rel=HALF_A_PERCENT),
            "p95": pytest.approx(4.0, rel=HALF_A_PERCENT),
            "p99": pytest.approx(4.0, rel=HALF_A_PERCENT),
            "max": 4.0,
        },
        "replicas": {"aaa": 3, "bbb": 1},
        "errors": {"UNAVAILABLE": 2},
        "error_samples": {"UNAVAILABLE": "no backend"},
    }


def test_without_an_answer_the_latencies_are_null(tally: Tally) -> None:
    document = LoadReport.from_tally(tally).to_json()
    assert document["latency_ms"] == {"p50": None, "p95": None, "p99": None, "max": None}


def test_the_text_report_has_a_table_of_replicas_and_one_of_errors(tally: Tally, clock: Clock) -> None:
    lines = text_report(two_replicas_and_an_error(tally, clock)).splitlines()
    assert lines[0] == "6 calls in 2.00 s: 4 OK, 2 failed, 2 calls/s"
    assert lines[1].startswith("latency: p50 2.0")
    assert lines[1].endswith("max 4.00 ms")
    assert lines[2:] == [
        "",
        "REPLICA  CALLS  SHARE",
        "aaa          3  75.0%",
        "bbb          1  25.0%",
        "",
        "ERROR        CALLS  FIRST MESSAGE",
        "UNAVAILABLE      2  no backend",
    ]
