"""``--list`` and ``--call`` against a server with reflection, all four kinds of method."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP_FILE
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped,unused-ignore] # typed only with types-grpcio-reflection
    reflection,
    reflection_pb2,
)

from protos import api_pb2
from protos.api_pb2 import PingMessage
from tests.support.served import Context, run_client, served, start_client

V1ALPHA = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"
SILENT_CALLED = asyncio.Event()


def echo_pool() -> DescriptorPool:
    """Describes test.Echo, which imports two files, one of them protobuf's own."""
    file = FileDescriptorProto(name="echo.proto", package="test", syntax="proto3")
    file.dependency.extend([api_pb2.DESCRIPTOR.name, TIMESTAMP_FILE.name])
    ping, timestamp = ".protos.PingMessage", ".google.protobuf.Timestamp"
    kinds = [("Unary", False, False), ("Down", False, True), ("Up", True, False), ("Chat", True, True)]
    kinds += [("Refuse", True, False), ("Silent", False, False)]
    methods = [
        MethodDescriptorProto(name=name, input_type=ping, output_type=ping, client_streaming=up, server_streaming=down)
        for name, up, down in kinds
    ]
    methods.append(MethodDescriptorProto(name="Time", input_type=timestamp, output_type=timestamp))
    file.service.add(name="Echo", method=methods)
    pool = DescriptorPool()
    for imported in (TIMESTAMP_FILE, api_pb2.DESCRIPTOR):
        pool.AddSerializedFile(imported.serialized_pb)
    pool.Add(file)
    return pool


async def unary(request: PingMessage, context: Context) -> PingMessage:
    if request.greeting == "fail":
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as\nyou wish")
    return request


async def down(request: PingMessage, context: Context) -> AsyncIterator[PingMessage]:
    for number in range(3):
        yield PingMessage(greeting=f"{request.greeting} {number}")
    if request.greeting == "fail":
        await context.abort(grpc.StatusCode.DATA_LOSS, "no more")


async def up(requests: AsyncIterator[PingMessage], _context: Context) -> PingMessage:
    return PingMessage(greeting="+".join([request.greeting async for request in requests]))


async def chat(requests: AsyncIterator[PingMessage], _context: Context) -> AsyncIterator[PingMessage]:
    async for request in requests:
        yield PingMessage(greeting=request.greeting.upper())


async def refuse(_requests: AsyncIterator[PingMessage], context: Context) -> PingMessage:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not even read")


async def silent(request: PingMessage, _context: Context) -> PingMessage:
    SILENT_CALLED.set()
    await asyncio.Event().wait()
    return request


async def same_time(request: Timestamp, _context: Context) -> Timestamp:
    return request


def echo_handler() -> grpc.GenericRpcHandler:
    codec = (PingMessage.FromString, PingMessage.SerializeToString)
    return grpc.method_handlers_generic_handler(
        "test.Echo",
        {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, *codec),
            "Down": grpc.unary_stream_rpc_method_handler(down, *codec),
            "Up": grpc.stream_unary_rpc_method_handler(up, *codec),
            "Chat": grpc.stream_stream_rpc_method_handler(chat, *codec),
            "Refuse": grpc.stream_unary_rpc_method_handler(refuse, *codec),
            "Silent": grpc.unary_unary_rpc_method_handler(silent, *codec),
            "Time": grpc.unary_unary_rpc_method_handler(same_time, Timestamp.FromString, Timestamp.SerializeToString),
        },
    )


def reflection_handler(version: str, *, whole: bool) -> grpc.GenericRpcHandler:
    """Offers reflection under a version's name; not ``whole`` leaves out what a file imports."""
    servicer = reflection.aio.ReflectionServicer(["test.Echo", V1ALPHA, "test.Undescribed"], pool=echo_pool())

    async def info(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for response in servicer.ServerReflectionInfo(requests, context):
            if response.HasField("file_descriptor_response") and not whole:
                del response.file_descriptor_response.file_descriptor_proto[1:]
            yield response

    method = grpc.stream_stream_rpc_method_handler(
        info,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(version, {"ServerReflectionInfo": method})


def echo_server(version: str | None, *, whole: bool = True) -> contextlib.AbstractAsyncContextManager[int]:
    """Serves test.Echo, with reflection if a version is given, and yields the port."""
    return served(echo_handler(), *([] if version is None else [reflection_handler(version, whole=whole)]))


def client(*arguments: str, version: str | None = V1ALPHA, whole: bool = True) -> tuple[int | None, str, str]:
    """Runs the client against the server; give its exit code and what it printed, ``PORT`` for the port."""

    async def scenario() -> tuple[int | None, str, str]:
        async with echo_server(version, whole=whole) as port:
            code, output, errors = await run_client("--port", port, *arguments)
            return code, output, errors.replace(str(port), "PORT")

    return asyncio.run(scenario())


TIME = '"2026-11-24T03:52:14Z"'
LISTED = """\
grpc.reflection.v1alpha.ServerReflection (no methods described)
test.Echo/Unary (protos.PingMessage) returns (protos.PingMessage)
test.Echo/Down (protos.PingMessage) returns (stream protos.PingMessage)
test.Echo/Up (stream protos.PingMessage) returns (protos.PingMessage)
test.Echo/Chat (stream protos.PingMessage) returns (stream protos.PingMessage)
test.Echo/Refuse (stream protos.PingMessage) returns (protos.PingMessage)
test.Echo/Silent (protos.PingMessage) returns (protos.PingMessage)
test.Echo/Time (google.protobuf.Timestamp) returns (google.protobuf.Timestamp)
test.Undescribed (no methods described)
"""


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("version", [V1ALPHA, V1])
def test_list_shows_every_method_with_its_types(version: str, *, whole: bool) -> None:
    assert client("--list", version=version, whole=whole) == (0, LISTED, "")


def test_list_as_json_is_one_document() -> None:
    code, output, _ = client("--list", "--json")
    listed = json.loads(output)
    assert code == 0
    assert list(listed) == [V1ALPHA, "test.Echo", "test.Undescribed"]
    assert listed["test.Echo"][1] == {
        "name": "Down",
        "request": "protos.PingMessage",
        "response": "protos.PingMessage",
        "client_streaming": False,
        "server_streaming": True,
    }


@pytest.mark.parametrize(
    ("method", "data", "greetings"),
    [
        ("Unary", {"greeting": "hi"}, ["hi"]),
        ("Down", {"greeting": "hi"}, ["hi 0", "hi 1", "hi 2"]),
        ("Up", [{"greeting": "a"}, {"greeting": "b"}], ["a+b"]),
        ("Chat", [{"greeting": "a"}, {"greeting": "b"}], ["A", "B"]),
    ],
)
def test_every_kind_of_method_gets_its_requests_and_answers_a_line_a_message(
    method: str, data: object, greetings: list[str]
) -> None:
    code, output, errors = client("--call", f"test.Echo/{method}", "--data", json.dumps(data))
    assert (code, errors) == (0, "")
    assert [json.loads(line)["greeting"] for line in output.splitlines()] == greetings


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        pytest.param(
            ["test.Echo/Up", "--data", '{"greeting": "a"}\n{"greeting": "b"}\n'], '{"greeting": "a+b"}', id="lines"
        ),
        pytest.param(["test.Echo/Unary"], "{}", id="no data"),
        pytest.param(["/test.Echo/Time", "--data", TIME], TIME, id="a type of protobuf itself"),
    ],
)
def test_requests_have_several_forms(arguments: list[str], output: str) -> None:
    assert client("--call", *arguments) == (0, f"{output}\n", "")


@pytest.mark.parametrize(
    ("method", "data", "problem"),
    [
        ("test.Echo/Nothing", "{}", "--call: test.Echo has no method Nothing; it has Unary, "),
        ("test.Nothing/Unary", "{}", "--call: the server has no service test.Nothing; it has "),
        ("protos.PingMessage/X", "{}", "--call: the server has no service protos.PingMessage; it has "),
        ("test.Echo/Unary", "{bad", "--data: must be JSON: Expecting property name"),
        ("test.Echo/Unary", '{"nothing": 1}', "--data: must be a protos.PingMessage: "),
        ("test.Echo/Unary", "{} {}", "--data: must be one message for test.Echo.Unary (got 2)"),
    ],
)
def test_what_was_typed_wrong_is_one_line_and_exit_code_2(method: str, data: str, problem: str) -> None:
    code, output, errors = client("--call", method, "--data", data)
    assert (code, output) == (2, "")
    assert errors.startswith(f"grpc_client: {problem}")
    assert errors.count("\n") == 1


def test_what_a_stream_answered_before_it_failed_is_printed() -> None:
    code, output, errors = client("--call", "test.Echo/Down", "--data", '{"greeting": "fail"}')
    assert (code, output.count("\n")) == (1, 3)
    assert errors == "grpc_client: 127.0.0.1:PORT: DATA_LOSS: no more\n"


NO_REFLECTION = "UNIMPLEMENTED: the server has no reflection, which --list and --call need"


@pytest.mark.parametrize(
    ("arguments", "version", "problem"),
    [
        (["--call", "test.Echo/Unary", "--data", '{"greeting": "fail"}'], V1ALPHA, "FAILED_PRECONDITION: as you wish"),
        (["--call", "test.Echo/Silent", "--timeout", "1"], V1ALPHA, "DEADLINE_EXCEEDED: Deadline Exceeded"),
        (["--call", "test.Echo/Unary"], None, NO_REFLECTION),
        (["--list"], None, NO_REFLECTION),
        *(
            # The server ends the stream early.
            (
                ["--call", "test.Echo/Refuse", "--data", json.dumps(messages)],
                V1ALPHA,
                "PERMISSION_DENIED: not even read",
            )
            for messages in ([{"greeting": "x" * 1000}] * count for count in (0, 1, 100))
        ),
    ],
)
def test_a_failed_call_is_one_line_and_exit_code_1(arguments: list[str], version: str | None, problem: str) -> None:
    assert client(*arguments, version=version) == (1, "", f"grpc_client: 127.0.0.1:PORT: {problem}\n")


def test_a_signal_ends_a_call_of_any_method() -> None:
    async def scenario() -> tuple[int | None, bytes, bytes]:
        async with echo_server(V1ALPHA) as port:
            process = await start_client("--port", port, "--call", "test.Echo/Silent", "--timeout", "600")
            async with asyncio.timeout(30):
                await SILENT_CALLED.wait()
            process.send_signal(signal.SIGTERM)
            output, errors = await process.communicate()
            return process.returncode, output, errors

    SILENT_CALLED.clear()
    assert asyncio.run(scenario()) == (1, b"", b"grpc_client: interrupted\n")


def test_a_load_of_another_method_than_ping_is_refused() -> None:
    code, _, errors = client("--call", "test.Echo/Unary", "--count", "5")
    assert (code, errors) == (2, "grpc_client: --count: not allowed with --call (see --help)\n")
