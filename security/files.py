"""The directory of secrets: a directory for each container, and what each container needs in it.

Only the owner may enter the directory (mode 0700). The directories in it are mounted into containers, whose programs
have other users, so all users may read their files.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from common.names import NAME
from security.authority import Authority, Pair
from security.errors import SecurityError
from security.policies import BALANCER, list_roles

AUTHORITY_DAYS, DAYS = 3650.0, 365.0
# Consul's own name of a server, which agents verify (verify_server_hostname), and of every client.
_SERVER_NAME, _CLIENT_NAME = "server.{datacenter}.consul", "client.{datacenter}.consul"
_LOCAL = ("localhost", "127.0.0.1", "::1")
TOKENS = Path("acl", "tokens.json")
# The directories of the clients that call replicas directly.
CLIENTS = "clients"


class Secrets:
    """The directory of secrets.

    Args:
        directory: its path.
        applications: the applications whose replicas may register, besides those that the directory has.
        names: names and addresses of the balancer for its callers, besides localhost.
        clients: clients that call replicas directly, besides those that the directory has.
        datacenter: Consul's.
    """

    def __init__(
        self,
        directory: Path,
        applications: Sequence[str] = (),
        names: Sequence[str] = (),
        clients: Sequence[str] = (),
        datacenter: str = "dc1",
    ) -> None:
        self._directory = directory
        self._names = (*names, *_LOCAL, BALANCER, f"{BALANCER}.service.consul")
        self._datacenter = datacenter
        self._rotate = False
        known = sorted(path.name for path in (directory / CLIENTS).glob("*"))
        self.clients = tuple(dict.fromkeys([*known, *clients]))
        self.applications = tuple(dict.fromkeys([*_read_applications(directory), *applications]))
        self.written: list[Path] = []

    def create(self, *, rotate: bool = False) -> None:
        """Makes the files that are missing; with ``rotate`` all certificates are issued again by the same CAs.

        Raises:
            SecurityError: a file can't be read or written, or the names of the applications do not go together.
        """
        _check_applications(self.applications)
        for one in self.clients:
            # A replica takes the name of a caller for what it is.
            if not NAME.fullmatch(one) or one in (BALANCER, *self.applications):
                raise SecurityError(f"--client: must be 1 to 63 letters, digits, - and _, and no other's (got {one!r})")
        self._rotate = rotate
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            self._create()
        except OSError as error:
            raise SecurityError(f"{error.filename}: {error.strerror}") from error

    def _create(self) -> None:
        tokens = self._create_tokens()
        inner, callers = self._create_authority("ca", "stack"), self._create_authority("callers-ca", "callers")
        gossip = self._make("gossip-key", lambda: base64.b64encode(secrets.token_bytes(32)), mode=0o600).decode()
        agents = {"consul-server": "server-agent", "consul-ui": "ui-agent"}
        agents |= {name: f"{name}-agent" for name in (BALANCER, *self.applications)}
        for name, role in agents.items():
            kind = _SERVER_NAME if name == "consul-server" else _CLIENT_NAME
            hosts = [kind.format(datacenter=self._datacenter), name, *_LOCAL]
            self._issue(inner, name, "consul", hosts)
            ids = {"agent": tokens[role], "dns": tokens["dns"]}
            if name == "consul-server":
                ids["initial_management"] = tokens["management"]
            self._make(f"{name}/agent.hcl", lambda ids=ids: _format_agent(gossip, ids))  # type: ignore[misc]
        for name in (BALANCER, *self.applications):
            self._copy(f"{name}/registrar.token", tokens[f"{name}-registrar"])
        readers = {BALANCER: "reader", "prometheus": "prometheus"}
        readers |= dict.fromkeys(("consul-server", "consul-ui"), "server-health")
        for name, role in readers.items():
            self._copy(f"{name}/consul.token", tokens[role])
        for name in self.applications:
            self._issue(inner, name, "tls", [name])
        self._issue(callers, BALANCER, "tls", self._names)
        self._issue(inner, BALANCER, "replica", [BALANCER])
        self._issue(callers, "caller", "tls", ["caller"])
        for name in self.clients:
            self._issue(callers, f"{CLIENTS}/{name}", "tls", [name])
            self._issue(inner, f"{CLIENTS}/{name}", "replica", [name])
            for file, authority in (("ca", inner), ("callers-ca", callers)):
                self._copy(f"{CLIENTS}/{name}/{file}.pem", authority.pair.certificate.decode())
        self._issue(inner, "acl", "consul", [_CLIENT_NAME.format(datacenter=self._datacenter)])
        for name in (*agents, "acl", "prometheus"):
            self._copy(f"{name}/ca.pem", inner.pair.certificate.decode())
        for name in (BALANCER, "caller"):
            self._copy(f"{name}/callers-ca.pem", callers.pair.certificate.decode())

    def _create_tokens(self) -> dict[str, str]:
        """Makes the secret IDs of the tokens, and returns them by role; ``management`` is the one with all rights."""
        path = self._directory / TOKENS
        known: dict[str, dict[str, str]] = read_tokens(path)["tokens"] if path.exists() else {}
        wanted = ("management", *list_roles(self.applications))
        missing = [role for role in wanted if role not in known]
        known |= {role: {"accessor": str(uuid.uuid4()), "secret": str(uuid.uuid4())} for role in missing}
        if missing:
            document = {"applications": self.applications, "tokens": known}
            self._write(path, json.dumps(document, indent=2).encode() + b"\n", 0o444)
        return {role: token["secret"] for role, token in known.items()}

    def _create_authority(self, name: str, description: str) -> Authority:
        """The CA's files are the certificate and, not mounted anywhere, the key."""
        made: list[Authority] = []

        def make() -> Authority:
            if not made:
                made.append(Authority.create(f"grpc-load-balancing {description}", AUTHORITY_DAYS))
            return made[0]

        key = self._make(f"{name}-key.pem", lambda: make().pair.key, mode=0o600)
        return Authority(Pair(self._make(f"{name}.pem", lambda: make().pair.certificate), key))

    def _issue(self, authority: Authority, container: str, name: str, hosts: Sequence[str]) -> None:
        certificate, key = (self._directory / container / f"{name}{end}.pem" for end in ("", "-key"))
        if self._rotate or not (certificate.exists() and key.exists()):
            pair = authority.issue(Path(container).name, hosts, DAYS)
            self._write(certificate, pair.certificate, 0o444)
            self._write(key, pair.key, 0o444)

    def _make(self, name: str, make: Callable[[], bytes], mode: int = 0o444) -> bytes:
        """Returns the contents of a file, which is made if it is missing."""
        path = self._directory / name
        if not path.exists():
            self._write(path, make(), mode)
        return path.read_bytes()

    def _copy(self, name: str, text: str) -> None:
        self._make(name, f"{text.strip()}\n".encode)

    def _write(self, path: Path, content: bytes, mode: int) -> None:
        """Writes a file by rename, so that a reader never sees a part of it."""
        for parent in reversed(path.relative_to(self._directory).parents[:-1]):
            (self._directory / parent).mkdir(mode=0o755, exist_ok=True)
            (self._directory / parent).chmod(0o755)
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        new.replace(path)
        self.written.append(path)


def read_tokens(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Reads the file of tokens: ``applications``, and ``tokens`` with ``accessor`` and ``secret`` by role.

    Raises:
        SecurityError: it can't be read.
    """
    try:
        document = json.loads(path.read_text())
        tokens = {role: {key: str(uuid.UUID(token[key])) for key in ("accessor", "secret")}
                  for role, token in document["tokens"].items()}  # fmt: skip
        return {"applications": document["applications"], "tokens": tokens}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecurityError(f"{path} can't be read: {error}") from error


def _read_applications(directory: Path) -> list[str]:
    path = directory / TOKENS
    return list(read_tokens(path)["applications"]) if path.exists() else []


def _check_applications(applications: Sequence[str]) -> None:
    """The names of an application's nodes begin with its name, so no name may be the beginning of another one."""
    for one in applications:
        if not NAME.fullmatch(one):
            raise SecurityError(f"--application: must be 1 to 63 letters, digits, - and _ (got {one!r})")
        for other in (BALANCER, *applications):
            if one == BALANCER or other.startswith(f"{one}-") or (one != other and one.startswith(f"{other}-")):
                raise SecurityError(
                    f"--application: must not be the beginning of another name, nor begin with one (got {one!r} and "
                    f"{other!r})"
                )


def _format_agent(gossip: str, tokens: dict[str, str]) -> bytes:
    lines = [f'encrypt = "{gossip}"', "acl {", "  tokens {"]
    lines += [f'    {name} = "{secret}"' for name, secret in tokens.items()]
    return "\n".join([*lines, "  }", "}", ""]).encode()
