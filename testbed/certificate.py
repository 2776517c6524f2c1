"""A certificate for balancers that are compared."""

from __future__ import annotations

import datetime
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from testbed.wait import wait_for


def write_pair(path: Path) -> None:
    """Writes a self-signed certificate of 127.0.0.1 and its key to one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "balancer")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=30))
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(hosts, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(signed.public_bytes(Encoding.PEM) + private)


def wait_for_handshake(target: str, seconds: float = 15.0) -> None:
    """Waits until a TLS handshake with HTTP/2 succeeds.

    Raises:
        NotReachedError: that took longer; with the last failure.
    """
    host, _, port = target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])

    def shake() -> str | None:
        try:
            with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as connection:
                return connection.selected_alpn_protocol()
        except OSError as error:
            return str(error)

    wait_for(shake, "h2".__eq__, seconds, f"TLS at {target}")
