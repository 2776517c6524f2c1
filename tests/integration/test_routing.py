"""Several applications behind one port: each gets the calls of its gRPC services."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from testbed.calls import answers, open_channel, say_hello
from testbed.errors import MissingError
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.foreign.programs import tool
from tests.support.balancer import peers, services
from tests.support.drivers import ConsulApi, LocalDriver, run
from tests.support.load import FEW_CALLS_A_SECOND, two_clients
from tests.support.missing import missing
from tests.support.registered import RegisteredServer, Registration, running_server
from tests.support.scenarios import target, wait_for_replicas
from tests.support.server import SERVICE

PING = "protos.Ping"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x01*"


def call(stack: LocalDriver, path: str, message: bytes = b"", **metadata: str) -> tuple[str, bytes]:
    """The status of one call, and its answer or the status's message."""
    with open_channel(target(stack)) as channel:
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        try:
            return "OK", channel.unary_unary(path)(message, metadata=pairs, timeout=10)
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "").encode()


def reflect(stack: LocalDriver, method: str, **question: str) -> tuple[str, bytes]:
    """The status of a question of reflection, and its answer."""
    return call(stack, method, ServerReflectionRequest(**question).SerializeToString())


def probe_call(stack: LocalDriver) -> tuple[str, bytes]:
    return call(stack, f"/{SERVICE}/Unary", b"echo")


def owner(stack: LocalDriver, service: str) -> tuple[object, object, object]:
    """The application that has a service, the count of its replicas that have it, and who registers it as well."""
    found = services(stack).get(service, {})
    return found.get("application"), found.get("replicas"), found.get("also")


@pytest.fixture(autouse=True)
def one_replica(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)


def test_the_registrar_tells_the_services_of_its_server_by_reflection(stack: LocalDriver) -> None:
    (instance,) = ConsulApi(stack).get("/v1/catalog/service/hello_server")
    assert instance["ServiceMeta"]["grpc_services"] == PING
    assert owner(stack, PING) == ("hello_server", 1, "")


def test_each_service_goes_to_its_application(stack: LocalDriver) -> None:
    with running_server(stack, 31):
        for _ in range(5):
            assert probe_call(stack) == ("OK", b"echo")
            assert say_hello(target(stack)).startswith("hello_server")


def test_a_service_that_no_application_has_is_unimplemented_by_name(stack: LocalDriver) -> None:
    with running_server(stack, 32):
        assert call(stack, "/shop.Orders/List") == ("UNIMPLEMENTED", b"no application has the service shop.Orders")
        assert call(stack, "/shop.Orders/Li%20st'\"")[0] == "UNIMPLEMENTED"
        assert call(stack, "/sh'op/x") == ("UNIMPLEMENTED", b"no such method")


def reflected_error(stack: LocalDriver, method: str, symbol: str) -> tuple[str, int]:
    """Returns the status of a question for a symbol, and the error code in its answer."""
    status, answer = reflect(stack, method, file_containing_symbol=symbol)
    return status, ServerReflectionResponse.FromString(answer).error_response.error_code


def test_reflection_answers_for_all_applications(stack: LocalDriver) -> None:
    with running_server(stack, 38):
        for version in ("v1", "v1alpha"):
            method = REFLECTION.replace("v1alpha", version)
            status, answer = wait_for(
                partial(call, stack, method, LIST_SERVICES),
                lambda found: SERVICE.encode() in found[1],
                10,
                "both are listed",
            )
            assert status == "OK"
            for name in (PING, SERVICE, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"):
                assert name.encode() in answer
            # A service is asked of a replica that has it, a file of any replica that has that.
            status, answer = reflect(stack, method, file_containing_symbol=PING)
            assert (status, b"protos/api.proto" in answer) == ("OK", True)
            assert b"SayHello" in reflect(stack, method, file_by_filename="protos/api.proto")[1]
            # INTERNAL while a replica of a busy machine has not answered in time: it might have it.
            wait_for(
                partial(reflected_error, stack, method, "no.One"),
                ("OK", grpc.StatusCode.NOT_FOUND.value[0]).__eq__,
                10,
                "no replica has it",
            )


def test_grpcurl_needs_no_header(stack: LocalDriver) -> None:
    try:
        grpcurl = tool("grpcurl")
    except MissingError as error:
        missing(str(error))
    with running_server(stack, 40):
        wait_for(lambda: owner(stack, SERVICE)[1], lambda count: count == 1, 10, "the second application is there")
        base: list[str | Path] = [grpcurl, "-plaintext"]
        assert set(run([*base, target(stack), "list"]).split()) > {PING, SERVICE}
        assert "rpc SayHello" in run([*base, target(stack), "describe", PING])
        assert "string greeting" in run([*base, target(stack), "describe", "protos.PingMessage"])
        answer = run([*base, "-d", '{"greeting": "hi"}', target(stack), f"{PING}/SayHello"])
        assert "Hello from hello_server-1." in answer
        health = "grpc.health.v1.Health/Check"
        assert "SERVING" in run([*base, "-d", f'{{"service": "{PING}"}}', target(stack), health])


def test_health_answers_for_all_applications(stack: LocalDriver) -> None:
    def status(service: str) -> str:
        code, message = call(stack, HEALTH, HealthCheckRequest(service=service).SerializeToString())
        found = HealthCheckResponse.FromString(message if code == "OK" else b"")
        return str(HealthCheckResponse.ServingStatus.Name(found.status)) if code == "OK" else code

    with running_server(stack, 39) as server:
        wait_for(lambda: status(SERVICE), lambda found: found == "SERVING", 10, "it is known")
        assert [status(name) for name in ("", PING, "no.One")] == ["SERVING", "SERVING", "NOT_FOUND"]
        with open_channel(target(stack)) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=SERVICE), timeout=30)
            assert next(watch).status == HealthCheckResponse.SERVING
            # It accepts no connection any more; the balancer finds that out by itself.
            server.process.kill()
            assert next(watch).status == HealthCheckResponse.NOT_SERVING
            watch.cancel()
        assert [status(name) for name in (SERVICE, "", PING)] == ["NOT_SERVING", "SERVING", "SERVING"]


def test_what_every_application_has_is_asked_of_the_one_that_is_named(stack: LocalDriver) -> None:
    with running_server(stack, 33):
        status, answer = call(stack, REFLECTION, LIST_SERVICES, x_application="hello_server")
        assert status == "OK"
        assert PING.encode() in answer
        # The metadata takes no service from the application that has it.
        assert call(stack, f"/{SERVICE}/Unary", b"echo", x_application="hello_server") == ("OK", b"echo")


def test_a_known_service_without_a_replica_is_unavailable(stack: LocalDriver) -> None:
    with running_server(stack, 34) as server:
        server.deregister()
        assert probe_call(stack) == ("UNAVAILABLE", b"no replica could be reached")
        assert say_hello(target(stack)).startswith("hello_server")
        # What the balancer knows is on disk as well.
        stack.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "nginx")
        wait_for_replicas(stack, 1)
        assert probe_call(stack) == ("UNAVAILABLE", b"no replica could be reached")
        server.register()
        assert probe_call(stack) == ("OK", b"echo")


def test_a_service_stays_with_its_application_until_that_has_no_replica(stack: LocalDriver) -> None:
    def holder(server: RegisteredServer) -> bytes:
        """Makes a call and returns the number of open calls at this server."""
        with open_channel(target(stack)) as through:
            hanging = through.unary_unary(f"/{SERVICE}/Hang").future(b"taken")
            with open_channel(server.target) as direct:
                channel: Any = direct
                found = wait_for(
                    lambda: channel.unary_unary(f"/{SERVICE}/Hanging")(b"taken"),
                    lambda seen: seen == b"1",
                    5,
                    "it hangs",
                )
            hanging.cancel()
        return bytes(found)

    # The name that comes first is of the application that came last.
    with (
        running_server(stack, 35, since="2026-01-01T00:00:00+00:00") as first,
        running_server(stack, 36, app="another", since="2026-01-02T00:00:00+00:00") as second,
    ):
        wait_for(lambda: owner(stack, SERVICE), lambda found: found == ("probe", 1, "another"), 10, "both are known")
        assert f"service={SERVICE} is also registered by another; its calls go to app=probe" in "\n".join(
            stack.logs(BALANCER)
        )
        assert holder(first) == b"1"
        first.deregister()
        assert owner(stack, SERVICE) == ("another", 1, "")
        assert f"service={SERVICE} goes to app=another" in "\n".join(stack.logs(BALANCER))
        assert holder(second) == b"1"
        # As its registrar does it: since now.
        replace(first, since="2026-01-03T00:00:00+00:00").register()
        assert owner(stack, SERVICE) == ("another", 1, "probe")


def test_the_registrar_says_since_when_its_application_has_its_services(stack: LocalDriver) -> None:
    api = ConsulApi(stack)

    def since() -> list[str]:
        return [one["ServiceMeta"]["grpc_since"] for one in api.get("/v1/catalog/service/hello_server")]

    (before,) = since()
    stack.scale(2)
    wait_for_replicas(stack, 2)
    try:
        assert since() == [before, before]
        # The first leaves and comes back, as in a rollout.
        stack.local_stack("restart", "hello_server-1")
        wait_for_replicas(stack, 2)
        assert since() == [before, before]
    finally:
        stack.scale(1)
        wait_for_replicas(stack, 1)


def test_a_version_with_one_more_service_gets_its_calls(stack: LocalDriver) -> None:
    """While a version is rolled out, only some of an application's replicas have its new service."""
    with running_server(stack, 37) as old, running_server(stack, 38) as new:
        replace(new, service=f"tests.New,{SERVICE}").register()
        wait_for(lambda: owner(stack, "tests.New"), lambda found: found == ("probe", 1, ""), 10, "it is known")
        assert owner(stack, SERVICE) == ("probe", 2, "")
        # The server has no such method; that it says so shows that it was asked.
        for _ in range(6):
            assert call(stack, "/tests.New/Method") == ("UNIMPLEMENTED", b"Method not found!")
        assert old.process.poll() is None
    wait_for(lambda: owner(stack, "tests.New")[1], lambda count: count == 0, 10, "it is gone")


def test_a_long_list_of_services_is_known_whole(stack: LocalDriver) -> None:
    names = [f"shop.v1.Service{number:03}" for number in range(60)]
    with running_server(stack, 39) as server:
        meta = {"grpc_services_2": ",".join(names[25:50]), "grpc_services_3": ",".join(names[50:])}
        replace(server, service=",".join(names[:25]), meta=meta).register()
        wait_for(lambda: set(names) <= set(services(stack)), bool, 10, "all are known")
        assert call(stack, f"/{names[-1]}/Method") == ("UNIMPLEMENTED", b"Method not found!")


def test_an_application_that_says_nothing_gets_what_no_other_has(stack: LocalDriver) -> None:
    with running_server(stack, 40, app="silent") as server:
        server.deregister()
        replace(server, service="").register()
        assert call(stack, "/shop.Orders/List") == ("UNIMPLEMENTED", b"Method not found!")
        for _ in range(5):
            assert say_hello(target(stack)).startswith("hello_server")


def test_a_canarys_share_changes_at_run_time_and_costs_no_call(stack: LocalDriver) -> None:
    address = stack.run_server("canary")
    canary = Registration(stack=stack, address=address, app="hello_server", service=PING, meta={"version": "2"})

    def share() -> float:
        # Few at once: a replica that has more than its share in flight for a moment gets fewer calls, and should.
        return answers(target(stack), 400, concurrency=4)["canary"] / 400

    with canary.registered():
        wait_for_replicas(stack, 2)
        assert 0.45 < share() < 0.55
        with two_clients(stack, rate=FEW_CALLS_A_SECOND) as load:
            replace(canary, more={"Weights": {"Passing": 9, "Warning": 1}}).register()
            wait_for(lambda: [peer["weight"] for peer in peers(stack)], lambda found: 9 in found, 5, "it is live")
        load.assert_no_failed_calls()
        assert 0.85 < share() < 0.95
    stack.stop_extras()
