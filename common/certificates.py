"""Reads and checks the files of certificates, for TLS of all programs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

    from common.environment import EnvironmentReader


class CertificateError(Exception):
    """A file is wrong; the message begins with its variable."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one side of TLS, and the variables that name them.

    Attributes:
        variables: those of the certificate, of its key and of the CA.
        certificate: None if the environment names none; ``key`` comes with it.
        authority: the CA of the other side; None if the environment names none.
    """

    variables: tuple[str, str, str]
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of good files.

    Attributes:
        chain: the certificate with its intermediate ones; empty for none, as is ``key``.
        authority: the certificates of the CA; empty for none.
        expiries: by variable, the end of the validity in seconds since 1970.
    """

    chain: bytes = b""
    key: bytes = b""
    authority: bytes = b""
    expiries: dict[str, float]


def read_files(reader: EnvironmentReader, variables: tuple[str, str, str], *, default_authority: str = "") -> Files:
    """Reads the variables, and notes problems: a certificate without its key, and wrong files."""
    texts = [reader.text(name, "") for name in variables[:2]] + [reader.text(variables[2], default_authority)]
    certificate, key, authority = (Path(text) if text else None for text in texts)
    files = Files(variables=variables, certificate=certificate, key=key, authority=authority)
    if (certificate is None) != (key is None):
        missing, other = variables[:2] if key else variables[1::-1]
        reader.add_problem(missing, f"must be set, because {other} is")
    else:
        try:
            load(files)
        except CertificateError as error:
            name, _, problem = str(error).partition(": ")
            reader.add_problem(name, problem)
    return files


def load(files: Files) -> Contents:
    """Reads and checks the files.

    Raises:
        CertificateError: with the variable of a wrong file.
    """
    expiries: dict[str, float] = {}
    chain = key = authority = b""
    if files.certificate and files.key:
        chain, key = _read(files.variables[0], files.certificate), _read(files.variables[1], files.key)
        leaf = _parse_certificates(files.variables[0], chain)[0]
        _check_key(files, leaf, key)
        expiries[files.variables[0]] = leaf.not_valid_after_utc.timestamp()
    if files.authority:
        authority = _read(files.variables[2], files.authority)
        found = _parse_certificates(files.variables[2], authority)
        expiries[files.variables[2]] = min(one.not_valid_after_utc.timestamp() for one in found)
    return Contents(chain=chain, key=key, authority=authority, expiries=expiries)


class Followed:
    """Files that are renewed while a program uses them.

    Args:
        files: their paths.
        log: gets problems.

    Attributes:
        contents: the last good ones; None until the first look.
    """

    def __init__(self, files: Files, log: logging.Logger) -> None:
        self._files = files
        self._log = log
        self._problem = self._logged = ""
        self.contents: Contents | None = None

    def look(self, use: Callable[[Contents], None] | None = None) -> bool:
        """Returns whether the files are others than the last good ones, and good.

        A problem is logged once, and only if a second look finds it too, because programs renew a certificate and its
        key one after the other.

        Args:
            use: takes the new contents; they are not the last good ones if it raises OSError.
        """
        try:
            found = load(self._files)
            if found == self.contents:
                self._problem = self._logged = ""
                return False
            if use:
                use(found)
        except (CertificateError, OSError) as error:
            if str(error) == self._problem and self._problem != self._logged:
                self._log.error("%s; the last good files stay in use", error)
                self._logged = self._problem
            self._problem = str(error)
            return False
        self._problem = self._logged = ""
        self.contents = found
        return True


def _check_key(files: Files, leaf: x509.Certificate, text: bytes) -> None:
    # It takes memory and time to load, which a program without TLS does not need.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    certificate, key, _ = files.variables
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        public = load_pem_private_key(text, password=None).public_key().public_bytes(*form)
    except TypeError:
        raise CertificateError(f"{key}: must not be encrypted (got {str(files.key)!r})") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{key}: must be a file with a private key in PEM (got {str(files.key)!r})") from None
    try:
        certified = leaf.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{certificate}: must have a known kind of key: {error}") from None
    if public != certified:
        raise CertificateError(f"{key}: must be the key of {certificate} (got {str(files.key)!r})")


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes().strip() + b"\n"
    except OSError as error:
        raise CertificateError(f"{name}: must be a readable file: {error.strerror} (got {str(path)!r})") from None


def _parse_certificates(name: str, text: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise CertificateError(f"{name}: must be a file with a certificate in PEM") from None
