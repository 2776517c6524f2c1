"""The secure stack without Docker, in a home of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from security.files import TOKENS, Secrets, read_tokens
from testbed.calls import CREDENTIALS
from tests.support.drivers import LocalDriver
from tests.support.registered import APP

# Whether the shared stack of the tests is a secure one.
SECURE = bool(os.environ.get("SECURE"))


class SecureDriver(LocalDriver):
    """``python -m local_stack up --secure``.

    Attributes:
        secrets: the directory of its secrets.
    """

    def __init__(self, home: Path, *, address_base: str, port: int, consul_port: int) -> None:
        super().__init__(home, address_base=address_base, port=port, consul_port=consul_port)
        self.secrets = home.with_name(f"{home.name}-secrets")
        # The application of the tests' own servers as well.
        Secrets(self.secrets, ["hello_server", APP]).create()
        self.env["SECRETS"] = str(self.secrets)
        self.flags.append("--secure")
        caller = self.secrets / "caller"
        ca, certificate, key = (caller / name for name in ("callers-ca.pem", "tls.pem", "tls-key.pem"))
        pair = ("--cert", str(certificate), "--key", str(key))
        self.client_flags = ("--tls", "--cacert", str(ca), *pair)
        self.ghz_flags = ("--cacert", str(ca), *pair)
        CREDENTIALS[self.target] = grpc.ssl_channel_credentials(
            ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        self.consul = f"https://127.0.0.1:{consul_port}"
        self._http.verify = str(self.secrets / "ca.pem")
        self._http.headers["X-Consul-Token"] = self.token("management")

    def register(
        self, peer: str, metadata: Mapping[str, str] | None = None, *, application: str = "hello_server", **more: Any
    ) -> None:
        super().register(peer, {"grpc_tls": "true", **(metadata or {})}, application=application, **more)

    def server_environment(self, application: str) -> Mapping[str, str]:
        files = {"CERTIFICATE": "tls.pem", "KEY": "tls-key.pem", "CLIENT_CA": "ca.pem"}
        return {f"GRPC_TLS_{name}": str(self.secrets / application / file) for name, file in files.items()}

    def token(self, role: str) -> str:
        """Returns the secret ID of a role's token."""
        return read_tokens(self.secrets / TOKENS)["tokens"][role]["secret"]
