"""Access to a Consul agent with an ACL token and TLS, by the variables of Consul's own tools.

The names and their precedence are those of Consul's page "Environment variables" and of its Go client (api.NewClient):
CONSUL_HTTP_TOKEN_FILE before CONSUL_HTTP_TOKEN.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.certificates import read_files
from common.environment import EnvironmentReader, host_port

if TYPE_CHECKING:
    import requests

TOKEN, TOKEN_FILE, SSL = "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_SSL"
CA, CERTIFICATE, KEY = "CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"
SERVER_NAME = "CONSUL_TLS_SERVER_NAME"

# A token goes into a header.
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, kw_only=True)
class ConsulAccess:
    """The token and the TLS of requests to an agent.

    Attributes:
        token: of Consul's ACL system; empty for the agent's own.
        token_file: the file of the token; it is read at each request, so that a replaced token is used at once.
        ssl: whether the agent is asked by HTTPS.
        ca: the certificates that the agent's one must be signed by; None for the system's.
        certificate, key: of this client, or both None.
        server_name: the name in the agent's certificate; empty for the agent's address.
    """

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ssl: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    @classmethod
    def read(cls, reader: EnvironmentReader, token_file_name: str = TOKEN_FILE) -> ConsulAccess:
        """Reads the variables and checks the files; the reader notes the problems.

        ``token_file_name`` is a variable that comes before CONSUL_HTTP_TOKEN_FILE.
        """
        files = read_files(reader, (CERTIFICATE, KEY, CA))
        token_file = _read_path(reader, token_file_name)
        if token_file is None:
            token_file_name, token_file = TOKEN_FILE, _read_path(reader, TOKEN_FILE)
        token = reader.text(TOKEN, "")
        if token and not _TOKEN.fullmatch(token):
            # Without the value, because it is secret.
            reader.add_problem(TOKEN, "must be a token of printable characters without spaces")
        access = cls(
            token=token if not token_file else "",
            token_file=token_file,
            ssl=reader.choice(SSL, ("true", "false", "1", "0"), "false") in ("true", "1"),
            ca=files.authority,
            certificate=files.certificate,
            key=files.key,
            server_name=reader.host(SERVER_NAME, ""),
        )
        if token_file:
            try:
                _read_token(token_file)
            except ValueError as error:
                reader.add_problem(token_file_name, str(error))
        return access

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ConsulAccess:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is wrong.
        """
        reader = EnvironmentReader(env)
        access = cls.read(reader)
        reader.raise_problems()
        return access

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "https" if self.ssl else "http"

    @property
    def verify(self) -> bool | str:
        """The ``verify`` of requests."""
        return str(self.ca) if self.ca else True

    @property
    def client_pair(self) -> tuple[str, str] | None:
        """The ``cert`` of requests."""
        return (str(self.certificate), str(self.key)) if self.certificate and self.key else None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, of the token and of the certificates."""
        return tuple(filter(None, (self.token_file, self.ca, self.certificate, self.key)))

    @property
    def token_source(self) -> str:
        """Where the token comes from, for messages."""
        if self.token_file:
            return f"{TOKEN_FILE} ({self.token_file})"
        return TOKEN if self.token else "the agent"

    def make_url(self, host: str, port: int) -> str:
        """Returns the base URL of the agent at an address."""
        return f"{self.scheme}://{host_port(host, port)}"

    def make_session(self) -> requests.Session:
        """Returns a new session of requests with the token and the certificates."""
        # It takes memory and time to load, which some commands do not need.
        from common.http import make_session

        session = make_session()
        self.prepare(session)
        return session

    def prepare(self, session: requests.Session) -> None:
        """Gives a session the token and the certificates, which are read again for each new connection."""
        from requests.adapters import HTTPAdapter

        session.verify = self.verify
        session.cert = self.client_pair
        session.auth = _TokenHeader(self)
        if self.server_name:
            name = self.server_name

            class _Adapter(HTTPAdapter):
                """Checks the certificate against the name instead of the address."""

                def init_poolmanager(self, *args: Any, **options: Any) -> None:
                    super().init_poolmanager(*args, **options, server_hostname=name, assert_hostname=name)

            session.mount("https://", _Adapter())


# Without TLS and with the agent's own token.
PLAIN = ConsulAccess()


class _TokenHeader:
    """Sets the header with the token of a request. While the file has no token, as in its replacement, the last one."""

    def __init__(self, access: ConsulAccess) -> None:
        self._file = access.token_file
        self._token = access.token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._file:
            with contextlib.suppress(ValueError):
                self._token = _read_token(self._file)
        if self._token:
            request.headers["X-Consul-Token"] = self._token
        return request


def _read_path(reader: EnvironmentReader, name: str) -> Path | None:
    text = reader.text(name, "")
    return Path(text) if text else None


def _read_token(path: Path) -> str:
    """Reads the token of a file.

    Raises:
        ValueError: the file is not readable or has no token.
    """
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"must be a readable file: {error.strerror} (got {str(path)!r})") from None
    except UnicodeDecodeError:
        token = ""
    if not _TOKEN.fullmatch(token):
        # Without the contents, because they are secret.
        raise ValueError(f"must be a file with a token (got {str(path)!r})")
    return token
