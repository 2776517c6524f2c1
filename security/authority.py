"""A certificate authority (CA) and its certificates, as text in PEM."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.environment import is_address
from security.errors import SecurityError

# A certificate is valid from so many days ago, because clocks differ.
_BEFORE_DAYS = 1
_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA.

    Args:
        pair: its certificate and key.

    Raises:
        SecurityError: the pair can't be read.
    """

    def __init__(self, pair: Pair) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = load_pem_private_key(pair.key, None)
        except (ValueError, TypeError) as error:
            raise SecurityError(f"the CA can't be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SecurityError("the key of the CA must be of an elliptic curve")
        self._key = key
        self.pair = pair

    @classmethod
    def create(cls, name: str, days: float) -> Authority:
        """Makes a CA of this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _begin(subject, subject, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = dict.fromkeys(_KEY_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
        return cls(Pair(certificate.public_bytes(Encoding.PEM), _format_key(key)))

    def issue(self, name: str, hosts: Sequence[str], days: float) -> Pair:
        """Issues a certificate for a server, a client or both.

        Args:
            name: the common name of its subject.
            hosts: DNS names and IP addresses, the names that its peers verify.
            days: its validity from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _begin(subject, self._certificate.subject, key.public_key(), days)
        names = [x509.IPAddress(ip_address(host)) if is_address(host) else x509.DNSName(host) for host in hosts]
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        for extension in (x509.SubjectAlternativeName(names), x509.ExtendedKeyUsage(_USAGES), identifier):
            builder = builder.add_extension(extension, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pair(certificate.public_bytes(Encoding.PEM), _format_key(key))


_KEY_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    begin = now - datetime.timedelta(days=_BEFORE_DAYS)
    return builder.not_valid_before(begin).not_valid_after(now + datetime.timedelta(days=days))


def _format_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
