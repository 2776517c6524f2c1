"""Reads the replicas from Consul's catalogue and from the balancer, and compares them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.consul_access import PLAIN, ConsulAccess
from common.environment import host_port
from common.name_conflict import KEYS, Note
from common.names import BALANCED_TAG, CERTIFICATE, EJECTED, HELD, NAME, NODE_CHECK, SERVING
from status.balancers import read_balancers
from status.model import Replica, Status, StatusError

if TYPE_CHECKING:
    import consul

_TIMEOUT_SECONDS = 3.0
_ORDER = ("passing", "warning", "critical")


@dataclass(frozen=True)
class Source:
    """The addresses of Consul and of the balancer.

    Attributes:
        consul_address: the address of any agent of the cluster.
        balancer: ``host:port`` of the balancer's status port.
        access: the token and the TLS of requests to Consul.
    """

    consul_address: str
    consul_port: int
    balancer: str
    access: ConsulAccess = PLAIN

    def read(self) -> Status:
        """Reads both views.

        Raises:
            StatusError: the catalogue is unavailable. An unavailable balancer is a ``problem`` of the result.
        """
        # Imported here because the other commands of local_stack do not need Consul's client.
        import consul
        import requests

        from common.consul_client import connect

        view = self._read_balancer()
        client = connect(self.consul_address, self.consul_port, self.access, _TIMEOUT_SECONDS)
        denied = False
        try:
            entries = list(_read_entries(client))
            lost = list(_read_notes(client))
            states = {key: str(one["state"]) for key, one in view.replicas.items()}
            balancers = read_balancers(client, states)
        except consul.ACLPermissionDenied as error:
            # The balancer's view is all the more important.
            entries, lost, balancers, denied = [], [], [], True
            refusal = f"Consul refuses this command: {error}: check the token of {self.access.token_source}"
            view.access = "\n".join(filter(None, (view.access, refusal)))
        except (consul.ConsulException, requests.RequestException) as error:
            raise StatusError(
                f"Consul at {host_port(self.consul_address, self.consul_port)} is unavailable: {error}"
            ) from error
        replicas = [_make_replica(entry, view) for entry in entries]
        in_catalogue = {(replica.application, replica.address, replica.port) for replica in replicas}
        replicas += lost
        difference = "" if denied else "it is not in the catalogue"
        rest = [one for key, one in view.replicas.items() if key not in in_catalogue]
        replicas += [_make_unregistered_replica(one, difference) for one in rest]
        return Status(
            replicas=sorted(replicas, key=lambda one: (one.application, one.node, one.id)),
            services=view.services,
            refused=view.refused,
            problem=view.problem,
            access=view.access,
            xds=view.xds,
            balancers=balancers,
        )

    def _read_balancer(self) -> _View:
        view = _View()
        try:
            # The view of the control plane, then the one of nginx. One of them may be unavailable.
            decided = self._get("replicas")
            view.rendered = {_make_key(one) for one in decided["replicas"] if one["rendered"]}
            view.replicas = {_make_key(one): one for one in decided["replicas"]}
            view.reasons = {key: one.get("reason", "") for key, one in view.replicas.items()}
            view.refused = decided["refused"]
            view.access = str(decided["catalogue"].get("access", ""))
            view.xds = decided.get("xds", {}).get("refusals", [])
            if not decided["publishes"]:
                return view
        except StatusError as error:
            view.problem = str(error)
        try:
            state = self._get("state")
            view.replicas = {_make_key(one): one for one in state["replicas"]}
            view.services = state["services"]
        except StatusError as error:
            view.problem = str(error)
        return view

    def _get(self, path: str) -> dict[str, Any]:
        """Returns an answer of the balancer's status port; a StatusError has the reason when there is none."""
        import requests

        from common.http import make_session

        try:
            with make_session() as client:
                response = client.get(f"http://{self.balancer}/{path}", timeout=_TIMEOUT_SECONDS)
            answer = dict(response.json())
            if not response.ok:
                raise StatusError(f"the balancer at {self.balancer}: {answer.get('error', response.status_code)}")
        except requests.ConnectionError as error:
            raise StatusError(f"no balancer at {self.balancer}: its view is missing") from error
        except (requests.RequestException, ValueError) as error:
            raise StatusError(f"the balancer's view at {self.balancer} is unavailable: {error}") from error
        return answer


@dataclass(kw_only=True)
class _View:
    """The balancer's view.

    Attributes:
        replicas: its replicas, by application, address and port.
        problem, access, xds: see :class:`Status`.
        rendered: the replicas that consul-template has passed to it and that it accepted; None when unknown.
        reasons: why the certificate of a replica is not accepted.
    """

    replicas: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    rendered: set[tuple[str, str, int]] | None = None
    services: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    access: str = ""
    xds: list[str] = field(default_factory=list)
    reasons: dict[tuple[str, str, int], str] = field(default_factory=dict)


def _read_entries(client: consul.Consul) -> Iterator[dict[str, Any]]:
    _, services = client.catalog.services()
    for name, tags in sorted(services.items()):
        # The balancer ignores other names (peers.tpl), and they are not safe in a URL.
        if BALANCED_TAG in tags and NAME.fullmatch(name):
            for entry in client.health.service(name)[1]:
                if BALANCED_TAG in entry["Service"]["Tags"]:
                    yield entry


def _read_notes(client: consul.Consul) -> Iterator[Replica]:
    """Reads the replicas that are not in the catalogue because another container has their name."""
    for entry in client.kv.get(f"{KEYS}/", recurse=True)[1] or []:
        with suppress(ValueError):
            note = Note.from_json(entry["Value"] or b"")
            yield Replica(
                application=note.application,
                id=note.id,
                node=note.node,
                address=note.address,
                port=note.port,
                weight=0,
                difference=f"another container, at {note.holder}, has its name",
            )


def _make_key(one: dict[str, Any]) -> tuple[str, str, int]:
    return str(one["application"]), str(one["address"]), int(one["port"])


def _make_replica(entry: dict[str, Any], view: _View) -> Replica:
    service = entry["Service"]
    # The worst first; of equal ones the service's own before the node's.
    checks = sorted(entry["Checks"], key=lambda check: (-_rank(check["Status"]), check["CheckID"] == NODE_CHECK))
    worst = checks[0] if checks else {"Status": "passing", "Output": ""}
    address = service["Address"] or entry["Node"]["Address"]
    warning = worst["Status"] == "warning"
    weight = service["Weights"]["Warning" if warning else "Passing"]
    key = (service["Service"], address, service["Port"])
    known = view.replicas.get(key)
    meta = service["Meta"] or {}
    return Replica(
        application=service["Service"],
        id=service["ID"],
        node=entry["Node"]["Node"],
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
        difference="" if view.rendered is None else _describe_difference(worst["Status"], weight, known),
        # The control plane's reason is of its latest probe, and nginx may have an earlier state.
        reason=view.reasons.get(key, "") if known and known["state"] == EJECTED + CERTIFICATE else "",
        last_call=float(known.get("last_call", 0)) if known else 0.0,
        last_status=str(known.get("last_status", "")) if known else "",
    )


def _rank(status: str) -> int:
    return _ORDER.index(status) if status in _ORDER else len(_ORDER)


def _describe_difference(check: str, weight: int, known: dict[str, Any] | None) -> str:
    serves = check in ("passing", "warning") and weight > 0
    if serves and not known:
        return "the balancer does not have it"
    if known and not serves:
        return f"the balancer has it, its check is {check}"
    if known and known["weight"] != weight:
        return f"the balancer's weight is {known['weight']}"
    if known and known["state"] == HELD:
        return "the balancer holds it until the catalogue is complete again"
    if known and known["state"] != SERVING:
        return f"the balancer has {known['state'].replace(':', ' it:')}"
    return ""


def _make_unregistered_replica(known: dict[str, Any], difference: str) -> Replica:
    """Makes a replica that the balancer has and the catalogue does not."""
    application, address, port = _make_key(known)
    return Replica(
        application=application,
        address=address,
        port=port,
        weight=int(known["weight"]),
        balancer=str(known["state"]),
        difference=difference,
    )
