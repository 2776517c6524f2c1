"""The benchmarks' statistics, report and configuration files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import plot, report
from benchmarks.sections import kinds, membership, memory
from benchmarks.servers.measure import Figures
from protos import api_pb2
from testbed import programs, render
from testbed.balancers import LuaNginx, StaticNginx
from testbed.errors import BenchmarkError, MissingError
from testbed.load import read_h2load, read_times
from testbed.stats import Spread, percentile, ratios

PEERS = ("127.0.0.5:7777", "127.0.0.6:7777")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    with pytest.raises(ValueError, match="0 values"):
        percentile([], 50)


def test_a_ratio_is_taken_round_by_round() -> None:
    found = ratios(Spread.of([10, 30, 20]), Spread.of([10, 10, 20]))
    assert (found.low, found.median, found.high) == (1, 1, 3)


def test_a_target_is_met_by_the_median_alone() -> None:
    values = Spread.of([1, 2, 9])
    assert report.judge("a", values, "s", "under 3 s", lambda value: value < 3).verdict == report.MET
    assert report.judge("a", values, "s", "under 2 s", lambda value: value < 2).verdict == report.NOT_MET


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9, 1.0, 2.0], report.MET),
        ([0.9, 1.02, 1.1], report.NEAR),
        ([1.01, 1.02, 1.1], report.NOT_MET),
        ([0.9, 1.05, 1.1], report.NOT_MET),
    ],
)
def test_a_median_near_a_target_is_within_the_noise_only_if_a_round_meets_it(values: list[float], verdict: str) -> None:
    judged = report.judge("a", Spread.of(values), "", "at most 1", lambda value: value <= 1, noise=0.03)
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.00"), (0.9467, "0.947"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_a_figure_has_three_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_report_shows_every_target_and_what_was_not_measured() -> None:
    section = report.Section(title="Things", method="Looked at.", notes=["A note."])
    section.targets = [
        report.judge("speed", Spread.of([1.5]), "times", "at least 1", lambda value: value >= 1),
        report.absent("other", "at least 1", "not installed"),
    ]
    section.tables = [report.Table(columns=["a"], rows=[["x|y"]])]
    text = report.render([section], machine=report.Table(columns=["", ""], rows=[["cores", "2"]]), command="make bench")
    assert "| speed | at least 1 | 1.50 times | 1.50 to 1.50 times | met |" in text
    assert "| other | at least 1 | not installed |  | not measured |" in text
    assert "x\\|y" in text
    assert "A note." in text


def test_the_plot_is_xml_with_every_label() -> None:
    chart = report.Chart(title="Calls <a second>", unit="calls", values=[("one & two", 1), ("none", 0)])
    assert "one & two" in "".join(ET.fromstring(plot.svg([chart])).itertext())  # noqa: S314 - written here


@pytest.mark.parametrize("name", ["original.conf", "haproxy.cfg", "envoy.yaml", "backend.conf"])
def test_every_configuration_is_filled(name: str) -> None:
    values = {"PORT": "1", "WORKERS": "2", "SLOTS": "3", "DIRECTORY": "/d", "TLS": " ssl"}
    values["SERVERS"] = render.servers(PEERS)
    assert "@PORT@" not in render.fill(name, values)
    with pytest.raises(BenchmarkError, match="nothing fills"):
        render.fill(name, {})


def test_peers_are_written_as_each_balancer_reads_them() -> None:
    (replica,) = json.loads(render.snapshot(PEERS[:1]))["replicas"]
    assert (replica["address"], replica["port"], replica["serves"]) == ("127.0.0.5", 7777, True)
    assert len(json.loads(render.endpoints(PEERS))["resources"][0]["endpoints"][0]["lb_endpoints"]) == 2


def test_a_call_that_is_answered_without_a_message_counts_as_failed() -> None:
    output = (
        "finished in 828.03ms, 60 req/s\ntraffic: 6MB (6) total, 2MB (2) headers (space savings 49%), 1MB (48) data\n"
    )
    load = read_h2load(output, 3, "Hello from cheap.")
    assert (load.answered, load.failed) == (2, 1)
    assert load.seconds == pytest.approx(0.82803)


def test_the_seconds_of_each_call_are_read_from_h2loads_log() -> None:
    assert read_times("1795629137036513\t200\t412\n1795629137036926\t-1\t40412\n") == [0.000412, 0.040412]
    with pytest.raises(BenchmarkError, match="not understood"):
        read_times("1795629137036513\t200\n")


@pytest.mark.parametrize("size", [5, 127, 128, 65536, 1024 * 1024])
def test_a_message_of_any_length_is_as_the_generated_module_writes_it(size: int) -> None:
    sent = render.message("x" * size)
    assert sent[:5] == b"\0" + (len(sent) - 5).to_bytes(4, "big")
    assert sent[5:] == api_pb2.PingMessage(greeting="x" * size).SerializeToString()


def test_the_kinds_of_servers_are_compared_round_by_round_and_a_missing_one_says_why() -> None:
    results = kinds.Results()
    for ours, theirs in ((1.0, 1.0), (3.0, 2.0), (4.0, 2.0)):
        for case in (*kinds.LOADS, *kinds.SIZES):
            pair = {LuaNginx.name: ours, StaticNginx.name: theirs}
            results.add(case.name, {name: Figures(p50=one, p99=one, rate=one) for name, one in pair.items()})
    section = kinds.section(["grpc-go", "grpc-java"], {"grpc-go": results}, {"grpc-java": "mvn is not installed"})
    verdicts = {one.what.partition(",")[0]: (one.measured, one.verdict) for one in section.targets}
    assert len(verdicts) == 2 * 3 * 3
    assert verdicts["grpc-go 4x4: p50"] == ("1.50 times", report.NOT_MET)
    assert verdicts["grpc-go 4x4: calls a second"] == ("1.50 times", report.MET)
    assert verdicts["grpc-java 8x16: p99"] == ("mvn is not installed", report.NOT_MEASURED)


def test_what_is_built_is_in_its_place_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(unfinished: Path) -> None:
        (unfinished / "half").touch()
        raise BenchmarkError("no space")

    with pytest.raises(MissingError, match="thing does not build: no space"):
        programs.kept("thing", "1", "file", fail)
    assert not list(tmp_path.rglob("*half*"))
    made = programs.kept("thing", "1", "file", lambda unfinished: (unfinished / "file").touch())
    assert made.parent.name == "thing-1"
    assert programs.kept("thing", "1", "file", fail) == made


def test_ghz_statuses_are_counted() -> None:
    output = "Status code distribution:\n  [Unavailable]   3 responses   \n  [OK]   6000 responses   \n"
    assert membership.read_load("ghz", output) == (6000, 3)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/venv/bin/python", "-m", "grpc_server"], "grpc_server"),
        (["/venv/bin/python3", "/venv/bin/supervisord", "-c", "x"], "supervisord"),
        (["nginx: worker process"], "nginx"),
        (["consul", "agent"], "consul"),
    ],
)
def test_a_program_is_named_by_its_command_line(command: list[str], name: str) -> None:
    assert memory.program_name(command) == name
