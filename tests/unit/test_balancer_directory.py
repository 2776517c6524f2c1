"""The gRPC services of all applications and their health."""

from __future__ import annotations

import asyncio

import pytest

from balancer.directory import OVERALL, Directory
from balancer.fleet import Health
from tests.support.fleet import build, replica


def test_nothing_serves_before_the_first_document() -> None:
    assert Directory().serving == {OVERALL: False}


def test_a_service_serves_while_a_replica_does_that_gets_its_calls() -> None:
    directory = Directory()
    gone = replica("shop", 1, "shop.A", health=Health.REFUSED)
    directory.update(build([gone, replica("shop", 2, "shop.A"), replica("word", 3, "word.B", health=Health.TIMEOUT)]))
    assert directory.serving == {OVERALL: True, "shop.A": True, "word.B": False}
    assert directory.owners == {"shop.A": "shop", "word.B": "word"}
    assert directory.targets == {"shop": ["10.0.0.2:7777"], "word": []}


def test_without_a_replica_that_serves_nothing_does() -> None:
    directory = Directory()
    directory.update(build([replica("shop", 1, "shop.A", health=Health.NOT_SERVING)]))
    assert directory.serving == {OVERALL: False, "shop.A": False}


def test_a_value_that_is_not_a_document_raises_and_changes_nothing() -> None:
    directory = Directory()
    directory.update(build([replica("shop", 1, "shop.A")]))
    with pytest.raises((KeyError, TypeError)):
        directory.update({"replicas": []})
    assert directory.serving["shop.A"]


def test_each_task_that_waits_goes_on_after_a_change() -> None:
    async def run() -> None:
        directory = Directory()
        waiting = [asyncio.create_task(directory.wait_for_change()) for _ in range(3)]
        await asyncio.sleep(0)
        directory.update(build([]))
        await asyncio.wait_for(asyncio.gather(*waiting), 1)

    asyncio.run(run())
