"""TLS with callers: certificates, their renewal, callers' certificates, wrong files."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from protos import api_pb2, api_pb2_grpc
from testbed.calls import open_channel
from testbed.processes import Processes
from testbed.programs import ghz
from testbed.wait import wait_for
from tests.foreign.programs import tool
from tests.support import frames
from tests.support.certificates import Authority, Pair
from tests.support.control_plane import Balancer, engines, line, serving
from tests.support.drivers import ROOT, LocalDriver
from tests.support.local import SLOT
from tests.support.registered import probe_server
from tests.support.scenarios import wait_for_replicas
from tests.support.server import SERVICE
from tests.support.server_process import NETWORK, PORT, ServerProcess

# The first of four: calls, status, metrics, calls without TLS.
_PORT = 27500 + 4 * SLOT
LOCAL = ("localhost", "127.0.0.1")
Start = Callable[..., Balancer]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("balancer", LOCAL)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("server-1", f"{NETWORK}.7.1") as one:
        yield one


@pytest.fixture
def start(
    processes: Processes,
    tools: None,  # noqa: ARG001
    lb_engine: dict[str, str],
    pair: Pair,
    server: ServerProcess,
) -> Iterator[Start]:
    """Starts a balancer with the certificate and some variables, in front of the server."""
    with ExitStack() as leave:

        def make(**variables: str) -> Balancer:
            files = {"LB_TLS_CERTIFICATE": str(pair.certificate), "LB_TLS_KEY": str(pair.key)}
            return leave.enter_context(serving(processes, _PORT, {**lb_engine, **files, **variables}, server))

        yield make


def client(target: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m grpc_client``."""
    host, _, port = target.rpartition(":")
    command = [sys.executable, "-m", "grpc_client", "--host", host, "--port", port, "--no-retry", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def channel(target: str, authority: Authority, caller: Pair | None = None) -> Any:
    """Opens a connection of its own."""
    files = (caller.key.read_bytes(), caller.certificate.read_bytes()) if caller else (None, None)
    return open_channel(target, grpc.ssl_channel_credentials(authority.path.read_bytes(), *files))


def contains(part: str, text: str) -> bool:
    return part in text


def served_certificate(target: str) -> str:
    """Returns the certificate that a new connection gets."""
    host, _, port = target.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=5)


@engines
def test_tls_and_clear_text_are_served_at_once(start: Start, authority: Authority) -> None:
    clear = f"127.0.0.1:{_PORT + 3}"
    one = start(LB_LISTEN=f"127.0.0.1:{_PORT} grpc://{clear}")
    answer = "Response from server: Hello from server-1.\n"
    assert client(one.target, "--tls", "--cacert", authority.path).stdout == answer
    assert client(clear).stdout == answer
    # Clients over grpc-go and its own TLS.
    call: list[str | Path] = ["-cacert", authority.path, "-d", '{"greeting": "x"}', one.target, "protos.Ping/SayHello"]
    found = subprocess.run([tool("grpcurl"), *call], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(found.stdout) == {"greeting": "Hello from server-1."}


def data_segments(connection: socket.socket) -> int:
    """Returns how many segments with data have arrived (tcp_info of linux/tcp.h, tcpi_data_segs_in)."""
    return int(struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)[0])


@pytest.mark.parametrize("tls", [True, False])
def test_an_answer_is_sent_in_one_segment(start: Start, authority: Authority, tls: bool) -> None:
    clear = f"127.0.0.1:{_PORT + 3}"
    one = start(LB_LISTEN=f"127.0.0.1:{_PORT} grpc://{clear}")
    host, _, port = (one.target if tls else clear).rpartition(":")
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(["h2"])
    connection = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(connection, server_hostname="localhost") if tls else connection as caller:
        caller.sendall(frames.PREFACE)
        segments, rest = [], b""
        for stream in range(1, 60, 2):
            before = data_segments(caller)
            message = frames.frame(frames.DATA, frames.END_STREAM, stream, frames.message(b""))
            caller.sendall(frames.headers(frames.HEAD, stream=stream) + message)
            answered: list[frames.Frame] = []
            while not any(found.stream == stream and found.flags & frames.END_STREAM for found in answered):
                answered, rest = frames.whole(rest + caller.recv(65_536))
            segments.append(data_segments(caller) - before)
    # On a busy machine the parts of an answer may reach nginx one after the other.
    assert min(segments) == 1, segments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls"], "the server's certificate is not trusted: "),
        (["--tls", "--cacert", "CA", "--server-name", "other.example"], "the server's certificate is not for other.ex"),
        (["--tls", "--cacert", "/nowhere"], "--cacert: must be a readable file: No such file or directory (got '/nowh"),
        (["--tls", "--cacert", "CA", "--cert", "CA"], "--cert: needs --key"),
        (["--cacert", "CA"], "--cacert: needs --tls"),
        ([], "the server speaks TLS (see --tls)"),
    ],
)
def test_the_client_explains_a_failed_handshake_in_one_line(
    start: Start, authority: Authority, arguments: list[str], message: str
) -> None:
    one = start()
    done = client(one.target, *(str(authority.path) if word == "CA" else word for word in arguments))
    assert done.returncode
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@engines
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_protocols_are_refused(start: Start) -> None:
    one = start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    host, _, port = one.target.rpartition(":")
    with context.wrap_socket(socket.socket()) as connection:
        connection.settimeout(5)
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            connection.connect((host, int(port)))


@engines
def test_a_renewed_certificate_is_served_within_5_s_and_no_call_is_lost(
    start: Start, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    one = start()
    before = served_certificate(one.target)
    failed: Counter[str] = Counter()
    calls = 0
    ended = threading.Event()

    def call_on_new_connections() -> None:
        nonlocal calls
        while not ended.is_set():
            with channel(one.target, authority) as fresh:
                try:
                    api_pb2_grpc.PingStub(fresh).SayHello(api_pb2.PingMessage(greeting="x"), timeout=10)
                    calls += 1
                except grpc.RpcError as error:
                    failed[f"{error.code().name} {error.details()}"] += 1

    seconds = 12
    report = tmp_path / "ghz.json"
    load = subprocess.Popen(
        [
            *(ghz(), "--cacert", authority.path, "--proto", ROOT / "protos/api.proto", "-i", ROOT),
            *("--call", "protos.Ping.SayHello", "-d", '{"greeting": "x"}', "-c", "8", "--connections", "4"),
            *("--rps", "100", "-z", f"{seconds}s", "--duration-stop", "wait", "-O", "json", "-o", report, one.target),
        ],
        env={**os.environ, "no_proxy": "127.0.0.1"},
    )
    thread = threading.Thread(target=call_on_new_connections)
    thread.start()
    try:
        for number in range(3):
            pair.replace_with(authority.issue("balancer", LOCAL, file=f"renewed-{number}"))
            renewed = pair.certificate.read_text()
            wait_for(lambda: served_certificate(one.target), renewed.__eq__, 5, "the renewed certificate")
        assert load.wait(60) == 0
    finally:
        ended.set()
        thread.join()
        load.kill()
    assert renewed != before
    assert calls > 20
    assert not failed
    outcome = json.loads(report.read_text())
    assert outcome["statusCodeDistribution"] == {"OK": outcome["count"]}
    assert outcome["count"] > 50 * seconds


@engines
def test_connections_that_never_finish_their_handshake_are_closed_and_affect_no_call(
    start: Start, authority: Authority
) -> None:
    one = start()
    host, _, port = one.target.rpartition(":")
    hello = ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        half.do_handshake()
    client_hello = hello.read()
    beginnings = [b"", client_hello, client_hello[: len(client_hello) // 2], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    beginnings += [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x15\x03\x03\x00\x02\x02\x28",
        os.urandom(4096),
    ]
    with ExitStack() as leave, channel(one.target, authority) as own:
        sockets = []
        for number in range(1000):
            connection = leave.enter_context(socket.create_connection((host, int(port)), timeout=30))
            connection.sendall(beginnings[number % len(beginnings)])
            sockets.append(connection)
        ping = api_pb2_grpc.PingStub(own)
        for number in range(100):
            assert ping.SayHello(api_pb2.PingMessage(greeting=str(number)), timeout=2).greeting
        for connection in sockets:
            with suppress(ConnectionError):
                while connection.recv(65536):
                    pass
    assert client(one.target, "--tls", "--cacert", authority.path).returncode == 0


@engines
def test_callers_need_a_certificate_of_the_ca_and_replicas_see_its_subject(
    start: Start, lb_engine: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    one = start(LB_TLS_CLIENT_CA=str(authority.path))
    stranger = Authority(tmp_path, "stranger")
    refused = "UNAUTHENTICATED: the client certificate is not accepted"
    # Envoy does not tell why.
    reasons = ["", ""] if lb_engine else [": ", ": certificate has expired"]
    cases = {
        "none": (None, "UNAUTHENTICATED: a client certificate is required"),
        "stranger": (stranger.issue("stranger-1"), refused + reasons[0]),
        "expired": (authority.issue("late", days=-1), refused + reasons[1]),
        "good": (authority.issue("caller"), "Response from server: Hello from server-1."),
    }
    for name, (caller, message) in cases.items():
        files: list[str | Path] = ["--cert", caller.certificate, "--key", caller.key] if caller else []
        done = client(one.target, "--tls", "--cacert", authority.path, *files)
        assert message in done.stdout + done.stderr, (name, done)


@engines
@pytest.mark.parametrize("verifies", [True, False])
def test_the_subject_is_not_the_callers_to_set(
    start: Start, server: ServerProcess, authority: Authority, verifies: bool
) -> None:
    clear = f"127.0.0.1:{_PORT + 3}"
    needed = {"LB_TLS_CLIENT_CA": str(authority.path)} if verifies else {}
    one = start(LB_LISTEN=f"127.0.0.1:{_PORT} grpc://{clear}", **needed)
    address = f"{NETWORK}.7.2"
    metadata = (("x-client-certificate-subject", "CN=admin"),)

    def seen(own: Any) -> list[str]:
        answer = own.unary_unary(f"/{SERVICE}/Seen")(b"", timeout=10, metadata=metadata)
        return [value for key, value in json.loads(answer)["metadata"] if key == metadata[0][0]]

    def is_routed(own: Any) -> bool:
        try:
            seen(own)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED
        return True

    with (
        probe_server(address),
        channel(one.target, authority, authority.issue("caller")) as own,
        open_channel(clear) as other,
    ):
        one.control_plane.render([server.line(), line(address, PORT, app="probe", grpc_services=SERVICE)])
        wait_for(one.states, lambda found: found.get(address) == "serving", 10, "it serves")
        # Envoy has a route a moment after nginx has the replica.
        wait_for(lambda: is_routed(own), bool, 10, "its calls are its own")
        assert seen(own) == (["CN=caller"] if verifies else [])
        # Without TLS a call needs no certificate.
        assert seen(other) == []


@engines
def test_wrong_files_leave_the_last_good_ones_in_use(
    start: Start, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    ca = tmp_path / "callers.pem"
    # Files of CAs have comments, with names in any language.
    ca.write_bytes("# Főtanúsítvány\n".encode() + authority.path.read_bytes())
    one = start(LB_TLS_CLIENT_CA=str(ca))
    caller = authority.issue("caller")
    good = [pair.certificate.read_bytes(), pair.key.read_bytes(), ca.read_bytes()]
    paths = (pair.certificate, pair.key, ca)
    for path, text, message in (
        (pair.key, authority.issue("other").key.read_bytes(), "LB_TLS_KEY: must be the key of LB_TLS_CERTIFICATE"),
        (pair.key, b"", "LB_TLS_KEY: must be a file with a private key in PEM"),
        (pair.certificate, b"\xff", "LB_TLS_CERTIFICATE: must be a file with a certificate in PEM"),
        (ca, b"no certificate", "LB_TLS_CLIENT_CA: must be a file with a certificate in PEM"),
    ):
        path.write_bytes(text)
        wait_for(one.control_plane.log, partial(contains, message), 10, message)
        done = client(
            one.target, "--tls", "--cacert", authority.path, "--cert", caller.certificate, "--key", caller.key
        )
        assert done.returncode == 0, done.stderr
        for each, content in zip(paths, good, strict=True):
            each.write_bytes(content)


def test_a_wrong_pair_at_the_start_is_one_line(authority: Authority, pair: Pair) -> None:
    for variables, message in (
        ({"LB_TLS_CERTIFICATE": pair.certificate}, "LB_TLS_KEY: must be set, because LB_TLS_CERTIFICATE is"),
        ({"LB_TLS_CLIENT_CA": authority.path}, "LB_TLS_CLIENT_CA: needs LB_TLS_CERTIFICATE"),
        ({"LB_LISTEN": "grpcs://127.0.0.1:1"}, "LB_LISTEN: needs LB_TLS_CERTIFICATE (got 'grpcs://127.0.0.1:1')"),
        (
            {"LB_TLS_CERTIFICATE": pair.certificate, "LB_TLS_KEY": authority.issue("other").key},
            "LB_TLS_KEY: must be the key of LB_TLS_CERTIFICATE",
        ),
        (
            {"LB_TLS_CERTIFICATE": pair.certificate, "LB_TLS_KEY": "/nowhere"},
            "LB_TLS_KEY: must be a readable file: No such file or directory (got '/nowhere')",
        ),
    ):
        env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-m", "balancer"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(message), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_certificate_that_expires_soon_is_logged_and_in_the_metrics(
    start: Start, authority: Authority, pair: Pair
) -> None:
    port = _PORT + 2
    one = start(METRICS_PORT=str(port), BIND_ADDRESS="127.0.0.1")
    pair.replace_with(authority.issue("balancer", LOCAL, days=3, file="short"))
    wait_for(one.control_plane.log, lambda log: "LB_TLS_CERTIFICATE: expires at" in log, 10, "the warning")
    name = 'grpc_lb_certificate_expiration_timestamp_seconds{variable="LB_TLS_CERTIFICATE"} '

    def days_left() -> float:
        lines = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text.splitlines()
        return (float(next(one for one in lines if one.startswith(name)).removeprefix(name)) - time.time()) / 86400

    wait_for(days_left, lambda days: 2.9 < days < 3.1, 5, "the metric")


def test_the_whole_stack_with_callers_certificates_and_reloads(
    stack: LocalDriver, authority: Authority, pair: Pair
) -> None:
    caller = authority.issue("caller")
    tls = {"LB_TLS_CERTIFICATE": pair.certificate, "LB_TLS_KEY": pair.key, "LB_TLS_CLIENT_CA": authority.path}
    target = f"127.0.0.1:{stack.port}"
    flags: list[str | Path] = ["--tls", "--cacert", authority.path]
    try:
        stack.up(1, NGINX_UPDATE="reload", **{name: str(path) for name, path in tls.items()})
        good = wait_for(
            lambda: client(target, *flags, "--cert", caller.certificate, "--key", caller.key),
            lambda done: done.returncode == 0,
            20,
            "an answer",
        )
        assert good.stdout.startswith("Response from server: Hello from hello_server-1")
        assert "UNAUTHENTICATED" in client(target, *flags).stderr
        pair.replace_with(authority.issue("balancer", LOCAL, file="renewed"))
        wait_for(lambda: served_certificate(target), pair.certificate.read_text().__eq__, 5, "the renewed certificate")
    finally:
        stack.up(1)
        wait_for_replicas(stack, 1)
