"""A CA of a test and its certificates, in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from security import authority


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    def replace_with(self, other: Pair) -> None:
        """Renews the files as certbot does: one after the other."""
        for mine, new in ((self.certificate, other.certificate), (self.key, other.key)):
            copy = mine.with_suffix(".new")
            copy.write_bytes(new.read_bytes())
            copy.replace(mine)


class Authority:
    """A CA.

    Args:
        directory: the directory of all its files.
        name: the CA's own name.

    Attributes:
        path: the CA's certificate.
    """

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._authority = authority.Authority.create(name, days=30)
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._authority.pair.certificate)

    def issue(self, name: str, hosts: Sequence[str] = (), *, days: float = 30, file: str = "") -> Pair:
        """Issues a certificate; with ``days`` of -1 it has expired."""
        made = self._authority.issue(name, hosts or (name,), days)
        pair = Pair(self._directory / f"{file or name}.pem", self._directory / f"{file or name}.key")
        pair.certificate.write_bytes(made.certificate)
        pair.key.write_bytes(made.key)
        return pair
