"""TLS with the service, for the registrar's own connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.certificates import Files, read_files
from common.environment import EnvironmentReader

if TYPE_CHECKING:
    import grpc

# The certificate of the service, its key, and the CA of services' certificates.
CERTIFICATE, KEY, AUTHORITY = "GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY", "GRPC_TLS_CA"
_CLIENT_CA = "GRPC_TLS_CLIENT_CA"


@dataclass(frozen=True, kw_only=True)
class ServiceTls:
    """The files of a service that speaks TLS.

    Attributes:
        name: the name of the application, which its certificate has as a DNS name.
    """

    name: str
    files: Files

    def make_credentials(self) -> grpc.ChannelCredentials:
        """Makes gRPC's credentials from the present files; the registrar shows the service's own certificate.

        Raises:
            OSError: a file can't be read.
        """
        import grpc

        return grpc.ssl_channel_credentials(*self._read())

    def _read(self) -> tuple[bytes, bytes, bytes]:
        files = self.files
        # read_tls has checked it.
        assert files.certificate  # noqa: S101
        assert files.key  # noqa: S101
        assert files.authority  # noqa: S101
        return files.authority.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()


def read_tls(reader: EnvironmentReader, name: str) -> ServiceTls | None:
    """Reads the variables of TLS; None if the service has none."""
    given = reader.text(CERTIFICATE, "") or reader.text(KEY, "")
    default = reader.text(_CLIENT_CA, "") if given else ""
    files = read_files(reader, (CERTIFICATE, KEY, AUTHORITY), default_authority=default)
    if not files.certificate:
        return None
    if not files.authority:
        reader.add_problem(AUTHORITY, f"must be set, because {CERTIFICATE} is")
    return ServiceTls(name=name, files=files)


def open_channel(target: str, tls: ServiceTls | None) -> grpc.Channel:
    """Opens a connection to the service.

    Raises:
        OSError: a file of its certificates can't be read.
    """
    # Imported here because a registrar that is told the services and has no gRPC check does not need it.
    import grpc

    options: Sequence[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    named = [*options, ("grpc.ssl_target_name_override", tls.name)]
    return grpc.secure_channel(target, tls.make_credentials(), options=named)
