"""The balancer's certificate for TLS, and the CA of its callers: checks the files, and copies the good ones for nginx.

nginx reads only the copies, so that a wrong file leaves the last good ones in use. A copy is one file that is renamed
into place: a certificate chain with its key, or the certificates of a CA.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import BalancerError

if TYPE_CHECKING:
    from cryptography import x509

LOG = logging.getLogger("balancer")

CERTIFICATE, KEY, CLIENT_CA = "LB_TLS_CERTIFICATE", "LB_TLS_KEY", "LB_TLS_CLIENT_CA"
# nginx's copies: run/certificate.pem for CERTIFICATE and KEY, run/client-ca.pem for CLIENT_CA.
_PAIR, _CA = "certificate.pem", "client-ca.pem"
# New connections get a renewed certificate within 5 s; nginx looks for a new copy once a second.
_LOOK_SECONDS = 1.0
_WARN_SECONDS = 14 * 86400
_WARN_AGAIN_SECONDS = 86400


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files; None for those that the environment does not name. ``certificate`` and ``key`` come together."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class Certificates:
    """The good contents of the files.

    Args:
        files: their paths.
        directory: the directory of the copies.
        changed: called after the copies have changed.

    Attributes:
        expiries: the end of the validity of each certificate in use, in seconds since 1970, by variable.
    """

    def __init__(self, files: Files, directory: Path, changed: Callable[[], None]) -> None:
        self._files = files
        self._directory = directory
        self._changed = changed
        self._copied: dict[str, bytes] | None = None
        self._problem = self._logged = ""
        self._warned: dict[str, float] = {}
        self.expiries: dict[str, float] = {}

    async def follow(self) -> None:
        """Copies the files after each change, and warns of certificates that expire within 14 days."""
        while True:
            await asyncio.to_thread(self.update)
            self._warn()
            await asyncio.sleep(_LOOK_SECONDS)

    def update(self) -> None:
        """Copies the files if they have changed and are good.

        A problem is logged once, and only if it is still there a second later, because programs renew a certificate and
        its key one after the other.
        """
        try:
            copies, expiries = read(self._files)
            if copies != self._copied:
                for name in (_PAIR, _CA):
                    _write(self._directory / name, copies.get(name, b""))
                for name, end in expiries.items():
                    LOG.info("%s: valid until %s", name, _date(end))
                self._copied, self.expiries = copies, expiries
                self._changed()
            self._problem = self._logged = ""
        except (BalancerError, OSError) as error:
            if str(error) == self._problem and self._problem != self._logged:
                LOG.error("%s; the last good files stay in use", error)  # noqa: TRY400 - an expected failure
                self._logged = self._problem
            self._problem = str(error)

    def _warn(self) -> None:
        now = time.time()
        for name, end in self.expiries.items():
            if end - now < _WARN_SECONDS and now >= self._warned.get(name, 0) + _WARN_AGAIN_SECONDS:
                self._warned[name] = now
                LOG.warning("%s: %s at %s", name, "expires" if end > now else "has expired", _date(end))


def read(files: Files) -> tuple[dict[str, bytes], dict[str, float]]:
    """Reads and checks the files.

    Returns:
        The contents of the copies by their names, and the ends of validity by variable.

    Raises:
        BalancerError: with the variable of a wrong file.
    """
    copies: dict[str, bytes] = {}
    expiries: dict[str, float] = {}
    if not files.certificate:
        return copies, expiries
    # It takes memory and time to load, which a balancer without TLS does not need.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    if files.key:
        chain = _read(CERTIFICATE, files.certificate)
        text = _read(KEY, files.key)
        leaf = _parse_certificates(CERTIFICATE, chain)[0]
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        try:
            public = load_pem_private_key(text, password=None).public_key().public_bytes(*form)
        except TypeError:
            raise BalancerError(f"{KEY}: must not be encrypted (got {str(files.key)!r})") from None
        except (ValueError, UnsupportedAlgorithm):
            raise BalancerError(f"{KEY}: must be a file with a private key in PEM (got {str(files.key)!r})") from None
        try:
            certified = leaf.public_key().public_bytes(*form)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BalancerError(f"{CERTIFICATE}: must have a known kind of key: {error}") from None
        if public != certified:
            raise BalancerError(f"{KEY}: must be the key of {CERTIFICATE} (got {str(files.key)!r})")
        copies[_PAIR] = chain.strip() + b"\n" + text.strip() + b"\n"
        expiries[CERTIFICATE] = leaf.not_valid_after_utc.timestamp()
    if files.client_ca:
        authority = _read(CLIENT_CA, files.client_ca)
        found = _parse_certificates(CLIENT_CA, authority)
        copies[_CA] = authority.strip() + b"\n"
        expiries[CLIENT_CA] = min(one.not_valid_after_utc.timestamp() for one in found)
    return copies, expiries


def describe(files: Files) -> Mapping[str, str]:
    """Returns the problem of the files by variable; empty if they are good."""
    try:
        read(files)
    except BalancerError as error:
        name, _, problem = str(error).partition(": ")
        return {name: problem}
    return {}


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BalancerError(f"{name}: must be a readable file: {error.strerror} (got {str(path)!r})") from None


def _parse_certificates(name: str, text: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise BalancerError(f"{name}: must be a file with a certificate in PEM") from None


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
