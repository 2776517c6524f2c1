"""The scenarios of a stack, with and without Docker; each function takes a driver whose stack is up and ready."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import requests

from testbed.calls import answers, say_hello, status
from testbed.wait import wait_for
from tests.support.drivers import ConsulApi, Driver

# Processes start slowly on two cores that also run everything else.
PATIENCE_SECONDS = 60.0
SERVER_NAME = "by-hand"


def target(driver: Driver) -> str:
    """Returns the address of the balancer for clients."""
    return f"127.0.0.1:{driver.port}"


def tried_answers_of(address: str, count: int) -> Counter[str]:
    """Returns as :func:`answers` does; nothing while calls fail."""
    try:
        return answers(address, count)
    except grpc.RpcError:
        return Counter()


def tried_answers(driver: Driver, count: int) -> Counter[str]:
    """Returns as :func:`answers` does; nothing while calls fail."""
    return tried_answers_of(target(driver), count)


def wait_for_replicas_of(address: str, count: int, seconds: float = PATIENCE_SECONDS) -> set[str]:
    """Waits until exactly ``count`` replicas answer through a balancer, and returns their names."""
    return wait_for(
        lambda: set(tried_answers_of(address, 10 * max(count, 3))),
        lambda names: len(names) == count,
        seconds,
        f"{count} replicas answer through {address}",
    )


def wait_for_replicas(driver: Driver, count: int) -> set[str]:
    """Waits until exactly ``count`` replicas answer, and returns their names."""
    return wait_for_replicas_of(target(driver), count)


@contextmanager
def calls_going_on(driver: Driver, some: Callable[[], int] | None = None) -> Iterator[Counter[str]]:
    """Calls in the background; afterwards the counter has the answers and, as statuses, the failures.

    ``some`` makes calls and says how many were answered; by default they are some of Ping at once.
    """
    seen: Counter[str] = Counter()
    stop = threading.Event()
    make_some = some or (lambda: sum(answers(target(driver), 20, 4).values()))

    def call() -> None:
        while not stop.is_set():
            try:
                seen["OK"] += make_some()
            except grpc.RpcError as error:
                seen[f"{error.code().name}: {error.details()}"] += 1

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield seen
    finally:
        stop.set()
        caller.join()


def first_answer(driver: Driver) -> None:
    """One call is answered, by the one replica there is."""
    names = wait_for_replicas(driver, 1)
    assert say_hello(target(driver)) in names


def scale_up(driver: Driver) -> None:
    """From one replica to five: all answer, within 10 % of evenly, and no call is lost on the way."""
    with calls_going_on(driver) as seen:
        driver.up(5)
        wait_for_replicas(driver, 5)
    assert set(seen) == {"OK"}, seen
    # A replica that a busy machine keeps from answering its probe is ejected for a moment.
    wait_for(
        lambda: sorted(answers(target(driver), 500, concurrency=10).values()),
        lambda shares: len(shares) == 5 and shares[0] >= 90 and shares[-1] <= 110,
        PATIENCE_SECONDS,
        "even shares of 500 calls",
    )


def scale_down(driver: Driver) -> None:
    """From five replicas to one: no call is lost on the way."""
    with calls_going_on(driver) as seen:
        driver.up(1)
        wait_for_replicas(driver, 1)
    assert set(seen) == {"OK"}, seen
    assert len(driver.replicas()) == 1


@contextmanager
def replica_by_hand(driver: Driver, *, weight: int = 1, forget_seconds: float = 5) -> Iterator[str]:
    """Runs a second server and registers it with Consul's HTTP API; it gets calls until it is deregistered.

    Args:
        driver: the stack, with one replica.
        weight: its weight.
        forget_seconds: the time in which it gets no more calls.

    Yields:
        Its address.
    """
    before = wait_for_replicas(driver, 1)
    address = driver.run_server(SERVER_NAME)
    api = ConsulApi(driver)
    body = {"ID": "by-hand-1", "Name": "hello_server", "Address": address, "Port": 7777, "Tags": ["grpc_server"]}
    api.put("/v1/agent/service/register", {**body, "Weights": {"Passing": weight, "Warning": 1}})
    try:
        assert wait_for_replicas(driver, 2) == before | {SERVER_NAME}
        yield address
    finally:
        api.put("/v1/agent/service/deregister/by-hand-1")
        forgotten = "the server is forgotten"
        wait_for(lambda: set(tried_answers(driver, 20)), lambda names: names == before, forget_seconds, forgotten)
        driver.stop_extras()


def registered_by_hand(driver: Driver) -> None:
    """A server registered with Consul's HTTP API gets calls, and none from the moment that it is deregistered."""
    with replica_by_hand(driver):
        pass


# By the name of a server: type and endpoint of its health check, and its status in Consul.
CHECKS = {
    "http-passes": ("http", "CONSUL_URL/v1/status/leader", "passing"),
    "grpc-passes": ("grpc", "/protos.Ping", "passing"),
    "http-fails": ("http", "CONSUL_URL/v1/no/such/path", "critical"),
    "grpc-fails": ("grpc", "/protos.NoSuchService", "critical"),
}


def check_types(driver: Driver) -> None:
    """Registrars with health checks: Consul runs each, and only a server that passes its own gets calls."""
    before = wait_for_replicas(driver, 1)
    for name, (kind, endpoint, _) in CHECKS.items():
        driver.run_server(name)
        url = driver.registrar_environment(name)["CONSUL_URL"]
        variables = {"APP_NAME": "hello_server", "APP_PORT": "7777", "TAGS": "grpc_server", "HEALTH_CHECK_TYPE": kind}
        driver.run_registrar(name, {**variables, "HEALTH_CHECK_ENDPOINT": endpoint.replace("CONSUL_URL", url)})
    api = ConsulApi(driver)

    def statuses() -> dict[str, str | None]:
        found = api.instances("hello_server")
        return {name: found.get(f"hello_server-{name}-7777") for name in CHECKS}

    wanted = {name: status for name, (_, _, status) in CHECKS.items()}
    wait_for(statuses, lambda found: found == wanted, 30, "the status of each check")
    served = before | {name for name, status in wanted.items() if status == "passing"}
    assert wait_for_replicas(driver, len(served)) == served
    time.sleep(2)  # Two intervals of the checks, in which nothing may happen.
    assert set(answers(target(driver), 60)) == served
    driver.stop_extras()
    wait_for(statuses, lambda found: not any(found.values()), 30, "deregistered at the end")


def leader_stopped(driver: Driver) -> None:
    """The Consul leader stops and comes back: calls go on, another leads, and a change still arrives."""
    api = ConsulApi(driver)
    first = wait_for(lambda: leader(driver), bool, 30, "a leader")
    with calls_going_on(driver) as seen:
        driver.stop(first)
        wait_for(lambda: leader(driver), lambda name: name not in ("", first), PATIENCE_SECONDS, "another leader")
        driver.start(first)
        wait_for(lambda: len(api.get("/v1/status/peers")), (3).__eq__, PATIENCE_SECONDS, "three servers")
        nodes = "/v1/health/node/" + first
        wait_for(
            lambda: {check["Status"] for check in api.get(nodes)},
            lambda found: found == {"passing"},
            PATIENCE_SECONDS,
            "the server is back",
        )
    assert set(seen) == {"OK"}, seen
    registered_by_hand(driver)


def leader(driver: Driver) -> str:
    """Returns the container of Consul's leader, empty while there is none."""
    try:
        address = str(ConsulApi(driver).get("/v1/status/leader")).split(":")[0]
    except requests.RequestException:
        return ""
    return driver.server_at(address) if address else ""


def agent_restarted(driver: Driver) -> None:
    """The Consul agent of one of two replicas restarts: calls go on and the replica is back."""
    driver.up(2)
    names = wait_for_replicas(driver, 2)
    with calls_going_on(driver) as seen:
        driver.execute(driver.replicas()[0], "supervisorctl", "-c", "etc/supervisord.conf", "restart", "consul")
        assert wait_for_replicas(driver, 2) == names
    assert set(seen) == {"OK"}, seen
    driver.up(1)
    wait_for_replicas(driver, 1)


def balancer_restarted(driver: Driver) -> None:
    """The balancer restarts: it serves again, the same replica."""
    names = wait_for_replicas(driver, 1)
    driver.stop("load-balancer")
    driver.start("load-balancer")
    assert wait_for_replicas(driver, 1) == names


def no_replica(driver: Driver) -> None:
    """With no replica a call gets UNAVAILABLE in under 100 ms; the first replica back is served."""
    driver.up(0)
    found = wait_for(lambda: status(target(driver)), lambda seen: seen[0] == "UNAVAILABLE", 30, "UNAVAILABLE")
    fastest = min([found[1], *(status(target(driver))[1] for _ in range(10))])
    assert fastest < 0.1, f"{fastest * 1000:.0f} ms"
    driver.up(1)
    wait_for_replicas(driver, 1)


# In this order, whatever else is printed between.
STOP_ORDER = (
    r"registrar \| .*deregistered",
    r"registrar \| .*drained",
    r"grpc_server \| .*stopping",
    r"grpc_server \| .*stopped",
    r"consul \| .*Gracefully shutting down agent",
)


def stop_order(driver: Driver) -> None:
    """A replica stops in the right order, and each line of its log names its program."""
    name = driver.replicas()[0]
    driver.stop(name)
    lines = driver.logs(name)
    position = 0
    for pattern in STOP_ORDER:
        for position in range(position, len(lines)):  # noqa: B020 - goes on where the last was found
            if re.search(pattern, lines[position]):
                break
        else:
            raise AssertionError(f"no {pattern!r} in its place in:\n" + "\n".join(lines[-40:]))
    programs = {line.split(" | ")[0] for line in lines if " | " in line}
    assert {"consul", "registrar", "grpc_server"} <= programs, programs
    driver.start(name)
    wait_for_replicas(driver, 1)


# All of them; each finds one replica and leaves one.
SCENARIOS: tuple[Callable[[Driver], None], ...] = (
    first_answer,
    scale_up,
    scale_down,
    registered_by_hand,
    check_types,
    leader_stopped,
    agent_restarted,
    balancer_restarted,
    no_replica,
    stop_order,
)

# What another version of Compose could do differently.
COMPOSE_SCENARIOS: tuple[Callable[[Driver], None], ...] = (first_answer, scale_up, scale_down, no_replica, stop_order)
