"""Compares the views of several balancers: they decide alike, but may see the catalogue at different moments.

A balancer answers ``/state`` at the port of its metrics, because its status port is for its own host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common.environment import host_port
from common.names import BALANCER_TAG, HELD, SERVING
from status.model import Balancer

if TYPE_CHECKING:
    import consul

_TIMEOUT_SECONDS = 1.0
_SHOWN = 5
_SERVES = (SERVING, HELD)
# The states of replicas, by application, address and port.
View = Mapping[tuple[str, str, int], str]


def read_balancers(client: consul.Consul, shown: View) -> list[Balancer]:
    """Reads all balancers of the catalogue, each compared with the view that is shown; none if there is only one."""
    _, services = client.catalog.services()
    names = [name for name, tags in services.items() if BALANCER_TAG in tags]
    instances = [one for name in sorted(names) for one in client.catalog.service(name)[1]]
    return [_read_balancer(one, shown) for one in instances] if len(instances) > 1 else []


def _read_balancer(instance: Mapping[str, Any], shown: View) -> Balancer:
    meta = instance["ServiceMeta"] or {}
    address = str(instance["ServiceAddress"] or instance["Address"])
    found = Balancer(node=str(instance["Node"]), address=address, port=int(instance["ServicePort"]))
    try:
        view = _ask(host_port(str(meta.get("metrics_address") or address), int(meta.get("metrics_port", 0))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return replace(found, difference=f"its view is unknown: {type(error).__name__}")
    serving = sum(state in _SERVES for state in view.values())
    return replace(found, serving=serving, difference=describe_difference(shown, view))


def describe_difference(shown: View, other: View) -> str:
    """Describes how another view differs from the one that is shown; empty if it does not."""
    lines = [
        f"{application} {host_port(address, port)}: {other.get(key, 'unknown')}"
        for key in sorted(shown.keys() | other.keys())
        if shown.get(key) != other.get(key)
        for application, address, port in [key]
    ]
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def _ask(address: str) -> dict[tuple[str, str, int], str]:
    """Returns the view of a balancer.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is none.
    """
    from common.http import make_session

    with make_session() as session:
        answer = session.get(f"http://{address}/state", timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
        replicas = answer.json()["replicas"]
    return {(str(one["application"]), str(one["address"]), int(one["port"])): str(one["state"]) for one in replicas}
