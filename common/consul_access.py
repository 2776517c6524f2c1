"""The way to Consul's HTTP API: an agent's address, TLS and a token of the ACL system.

The variables have the names and meanings of Consul's own tools (Consul's reference page "CLI: environment variables"),
but for the address, which is CONSUL_ADDRESS and CONSUL_PORT.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.environment import EnvironmentReader, host_port

if TYPE_CHECKING:
    import consul
    import requests

_CA, _CERTIFICATE, _KEY = "CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"
TOKEN_FILE = "CONSUL_HTTP_TOKEN_FILE"  # noqa: S105 - the name of a variable
# python-consul2 prefers these to its arguments.
_OVERRIDING = ("CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_HTTP_TOKEN")


@dataclass(frozen=True, kw_only=True)
class ConsulAccess:
    """The way to an agent's HTTP API.

    Attributes:
        tls: whether it is HTTPS; the agent's certificate is verified.
        ca: the CAs that it is verified with; None for those of the operating system.
        certificate: the client's certificate, with ``key``.
        server_name: the name in the agent's certificate; empty for ``address``.
        token: of Consul's ACL system; empty for the agent's own.
        token_file: the file of the token, which is read for each request.
    """

    address: str = "127.0.0.1"
    port: int = 8500
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: str = field(default="", repr=False)
    token_file: Path | None = None

    @classmethod
    def from_env(cls, reader: EnvironmentReader, token_file: str = TOKEN_FILE) -> ConsulAccess:
        """Reads the variables.

        Args:
            reader: gets the problems.
            token_file: the variable of the token's file, before CONSUL_HTTP_TOKEN_FILE.
        """
        tls = reader.choice("CONSUL_HTTP_SSL", ("true", "false"), "false") == "true"
        found = cls(
            address=reader.host("CONSUL_ADDRESS", "127.0.0.1"),
            port=reader.port("CONSUL_PORT", 8500),
            tls=tls,
            ca=_read_path(reader, _CA),
            certificate=_read_path(reader, _CERTIFICATE),
            key=_read_path(reader, _KEY),
            server_name=reader.host("CONSUL_TLS_SERVER_NAME", ""),
            token=reader.text("CONSUL_HTTP_TOKEN", ""),
            token_file=_read_path(reader, token_file) or _read_path(reader, TOKEN_FILE),
        )
        if (found.certificate is None) != (found.key is None):
            missing, given = (_KEY, _CERTIFICATE) if found.certificate else (_CERTIFICATE, _KEY)
            reader.add_problem(missing, f"must be set, because {given} is")
        elif tls and not reader.problems:
            found._check_files(reader)
        return found

    def _check_files(self, reader: EnvironmentReader) -> None:
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            reader.add_problem(_CA, f"must be a file with certificates in PEM (got {str(self.ca)!r}: {error.reason})")
            return
        if self.certificate and self.key:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except ssl.SSLError as error:
                got = f"got {str(self.certificate)!r}: {error.reason}"
                reader.add_problem(_CERTIFICATE, f"must be a certificate in PEM, and {_KEY} its key ({got})")

    @property
    def url(self) -> str:
        """The URL of the agent, without a path."""
        return f"{'https' if self.tls else 'http'}://{host_port(self.address, self.port)}"

    def at(self, address: str, port: int) -> ConsulAccess:
        """Returns the same for another agent."""
        return replace(self, address=address, port=port)

    def make_session(self) -> requests.Session:
        """Returns a new session, which verifies the agent and has the token."""
        import requests

        from common.http import make_session

        access = self

        class _Token(requests.auth.AuthBase):
            def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
                if token := access._read_token():
                    request.headers["X-Consul-Token"] = token
                return request

        session = make_session()
        session.auth = _Token()
        if self.tls:
            session.verify = str(self.ca) if self.ca else True
            session.cert = self._pair
            session.mount("https://", _make_adapter(self.server_name))
        return session

    def connect(self, timeout_seconds: float | None = None) -> consul.Consul:
        """Makes a client of python-consul2.

        Not thread-safe: variables that override its arguments are removed while the client is made.
        """
        import consul

        bracketed = host_port(self.address, self.port).rpartition(":")[0]
        with _without(_OVERRIDING):
            client = consul.Consul(
                host=bracketed,
                port=self.port,
                scheme="https" if self.tls else "http",
                # The client passes these with each request, so those of the session would not count.
                verify=str(self.ca) if self.ca else True,
                cert=self._pair,
                timeout=timeout_seconds,
            )
        client.http.session = self.make_session()
        return client

    @property
    def _pair(self) -> tuple[str, str] | None:
        return (str(self.certificate), str(self.key)) if self.certificate and self.key else None

    def _read_token(self) -> str:
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            # It is being replaced; Consul refuses the request.
            return ""


def _read_path(reader: EnvironmentReader, name: str) -> Path | None:
    text = reader.text(name, "")
    if not text:
        return None
    try:
        Path(text).read_bytes()
    except OSError as error:
        reader.add_problem(name, f"must be a readable file: {error.strerror} (got {text!r})")
    return Path(text)


def _make_adapter(server_name: str) -> requests.adapters.HTTPAdapter:
    from requests.adapters import HTTPAdapter

    class _Adapter(HTTPAdapter):
        """Verifies another name than the address."""

        def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
            names = {"server_hostname": server_name, "assert_hostname": server_name} if server_name else {}
            super().init_poolmanager(connections, maxsize, block, **{**options, **names})

    return _Adapter()


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept: Mapping[str, str] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
