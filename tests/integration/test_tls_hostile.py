"""Hostile clients of the TLS port: each gets what it should, and no other caller notices."""

from __future__ import annotations

import re
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support import frames, hostile
from tests.support.certificates import Authority, Pair
from tests.support.control_plane import Balancer, line
from tests.support.hostile import Draft, Issuer
from tests.support.hostile_stack import Probe, Stack
from tests.support.local import SLOT
from tests.support.registered import probe_server
from tests.support.server import SERVICE
from tests.support.server_process import NETWORK, PORT, ServerProcess

# The first of three: calls, status. test_connections.py has the three before.
_PORT = 29003 + 6 * SLOT
ADDRESS = f"{NETWORK}.9.2"
SILENT = 2000
# client_header_timeout, and some more for a busy machine.
HANDSHAKE_SECONDS, LATE_SECONDS = 10.0, 5.0
PROBE_SECONDS = 2.0
# The time that other programs may take a core, and the factor by which calls may take longer.
MARGIN_SECONDS, MORE_TIME = 1.0, 2
_TROUBLE = re.compile(r"\[(error|crit|alert|emerg)\]")
_EXPECTED = re.compile(r"SSL_do_handshake\(\) failed|ignoring stale global SSL error")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def tls(directory: Path, tools: None) -> Iterator[Stack]:  # noqa: ARG001
    authority, root = Authority(directory), Issuer()
    (directory / "callers.pem").write_bytes(root.pem)
    pair = authority.issue("balancer", ("localhost", "127.0.0.1"))
    variables = {
        "LB_TLS_CERTIFICATE": str(pair.certificate),
        "LB_TLS_KEY": str(pair.key),
        "LB_TLS_CLIENT_CA": str(directory / "callers.pem"),
    }
    with (
        Processes(directory) as processes,
        probe_server(ADDRESS),
        ServerProcess("server-1", f"{NETWORK}.9.3") as server,
        Balancer(processes, _PORT, variables) as one,
    ):
        one.control_plane.render([server.line(), line(ADDRESS, PORT, app="probe", grpc_services=SERVICE)])
        wait_for(one.states, {ADDRESS: "serving", server.address: "serving"}.__eq__, 10, "both serve")
        yield Stack(one, authority, root, directory)


@contextmanager
def unnoticed(tls: Stack, wrong_handshakes: int = 0) -> Iterator[None]:
    """Asserts that what the block does has no effect on other callers, on the workers and on the log.

    nginx logs a wrong handshake in one line, with a level that depends on OpenSSL's reason, and the signature of a
    wrong CA in another.
    """
    with Probe(tls) as before:
        time.sleep(PROBE_SECONDS)
    workers, had, memory, lines = tls.workers, tls.descriptors, tls.memory_mib, len(tls.log())
    with Probe(tls) as during:
        began = time.monotonic()
        yield
        time.sleep(max(0.0, PROBE_SECONDS - (time.monotonic() - began)))
    assert during.statuses == {"OK": during.calls}
    assert during.calls > 20
    assert during.p99_seconds < MORE_TIME * before.p99_seconds + MARGIN_SECONDS
    assert tls.workers == workers
    wait_for(lambda: tls.descriptors, lambda now: now < had + 30, 20, f"the descriptors are back at {had}")
    wait_for(lambda: tls.memory_mib, lambda now: now < memory * 1.3 + 8, 40, f"the memory is back at {memory:.0f} MiB")
    trouble = [one for one in tls.log()[lines:] if _TROUBLE.search(one)]
    assert not [one for one in trouble if not _EXPECTED.search(one)]
    assert len(trouble) <= wrong_handshakes, trouble


def read_to_end(connection: socket.socket) -> bytes:
    """Returns what the balancer sends until it ends the connection."""
    found = b""
    with suppress(ConnectionError):
        while part := connection.recv(65_536):
            found += part
    return found


def send(tls: Stack, content: bytes) -> bytes:
    """Sends all, and returns the answer."""
    with tls.connect() as connection:
        # The balancer may end it first.
        with suppress(OSError):
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


def test_bytes_that_are_no_handshake_end_their_own_connection(tls: Stack) -> None:
    inputs = hostile.wrong_bytes()
    assert len(inputs) > 150
    with unnoticed(tls, len(inputs)), ThreadPoolExecutor(4) as pool:
        answers = dict(zip(inputs, pool.map(partial(send, tls), inputs.values()), strict=True))
    for what, answer in answers.items():
        # An alert, a part of a handshake, a refusal of a request in clear text, or nothing.
        refused = answer.startswith(b"HTTP/1.1 400 ") or b"grpc-status: 13" in answer
        assert not answer or answer[0] in (21, 22) or refused, (what, answer[:80])


@pytest.mark.parametrize("count", [20])
def test_a_handshake_may_take_10_s_however_it_arrives(tls: Stack, count: int) -> None:
    """A byte a second keeps no connection open for longer."""
    hello = hostile.client_hello()

    def drip(number: int) -> float:
        with tls.connect() as connection:
            connection.settimeout(1)
            began = time.monotonic()
            with suppress(ConnectionError):
                connection.sendall(hello[:number])
                for place in range(number, number + 30):
                    connection.sendall(hello[place : place + 1])
                    try:
                        if not connection.recv(65_536):
                            break
                    except TimeoutError:
                        continue
            return time.monotonic() - began

    with unnoticed(tls), ThreadPoolExecutor(count) as pool:
        seconds = list(pool.map(drip, range(0, 20 * count, 20)))
    assert min(seconds) > HANDSHAKE_SECONDS - 1
    assert max(seconds) < HANDSHAKE_SECONDS + LATE_SECONDS


def test_silent_connections_are_closed_and_keep_nobody_out(tls: Stack) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, SILENT + 500)), hard))
    try:
        with unnoticed(tls), ExitStack() as leave:
            before = tls.descriptors
            silent = [leave.enter_context(tls.connect()) for _ in range(SILENT)]
            opened = time.monotonic()
            wait_for(lambda: tls.descriptors - before, lambda more: more > SILENT * 0.9, 10, "all are open at once")
            for one in silent:
                assert read_to_end(one) == b""
            assert time.monotonic() - opened < HANDSHAKE_SECONDS + LATE_SECONDS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def context_with(*protocols: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    if version:
        context.minimum_version = context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def talk(tls: Stack, context: ssl.SSLContext, content: bytes) -> bytes | str:
    """Returns the answer, or why there is none."""
    try:
        with context.wrap_socket(tls.connect()) as connection:
            connection.sendall(content)
            return read_to_end(connection)
    except (ssl.SSLError, ConnectionError) as error:
        return str(error)


CALL = frames.PREFACE + frames.CALL + frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(b""))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("repeats", [5])
def test_protocols_that_grpc_does_not_use_get_no_call_through(tls: Stack, repeats: int) -> None:
    old = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
    with unnoticed(tls):
        for _ in range(repeats):
            for version in old:
                assert "protocol version" in str(talk(tls, context_with("h2", version=version), CALL))
            assert "no application protocol" in str(talk(tls, context_with("spdy/3", "h3"), CALL))
            for protocols in ((), ("http/1.1",)):
                # HTTP/1.1 does not know HTTP/2's preface.
                answer = talk(tls, context_with(*protocols), CALL)
                assert isinstance(answer, bytes)
                assert b"grpc-status: 13" in answer, answer
                # A call of HTTP/1.1 needs a certificate too.
                answer = talk(tls, context_with(*protocols), hostile.HTTP1)
                assert isinstance(answer, bytes)
                assert b"grpc-status: 16" in answer, answer


def test_renegotiation_is_refused(tls: Stack) -> None:
    command = ["openssl", "s_client", "-connect", tls.balancer.target, "-tls1_2", "-alpn", "h2"]
    with unnoticed(tls):
        for _ in range(5):
            done = subprocess.run(command, input=b"R\n" * 3, capture_output=True, timeout=30, check=False)
            assert b"RENEGOTIATING" in done.stdout + done.stderr
            assert b"no renegotiation" in done.stderr, done.stderr


REFUSED = "UNAUTHENTICATED the client certificate is not accepted: "


def test_certificates_of_callers_are_checked(tls: Stack) -> None:
    issue: Callable[[str, Draft], Pair] = partial(tls.root.issue, tls.directory)
    deep = [hostile.chained(tls.root, length).issue(tls.directory, f"deep-{length}", Draft()) for length in (4, 5, 9)]
    cases = [
        (issue("large", hostile.LARGE), "OK"),
        (deep[0], "OK"),
        (issue("expired", hostile.EXPIRED), f"{REFUSED}certificate has expired"),
        (issue("later", hostile.NOT_YET_VALID), f"{REFUSED}certificate is not yet valid"),
        (issue("server", hostile.FOR_SERVERS), f"{REFUSED}un"),
        (hostile.self_signed(tls.directory, "self", Draft()), f"{REFUSED}self"),
        (Issuer().issue(tls.directory, "other", Draft()), REFUSED),
        (deep[1], REFUSED),
        (deep[2], REFUSED),
        (issue("larger", hostile.LARGER), "UNAVAILABLE "),
    ]
    with unnoticed(tls, len(cases)):
        for pair, expected in cases:
            status, subjects = tls.call(pair, ("x-client-certificate-subject", "CN=admin"))
            assert status.startswith(expected), (pair.certificate.name, status)
            assert subjects == (["CN=caller"] if expected == "OK" else []), pair.certificate.name


def test_subjects_reach_a_replica_as_one_line_of_ascii(tls: Stack) -> None:
    claims = [("x-client-certificate-subject", claim) for claim in ("CN=admin", "CN=root")]
    with unnoticed(tls):
        for number, (expected, subject) in enumerate(hostile.SUBJECTS.items()):
            pair = tls.root.issue(tls.directory, f"subject-{number}", Draft(subject=subject))
            assert tls.call(pair, *claims) == ("OK", [expected])
        empty = tls.root.issue(tls.directory, "empty", Draft(subject=(), names=("a.example",)))
        assert tls.call(empty, *claims) == ("OK", [])
