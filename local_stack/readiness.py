"""The stack is ready when every replica passes in Consul and answers through the balancer.

A balancer with TLS may want a certificate of its callers, so its list of replicas is read instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import consul
import grpc
import requests

from common.consul_access import ConsulAccess
from common.consul_client import connect
from common.environment import ConfigError
from common.http import make_session
from common.names import SERVING
from local_stack.container import Container
from local_stack.errors import LocalStackError, last_lines
from local_stack.settings import BALANCER_PORT, CONSUL_PORT
from local_stack.stack import Stack
from protos import api_pb2, api_pb2_grpc

_POLL_SECONDS = 0.05
_CALL_SECONDS = 1.0
_CONSUL_SECONDS = 5.0
_LOG_LINES = 15
_STATUS_PORT = 8080


def health_by_node(stack: Stack) -> dict[str, str]:
    """Returns the worst status of each container's checks in Consul; of none while Consul is unavailable."""
    try:
        _, checks = _connect(stack).health.state("any")
    except (consul.ConsulException, requests.RequestException):
        return {}
    order = ("passing", "warning", "critical")
    result: dict[str, str] = {}
    for check in checks:
        status = check["Status"]
        before = result.get(check["Node"], "passing")
        result[check["Node"]] = max(status, before, key=lambda item: order.index(item) if item in order else 2)
    return result


def passing_nodes(stack: Stack, application: str) -> set[str]:
    """Returns the nodes whose replica of an application passes; none while Consul is unavailable."""
    try:
        _, replicas = _connect(stack).health.service(application, passing=True)
    except (consul.ConsulException, requests.RequestException):
        return set()
    return {replica["Node"]["Node"] for replica in replicas}


def read_access(stack: Stack) -> ConsulAccess:
    """Returns the container's token and TLS for Consul, not the shell's, which may be for another Consul.

    Raises:
        LocalStackError: a variable is wrong.
    """
    if stack.settings.secure:
        secrets = stack.secrets / "load-balancer"
        return ConsulAccess(ssl=True, ca=secrets / "ca.pem", token_file=secrets / "consul.token")
    try:
        return ConsulAccess.from_env(stack.publisher(CONSUL_PORT).service.environment)
    except ConfigError as error:
        raise LocalStackError(str(error)) from None


def _connect(stack: Stack) -> consul.Consul:
    # An agent whose server does not answer yet answers after a minute, and a question asked again is answered sooner.
    return connect("127.0.0.1", stack.settings.consul_port, read_access(stack), _CONSUL_SECONDS)


def wait_ready(stack: Stack, seconds: float, containers: Sequence[Container] | None = None) -> None:
    """Waits until every replica, or those named, passes in Consul and has answered through the balancer's port."""
    deadline = time.monotonic() + seconds
    containers = stack.containers() if containers is None else containers
    replicas = [container for container in containers if "registrar" in container.service.components]
    for application in {container.service.environment.get("APP_NAME", "") for container in replicas}:
        of_application = [c for c in replicas if c.service.environment.get("APP_NAME") == application]
        wanted = {container.name for container in of_application}
        while missing := wanted - passing_nodes(stack, application):
            if time.monotonic() > deadline:
                shown = [stack.publisher(CONSUL_PORT), *of_application]
                raise _not_ready(f"not passing in Consul: {', '.join(sorted(missing))}", shown, missing)
            time.sleep(_POLL_SECONDS)
    callable_ones = [c for c in replicas if "grpc_server" in c.service.components]
    if callable_ones and stack.publisher(BALANCER_PORT).service.environment.get("LB_TLS_CERTIFICATE"):
        _wait_listed(stack, callable_ones, deadline)
    elif callable_ones:
        _wait_answers(stack, callable_ones, deadline)


def _wait_listed(stack: Stack, replicas: list[Container], deadline: float) -> None:
    balancer = stack.publisher(BALANCER_PORT)
    missing = {container.name for container in replicas}
    with make_session() as session:
        while missing:
            with suppress(requests.RequestException, ValueError):
                answer = session.get(f"http://{balancer.address}:{_STATUS_PORT}/replicas", timeout=_CALL_SECONDS)
                served = {one["address"] for one in answer.json()["replicas"] if one["state"] == SERVING}
                missing = {container.name for container in replicas if container.address not in served}
            if missing and time.monotonic() > deadline:
                raise _not_ready(f"not served: {', '.join(sorted(missing))}", [balancer, *replicas], missing)
            time.sleep(_POLL_SECONDS)


def _wait_answers(stack: Stack, replicas: list[Container], deadline: float) -> None:
    missing = {container.name for container in replicas}
    problem = ""
    with grpc.insecure_channel(
        f"127.0.0.1:{stack.settings.port}",
        options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.enable_http_proxy", 0)],
    ) as channel:
        ping = api_pb2_grpc.PingStub(channel)
        while missing:
            try:
                answer = ping.SayHello(api_pb2.PingMessage(greeting="hello"), timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                problem = f"; the last call failed: {error.code().name} {error.details()}"
                time.sleep(_POLL_SECONDS)
            else:
                name = answer.greeting.removeprefix("Hello from ").removesuffix(".")
                if name not in missing:
                    time.sleep(_POLL_SECONDS / 10)
                missing.discard(name)
            if missing and time.monotonic() > deadline:
                message = f"no answer through port {stack.settings.port} from: {', '.join(sorted(missing))}{problem}"
                raise _not_ready(message, [stack.publisher(BALANCER_PORT), *replicas], missing)


def _not_ready(reason: str, containers: Iterable[Container], missing: set[str]) -> LocalStackError:
    lines = [reason]
    for container in containers:
        if container.name in missing or not container.service.scalable:
            lines += [f"last lines of {container.name}:", *last_lines(container.log, _LOG_LINES)]
    return LocalStackError("\n".join(lines))
