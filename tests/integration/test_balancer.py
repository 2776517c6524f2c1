"""The balancer's ways to go live, and its weights."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from testbed.calls import answers
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support import frames
from tests.support.balancer import Nginx
from tests.support.drivers import LocalDriver
from tests.support.registered import Registration
from tests.support.scenarios import SERVER_NAME, calls_going_on, replica_by_hand, target, wait_for_replicas
from tests.support.scripted import RawServer

TRIES = 30


@pytest.fixture
def restored(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack; afterwards with its own settings and one replica again."""
    yield stack
    stack.up(1)
    wait_for_replicas(stack, 1)


def test_the_selectable_ways_to_update_follow_the_fleet_too(restored: LocalDriver) -> None:
    # A fleet of three is the end of one and the beginning of the other.
    for mode, before, after in (("reload", 1, 3), ("restart", 3, 4)):
        restored.up(before, NGINX_UPDATE=mode)
        wait_for_replicas(restored, before)
        restored.up(after, NGINX_UPDATE=mode)
        wait_for_replicas(restored, after)


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
            restored.wait_for_log(BALANCER, "nginx refuses the configuration")
            wait_for(configuration.read_text, lambda text: text == rendered, 10, "the last good configuration is back")
        assert set(seen) == {"OK"}, seen
        restored.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "nginx")
        assert wait_for_replicas(restored, 1) == names
    finally:
        template.write_text(good)
        restored.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "consul-template")


def test_a_reload_makes_new_workers_with_the_same_replicas(restored: LocalDriver) -> None:
    """The old ones end their calls; a call that crosses a GOAWAY is its client's to try again."""
    names = wait_for_replicas(restored, 1)
    nginx = Nginx(restored)
    before = nginx.workers
    os.kill(restored.pid(BALANCER, "nginx"), signal.SIGHUP)
    wait_for(lambda: len(set(nginx.workers) - set(before)), lambda count: count == len(before), 20, "workers are new")
    assert wait_for_replicas(restored, 1) == names
    assert not nginx.trouble()


def test_an_answer_arrives_as_one(stack: LocalDriver) -> None:
    """The header alone would make gRPC take a call for answered; see tcp.lua."""
    wait_for_replicas(stack, 1)
    body = frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(b""))
    whole = 0
    for _ in range(TRIES):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as client:
            client.sendall(frames.PREFACE)
            # The server's settings, and its word that it has ours.
            while client.recv(4096)[-9:] != frames.frame(frames.SETTINGS, frames.ACK):
                continue
            client.sendall(frames.CALL + body)
            received = b""
            while frames.HEADERS not in (kinds := kinds_of(received)):
                received += client.recv(65536)
            whole += kinds.count(frames.HEADERS) == 2
    assert whole == TRIES, whole
    assert not [line for line in stack.logs(BALANCER) if "structures of this nginx are unknown" in line]


class Raw(RawServer):
    """Answers each call with OK and no message.

    Attributes:
        calls: the kinds of the frames that came with each call's header.
    """

    def __init__(self, address: str, port: int) -> None:
        self.calls: list[list[int]] = []
        super().__init__(address, port, self._answer)

    def _answer(self, _number: int, found: list[frames.Frame]) -> bytes:
        header = frames.block([(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")])
        begun = [one.stream for one in found if one.kind == frames.HEADERS]
        if begun:
            self.calls.append([one.kind for one in found])
        said = [frames.headers(header, frames.ENDED, stream) for stream in begun]
        return b"".join(said) if found else frames.settings()


@pytest.fixture
def raw(stack: LocalDriver) -> Iterator[Raw]:
    """A replica of the service ``tests.Raw``."""
    wait_for_replicas(stack, 1)
    registration = Registration(stack=stack, address=stack.own_address(201, 31), app="raw", service="tests.Raw")
    with closing(Raw(registration.address, 7777)) as replica, registration.registered():
        yield replica


def call_of_raw(stream: int) -> bytes:
    """The header of a call."""
    return frames.headers(frames.call_headers("/tests.Raw/Call"), stream=stream)


def test_a_call_reaches_its_replica_as_one(stack: LocalDriver, raw: Raw) -> None:
    """In two pieces it would wake the replica twice; see tcp.lua."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as client:
        client.sendall(frames.PREFACE)
        for number in range(TRIES):
            stream = 2 * number + 1
            client.sendall(
                call_of_raw(stream) + frames.frame(frames.DATA, frames.END_STREAM, stream, frames.message(b""))
            )
            received = b""
            while frames.HEADERS not in kinds_of(received):
                received += client.recv(65536)
    assert len(raw.calls) == TRIES
    assert all(frames.DATA in kinds for kinds in raw.calls), raw.calls


def test_calls_that_are_reset_at_once_reach_no_replica(stack: LocalDriver, raw: Raw) -> None:
    batch = b"".join(call_of_raw(number) + frames.reset(number) for number in range(1, 2 * TRIES, 2))
    before = raw.accepted
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as client:
        client.sendall(frames.PREFACE + batch + call_of_raw(2 * TRIES + 1))
        wait_for(lambda: len(raw.calls), bool, 10, "the call that is not reset has come")
    assert len(raw.calls) == 1
    # The balancer's probes come twice a second.
    assert raw.accepted - before < TRIES / 2


def kinds_of(received: bytes) -> list[int]:
    return [one.kind for one in frames.whole(received)[0]]


def test_weights_are_shares_of_the_calls(stack: LocalDriver) -> None:
    with replica_by_hand(stack, weight=9):
        shares = answers(target(stack), 500)
        assert 440 <= shares[SERVER_NAME] <= 460, shares
