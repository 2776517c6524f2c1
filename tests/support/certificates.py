"""A CA of a test and its certificates, in files."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from common.environment import is_address


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
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self._name, self._name, self._key, days=30)
        authority = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(authority.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, hosts: Sequence[str] = (), *, days: float = 30, file: str = "") -> Pair:
        """Issues a certificate; the organization of its subject is Example."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = ((NameOID.ORGANIZATION_NAME, "Example"), (NameOID.COMMON_NAME, name))
        subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
        alternatives = [
            x509.IPAddress(ip_address(one)) if is_address(one) else x509.DNSName(one) for one in hosts or (name,)
        ]
        builder = _builder(subject, self._name, key, days=days)
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pair = Pair(self._directory / f"{file or name}.pem", self._directory / f"{file or name}.key")
        pair.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pair.key.write_bytes(key.private_bytes(*form))
        return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(min(now, end) - datetime.timedelta(days=1)).not_valid_after(end)
