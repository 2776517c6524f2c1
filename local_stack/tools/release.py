"""A tool's official release: downloaded, its SHA-256 checked, unpacked into the cache."""

import hashlib
import http.client
import platform
import re
import shutil
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from local_stack.tools import cache
from local_stack.tools.catalogue import Tool
from local_stack.tools.errors import UnavailableError
from local_stack.tools.places import Places
from local_stack.tools.progress import Ticker, say

CONNECT_TIMEOUT_SECONDS = 5.0
TOTAL_TIMEOUT_SECONDS = 300.0
# Looking up the name and trying one address after the other are not bound by a socket's timeout.
_FIRST_ANSWER_SECONDS = 2 * CONNECT_TIMEOUT_SECONDS
_CHUNK_BYTES = 1 << 18
_SUMS_BYTES = 1 << 16
_PROGRAM_BYTES = 1 << 30
# What the releases call the machines that uname knows.
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "i686": "386"}


def download(tool: Tool, places: Places) -> Path:
    """Put a tool's official release into the cache and return its path there.

    The sums come from the same server as the release: what vouches for both is https. They are not pinned
    here and their signature is not checked.

    Raises:
        UnavailableError: if there is none for this machine, the server is out of reach or too slow, or the
            release is not what its sum says.

    """
    architecture = _ARCHITECTURES.get(platform.machine().lower())
    if platform.system() != "Linux" or not architecture:
        raise UnavailableError(f"none for {platform.system()} on {platform.machine()}")
    if not places.releases_url.startswith(("https://", "http://")):
        raise UnavailableError(f"LOCAL_STACK_RELEASES_URL={places.releases_url} is not an http or https address")
    archive = f"{tool.name}_{tool.version}_linux_{architecture}.zip"
    base = f"{places.releases_url}/{tool.name}/{tool.version}"
    say(f"{tool}: asking {places.releases_url} (up to {_FIRST_ANSWER_SECONDS:.0f} s)")
    wanted = _published_sum(f"{base}/{tool.name}_{tool.version}_SHA256SUMS", archive)
    with cache.staging(tool, places) as directory:
        found = _fetch(f"{base}/{archive}", directory / archive, tool)
        if found != wanted:
            raise UnavailableError(f"{archive} has SHA-256 {found}, but SHA256SUMS says {wanted}")
        return cache.keep(tool, places, _unpack(directory / archive, tool.name))


def _published_sum(url: str, archive: str) -> str:
    """Return what a SHA256SUMS file says about an archive."""
    for line in _first_answer(url).decode("utf-8", errors="replace").splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[1] == archive and re.fullmatch("[0-9a-f]{64}", fields[0]):
            return fields[0]
    raise UnavailableError(f"{url} has no line for {archive}")


def _first_answer(url: str) -> bytes:
    """Return a small file, or raise UnavailableError in time whatever the network does."""
    answers: list[bytes] = []
    reasons: list[str] = []

    def ask() -> None:
        try:
            with _open(url) as response:
                answers.append(response.read(_SUMS_BYTES))
        except (OSError, http.client.HTTPException) as error:
            reasons.append(_reason(url, error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_FIRST_ANSWER_SECONDS)
    if not answers:
        raise UnavailableError(reasons[0] if reasons else f"{url}: no answer within {_FIRST_ANSWER_SECONDS:.0f} s")
    return answers[0]


def _fetch(url: str, target: Path, tool: Tool) -> str:
    """Download a file and return its SHA-256."""
    ticker = Ticker(f"downloading {tool}", f"at most {TOTAL_TIMEOUT_SECONDS / 60:.0f} minutes")
    say(f"{tool}: downloading {url} (about {tool.download_megabytes} MB, usually under a minute)")
    digest = hashlib.sha256()
    size = 0
    try:
        with _open(url) as response, target.open("wb") as file:
            # read1: what has arrived, so that a slow server is noticed.
            while chunk := response.read1(_CHUNK_BYTES):
                digest.update(chunk)
                size += file.write(chunk)
                ticker.tick(f", {size >> 20} MB")
                if ticker.elapsed_seconds > TOTAL_TIMEOUT_SECONDS:
                    raise UnavailableError(f"{url}: {size >> 20} MB in {TOTAL_TIMEOUT_SECONDS:.0f} s is too slow")
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(_reason(url, error)) from error
    return digest.hexdigest()


def _open(url: str) -> http.client.HTTPResponse:
    """Open an address; the caller has checked that it is http or https."""
    response: http.client.HTTPResponse = urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_SECONDS)  # noqa: S310 (see above)
    return response


def _reason(url: str, error: Exception) -> str:
    """Say in one line what was wrong with a request."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{url}: HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{url}: {str(reason) or type(reason).__name__}"


def _unpack(archive: Path, member: str) -> Path:
    """Unpack one member of an archive beside it."""
    target = archive.with_name(member)
    try:
        with zipfile.ZipFile(archive) as opened:
            if opened.getinfo(member).file_size > _PROGRAM_BYTES:
                raise UnavailableError(f"{member} in {archive.name} is larger than any release of it")
            with opened.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    except KeyError:
        raise UnavailableError(f"{archive.name} has no member {member}") from None
    except zipfile.BadZipFile as error:
        raise UnavailableError(f"{archive.name}: {error}") from error
    return target
