"""The gRPC services of all applications, their replicas and their health, as the control plane's document has them.

It is used in a program of its own, so that many calls do not delay the health probes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balancer import document
from balancer.files import follow_text

LOG = logging.getLogger("balancer.directory")

# This name stands for all services together (grpc.health.v1, "health.proto").
OVERALL = ""


class Directory:
    """The latest document, indexed.

    Args:
        copies: the directory of the certificates for TLS with replicas.

    Attributes:
        serving: by gRPC service, and by each name of a replica's own health service, whether a replica serves it.
        owners: by gRPC service, the application that gets its calls.
        targets: by application, ``address:port`` of its replicas that serve.
        secure: those replicas, by application and ``address:port``, that have TLS.
    """

    def __init__(self, copies: Path = Path("run")) -> None:
        self.copies = copies
        self.serving: dict[str, bool] = {OVERALL: False}
        self.owners: dict[str, str] = {}
        self.targets: dict[str, list[str]] = {}
        self.secure: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()

    async def follow(self, path: Path) -> None:
        """Takes each new document for ever, and skips one that can't be read."""
        async for text in follow_text(path):
            try:
                self.update(json.loads(text))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                LOG.warning("%s is not a document: %r", path, error)

    def update(self, found: Mapping[str, Any]) -> None:
        """Takes a document (see document.py).

        Raises:
            KeyError, TypeError, ValueError, IndexError, AttributeError: the value is not a document.
        """
        replicas = document.read_replicas(found)
        pools = [[replicas[number - 1] for number in pool["replicas"]] for pool in found["pools"]]
        serving = {OVERALL: any(one.serves for one in replicas)}
        targets: dict[str, list[str]] = {}
        for one in replicas:
            for name in {one.registration.health} - {""}:
                serving[name] = serving.get(name, False) or one.serves
            listed = targets.setdefault(one.registration.application, [])
            if one.serves:
                listed.append(one.registration.target)
        owners = {}
        for service, route in found["routes"].items():
            owners[service] = str(route["application"])
            # Pool 0 has no replica.
            members = pools[route["pool"] - 1] if route["pool"] else []
            serving[service] = any(one.serves for one in members)
        self.serving, self.owners, self.targets = serving, owners, targets
        self.secure = {
            (one.registration.application, one.registration.target) for one in replicas if one.registration.tls
        }
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self) -> None:
        """Waits for the next document."""
        await self._changed.wait()
