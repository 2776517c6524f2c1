"""The environment of a container: the compose file's, and the addresses and paths that differ without Docker."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from local_stack.compose import Service
from local_stack.container import Container
from local_stack.processes import CONTAINER, DIRECTORY
from local_stack.settings import BALANCER_PORT, CONSUL_PORT, ROOT, Settings

_ADDRESSES = ("APP_ADDRESS", "BIND_ADDRESS", "CONSUL_ADDRESS", "CONSUL_BIND", "CONSUL_CLIENT")


def container_environment(
    container: Container, settings: Settings, services: Mapping[str, Service], tools: Mapping[str, Path]
) -> dict[str, str]:
    """Returns the variables of a container; names of services in CONSUL_SERVER become their addresses."""
    address = container.address
    result = dict(container.service.environment)
    names = result.get("CONSUL_SERVER", "").replace(",", " ").split()
    result |= {
        "CONSUL_SERVER": ",".join(settings.address(services, name, 1) if name in services else name for name in names),
        CONTAINER: container.name,
        DIRECTORY: str(container.directory.path),
        "HOSTNAME": container.name,
        "CONTAINER_STDOUT": str(container.log),
        "PATH": _search_path(container, tools),
        "PYTHONPATH": str(ROOT),
        **dict.fromkeys(_ADDRESSES, address),
        "CONSUL_PORT": str(CONSUL_PORT),
        "CONSUL_CONFIG_DIR": str(container.path / "etc" / "consul" / "conf.d"),
        "CONSUL_DATA_DIR": str(container.path / "consul" / "data"),
        "LB_LISTEN": f"{address}:{BALANCER_PORT} 127.0.0.1:{settings.published(container.number)}",
        "LB_STATUS_ADDRESS": address,
        "PEER_CIDR": "127.0.0.0/8",
        # A container has one address.
        "METRICS_ADDRESS": "",
        # The names of containers begin with their services' names already.
        "CONSUL_NODE_PREFIX": "",
    }
    if "HEALTH_CHECK_ENDPOINT" in result:
        # In a container 127.0.0.1 is the container's own.
        result["HEALTH_CHECK_ENDPOINT"] = result["HEALTH_CHECK_ENDPOINT"].replace("//127.0.0.1:", f"//{address}:")
    if CONSUL_PORT in container.service.published or container.service.job:
        result |= {
            "CONSUL_CLIENT": "127.0.0.1",
            "CONSUL_ADDRESS": "127.0.0.1",
            "CONSUL_PORT": str(settings.consul_port),
            # 127.0.0.1 is shared with other stacks, so its DNS port may be in use.
            "CONSUL_DNS_PORT": "-1",
        }
    # consul-template and the consul command read this one.
    result["CONSUL_HTTP_ADDR"] = f"{result['CONSUL_ADDRESS']}:{result['CONSUL_PORT']}"
    return result


def _search_path(container: Container, tools: Mapping[str, Path]) -> str:
    directories = [container.path / "usr" / "bin", Path(sys.executable).parent]
    directories += [path.parent for path in tools.values()]
    return os.pathsep.join([*dict.fromkeys(map(str, directories)), "/usr/local/bin", "/usr/bin", "/bin"])
