"""Wrong and odd clients of a TLS port: bytes that are no handshake, and certificates that are no caller's."""

from __future__ import annotations

import datetime
import random
import ssl
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support import frames
from tests.support.certificates import Pair

_CALL = frames.PREFACE + frames.CALL + frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(b""))
HTTP1 = (
    b"POST /protos.Ping/SayHello HTTP/1.1\r\nHost: test\r\nContent-Type: application/grpc\r\nContent-Length: 5\r\n"
    b"Connection: close\r\n\r\n\0\0\0\0\0"
)
CLEAR_TEXT = {
    "a call in clear text": _CALL,
    "a call of HTTP/1.1 in clear text": HTTP1,
    "the proxy protocol": b"PROXY TCP4 127.0.0.1 127.0.0.2 1 2\r\n" + _CALL,
    "a line without end": b"GET /" + b"a" * 50_000,
}


def client_hello() -> bytes:
    """Returns the first bytes of a right client."""
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def _record(kind: int, payload: bytes, *, version: int = 0x0303, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return bytes((kind,)) + version.to_bytes(2, "big") + size.to_bytes(2, "big") + payload


def wrong_bytes(seed: int = 13) -> dict[str, bytes]:
    """Returns bytes that are no handshake, by their descriptions."""
    hello, chance = client_hello(), random.Random(seed)  # noqa: S311 - no secrets
    found = dict(CLEAR_TEXT)
    cuts = sorted({*range(1, 12), *(len(hello) * part // 60 for part in range(1, 60)), len(hello) - 1})
    found |= {f"a ClientHello of {cut} bytes": hello[:cut] for cut in cuts}
    for number in range(40):
        changed = bytearray(hello)
        for place in chance.sample(range(len(hello)), 1 + number % 5):
            changed[place] ^= 1 << chance.randrange(8)
        found[f"a ClientHello with wrong bits, {number}"] = bytes(changed)
    found |= {f"rubbish, {number}": chance.randbytes(1 << number % 15) for number in range(30)}
    alert, data = b"\2\x28", b"x" * 100
    found |= {
        "an alert first": _record(21, alert),
        "a thousand warnings": _record(21, b"\1\x5a") * 1000,
        "a change of ciphers first": _record(20, b"\1"),
        "data first": _record(23, data),
        "an unknown kind of record": _record(99, data),
        "a record above the largest": _record(22, data, length=0xFFFF),
        "an empty record": _record(22, b"") * 100,
        "a handshake in records of one byte": b"".join(_record(22, hello[n : n + 1]) for n in range(5, len(hello))),
        "a handshake above the largest": _record(22, b"\1\xff\xff\xff" + data * 100) * 20,
        "a record of SSL 2": b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + b"\7\0\xc0" * 7 + b"c" * 16,
        "a record of SSL 3": _record(22, hello[5:], version=0x0300),
        "a record of a later version": _record(22, hello[5:], version=0x0909),
        "a ClientHello twice": hello * 2,
        "a ClientHello and an alert": hello + _record(21, alert),
        "a ClientHello and data": hello + _record(23, data) * 50,
        "a ClientHello and a call in clear text": hello + _CALL,
        "the ServerHello of another server": _record(22, b"\2" + hello[6:]),
    }
    return found


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A certificate to be made.

    Attributes:
        subject: pairs of type and text.
        from_days, to_days: its validity, from now.
        usages: what it is for; none for everything.
        names: alternative names.
        authority: whether it may issue others.
    """

    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ((NameOID.COMMON_NAME, "caller"),)
    from_days: float = -1
    to_days: float = 30
    usages: Sequence[x509.ObjectIdentifier] = ()
    names: Sequence[str] = ()
    authority: bool = False


@dataclass
class Issuer:
    """A CA in memory, whose chain its certificates have."""

    draft: Draft = field(default_factory=lambda: Draft(subject=((NameOID.COMMON_NAME, "callers"),), authority=True))
    parent: Issuer | None = None

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _sign(self.draft, self.key, self.parent or self)
        # The root is at the server.
        self.chain: bytes = self.pem + self.parent.chain if self.parent else b""

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, directory: Path, file: str, draft: Draft) -> Pair:
        """Issues a certificate; its file has the chain too."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _write(directory, file, _sign(draft, key, self).public_bytes(Encoding.PEM) + self.chain, key)


def self_signed(directory: Path, file: str, draft: Draft) -> Pair:
    """Makes a certificate that no CA has issued."""
    alone = Issuer(draft)
    return _write(directory, file, alone.pem, alone.key)


def chained(root: Issuer, length: int) -> Issuer:
    """Returns a CA behind so many certificates of other CAs, its own included."""
    found = root
    for number in range(length):
        subject = ((NameOID.COMMON_NAME, f"intermediate {number}"),)
        found = Issuer(Draft(subject=subject, authority=True), found)
    return found


def _write(directory: Path, file: str, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Pair:
    pair = Pair(directory / f"{file}.pem", directory / f"{file}.key")
    pair.certificate.write_bytes(certificate)
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pair


def _name(draft: Draft) -> x509.Name:
    with warnings.catch_warnings(action="ignore"):
        # The check of lengths, which a hostile CA does not make either.
        return x509.Name([x509.NameAttribute(oid, text, _validate=False) for oid, text in draft.subject])


def _sign(draft: Draft, key: ec.EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    start, end = (now + datetime.timedelta(days=days) for days in (draft.from_days, draft.to_days))
    builder = x509.CertificateBuilder().subject_name(_name(draft)).issuer_name(_name(issuer.draft))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=draft.authority, path_length=None), critical=True)
    if draft.usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(draft.usages), critical=False)
    if draft.names:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in draft.names])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


_CN, _O, _OU = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
EXPIRED = Draft(from_days=-9, to_days=-1)
NOT_YET_VALID = Draft(from_days=1)
FOR_SERVERS = Draft(usages=[ExtendedKeyUsageOID.SERVER_AUTH])
FOR_CALLERS = Draft(usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
LARGE = Draft(names=[f"{number:05}.{'a' * 40}.example" for number in range(1200)])
LARGER = Draft(names=[f"{number:05}.{'a' * 40}.example" for number in range(4000)])
# By RFC 2253, the subject that replicas get.
SUBJECTS = {
    r"CN=a\0D\0Ax-admin: yes\0D\0A": [(_CN, "a\r\nx-admin: yes\r\n")],
    r"CN=a\00b\1B[31m": [(_CN, "a\0b\x1b[31m")],
    r"CN=J\C3\BCrgen \E2\82\AC\F0\9F\98\80": [(_CN, "Jürgen €😀")],
    r"CN=a\,CN=admin\+O=x\;\\\"": [(_CN, 'a,CN=admin+O=x;\\"')],
    r"CN=\ a\ ": [(_CN, " a ")],
    r"CN=$ssl_client_s_dn${host}%0a": [(_CN, "$ssl_client_s_dn${host}%0a")],
    "CN=" + "b" * 4096: [(_CN, "b" * 4096)],
    ",".join(["OU=" + "c" * 64] * 60): [(_OU, "c" * 64)] * 60,
    "CN=caller,O=Example": [(_O, "Example"), (_CN, "caller")],
}
