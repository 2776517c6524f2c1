"""``logs --since``, and logs that are truncated."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest

from local_stack.arguments import parser
from local_stack.logs import lines_since
from local_stack.rotation import rotate

NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)
LINES = [
    "2026-01-02 11:59:58,100 INFO supervisord started",
    "consul | 2026-01-02T11:59:59.999Z [INFO] agent: before",
    "a line without a time",
    "nginx | 2026/01/02 12:00:00 [notice] 7#7: at that time",
    "another line without a time",
    "grpc_server | 2026-01-02T12:00:01.000Z INFO grpc_server after",
]
NO_TIMES = ("order 2026-13-45 10:00:00", "2026-13-45 10:00:00 is no time", "0001-01-01 00:00:00")


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("lines", "since", "shown"),
    [
        (LINES, NOON, LINES[3:]),
        (LINES, None, LINES),
        # Lines before the first time are not shown.
        (["no time yet", *LINES[5:]], NOON, LINES[5:]),
        # A text that only looks like a time is not one.
        *(([*LINES[:3], f"app | {text}", *LINES[3:]], NOON, LINES[3:]) for text in NO_TIMES),
    ],
)
def test_lines_from_that_time_on_are_shown(lines: list[str], since: datetime.datetime | None, shown: list[str]) -> None:
    assert list(lines_since(lines, since)) == shown


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("2m", 120), ("0s", 0)])
def test_since_may_be_a_duration(text: str, seconds: int) -> None:
    since = parser().parse_args(["logs", "--since", text]).since
    assert abs((datetime.datetime.now(datetime.UTC) - since).total_seconds() - seconds) < 5


def test_since_may_be_a_time() -> None:
    assert parser().parse_args(["logs", "--since", "2026-01-02T12:00:00Z"]).since == NOON
    assert parser().parse_args(["logs", "--since", "2026-01-02T12:00"]).since == NOON


@pytest.mark.parametrize("text", ["", "yesterday", "1d", "m", "5"])
def test_since_of_another_form_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["logs", "--since", text])
    assert "1h30m" in capsys.readouterr().err


def test_a_long_log_is_truncated_and_its_writer_continues_there(tmp_path: Path) -> None:
    log, short = tmp_path / "long.log", tmp_path / "short.log"
    short.write_text("one\n")
    with log.open("a", buffering=1) as writer:
        writer.write("one\ntwo\n")
        rotate(tmp_path, 7)
        writer.write("three\n")
        assert (log.read_text(), (tmp_path / "long.log.1").read_text()) == ("three\n", "one\ntwo\n")
        writer.write("four\n")
        rotate(tmp_path, 7)
    assert (log.read_text(), (tmp_path / "long.log.1").read_text()) == ("", "three\nfour\n")
    assert short.read_text() == "one\n"
    assert not (tmp_path / "short.log.1").exists()


def test_a_log_that_can_not_be_copied_is_truncated_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\n")
    (tmp_path / "a.log.1").mkdir()
    with pytest.raises(IsADirectoryError):
        rotate(tmp_path, 1)
    assert log.read_text() == ""


def test_a_missing_directory_is_not_an_error(tmp_path: Path) -> None:
    rotate(tmp_path / "none", 1)
