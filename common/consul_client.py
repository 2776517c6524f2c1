"""The client of python-consul2 for an agent at a given address."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import consul

from common.environment import host_port

# The library prefers these to its arguments. CONSUL_HTTP_TOKEN stays, because it is the only source of a token.
_OVERRIDING = ("CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY")


def connect(host: str, port: int, timeout_seconds: float | None = None) -> consul.Consul:
    """Makes a client of the agent at this address, which ignores the environment's agent and proxies.

    Not thread-safe: the variables are removed while the client is made.
    """
    bracketed = host_port(host, port).rpartition(":")[0]
    with _without(_OVERRIDING):
        client = consul.Consul(host=bracketed, port=port, timeout=timeout_seconds)
    client.http.session.trust_env = False
    return client


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
