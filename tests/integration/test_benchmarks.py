"""The benchmarks themselves, the cheapest part of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.drivers import ROOT
from tests.support.local import SLOT


def _quick_run(directory: Path, *sections: str) -> str:
    """The report of some sections."""
    output = directory / "report.md"
    # Not the shared stack's: a section may start one of its own.
    where = ["--address-base", f"127.{140 + SLOT}.0.0", "--port", str(20000 + 30 * SLOT)]
    where += ["--consul-port", str(19000 + SLOT)]
    only = [word for name in sections for word in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks", "--quick", *only, "--output", str(output), *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return output.read_text()


@pytest.mark.usefixtures("tools")
def test_a_quick_run_of_two_sections_has_their_rows_and_leaves_nothing(tmp_path: Path) -> None:
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed: apt-get install nghttp2-client")
    report = _quick_run(tmp_path, "cpu", "kinds")
    for peers in ("3", "100", "1,000"):
        assert f"| {peers} | nginx with the Lua balancer |" in report
        assert f"Lua balancer over static upstream, {peers} peers | at most 1.05 times |" in report
    for kind in ("grpc-go", "grpc.aio"):
        for load in ("1x1", "4x4", "8x16"):
            assert f"| {kind} {load}: p50, Lua balancer over static upstream | at most 1.0 times |" in report
        assert f"| {kind} | nginx with the Lua balancer |" in report
    for load in ("1x1", "4x4, 1 MiB"):
        assert f"| {load} | nginx with the Lua balancer |" in report
    assert str(tmp_path) not in report


@pytest.mark.usefixtures("tools")
def test_a_quick_run_of_the_fleets_has_their_sizes_and_says_where_the_processor_time_goes(tmp_path: Path) -> None:
    report = _quick_run(tmp_path, "fleet")
    for size in ("10", "100"):
        row = next(line for line in report.splitlines() if line.startswith(f"| {size} |"))
        # Two percentiles each of the times to the first and to the last answer, processor time, memory.
        first, _, last, _, cpu, _, megabytes = (cell.strip() for cell in row.split("|")[2:-1])
        assert all(float(value) > 0 for value in (first, last, cpu, megabytes)), row
    for program in ("consul", "consul-template", "balancer", "nginx"):
        assert f"\n| {program} |" in report
    assert "| The balancer's processor time a change with 1,000 replicas | at most 60 ms | a quick run" in report


def test_a_quick_run_of_one_server_has_both_servers(tmp_path: Path) -> None:
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed: apt-get install nghttp2-client")
    report = _quick_run(tmp_path, "server")
    assert "grpc_server as in the stack over bare grpc.aio | at least 0.93 times |" in report
    for server in ("bare grpc.aio", "grpc_server as in the stack"):
        row = next(line for line in report.splitlines() if line.startswith(f"| {server} |"))
        rate, _, micros, _ = (cell.strip() for cell in row.split("|")[2:-1])
        assert float(rate.replace(",", "")) > 0, row
        assert float(micros.replace(",", "")) > 0, row
