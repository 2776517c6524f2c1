"""The generated modules of protos."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from local_stack.settings import ROOT


def test_committed_modules_are_what_the_compiler_makes(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "protos/api.proto"]
    # The compiler looks for its plugin on PATH.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "protos").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (ROOT / "protos").glob("api_pb2*")}
