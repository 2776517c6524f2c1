"""Sessions for the HTTP APIs of Consul and of the stack's own programs."""

from __future__ import annotations

import requests


def make_session() -> requests.Session:
    """Returns a new session that ignores the environment's proxies, which do not reach the programs of this stack."""
    session = requests.Session()
    session.trust_env = False
    return session
