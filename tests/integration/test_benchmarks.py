"""The benchmarks themselves, the cheapest part of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import SLOT
from tests.support.drivers import ROOT


@pytest.mark.usefixtures("tools")
def test_a_quick_run_of_two_sections_has_their_rows_and_leaves_nothing(tmp_path: Path) -> None:
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed: apt-get install nghttp2-client")
    output = tmp_path / "report.md"
    where = ["--address-base", f"127.{100 + SLOT}.0.0", "--port", str(20000 + 30 * SLOT)]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "cpu", "--only", "kinds"]
    command += ["--output", str(output), *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = output.read_text()
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
