"""ghz, a gRPC load client that is not ours; built once with Go and kept where the other tools are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from local_stack.tools.places import Places

MODULE = Path(__file__).resolve().parent / "go"


def find() -> str | None:
    """Its path: from PATH, from the cache or built; None where Go is missing too.

    Raises:
        subprocess.CalledProcessError: it could not be built.
    """
    found = shutil.which("ghz")
    if found:
        return found
    listed = [line.split() for line in MODULE.joinpath("go.mod").read_text().splitlines()]
    version = next(words[1] for words in listed if words[:1] == ["github.com/bojand/ghz"])
    binary = Places.from_env(os.environ).cache / f"ghz-{version.removeprefix('v')}" / "ghz"
    if binary.exists():
        return str(binary)
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not go:
        return None
    print(f"building ghz {version} with Go: about a minute the first time", file=sys.stderr)
    binary.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when complete: an interrupted build leaves nothing to trust.
    built = binary.with_name(f"ghz.{os.getpid()}")
    subprocess.run(
        [go, "build", "-buildvcs=false", "-trimpath", "-o", built, "github.com/bojand/ghz/cmd/ghz"],
        cwd=MODULE,
        env={**os.environ, "CGO_ENABLED": "0"},
        check=True,
    )
    built.replace(binary)
    return str(binary)


if __name__ == "__main__":
    print(find() or "ghz: no Go here")
