"""The machine of a run, without names and paths."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Table
from testbed import programs
from testbed.errors import BenchmarkError

_PROGRAMS = (("haproxy", "-v"), ("envoy", "--version"), ("h2load", "--version"))
_TOOLS = (("nginx", "-v"), ("consul", "version"), ("consul-template", "-version"))


def table() -> Table:
    """Returns cores, memory, kernel, versions and date."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    rows = [
        ["cores", f"{os.cpu_count()}" + (f" ({model[1].strip()})" if model else "")],
        ["memory", f"{int(memory[1]) / 1e6:.0f} GB" if memory else "unknown"],
        ["kernel", f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}"],
        ["date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")],
        ["Python", platform.python_version()],
    ]
    rows += [[name, programs.version(programs.tool(name), flag)] for name, flag in _TOOLS]
    for name, flag in _PROGRAMS:
        try:
            rows.append([name, programs.version(programs.program(name), flag)])
        except BenchmarkError:
            rows.append([name, "not installed"])
    rows.append(["ghz", programs.GHZ_VERSION])
    return Table(columns=["", ""], rows=rows)
