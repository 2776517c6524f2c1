"""The rights of each token, as rules of Consul's ACL system (Consul's reference page "ACL rules").

A role is a program, or a group of programs, with a token of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.name_conflict import KEYS

BALANCER = "load-balancer"
Rules = Mapping[str, Mapping[str, Mapping[str, str]] | str]

_READ, _WRITE = {"policy": "read"}, {"policy": "write"}
_READ_CATALOGUE: dict[str, Any] = {"node_prefix": {"": _READ}, "service_prefix": {"": _READ}}


def list_roles(applications: Sequence[str]) -> dict[str, Rules]:
    """Returns the rules of all roles, by the name of the role.

    Args:
        applications: the applications whose replicas may register.
    """
    roles: dict[str, Rules] = {
        "server-agent": {**_READ_CATALOGUE, "node_prefix": {"": _READ, "server-": _WRITE}},
        "ui-agent": {**_READ_CATALOGUE, "node": {"consul-ui": _WRITE}},
        # The health check of the Consul servers.
        "server-health": {"operator": "read"},
        # DNS answers of all agents.
        "dns": _READ_CATALOGUE,
        # consul-template, the control plane and status; the keys have the notes of same_name.py.
        "reader": {**_READ_CATALOGUE, "key_prefix": {KEYS: _READ}},
        "prometheus": {**_READ_CATALOGUE, "agent_prefix": {"": _READ}},
        # A person in the UI.
        "ui-user": {**_READ_CATALOGUE, "key_prefix": {"": _READ}, "session_prefix": {"": _READ}},
    }
    for application in (BALANCER, *applications):
        roles[f"{application}-agent"] = _describe_agent(application)
        roles[f"{application}-registrar"] = _describe_registrar(application)
    return roles


def _describe_agent(application: str) -> Rules:
    """Its own node; the nodes of an application are named after it."""
    return {**_READ_CATALOGUE, **_of_nodes("node", application, {"": _READ})}


def _describe_registrar(application: str) -> Rules:
    """The application's service, and the conflicts of its nodes' names (registrar/same_name.py)."""
    return {
        # In the services of a node (/v1/catalog/node) Consul checks the IDs in place of the names.
        "service": {application: _WRITE},
        "service_prefix": {f"{application}-": _READ},
        "key_prefix": {f"{KEYS}/{application}": _WRITE},
        **_of_nodes("node", application, {"": _READ}),
        **_of_nodes("agent", application),
        **_of_nodes("session", application),
    }


def _of_nodes(kind: str, application: str, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {kind: {application: _WRITE}, f"{kind}_prefix": {**(others or {}), f"{application}-": _WRITE}}
