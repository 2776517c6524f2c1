"""What Consul's catalogue and the balancer know of the replicas, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from registrar.config import BALANCED_TAG, NAME, NODE_CHECK
from registrar.environment import host_port

if TYPE_CHECKING:
    import consul

_TIMEOUT_SECONDS = 3.0
_ORDER = ("passing", "warning", "critical")
# The balancer's states of a replica that gets calls (balancer/fleet.py); all others begin with "ejected: ".
SERVING, HELD = "serving", "held"


# Below this key of Consul's key-value store are the notes of replicas without a name.
KEYS = "grpc-load-balancing/same-name"


class StatusError(Exception):
    """The catalogue can't be read, or has nothing of that name; the message says so."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica.

    Attributes:
        check: the worst status of its checks and its node's; empty for one that is not in the catalogue.
        output: what the check that is worst says.
        node_check: the status of its node's own check, by which the cluster knows whether the agent is there.
        registered: when its registrar registered it last, in ISO 8601; empty where that is not known.
        rendered: whether consul-template has given it to the balancer, which took it; None where that is not known.
        balancer: its state at the balancer; empty for one that the balancer doesn't have.
        difference: in what the two differ; empty where they agree.
        last_call: when its last call ended, in seconds since 1970; 0 for none in a day, and where calls aren't counted.
        last_status: the gRPC status of that call.
    """

    application: str
    id: str
    node: str
    address: str
    port: int
    weight: int
    version: str
    check: str
    output: str
    node_check: str
    registered: str
    rendered: bool | None
    balancer: str
    difference: str
    last_call: float = 0.0
    last_status: str = ""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a container that has lost its name says of itself, as JSON below :data:`KEYS`.

    Attributes:
        holder: the address of the container that has the name.
    """

    application: str
    id: str
    node: str
    address: str
    port: int
    holder: str

    @classmethod
    def from_json(cls, text: str | bytes) -> Note:
        """Reads it.

        Raises:
            ValueError: it is none.
        """
        try:
            found = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error
        for name, value in asdict(found).items():
            if type(value) is not (int if name == "port" else str):
                raise ValueError(f"{name} is of another type")
        return found


@dataclass(frozen=True, kw_only=True)
class Status:
    """Everything at one moment.

    Attributes:
        services: of the balancer: gRPC services with their application, and who registers them as well.
        refused: registrations that the balancer refuses: ``application``, ``address``, ``port``, ``reason``.
        problem: why the balancer's view, or a part of it, is missing; empty where it is there.
    """

    replicas: list[Replica]
    services: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    problem: str

    def of(self, name: str) -> Status:
        """The part about an application, about the replica with that ID, or about the replicas of that node.

        Raises:
            StatusError: there is nothing of that name.
        """
        found = [one for one in self.replicas if name in (one.application, one.id, one.node)]
        if not found:
            names = ", ".join(sorted({one.application for one in self.replicas})) or "nothing"
            raise StatusError(f"nothing with the tag {BALANCED_TAG} is called {name}; there is {names}")
        applications = {one.application for one in found}
        services = [one for one in self.services if one["application"] in applications]
        return replace(self, replicas=found, services=services)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """Where the two views come from.

    Attributes:
        consul_address: of any agent of the cluster.
        balancer: ``host:port`` of the balancer's status port.
    """

    consul_address: str
    consul_port: int
    balancer: str

    def read(self) -> Status:
        """Asks both.

        Raises:
            StatusError: the catalogue can't be read. A balancer that can't is a ``problem`` of the result.
        """
        # Imported here: local_stack has this command too, and its others need not wait for Consul's client.
        import consul
        import requests

        from registrar.consul_client import connect

        view, problem = self._view()
        client = connect(self.consul_address, self.consul_port, _TIMEOUT_SECONDS)
        try:
            instances = list(_instances(client))
            lost = list(_without_name(client))
        except (consul.ConsulException, requests.RequestException) as error:
            raise StatusError(
                f"Consul at {host_port(self.consul_address, self.consul_port)} can't be read: {error}"
            ) from error
        replicas = [_replica(instance, view) for instance in instances]
        in_catalogue = {(replica.application, replica.address, replica.port) for replica in replicas}
        replicas += lost
        replicas += [_stranger(one) for key, one in view.replicas.items() if key not in in_catalogue]
        return Status(
            replicas=sorted(replicas, key=lambda one: (one.application, one.node, one.id)),
            services=view.services,
            refused=view.refused,
            problem=problem,
        )

    def _view(self) -> tuple[_View, str]:
        view, problem = _View(), ""
        try:
            # What the control plane has decided, and what nginx makes of it. One of them may be away.
            decided = self._get("replicas")
            view.rendered = {_key(one) for one in decided["replicas"] if one["rendered"]}
            view.replicas = {_key(one): one for one in decided["replicas"]}
            view.refused = decided["refused"]
            if not decided["publishes"]:
                return view, ""
        except StatusError as error:
            problem = str(error)
        try:
            state = self._get("state")
            view.replicas = {_key(one): one for one in state["replicas"]}
            view.services = state["services"]
        except StatusError as error:
            problem = str(error)
        return view, problem

    def _get(self, path: str) -> dict[str, Any]:
        """One answer of the balancer's status port; a StatusError says why there is none."""
        import requests

        try:
            with requests.Session() as session:
                session.trust_env = False
                response = session.get(f"http://{self.balancer}/{path}", timeout=_TIMEOUT_SECONDS)
            answer = dict(response.json())
            if not response.ok:
                raise StatusError(f"the balancer at {self.balancer}: {answer.get('error', response.status_code)}")
        except requests.ConnectionError as error:
            raise StatusError(f"no balancer at {self.balancer}: its view is missing") from error
        except (requests.RequestException, ValueError) as error:
            raise StatusError(f"the balancer's view at {self.balancer} can't be read: {error}") from error
        return answer


@dataclass(kw_only=True)
class _View:
    """The balancer's.

    Attributes:
        replicas: those that it has, by application, address and port.
        rendered: those that consul-template has given it and that it took; None where that is not known.
    """

    replicas: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    rendered: set[tuple[str, str, int]] | None = None
    services: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


def _instances(client: consul.Consul) -> Iterator[dict[str, Any]]:
    _, services = client.catalog.services()
    for name, tags in sorted(services.items()):
        # Of other names the balancer takes none (peers.tpl), and they are none to put into a URL.
        if BALANCED_TAG in tags and NAME.fullmatch(name):
            for instance in client.health.service(name)[1]:
                if BALANCED_TAG in instance["Service"]["Tags"]:
                    yield instance


def _without_name(client: consul.Consul) -> Iterator[Replica]:
    """The replicas that the catalogue doesn't have because another container has their name."""
    for entry in client.kv.get(f"{KEYS}/", recurse=True)[1] or []:
        with suppress(ValueError):
            note = Note.from_json(entry["Value"] or b"")
            yield replace(
                _stranger(
                    {
                        "application": note.application,
                        "address": note.address,
                        "port": note.port,
                        "weight": 0,
                        "state": "",
                    }
                ),
                id=note.id,
                node=note.node,
                difference=f"another container, at {note.holder}, has its name",
            )


def _key(one: dict[str, Any]) -> tuple[str, str, int]:
    return str(one["application"]), str(one["address"]), int(one["port"])


def _replica(instance: dict[str, Any], view: _View) -> Replica:
    service = instance["Service"]
    # Of those that are as bad, the service's own before the node's.
    checks = sorted(instance["Checks"], key=lambda check: (-_severity(check["Status"]), check["CheckID"] == NODE_CHECK))
    worst = checks[0] if checks else {"Status": "passing", "Output": ""}
    address = service["Address"] or instance["Node"]["Address"]
    warning = worst["Status"] == "warning"
    weight = service["Weights"]["Warning" if warning else "Passing"]
    key = (service["Service"], address, service["Port"])
    known = view.replicas.get(key)
    meta = service["Meta"] or {}
    return Replica(
        application=service["Service"],
        id=service["ID"],
        node=instance["Node"]["Node"],
        address=address,
        port=service["Port"],
        weight=weight,
        version=meta.get("version", ""),
        check=worst["Status"],
        output=" ".join(str(worst["Output"]).split()),
        node_check=next((check["Status"] for check in checks if check["CheckID"] == NODE_CHECK), ""),
        registered=meta.get("registered", ""),
        rendered=None if view.rendered is None else key in view.rendered,
        balancer=str(known["state"]) if known else "",
        difference="" if view.rendered is None else _difference(worst["Status"], weight, known),
        last_call=float(known.get("last_call", 0)) if known else 0.0,
        last_status=str(known.get("last_status", "")) if known else "",
    )


def _severity(status: str) -> int:
    return _ORDER.index(status) if status in _ORDER else len(_ORDER)


def _difference(check: str, weight: int, known: dict[str, Any] | None) -> str:
    serves = check in ("passing", "warning") and weight > 0
    if serves and not known:
        return "the balancer does not have it"
    if known and not serves:
        return f"the balancer has it, its check is {check}"
    if known and known["weight"] != weight:
        return f"the balancer's weight is {known['weight']}"
    if known and known["state"] == HELD:
        return "the balancer holds it until the catalogue is whole again"
    if known and known["state"] != SERVING:
        return f"the balancer has {known['state'].replace(':', ' it:')}"
    return ""


def _stranger(known: dict[str, Any]) -> Replica:
    """A replica of the balancer's that the catalogue doesn't have."""
    application, address, port = _key(known)
    return Replica(
        application=application,
        id="",
        node="",
        address=address,
        port=port,
        weight=int(known["weight"]),
        version="",
        check="",
        output="",
        node_check="",
        registered="",
        rendered=None,
        balancer=str(known["state"]),
        difference="it is not in the catalogue",
    )
