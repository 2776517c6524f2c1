"""TLS with replicas: the connections of the health probe and of reflection, and the check of a replica's certificate.

A replica's certificate must be of the CA, and must have the name of its application as a DNS name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import grpc

from balancer.certificates import REPLICAS_COPIES
from balancer.fleet import Health
from balancer.registration import Registration

# A client's first bytes in HTTP/2: the preface, and a SETTINGS frame without settings (RFC 9113, section 3.4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

_REFUSED = "it does not accept the balancer's certificate"


@dataclass(frozen=True, kw_only=True)
class ReplicaTls:
    """The files of the balancer.

    Attributes:
        authority: the CA of replicas, in PEM.
        pair: the file of the balancer's own certificate with its key; None for none.
        text: the content of that file.
    """

    authority: bytes
    pair: Path | None = None
    text: bytes = b""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Reads the copies of certificates.py; None without a CA."""
        pair, authority = (directory / name for name in REPLICAS_COPIES)
        if not authority.exists():
            return None
        known = pair.exists()
        text = pair.read_bytes() if known else b""
        return cls(authority=authority.read_bytes(), pair=pair if known else None, text=text)

    @cached_property
    def credentials(self) -> grpc.ChannelCredentials:
        """The same for gRPC."""
        return grpc.ssl_channel_credentials(self.authority, self.text or None, self.text or None)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.authority.decode("ascii", "ignore"))
        context.set_alpn_protocols(["h2"])
        if self.pair:
            context.load_cert_chain(self.pair)
        return context

    async def verify(self, registration: Registration, timeout_seconds: float) -> tuple[Health, str]:
        """Makes a handshake, and waits for the first bytes of the server.

        With TLS 1.3 a server checks the client's certificate after the client's part of the handshake, so only what
        comes next shows the result.

        Returns:
            SERVING if the certificates are good, else the problem; with the reason, if it is CERTIFICATE.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._shake_hands(registration)
        except TimeoutError:
            return Health.TIMEOUT, ""
        except ssl.SSLCertVerificationError as error:
            return Health.CERTIFICATE, error.verify_message.rstrip(".")
        except ssl.SSLError as error:
            reason = (error.reason or "").replace("_", " ").lower()
            return (Health.CERTIFICATE, f"{_REFUSED}: {reason}") if "alert" in reason else (Health.WRONG_SERVICE, "")
        except OSError:
            return Health.REFUSED, ""

    async def _shake_hands(self, registration: Registration) -> tuple[Health, str]:
        reader, writer = await asyncio.open_connection(
            registration.address, registration.port, ssl=self._context, server_hostname=registration.application
        )
        with contextlib.closing(writer):
            writer.write(_HELLO)
            with contextlib.suppress(ConnectionError):
                if await reader.read(1):
                    return Health.SERVING, ""
        # gRPC's C core sends no alert.
        return Health.CERTIFICATE, f"{_REFUSED}: it ends the connection after the handshake"


def open_channel(
    target: str, application: str, tls: ReplicaTls | None, options: Sequence[tuple[str, str | int]]
) -> grpc.aio.Channel:
    """Opens a connection to a replica, with TLS if there are files for it."""
    scheme = "ipv6" if target.startswith("[") else "ipv4"
    if tls is None:
        return grpc.aio.insecure_channel(f"{scheme}:{target}", options=options)
    named = [*options, ("grpc.ssl_target_name_override", application)]
    return grpc.aio.secure_channel(f"{scheme}:{target}", tls.credentials, options=named)
