"""TLS of a gRPC server whose certificate may be renewed while it runs."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import grpc

from common.certificates import Contents, Files, Followed, load

# New connections get a renewed certificate within 5 s. The files are read at a handshake, at most once in this time.
_LOOK_SECONDS = 1.0


class Renewal:
    """Reads the files again at handshakes, in gRPC's threads.

    Args:
        files: good files.
        log: gets renewals and problems.

    Raises:
        CertificateError: they are not.
    """

    def __init__(self, files: Files, log: logging.Logger) -> None:
        self._log = log
        self._certificates = Followed(files, log)
        self._certificates.contents = load(files)
        self._lock = threading.Lock()
        self._looked = time.monotonic()

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The last good files, for gRPC."""
        assert self._certificates.contents  # noqa: S101 - __init__ has set it
        return _configure(self._certificates.contents)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the renewed files, or None if there are none."""
        with self._lock:
            now = time.monotonic()
            if now < self._looked + _LOOK_SECONDS:
                return None
            self._looked = now
            if not self._certificates.look():
                return None
            self._log.info("the certificate is renewed")
            return self.configuration


def make_credentials(files: Files, log: logging.Logger) -> grpc.ServerCredentials:
    """Makes the credentials of a server; with a CA of callers, each must have a certificate of it."""
    renewal = Renewal(files, log)
    # grpcio's types lack the None that its documentation has.
    fetch: Any = renewal.fetch
    return grpc.dynamic_ssl_server_credentials(
        renewal.configuration, fetch, require_client_authentication=files.authority is not None
    )


def _configure(contents: Contents) -> grpc.ServerCertificateConfiguration:
    pairs = [(contents.key, contents.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, contents.authority or None)
