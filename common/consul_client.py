"""The client of python-consul2 for an agent at a given address."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import consul

from common.consul_access import ConsulAccess
from common.environment import host_port

# The library prefers these to its arguments.
_OVERRIDING = ("CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_HTTP_TOKEN")


def connect(host: str, port: int, access: ConsulAccess, timeout_seconds: float | None = None) -> consul.Consul:
    """Makes a client of the agent at this address, which ignores the environment's agent and proxies.

    Not thread-safe: the variables are removed while the client is made.
    """
    bracketed = host_port(host, port).rpartition(":")[0]
    with _without(_OVERRIDING):
        client = consul.Consul(
            host=bracketed,
            port=port,
            scheme=access.scheme,
            # The library passes these with each request, before those of its session.
            verify=access.verify,
            cert=access.client_pair,
            timeout=timeout_seconds,
        )
    client.http.session.trust_env = False
    access.prepare(client.http.session)
    return client


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
