"""The balancer's ways to go live, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.calls import answers
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.scenarios import calls_going_on, target, tried_answers, wait_for_replicas
from tests.support.wait import wait_for

BALANCER = "load-balancer"


@pytest.fixture
def restored(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack; afterwards with its own settings and one replica again."""
    yield stack
    stack.up(1)
    wait_for_replicas(stack, 1)


def peers(driver: LocalDriver) -> list[dict[str, object]]:
    """The balancer's own view of its replicas."""
    return list(requests.get(f"http://{driver.address(BALANCER)}:8080/peers", timeout=5).json()["peers"])


@pytest.mark.parametrize("mode", ["reload", "restart"])
def test_the_selectable_ways_to_update_follow_the_fleet_too(restored: LocalDriver, mode: str) -> None:
    restored.up(1, NGINX_UPDATE=mode)
    wait_for_replicas(restored, 1)
    restored.up(3, NGINX_UPDATE=mode)
    wait_for_replicas(restored, 3)


def test_a_configuration_that_nginx_refuses_leaves_the_last_good_one(restored: LocalDriver) -> None:
    names = wait_for_replicas(restored, 1)
    container = restored.home / "containers" / BALANCER
    template = container / "etc" / "consul-templates" / "load-balancer.tpl"
    good = template.resolve().read_text()
    configuration = container / "etc" / "nginx" / "conf.d" / "load-balancer.conf"
    rendered = configuration.read_text()
    template.unlink()
    template.write_text(good + "\nrubbish that nginx can't know;\n")
    try:
        with calls_going_on(restored) as seen:
            restored.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "consul-template")
            wait_for(
                lambda: "\n".join(restored.logs(BALANCER)),
                lambda text: "nginx refuses the configuration" in text,
                20,
                "the log says why",
            )
            wait_for(configuration.read_text, lambda text: text == rendered, 10, "the last good configuration is back")
        assert set(seen) == {"OK"}, seen
        restored.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "nginx")
        assert wait_for_replicas(restored, 1) == names
    finally:
        template.write_text(good)
        restored.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "consul-template")


HOSTILE = [
    {"Name": 'x"; } server { listen 9; } #', "Port": 7777, "Address": "BASE.1.1"},
    {"Name": "hello_server|any", "Port": 7777, "Address": "BASE.1.1"},
    {"Name": "hello_server", "Port": 7777, "Address": "8.8.8.8"},
    {"Name": "hello_server", "Port": 7777, "Address": 'example.com"\t"x'},
    {"Name": "hello_server", "Port": 7777, "Address": "unix:/tmp/socket"},
    {"Name": "hello_server", "Port": 8500, "Address": "BASE.0.5"},
    {"Name": "hello_server", "Port": 8301, "Address": "BASE.0.5"},
    {"Name": "hello_server", "Port": 7777, "Address": "BASE.1.1\n# end"},
    {"Name": "hello_server", "Port": 7778, "Address": "BASE.1.1", "Meta": {"grpc_services": '");os.exit()--'}},
]


def test_nothing_that_anybody_registers_reaches_the_balancer_unchecked(stack: LocalDriver) -> None:
    names = wait_for_replicas(stack, 1)
    api = ConsulApi(stack)
    before = peers(stack)
    configuration = Path(stack.home / "containers" / BALANCER / "etc/nginx/conf.d/load-balancer.conf").read_text()
    taken = []
    try:
        base = stack.address_base.removesuffix(".0.0")
        for number, hostile in enumerate(HOSTILE):
            body = {**hostile, "Address": str(hostile["Address"]).replace("BASE", base)}
            try:
                api.put(
                    "/v1/agent/service/register",
                    {**body, "ID": f"hostile-{number}", "Tags": ["grpc_server", "\t;{}"]},
                )
                taken.append(number)
            except requests.HTTPError:
                continue  # Consul itself has refused it.
        assert len(taken) > len(HOSTILE) / 2, "Consul refuses most of them by itself"
        wait_for(
            lambda: "\n".join(stack.logs(BALANCER)), lambda text: "refused a peer" in text, 10, "the refusal is logged"
        )
        # A well-formed registration behind them shows that the list was taken.
        address = stack.run_server("behind-them")
        api.put(
            "/v1/agent/service/register",
            {"ID": "behind", "Name": "hello_server", "Address": address, "Port": 7777, "Tags": ["grpc_server"]},
        )
        assert wait_for_replicas(stack, 2) == names | {"behind-them"}
        assert len(peers(stack)) == len(before) + 1
        assert set(answers(target(stack), 50)) == names | {"behind-them"}
    finally:
        for instance in [f"hostile-{number}" for number in taken] + ["behind"]:
            api.put(f"/v1/agent/service/deregister/{instance}")
        stack.stop_extras()
    assert (
        Path(stack.home / "containers" / BALANCER / "etc/nginx/conf.d/load-balancer.conf").read_text() == configuration
    )
    wait_for(lambda: set(tried_answers(stack, 20)), lambda seen: seen == names, 10, "all as before")


def test_weights_are_shares_of_the_calls(stack: LocalDriver) -> None:
    names = wait_for_replicas(stack, 1)
    api = ConsulApi(stack)
    address = stack.run_server("heavy")
    body = {"ID": "heavy", "Name": "hello_server", "Address": address, "Port": 7777, "Tags": ["grpc_server"]}
    api.put("/v1/agent/service/register", {**body, "Weights": {"Passing": 9, "Warning": 1}})
    try:
        wait_for_replicas(stack, 2)
        shares = answers(target(stack), 500)
        assert 440 <= shares["heavy"] <= 460, shares
    finally:
        api.put("/v1/agent/service/deregister/heavy")
        stack.stop_extras()
    wait_for(lambda: set(tried_answers(stack, 20)), lambda seen: seen == names, 10, "all as before")
