"""Wrong input at every interface, while calls go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import requests

from common.environment import ConfigError
from local_stack.settings import ROOT
from registrar.config import RegistrarConfig
from testbed.calls import answers, open_channel
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.balancer import Nginx, peers
from tests.support.chaos import FULL, record
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.frames import DEADLY, WRONG, at_random
from tests.support.load import FEW_CALLS_A_SECOND, two_clients
from tests.support.scenarios import target, tried_answers, wait_for_replicas
from tests.support.secure import SECURE

RANDOM = 2000 if FULL else 100
# A replica gets only seeds that are not like DEADLY; the same seeds are the same bytes.
RANDOM_AT_A_REPLICA = 100
ANSWER_SECONDS = 0.15
GOOD = {"APP_NAME": "hello_server", "APP_PORT": "7777", "CONSUL_PORT": "8500", "TAGS": "grpc_server", "HOSTNAME": "box"}
# Each ends a string, a line, a directive, a block, a pattern or a command.
BREAKING_OUT = (
    'x"; } server { listen 9; } #',
    "'); os.exit() --",
    "]] os.exit() --[[",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "a\0b",
    "{{ key `x` }}",
    "$host",
    "$(reboot)",
    "../../etc/passwd",
    "a|b",
    "a b",
    "ä",
    "a\u2028b",
    "# end",
    '"\t"127.0.0.1"\t1\t1\t"127.0.0.1"\t""',
    "\\",
    "%s%n",
    ";",
    "a/b?c#d",
    "x" * 300,
)
PORTS = ("0", "-1", "65536", "1.5", "1e3", "0x50", "http", "7777 ", "77 77", "\uff17\uff17", "7" * 5000, "+80", "'80'")
NUMBERS = ("0", "-1", "nan", "inf", "1e9", "1e999", "x", "1,5", "1 2", "٣", "9" * 400, "5m", "0x1")
HOSTS = (*BREAKING_OUT, "1.2.3", "256.1.1.1", "a..b", "-", "[::1]", "a:1", "http://a", "::1%eth0/x", ".")


def refused_by_the_registrar() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yields environments with one wrong variable, and its name."""
    for name in ("APP_PORT", "CONSUL_PORT"):
        yield from ((name, {name: text}) for text in (*PORTS, *BREAKING_OUT) if text.strip() != "7777")
    for name in ("APP_NAME", "APP_ADDRESS", "CONSUL_ADDRESS", "HOSTNAME"):
        yield from ((name, {name: text}) for text in (BREAKING_OUT if name == "APP_NAME" else HOSTS))
    yield from (("TAGS", {"TAGS": text}) for text in BREAKING_OUT if not text.isascii() or set(text) & set("\n\t\0 "))
    yield from (("WEIGHT", {"WEIGHT": text}) for text in (*NUMBERS, "65536", *BREAKING_OUT))
    for name in ("DRAIN_SECONDS", "HEALTH_CHECK_INTERVAL", "HEALTH_CHECK_TIMEOUT"):
        numbers = [text for text in NUMBERS if text != "0" or name != "DRAIN_SECONDS"]
        yield from ((name, {name: text}) for text in (*numbers, *BREAKING_OUT))
    yield from (("HEALTH_CHECK_TYPE", {"HEALTH_CHECK_TYPE": text}) for text in ("tcp", "https", *BREAKING_OUT))
    for kind in ("http", "grpc"):
        for text in (*BREAKING_OUT, "ftp://a/", "http://", ":0/x", ":99999/x", "http://a b/", "http://[::1/", "a:b:c"):
            yield "HEALTH_CHECK_ENDPOINT", {"HEALTH_CHECK_TYPE": kind, "HEALTH_CHECK_ENDPOINT": text}


def test_the_registrar_refuses_what_is_wrong_and_names_the_variable() -> None:
    counts: Counter[str] = Counter()
    taken = []
    for name, variables in refused_by_the_registrar():
        try:
            RegistrarConfig.from_env({**GOOD, **variables})
        except ConfigError as error:
            (line,) = error.problems
            assert line.startswith(f"{name}: "), (variables, line)
            assert line.isprintable(), (variables, line)
            assert len(line) < 1000, (variables, line)
            counts[name] += 1
        else:
            taken.append(variables)
    print(f"{counts.total()} variations: {dict(counts)}")
    assert taken == []
    assert counts.total() > 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("APP_PORT", "65536"),
        ("APP_NAME", 'x"; } server { listen 9; } #'),
        ("TAGS", "a b"),
        ("WEIGHT", "-1"),
        ("CONSUL_ADDRESS", "a\nb"),
        ("HEALTH_CHECK_TYPE", "tcp"),
    ],
)
def test_the_registrar_exits_2_with_one_line(name: str, text: str) -> None:
    command = [sys.executable, "-m", "registrar"]
    env = {**os.environ, **GOOD, name: text}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: ")


@contextmanager
def unharmed(stack: LocalDriver, what: str) -> Iterator[Nginx]:
    """Asserts that no call is lost in the block, and that nginx keeps workers and configuration and logs no error."""
    nginx = Nginx(stack)
    workers, configuration = nginx.workers, nginx.configuration
    with two_clients(stack, rate=FEW_CALLS_A_SECOND) as load:
        yield nginx
    record(what, load)
    load.assert_no_failed_calls()
    assert nginx.workers == workers
    assert nginx.configuration == configuration
    assert nginx.trouble() == []


def hostile_services(replica: str) -> Iterator[dict[str, Any]]:
    """Yields registrations; the well-formed ones are of the only replica."""
    good = {"Name": "hello_server", "Address": replica, "Port": 7777}
    for text in BREAKING_OUT:
        yield {**good, "Name": text}
        yield {**good, "Name": f"a{text}b"}
        yield {**good, "Address": text}
        yield {**good, "Tags": ["grpc_server", text]}
        yield {**good, "Meta": {"grpc_services": text}}
        yield {**good, "Meta": {text: "x"}}
    for address in ("8.8.8.8", "0.0.0.0", "255.255.255.255", "unix:/tmp/socket", "::", "::ffff:8.8.8.8", "localhost"):
        yield {**good, "Address": address}
    for port in (0, -1, 65536, 2**31, 2**63, 8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600, "7777", 1.5, None):
        yield {**good, "Address": "", "Port": port}
    for weight in (-1, 65536, 2**31, 2**63, "1", None):
        yield {**good, "Address": "8.8.8.8", "Weights": {"Passing": weight, "Warning": weight}}


def hostile_nodes(replica: str) -> Iterator[dict[str, Any]]:
    """Yields registrations of other nodes, which no agent makes."""
    for number, text in enumerate(BREAKING_OUT):
        service = {"ID": f"node-{number}", "Service": "hello_server", "Address": replica, "Port": 7777}
        service["Tags"] = ["grpc_server"]
        yield {"Node": f"hostile-{number}", "Address": text, "Service": service}
        yield {"Node": text, "Address": "8.8.8.8", "Service": {**service, "Address": "8.8.4.4"}}


def accepted(put: Any) -> bool:
    """Returns whether Consul accepts a request."""
    try:
        put()
    except requests.HTTPError:
        return False
    return True


def test_nothing_that_anybody_registers_reaches_the_balancer_unchecked(stack: LocalDriver) -> None:
    names = wait_for_replicas(stack, 1)
    api = ConsulApi(stack)
    before = peers(stack)
    services, nodes, tried = [], [], 0
    with unharmed(stack, "registrations made to break out of the configuration, Lua or the list of peers"):
        try:
            for tried, body in enumerate(hostile_services(str(before[0]["address"])), 1):
                whole = {"Tags": ["grpc_server"], **body, "ID": f"hostile-{tried}"}
                if accepted(lambda whole=whole: api.put("/v1/agent/service/register", whole)):
                    services.append(f"hostile-{tried}")
            for body in hostile_nodes(str(before[0]["address"])):
                tried += 1
                if accepted(lambda body=body: api.put("/v1/catalog/register", body)):
                    nodes.append(str(body["Node"]))
            print(f"{tried} registrations, Consul took {len(services)} services and {len(nodes)} nodes")
            assert len(services) + len(nodes) > tried / 3, "Consul refuses most of them by itself"
            stack.wait_for_log(BALANCER, "refused app=")
            # A well-formed registration after them shows that the list was accepted.
            address = stack.run_server("behind-them")
            stack.register(f"{address}:7777")
            services.append(f"hello_server-{address}")
            assert wait_for_replicas(stack, 2) == names | {"behind-them"}
            assert {peer["address"] for peer in peers(stack)} == {before[0]["address"], address}
            assert set(answers(target(stack), 50)) == names | {"behind-them"}
        finally:
            for instance in services:
                api.put(f"/v1/agent/service/deregister/{instance}")
            for node in nodes:
                api.put("/v1/catalog/deregister", {"Node": node})
            wait_for(lambda: set(tried_answers(stack, 20)), lambda seen: seen == names, 20, "all as before")
            stack.stop_extras()


def send(address: tuple[str, int], data: bytes) -> str:
    """Sends bytes and returns the end of the connection."""
    with socket.socket() as connection:
        connection.settimeout(5)
        connection.connect(address)
        try:
            connection.sendall(data)
            connection.settimeout(ANSWER_SECONDS)
            while connection.recv(65_536):
                pass
        except TimeoutError:
            return "left open"
        except OSError:
            return "reset"
        return "closed"


@pytest.mark.parametrize("place", ["balancer", "replica"])
def test_wrong_bytes_harm_nobody(stack: LocalDriver, place: str) -> None:
    wait_for_replicas(stack, 1)
    replica = next(row for row in stack.rows() if row["service"] == "hello_server")
    if place == "balancer":
        address, inputs = ("127.0.0.1", stack.port), [*WRONG.values(), *map(at_random, range(RANDOM))]
    else:
        address = (str(replica["address"]), 7777)
        inputs = [data for name, data in WRONG.items() if name != DEADLY]
        inputs += map(at_random, range(RANDOM_AT_A_REPLICA))
    with unharmed(stack, f"{len(inputs)} times wrong bytes at the {place}"), ThreadPoolExecutor(8) as pool:
        outcomes = Counter(pool.map(lambda data: send(address, data), inputs))
    print(f"{len(inputs)} inputs at the {place}: {dict(outcomes)}")
    now = next(row for row in stack.rows() if row["service"] == "hello_server")
    assert now["programs"] == replica["programs"]


@pytest.mark.skipif(SECURE, reason="a replica with TLS takes no call in clear text")
def test_a_server_that_a_call_has_ended_is_started_again(stack: LocalDriver) -> None:
    """The fault is grpcio's; the balancer refuses such a call, and a direct one costs seconds."""
    names = wait_for_replicas(stack, 1)
    replica = next(row for row in stack.rows() if row["service"] == "hello_server")
    send((str(replica["address"]), 7777), WRONG[DEADLY])
    stack.wait_for_log(str(replica["name"]), "gRPC has stopped serving by itself")
    assert wait_for_replicas(stack, 1) == names


def test_a_path_without_a_method_is_unimplemented(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)
    with open_channel(target(stack)) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tests.Größe/Method")(b"", timeout=10)
    found: Any = caught.value
    assert (found.code(), found.details()) == (grpc.StatusCode.UNIMPLEMENTED, "no such method")
