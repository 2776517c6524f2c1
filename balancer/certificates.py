"""The balancer's certificates for TLS, with callers and with replicas: checks the files, and copies the good ones.

nginx and Envoy read only the copies, so that a wrong file leaves the last good ones in use. A copy is one file that is
renamed into place: a certificate chain with its key, or the certificates of a CA.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from common.certificates import Contents, Files, Followed

LOG = logging.getLogger("balancer")

# With callers: the balancer's certificate, its key and the CA of callers.
CALLERS = CERTIFICATE, KEY, CLIENT_CA = "LB_TLS_CERTIFICATE", "LB_TLS_KEY", "LB_TLS_CLIENT_CA"
# With replicas: the balancer's certificate as their client, its key and the CA of replicas.
REPLICAS = ("LB_REPLICA_CERTIFICATE", "LB_REPLICA_KEY", "LB_REPLICA_CA")
# The copies, of a certificate with its key and of a CA.
CALLERS_COPIES = ("certificate.pem", "client-ca.pem")
REPLICAS_COPIES = ("replica-certificate.pem", "replica-ca.pem")
# New connections get a renewed certificate within 5 s; nginx looks for a new copy once a second.
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 0.1
_WARN_SECONDS = 14 * 86400
_WARN_AGAIN_SECONDS = 86400


class Certificates:
    """The good contents of the files of one side.

    Args:
        files: their paths.
        copies: the files that nginx or Envoy reads: the certificate with its key, and the CA.
        changed: called after the copies have changed.

    Attributes:
        expiries: the end of the validity of each certificate in use, in seconds since 1970, by variable.
    """

    def __init__(self, files: Files, copies: tuple[Path, Path], changed: Callable[[], None]) -> None:
        self._followed = Followed(files, LOG)
        self._copies = copies
        self._changed = changed
        self._warned: dict[str, float] = {}
        self.expiries: dict[str, float] = {}

    async def follow(self) -> None:
        """Copies the files after each change, and warns of certificates that expire within 14 days."""
        while True:
            if await asyncio.to_thread(self.update):
                self._changed()
            self._warn()
            await asyncio.sleep(_LOOK_SECONDS)

    def update(self) -> bool:
        """Copies the files if they have changed and are good, and returns whether it has."""
        return self._followed.look(self._copy)

    def _copy(self, found: Contents) -> None:
        for path, text in zip(self._copies, (found.chain + found.key, found.authority), strict=True):
            _write(path, text)
        for name, end in found.expiries.items():
            LOG.info("%s: valid until %s", name, _date(end))
        self.expiries = found.expiries

    def _warn(self) -> None:
        now = time.time()
        for name, end in self.expiries.items():
            if end - now < _WARN_SECONDS and now >= self._warned.get(name, 0) + _WARN_AGAIN_SECONDS:
                self._warned[name] = now
                LOG.warning("%s: %s at %s", name, "expires" if end > now else "has expired", _date(end))


async def wait_for_copies(directory: Path, callers: Files, replicas: Files) -> None:
    """Waits until the copies of these files are in the directory, which another process writes."""
    sides = ((callers, CALLERS_COPIES), (replicas, REPLICAS_COPIES))
    needed = [
        directory / copy
        for files, copies in sides
        for path, copy in zip((files.certificate, files.authority), copies, strict=True)
        if path
    ]
    while True:
        if all(path.exists() for path in needed):
            return
        await asyncio.sleep(_WAIT_SECONDS)


def _write(path: Path, text: bytes) -> None:
    """Replaces a copy, or removes it if there is no text."""
    if not text:
        path.unlink(missing_ok=True)
        return
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    new.replace(path)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
