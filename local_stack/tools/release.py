"""The official releases: downloaded, their SHA-256 checked, unpacked."""

import hashlib
import os
import platform
import re
import signal
import sys
import tempfile
import zipfile
from pathlib import Path

from local_stack.errors import UnavailableError, say
from local_stack.tools.cache import run
from local_stack.tools.places import Places
from local_stack.tools.tool import Tool

ANSWER_SECONDS = 10.0  # for the first answer, the look-up of the name included
PAUSE_SECONDS = 5.0
TOTAL_SECONDS = 300.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def download(tool: Tool, places: Places, directory: Path) -> None:
    """Puts a tool's official release for this machine into a directory, if it has the sum that is pinned."""
    architecture = _ARCHITECTURES.get(platform.machine(), "")
    if platform.system() != "Linux" or architecture not in tool.sha256:
        raise UnavailableError(f"none for {platform.system()} on {platform.machine()}")
    base = places.releases_url
    if not base.startswith(("https://", "http://")):
        raise UnavailableError(f"LOCAL_STACK_RELEASES_URL: must be an http or https address (got {base!r})")
    name = f"{tool.name}_{tool.version}_linux_{architecture}.zip"
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        archive = Path(scratch, name)
        _fetch(f"{base}/{tool.name}/{tool.version}/{name}", archive)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != tool.sha256[architecture]:
            raise UnavailableError(f"{name} has SHA-256 {found} instead of {tool.sha256[architecture]}")
        try:
            with zipfile.ZipFile(archive) as opened:
                Path(opened.extract(tool.name, directory)).chmod(0o755)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UnavailableError(f"{name}: {error.args[0]}") from error


def _fetch(url: str, target: Path) -> None:
    step = f"downloading {url}"
    say(f"{step} (usually under a minute; the first answer within {ANSWER_SECONDS:.0f} s)")
    script = str(Path(__file__).with_name("download.py"))
    command = [sys.executable, "-I", script, url, str(target), str(ANSWER_SECONDS), str(PAUSE_SECONDS)]
    log = target.with_suffix(".log")
    code, lines = run(command, step, limit_seconds=TOTAL_SECONDS, log=log, cwd=target.parent, env=os.environ)
    if code == -signal.SIGALRM:
        raise UnavailableError(f"{url}: no answer within {ANSWER_SECONDS:.0f} s")
    if code:
        # The last line of a traceback, without the exception's class.
        reason = re.sub(r"^[\w.]+: ", "", (lines or ["no message"])[-1]).strip("<>")
        raise UnavailableError(f"{url}: {reason}")
