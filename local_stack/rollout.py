"""``rollout``: replaces a service's replicas one after the other, never with fewer of them in service than before."""

from __future__ import annotations

from local_stack.container import Container
from local_stack.errors import LocalStackError, say
from local_stack.readiness import wait_ready
from local_stack.stack import Stack


def replace_replicas(stack: Stack, name: str, seconds: float) -> None:
    """Starts an extra replica; once it is healthy replaces each of the others, then removes the extra one.

    Raises:
        LocalStackError: the service can't be scaled, or a new replica did not become healthy within ``seconds``; it is
            removed then, and the replicas that were not replaced yet stay in service.
    """
    old = stack.containers([name])
    service = old[0].service
    if name != service.name or not service.scalable:
        raise LocalStackError(f"rollout: {name} is not a service that can be scaled")
    extra = stack.container(service, max(container.number for container in old) + 1)
    _start(stack, extra, seconds, [])
    say(f"{extra.name} is healthy")
    for done, container in enumerate(old):
        say(f"replacing {container.name} ({done + 1} of {len(old)})")
        stack.stop([container])
        _start(stack, container, seconds, old[done + 1 :])
        say(f"{container.name} is healthy")
    stack.remove([extra])


def _start(stack: Stack, container: Container, seconds: float, untouched: list[Container]) -> None:
    stack.start([container])
    try:
        wait_ready(stack, seconds, [container])
    except LocalStackError as error:
        stack.remove([container])
        rest = ", ".join(one.name for one in untouched) or "all others"
        raise LocalStackError(
            f"the rollout has stopped: {container.name} did not become healthy and is removed; in service as before: "
            f"{rest}\n{error}"
        ) from error
