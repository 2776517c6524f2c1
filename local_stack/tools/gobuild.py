"""Programs that are built with Go: Consul, consul-template, and those of tests and benchmarks."""

import os
import subprocess
from pathlib import Path

from local_stack.errors import UnavailableError, say
from local_stack.tools.cache import run
from local_stack.tools.places import Places
from local_stack.tools.tool import GoBuild, parse_version

# A build that takes so many times its minutes is stuck.
_LIMIT_FACTOR = 12
_LAST_LINES = 10


def build(recipe: GoBuild, title: str, places: Places, directory: Path) -> None:
    """Builds a program into a directory, with the Go of this machine; the log is kept beside the directory."""
    log = directory.parent / "build.log"
    go = places.program("go")
    # Variables that ask for another target or a workspace are left out; proxies and caches stay. Without C the build
    # needs no compiler, and the program runs in a container of another C library.
    env = {name: value for name, value in os.environ.items() if name not in ("GOOS", "GOARCH")}
    env |= {"CGO_ENABLED": "0", "GOBIN": str(directory), "GOWORK": "off"}
    _require_go(recipe, title, go, directory, env)
    step = f"building {title} with Go, about {recipe.minutes} min the first time"
    say(f"{step}, and up to 5 GB in Go's caches; log: {log}")
    module = ["-C", str(recipe.module)] if recipe.module else []  # -C must stand first
    flags = ["-trimpath", "-mod=readonly", f"-ldflags=-s -w {recipe.linker_flags}".rstrip()]
    command = [go, *module, "install", *flags, recipe.package]
    limit = recipe.minutes * 60 * _LIMIT_FACTOR
    code, lines = run(command, step, limit_seconds=limit, log=log, cwd=directory, env=env)
    if code:
        for line in lines[-_LAST_LINES:]:
            say(f"  {line}")
        raise UnavailableError(f"go install failed (exit {code}): {(lines or ['no message'])[-1]}; log: {log}")


def _require_go(recipe: GoBuild, title: str, go: str, directory: Path, env: dict[str, str]) -> None:
    """Checks that Go is new enough, or may fetch the Go that is."""
    command = [go, "env", "GOVERSION", "GOTOOLCHAIN"]
    asked = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)
    # Go before 1.21 does not know GOTOOLCHAIN, and answers with an empty line.
    version, toolchain, *_ = [*asked.stdout.splitlines(), "", ""]
    try:
        is_new = parse_version(version) >= parse_version(recipe.go_version)
    except ValueError:
        raise UnavailableError(f"{go} does not work: {asked.stderr.strip() or 'it prints no version'}") from None
    if not is_new and toolchain != "auto" and not toolchain.endswith("+auto"):
        found = version.removeprefix("go")
        raise UnavailableError(f"{go} is Go {found}, and {title} needs {recipe.go_version} or newer")
