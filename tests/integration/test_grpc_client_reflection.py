"""``--list`` and ``--call`` against a server with reflection, all four kinds of method."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
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

ROOT = Path(__file__).resolve().parents[2]
V1ALPHA = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"
SILENT_CALLED = asyncio.Event()
Context = Any  # grpc.aio.ServicerContext of whichever types


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
    return PingMessage()


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


@contextlib.asynccontextmanager
async def echo_server(version: str | None, *, whole: bool = True) -> AsyncIterator[int]:
    """Serves test.Echo, with reflection if a version is given, and give the port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([echo_handler()])
    if version is not None:
        server.add_generic_rpc_handlers([reflection_handler(version, whole=whole)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def start(port: int, *arguments: str) -> asyncio.subprocess.Process:
    """Starts the client with pipes for its output."""
    command = (sys.executable, "-m", "grpc_client", "--host", "127.0.0.1", "--port", str(port), *arguments)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)


def client(*arguments: str, version: str | None = V1ALPHA, whole: bool = True) -> tuple[int | None, str, str]:
    """Runs the client against the server; give its exit code and what it printed, ``PORT`` for the port."""

    async def scenario() -> tuple[int | None, str, str]:
        async with echo_server(version, whole=whole) as port:
            process = await start(port, *arguments)
            output, errors = await process.communicate()
            return process.returncode, output.decode(), errors.decode().replace(str(port), "PORT")

    return asyncio.run(scenario())


def answers(method: str, data: object) -> list[str]:
    """Calls a method of test.Echo, which must go well, and give the greetings of its answers."""
    code, output, errors = client("--call", f"test.Echo/{method}", "--data", json.dumps(data))
    assert (code, errors) == (0, "")
    return [json.loads(line)["greeting"] for line in output.splitlines()]


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


def test_a_unary_method_answers_one_message() -> None:
    assert answers("Unary", {"greeting": "hi"}) == ["hi"]


def test_a_method_that_streams_answers_one_message_a_line() -> None:
    assert answers("Down", {"greeting": "hi"}) == ["hi 0", "hi 1", "hi 2"]


def test_a_method_that_takes_a_stream_gets_every_message_of_the_array() -> None:
    assert answers("Up", [{"greeting": "a"}, {"greeting": "b"}]) == ["a+b"]


def test_both_sides_may_stream() -> None:
    assert answers("Chat", [{"greeting": "a"}, {"greeting": "b"}]) == ["A", "B"]


def test_a_stream_may_be_given_as_lines() -> None:
    lines = '{"greeting": "a"}\n{"greeting": "b"}\n'
    assert client("--call", "test.Echo/Up", "--data", lines) == (0, '{"greeting": "a+b"}\n', "")


def test_without_data_the_request_is_empty() -> None:
    assert client("--call", "test.Echo/Unary") == (0, "{}\n", "")


def test_protobufs_own_types_are_written_as_their_json() -> None:
    time = '"2026-11-24T03:52:14Z"'
    assert client("--call", "/test.Echo/Time", "--data", time) == (0, f"{time}\n", "")


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


def test_a_call_that_fails_is_one_line_and_exit_code_1() -> None:
    assert client("--call", "test.Echo/Unary", "--data", '{"greeting": "fail"}') == (
        1,
        "",
        "grpc_client: 127.0.0.1:PORT: FAILED_PRECONDITION: as you wish\n",
    )


def test_what_a_stream_answered_before_it_failed_is_printed() -> None:
    code, output, errors = client("--call", "test.Echo/Down", "--data", '{"greeting": "fail"}')
    assert (code, output.count("\n")) == (1, 3)
    assert errors == "grpc_client: 127.0.0.1:PORT: DATA_LOSS: no more\n"


@pytest.mark.parametrize("messages", [0, 1, 100])
def test_a_stream_that_the_server_ends_early_keeps_the_servers_status(messages: int) -> None:
    data = json.dumps([{"greeting": "x" * 1000}] * messages)
    code, output, errors = client("--call", "test.Echo/Refuse", "--data", data)
    assert (code, output) == (1, "")
    assert errors == "grpc_client: 127.0.0.1:PORT: PERMISSION_DENIED: not even read\n"


def test_a_unary_method_whose_server_is_silent_ends_with_the_timeout() -> None:
    code, output, errors = client("--call", "test.Echo/Silent", "--timeout", "1")
    assert (code, output) == (1, "")
    assert errors == "grpc_client: 127.0.0.1:PORT: DEADLINE_EXCEEDED: Deadline Exceeded\n"


def test_a_signal_ends_a_call_of_any_method() -> None:
    async def scenario() -> tuple[int | None, bytes, bytes]:
        async with echo_server(V1ALPHA) as port:
            process = await start(port, "--call", "test.Echo/Silent", "--timeout", "600")
            async with asyncio.timeout(30):
                await SILENT_CALLED.wait()
            process.send_signal(signal.SIGTERM)
            output, errors = await process.communicate()
            return process.returncode, output, errors

    SILENT_CALLED.clear()
    assert asyncio.run(scenario()) == (1, b"", b"grpc_client: interrupted\n")


@pytest.mark.parametrize("arguments", [["--list"], ["--call", "test.Echo/Unary"]])
def test_a_server_without_reflection_is_one_line_and_exit_code_1(arguments: list[str]) -> None:
    code, output, errors = client(*arguments, version=None)
    assert (code, output) == (1, "")
    problem = "UNIMPLEMENTED: the server has no reflection, which --list and --call need"
    assert errors == f"grpc_client: 127.0.0.1:PORT: {problem}\n"


def test_a_load_of_another_method_than_ping_is_refused() -> None:
    code, _, errors = client("--call", "test.Echo/Unary", "--count", "5")
    assert (code, errors) == (2, "grpc_client: --count: not allowed with --call (see --help)\n")
