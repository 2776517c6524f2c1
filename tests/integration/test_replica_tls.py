"""TLS between the balancer and replicas: side by side with clear text, wrong certificates, renewal, a rollout."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from balancer import document
from balancer.directory import Directory
from balancer.fleet import Health, Replica
from balancer.reflection import Session
from balancer.registration import Registration
from protos import api_pb2_grpc
from status.text import explain
from status.view import Source
from testbed.balancers import FedEnvoy
from testbed.calls import answers, greet, open_channel, say_hello, status
from testbed.errors import MissingError
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.foreign.programs import LIBRARIES
from tests.foreign.test_statuses import INTERNAL, TABLE, UNAVAILABLE, ended, goes_away, resets
from tests.integration.test_registrar import environment, registrar, staying
from tests.integration.test_registrar import server as agent
from tests.support.certificates import Authority, Pair
from tests.support.control_plane import Balancer, engines, line
from tests.support.drivers import ROOT
from tests.support.fleet import build
from tests.support.local import SLOT
from tests.support.missing import missing
from tests.support.relay import Relay
from tests.support.scripted import Scripted
from tests.support.server_process import NETWORK, PORT, ServerProcess

# The first of six: calls, status.
_PORT = 26600 + 6 * SLOT
APP = "hello_server"
ADDRESS = f"{NETWORK}.8.1"
Start = Callable[..., Balancer]


def contains(part: str, text: str) -> bool:
    return part in text


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def start(processes: Processes, tools: None, lb_engine: dict[str, str], authority: Authority) -> Iterator[Start]:  # noqa: ARG001
    """Starts a balancer with a certificate of its own, in front of some registrations."""
    pair = authority.issue("load-balancer")
    with ExitStack() as leave:

        def make(*lines: list[Any], **variables: str) -> Balancer:
            files = {"LB_REPLICA_CERTIFICATE": pair.certificate, "LB_REPLICA_KEY": pair.key}
            given = {name: str(path) for name, path in {**files, "LB_REPLICA_CA": authority.path}.items()}
            one = leave.enter_context(Balancer(processes, _PORT, {**lb_engine, **given, **variables}))
            one.control_plane.render(lines)
            return one

        yield make


def tls(pair: Pair, authority: Authority | None = None, **more: str) -> dict[str, str]:
    """The variables of a server with TLS; with an authority, callers need a certificate of it."""
    files = {"GRPC_TLS_CERTIFICATE": str(pair.certificate), "GRPC_TLS_KEY": str(pair.key)}
    return {**files, **({"GRPC_TLS_CLIENT_CA": str(authority.path)} if authority else {}), **more}


def secure(one: ServerProcess, app: str = APP, **given: Any) -> list[Any]:
    """The registration of a server with TLS."""
    return one.line(app=app, grpc_tls="true", **given)


def wait_for_state(one: Balancer, address: str, state: str, seconds: float = 10) -> None:
    wait_for(lambda: one.states().get(address, ""), state.__eq__, seconds, f"{address} is {state}")


@contextmanager
def calling(target: str, threads: int = 4) -> Iterator[Counter[str]]:
    """Makes calls, one after the other in each thread, while the block runs; counts answers, and failures."""
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    def run() -> None:
        with open_channel(target) as channel:
            ping = api_pb2_grpc.PingStub(channel)
            while not ended.is_set():
                try:
                    outcomes[greet(ping)] += 1
                except grpc.RpcError as error:
                    outcomes[f"failed: {error.code().name} {error.details()}"] += 1
                ended.wait(0.005)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield outcomes
    finally:
        ended.set()
        for thread in running:
            thread.join()


def busy(outcomes: Counter[str], before: Counter[str]) -> set[str]:
    """The servers that have answered calls since then."""
    return {name for name in list(outcomes) if outcomes[name] > before[name] + 10}


def failures(outcomes: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in outcomes.items() if name.startswith("failed")}


@engines
def test_a_replica_that_is_too_busy_for_a_handshake_at_once_gets_its_call(start: Start, authority: Authority) -> None:
    pair = authority.issue(APP)
    with (
        ServerProcess("busy", f"{NETWORK}.8.4", **tls(pair, authority)) as one,
        Relay(f"{one.address}:{PORT}", f"{NETWORK}.8.5", listen=(ADDRESS, PORT), delay_seconds=1.5),
    ):
        balancer = start(line(ADDRESS, PORT, app=APP, grpc_services="protos.Ping", grpc_tls="true"))
        # Too slow for the probe; but the only replica is called nevertheless.
        wait_for_state(balancer, ADDRESS, "ejected: timeout")
        with open_channel(balancer.target) as channel:
            assert greet(api_pb2_grpc.PingStub(channel)) == "busy"


@engines
def test_applications_with_and_without_tls_are_served_side_by_side(start: Start, authority: Authority) -> None:
    pair = authority.issue(APP)
    with (
        ServerProcess("secure-1", ADDRESS, **tls(pair, authority)) as one,
        ServerProcess("secure-2", f"{NETWORK}.8.2", **tls(pair, authority, GRPC_WORKERS="2")) as two,
        ServerProcess("clear", f"{NETWORK}.8.3") as clear,
    ):
        balancer = start(secure(one), secure(two), clear.line(app="words", grpc_services="words.Words"))
        for address in (one.address, two.address, clear.address):
            wait_for_state(balancer, address, "serving")
        found = answers(balancer.target, 40)
        assert set(found) == {"secure-1", "secure-2"}
        assert max(found.values()) <= 24
        with open_channel(balancer.target) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/words.Words/Any")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "Method not found" in str(caught.value.details())


def test_without_a_ca_of_replicas_a_registration_with_tls_is_refused(start: Start, authority: Authority) -> None:
    pair = authority.issue(APP)
    with ServerProcess("secure-1", ADDRESS, **tls(pair)) as one:
        balancer = start(secure(one), LB_REPLICA_CA="", LB_REPLICA_CERTIFICATE="", LB_REPLICA_KEY="")
        wait_for(
            lambda: [refusal["reason"] for refusal in balancer.control_plane.view()["refused"]],
            ["it has TLS, and LB_REPLICA_CA is not set"].__eq__,
            5,
            "the refusal",
        )
        assert status(balancer.target)[0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("another CA", "self-signed certificate in certificate chain|unable to get local issuer certificate"),
        ("another name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("no client certificate", "it does not accept the balancer's certificate: "),
        ("client certificate of another CA", "it does not accept the balancer's certificate: "),
    ],
)
def test_a_replica_whose_certificate_does_not_verify_gets_no_call(
    start: Start, authority: Authority, tmp_path: Path, case: str, reason: str
) -> None:
    stranger = Authority(tmp_path, "stranger")
    makers = {
        "another CA": partial(stranger.issue, APP, file="wrong"),
        "another name": partial(authority.issue, "words", file="wrong"),
        "expired": partial(authority.issue, APP, days=-1, file="wrong"),
    }
    callers = {"no client certificate": authority, "client certificate of another CA": stranger}
    good = authority.issue(APP, file="good")
    variables = {"LB_REPLICA_CERTIFICATE": "", "LB_REPLICA_KEY": ""} if case == "no client certificate" else {}
    with (
        ServerProcess("wrong", ADDRESS, **tls(makers[case]() if case in makers else good, callers.get(case))) as wrong,
        ServerProcess("good", f"{NETWORK}.8.2", **tls(good)) as right,
    ):
        balancer = start(secure(wrong), secure(right), **variables)
        wait_for_state(balancer, right.address, "serving")
        wait_for(
            lambda: {one["address"]: one["reason"] for one in balancer.control_plane.view()["replicas"]}[ADDRESS],
            lambda found: any(part in found for part in reason.split("|")),
            10,
            reason,
        )
        assert balancer.states()[ADDRESS] == "ejected: certificate"
        assert answers(balancer.target, 30) == {"good": 30}
        right.kill()
        wait_for_state(balancer, right.address, "ejected: refused")
        assert status(balancer.target)[0] == "UNAVAILABLE"


def test_status_names_the_reason(start: Start, authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(APP, days=-1)
    service = {"Name": APP, "ID": "one", "Address": ADDRESS, "Port": PORT, "Tags": ["grpc_server"]}
    with ServerProcess("expired", ADDRESS, **tls(pair)) as one, agent(tmp_path / "consul.log", "-dev") as consul:
        wait_for(lambda: consul.get("/v1/status/leader"), bool, 60, "a leader")
        consul.put("/v1/agent/service/register", service)
        balancer = start(secure(one))
        source = Source("127.0.0.1", consul.port, f"127.0.0.1:{balancer.port + 1}")
        reason = "balancer       ejected: certificate: certificate has expired\n"
        wait_for(lambda: explain(source.read().select(APP)), partial(contains, reason), 20, "the reason")


def test_a_certificate_that_goes_wrong_ejects_the_replica_and_a_good_one_restores_it(
    start: Start, authority: Authority
) -> None:
    pair = authority.issue(APP)
    good = authority.issue(APP, file="good")
    with ServerProcess("secure-1", ADDRESS, **tls(pair)) as one:
        balancer = start(secure(one))
        wait_for_state(balancer, ADDRESS, "serving")
        assert status(balancer.target)[0] == "OK"
        pair.replace_with(authority.issue(APP, days=-1, file="old"))
        wait_for_state(balancer, ADDRESS, "ejected: certificate", 20)
        wait_for(balancer.control_plane.log, partial(contains, "reason=certificate has expired"), 5, "the reason")
        pair.replace_with(good)
        wait_for_state(balancer, ADDRESS, "serving", 20)
        assert status(balancer.target)[0] == "OK"


def test_only_the_balancer_may_call_and_health_is_open_to_the_ca(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(APP)
    own = authority.issue("load-balancer")
    stranger = Authority(tmp_path, "stranger").issue("load-balancer", file="fake")
    with ServerProcess("secure-1", ADDRESS, **tls(pair, authority, GRPC_TLS_CLIENT_NAME="load-balancer")):

        def call(caller: Pair | None) -> str:
            files = (caller.key.read_bytes(), caller.certificate.read_bytes()) if caller else (None, None)
            credentials = grpc.ssl_channel_credentials(authority.path.read_bytes(), *files)
            options = [("grpc.ssl_target_name_override", APP), ("grpc.enable_retries", 0)]
            with grpc.secure_channel(f"{ADDRESS}:{PORT}", credentials, options=options) as channel:
                try:
                    return greet(api_pb2_grpc.PingStub(channel))
                except grpc.RpcError as error:
                    return f"{error.code().name} {error.details()}"

        assert call(own) == "secure-1"
        assert call(pair) == "PERMISSION_DENIED the caller's certificate must have the name load-balancer"
        assert call(None).startswith("UNAVAILABLE")
        assert call(stranger).startswith("UNAVAILABLE")
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            say_hello(f"{ADDRESS}:{PORT}")


@engines
def test_renewed_certificates_are_in_use_within_5_s_and_no_call_is_lost(start: Start, authority: Authority) -> None:
    pair, own = authority.issue(APP), authority.issue("load-balancer", file="own")
    given = {"LB_REPLICA_CERTIFICATE": str(own.certificate), "LB_REPLICA_KEY": str(own.key)}
    with ExitStack() as leave:
        servers = [
            leave.enter_context(ServerProcess(f"secure-{number}", f"{NETWORK}.8.{number}", **tls(pair, authority)))
            for number in (1, 2)
        ]
        balancer = start(*map(secure, servers), **given)
        for one in servers:
            wait_for_state(balancer, one.address, "serving")
        copy = balancer.nginx.directory / "run/replica-certificate.pem"
        with calling(balancer.target) as outcomes:
            for number in range(3):
                own.replace_with(authority.issue("load-balancer", file=f"own-{number}"))
                pair.replace_with(authority.issue(APP, file=f"pair-{number}"))
                renewed = (own.certificate.read_text(), pair.certificate.read_text())
                wait_for(
                    lambda: (
                        copy.read_text().partition("-----BEGIN PRIVATE")[0],
                        served_certificate(ADDRESS, own, authority),
                    ),
                    renewed.__eq__,
                    5,
                    "the renewed certificates",
                )
        assert not failures(outcomes)
        assert sum(outcomes.values()) > 200


@engines
def test_a_renewed_certificate_of_another_ca_is_shown_to_replicas_that_want_it(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    pair, own = authority.issue(APP), authority.issue("load-balancer", file="own")
    with (
        ServerProcess("old", ADDRESS, **tls(pair, authority)) as old,
        ServerProcess("new", f"{NETWORK}.8.2", **tls(pair, other)) as new,
    ):
        given = {"LB_REPLICA_CERTIFICATE": str(own.certificate), "LB_REPLICA_KEY": str(own.key)}
        balancer = start(secure(old), secure(new), **given)
        wait_for_state(balancer, old.address, "serving")
        wait_for_state(balancer, new.address, "ejected: certificate")
        assert answers(balancer.target, 10) == {"old": 10}
        own.replace_with(other.issue("load-balancer", file="renewed"))
        wait_for_state(balancer, new.address, "serving", 20)
        old.kill()
        wait_for_state(balancer, old.address, "ejected: refused")
        assert answers(balancer.target, 10) == {"new": 10}


class FedVerifyingEnvoy(FedEnvoy):
    """One whose control plane says that all replicas serve."""

    def __init__(self, processes: Processes, port: int, own: Pair, authority: Authority) -> None:
        super().__init__(processes, port)
        files = {"LB_REPLICA_CERTIFICATE": own.certificate, "LB_REPLICA_KEY": own.key, "LB_REPLICA_CA": authority.path}
        self.variables = {**FedEnvoy.variables, **{name: str(path) for name, path in files.items()}}
        self._copies = {
            "replica-certificate.pem": own.certificate.read_bytes() + own.key.read_bytes(),
            "replica-ca.pem": authority.path.read_bytes(),
        }

    def change(self, peers: Sequence[str]) -> None:
        """Says that the peers are replicas of the application with TLS."""
        registrations = [
            Registration(application=APP, address=peer.rpartition(":")[0], port=PORT, weight=1, tls=True)
            for peer in peers
        ]
        replicas = [Replica(registration=one, since=0, health=Health.SERVING) for one in registrations]
        content = document.Content(replicas=replicas, routes={}, version="-".join(peers))
        for name, text in self._copies.items():
            (self.directory / "run" / name).write_bytes(text)
        (self.directory / "run" / "document.new").write_bytes(document.Encoder().encode(content))
        (self.directory / "run" / "document.new").replace(self.directory / "run" / "document.json")


def test_envoy_itself_verifies_replicas(
    processes: Processes,
    tools: None,  # noqa: ARG001
    authority: Authority,
    tmp_path: Path,
) -> None:
    # The health probe, which ejects such replicas, has no part in this.
    pairs = {
        "good": authority.issue(APP),
        "another-ca": Authority(tmp_path, "stranger").issue(APP, file="fake"),
        "another-name": authority.issue("words", file="wrong"),
    }
    one = FedVerifyingEnvoy(processes, _PORT, authority.issue("load-balancer"), authority)
    try:
        one.require()
    except MissingError as error:
        missing(str(error))
    with ExitStack() as leave:
        servers = {
            name: leave.enter_context(ServerProcess(name, f"{NETWORK}.8.{number}", **tls(pair, authority)))
            for number, (name, pair) in enumerate(pairs.items(), 1)
        }
        one.start([f"{servers['good'].address}:{PORT}"])
        leave.callback(one.stop)
        assert answers(one.target, 10) == {"good": 10}
        for name in ("another-ca", "another-name"):
            one.change([f"{servers[name].address}:{PORT}"])
            wait_for(lambda: status(one.target)[0], "UNAVAILABLE".__eq__, 10, name)
            assert {status(one.target)[0] for _ in range(10)} == {"UNAVAILABLE"}
        one.change([f"{servers['good'].address}:{PORT}"])
        wait_for(lambda: status(one.target)[0], "OK".__eq__, 10, "the good one is called again")


def served_certificate(address: str, own: Pair, authority: Authority) -> str:
    """Returns the certificate that a new connection gets."""
    command: list[str | Path] = [
        "openssl",
        "s_client",
        "-connect",
        f"{address}:{PORT}",
        "-alpn",
        "h2",
        "-CAfile",
        authority.path,
    ]
    done = subprocess.run(
        [*command, "-cert", own.certificate, "-key", own.key],
        input="",
        capture_output=True,
        text=True,
        errors="replace",  # the text of a session ticket
        timeout=10,
        check=False,
    )
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return f"{begin}{done.stdout.partition(begin)[2].partition(end)[0]}{end}\n"


@engines
def test_an_application_changes_to_tls_and_back_and_no_call_is_lost(start: Start, authority: Authority) -> None:
    pair = authority.issue(APP)
    with ExitStack() as leave:

        def run(name: str, number: int, **variables: str) -> ServerProcess:
            return leave.enter_context(ServerProcess(name, f"{NETWORK}.8.{number}", **variables))

        clear = [run(f"clear-{number}", number).line(app=APP) for number in (1, 2)]
        encrypted = [secure(run(f"secure-{number}", number, **tls(pair, authority))) for number in (3, 4)]
        balancer = start(*clear)
        for number in (1, 2):
            wait_for_state(balancer, f"{NETWORK}.8.{number}", "serving")
        steps = (
            [*clear, encrypted[0]],
            [clear[0], encrypted[0]],
            [clear[0], *encrypted],
            encrypted,
            [clear[0], *encrypted],
            [clear[0], encrypted[0]],
            clear,
        )
        with calling(balancer.target) as outcomes:
            # Without Consul the balancer keeps replicas that are no longer registered.
            for lines in steps:
                balancer.control_plane.render(lines)
                for one in lines:
                    wait_for_state(balancer, one[1], "serving")
                names = {f"{'secure' if one in encrypted else 'clear'}-{one[1].rpartition('.')[2]}" for one in lines}
                wait_for(partial(busy, outcomes, Counter(outcomes)), names.__le__, 10, "all get calls")
        assert not failures(outcomes)


def test_wrong_variables_are_one_line_each(authority: Authority) -> None:
    pair, other = authority.issue(APP), authority.issue("other")
    for module, variables, message in (
        ("balancer", {"LB_REPLICA_CERTIFICATE": pair.certificate}, "LB_REPLICA_KEY: must be set, because LB_REPLICA_C"),
        (
            "balancer",
            {"LB_REPLICA_CERTIFICATE": pair.certificate, "LB_REPLICA_KEY": pair.key},
            "LB_REPLICA_CERTIFICATE: needs LB_REPLICA_CA",
        ),
        ("balancer", {"LB_REPLICA_CA": pair.key}, "LB_REPLICA_CA: must be a file with a certificate in PEM"),
        ("grpc_server", {"GRPC_TLS_KEY": pair.key}, "GRPC_TLS_CERTIFICATE: must be set, because GRPC_TLS_KEY is"),
        (
            "grpc_server",
            {"GRPC_TLS_CERTIFICATE": pair.certificate, "GRPC_TLS_KEY": other.key},
            "GRPC_TLS_KEY: must be the key of GRPC_TLS_CERTIFICATE",
        ),
        ("grpc_server", {"GRPC_TLS_CLIENT_CA": authority.path}, "GRPC_TLS_CLIENT_CA: needs GRPC_TLS_CERTIFICATE"),
        ("grpc_server", {"GRPC_TLS_CLIENT_NAME": "x"}, "GRPC_TLS_CLIENT_NAME: needs GRPC_TLS_CLIENT_CA"),
    ):
        env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-m", module]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(message), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_registrar_and_consuls_check_use_tls_and_follow_a_renewal(
    tools: None,  # noqa: ARG001
    authority: Authority,
    tmp_path: Path,
) -> None:
    pair = authority.issue(APP)
    log, output = tmp_path / "consul.log", tmp_path / "registrar.log"
    own = tls(pair, authority, GRPC_TLS_CLIENT_NAME="load-balancer")
    check = {"HEALTH_CHECK_TYPE": "grpc", "HEALTH_CHECK_ENDPOINT": "/protos.Ping", "HEALTH_CHECK_INTERVAL": "0.2"}

    def find_check() -> tuple[str, str]:
        checks = [one for one in (consul.get("/v1/agent/checks") or {}).values() if one["ServiceName"] == APP]
        return (checks[0]["Status"], checks[0]["Output"]) if checks else ("none", "")

    def passes(found: tuple[str, str]) -> bool:
        return found[0] == "passing" and "success" in found[1]

    with (
        ServerProcess("secure-1", ADDRESS, **own) as server,
        agent(log, "-dev", variables=own) as consul,
    ):
        wait_for(lambda: consul.get("/v1/status/leader"), bool, 60, f"a leader, see {log}")
        env = environment(consul.port, APP_ADDRESS=ADDRESS, APP_PORT=str(PORT), TAGS="grpc_server", **own, **check)
        with staying(env, output):
            wait_for(find_check, passes, 20, "the check passes")
            (service,) = consul.get("/v1/agent/services").values()
            assert service["Meta"]["grpc_tls"] == "true"
            assert service["Meta"]["grpc_services"] == "protos.Ping"
            assert registrar(env, "health").stderr == ""
            # The server takes only certificates of the new CA, so that the check shows the agent's new ones.
            other = Authority(tmp_path, "other")
            authority.path.write_bytes(other.path.read_bytes())
            renewed = other.issue(APP, file="renewed")
            # The key follows later; until then the agent keeps its service, which a reload that fails would remove.
            pair.replace_with(Pair(renewed.certificate, pair.key))
            wait_for(log.read_text, partial(contains, "continues with the last good files"), 10, "it waits for the key")
            pair.replace_with(renewed)
            wait_for(log.read_text, partial(contains, "signal=hangup"), 10, "the agent reads the files")
            # A restored check is of the new certificate.
            server.kill()
            wait_for(find_check, lambda found: found[0] == "critical", 20, "the check fails")
            server.start()
            wait_for(find_check, passes, 20, "the check passes again")
            assert served_certificate(ADDRESS, pair, authority) == pair.certificate.read_text()
    assert log.read_text().count("signal=hangup") == 1
    assert "lost the service" not in output.read_text()


def test_a_call_that_a_replica_ends_has_the_same_status_as_without_tls(start: Start, authority: Authority) -> None:
    pair = authority.issue(APP)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])
    with closing(Scripted(ADDRESS, PORT, resets(2), context)) as replica:
        balancer = start(line(ADDRESS, PORT, app=APP, grpc_tls="true"))
        wait_for_state(balancer, ADDRESS, "serving")
        for code, wanted in TABLE.items():
            replica.script = resets(code)
            status_of_call, message = ended(balancer)
            assert (status_of_call, f" {code}" in str(message)) == (wanted, True), (code, message)
        for script, wanted in (
            (goes_away(0), UNAVAILABLE),
            (lambda _: b"", UNAVAILABLE),
            (resets(2, begun=True), INTERNAL),
        ):
            replica.script = script
            assert ended(balancer)[0] == wanted


@engines
def test_servers_of_other_libraries_are_verified(
    start: Start, authority: Authority, processes: Processes, tmp_path: Path
) -> None:
    pair = authority.issue(APP)
    go = next(one for one in LIBRARIES if one.name == "grpc-go")
    assert go.server
    targets = [f"{NETWORK}.8.{number}" for number in (1, 2)]
    for address, issued in zip(targets, (pair, Authority(tmp_path, "stranger").issue(APP, file="fake")), strict=True):
        env = tls(issued, authority)
        processes.start(f"go-{address}", [*go.server(), f"{address}:{PORT}"], cwd=tmp_path, env={**os.environ, **env})
    balancer = start(*(line(address, PORT, app=APP, grpc_tls="true") for address in targets))
    wait_for_state(balancer, targets[0], "serving", 20)
    wait_for_state(balancer, targets[1], "ejected: certificate")
    for _ in range(20):
        assert ended(balancer) == (0, "")


def test_reflection_for_all_applications_asks_a_replica_with_tls(authority: Authority, tmp_path: Path) -> None:
    pair, own = authority.issue(APP), authority.issue("load-balancer")
    copies = tmp_path / "run"
    copies.mkdir()
    (copies / "replica-ca.pem").write_bytes(authority.path.read_bytes())
    (copies / "replica-certificate.pem").write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    registration = Registration(
        application=APP, address=ADDRESS, port=PORT, weight=1, services=("protos.Ping",), tls=True
    )
    directory = Directory(copies)
    directory.update(build([Replica(registration=registration, since=0)]))

    async def ask() -> Any:
        session = Session(directory, ())
        try:
            return await session.answer(reflection_pb2.ServerReflectionRequest(file_containing_symbol="protos.Ping"))
        finally:
            session.close()

    with ServerProcess("secure-1", ADDRESS, **tls(pair, authority, GRPC_TLS_CLIENT_NAME="load-balancer")):
        answer = asyncio.run(ask())
        assert answer.file_descriptor_response.file_descriptor_proto, answer
