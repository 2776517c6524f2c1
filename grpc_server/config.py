"""The server's settings, read from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.certificates import Files, read_files
from common.environment import (
    MAX_MESSAGE_BYTES,
    EnvironmentReader,
    read_grace_seconds,
    read_hostname,
    read_max_message_bytes,
)

# The certificate of the server, its key, and the CA of callers.
TLS = ("GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY", "GRPC_TLS_CLIENT_CA")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The server's settings; docs/variables.md lists them.

    Attributes:
        metrics_port: 0 for no metrics.
        metrics_address: empty for ``address``.
        certificates: the files for TLS.
        client_names: DNS names, one of which the certificate of a caller must have; none for any.
        max_message_bytes: the limit of a message from a client; a call with a larger one ends as RESOURCE_EXHAUSTED.
    """

    address: str
    port: int
    workers: int
    grace_seconds: float
    hostname: str
    metrics_port: int = 0
    metrics_address: str = ""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    certificates: Files = field(default_factory=lambda: Files(variables=TLS))
    client_names: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ServerConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each wrong variable.
        """
        reader = EnvironmentReader(env)
        config = cls(
            address=reader.host("BIND_ADDRESS", "0.0.0.0"),  # noqa: S104 - a container's own network
            port=reader.port("APP_PORT", 7777),
            workers=reader.integer("GRPC_WORKERS", 1, low=1, high=256),
            grace_seconds=read_grace_seconds(reader),
            hostname=read_hostname(reader),
            metrics_port=reader.integer("METRICS_PORT", 0, low=0, high=65535),
            metrics_address=reader.host("METRICS_ADDRESS", ""),
            max_message_bytes=read_max_message_bytes(reader),
            certificates=read_files(reader, TLS),
            client_names=reader.words("GRPC_TLS_CLIENT_NAME", ""),
        )
        if config.certificates.authority and not config.certificates.certificate:
            reader.add_problem(TLS[2], f"needs {TLS[0]}")
        if config.client_names and not config.certificates.authority:
            reader.add_problem("GRPC_TLS_CLIENT_NAME", f"needs {TLS[2]}")
        reader.raise_problems()
        return config
