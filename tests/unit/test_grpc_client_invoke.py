"""Requests made of JSON, and methods written as lines."""

import pytest
from google.protobuf import struct_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, MessageToJson

from grpc_client.errors import UsageError
from grpc_client.invoke import method_lines, parse_requests, split_documents
from protos import api_pb2


@pytest.fixture
def pool() -> DescriptorPool:
    """Describes a service with a unary method, one that takes a stream and one that takes any JSON."""
    descriptors = DescriptorPool()
    for module in (struct_pb2, api_pb2):
        descriptors.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.dependency.extend([api_pb2.DESCRIPTOR.name, struct_pb2.DESCRIPTOR.name])
    ping = ".protos.PingMessage"
    file.service.add(
        name="Echo",
        method=[
            MethodDescriptorProto(name="Unary", input_type=ping, output_type=ping),
            MethodDescriptorProto(name="Upload", input_type=ping, output_type=ping, client_streaming=True),
            MethodDescriptorProto(name="Any", input_type=".google.protobuf.Value", output_type=ping),
        ],
    )
    descriptors.Add(file)
    return descriptors


def method(pool: DescriptorPool, name: str) -> MethodDescriptor:
    return pool.FindMethodByName(f"t.Echo.{name}")


def greetings(data: str, name: str, pool: DescriptorPool) -> list[str]:
    """Parses requests of PingMessage and take their greetings."""
    requests = parse_requests(split_documents(data), method(pool, name), pool)
    return [MessageToDict(request).get("greeting", "") for request in requests]


@pytest.mark.parametrize(
    ("data", "documents"),
    [
        ("{}", ["{}"]),
        (' {"a": 1}\n', ['{"a": 1}']),
        ('{"a": 1}\n{"b": {}}\n', ['{"a": 1}', '{"b": {}}']),
        ("[{}, {}]", ["[{}, {}]"]),
        ("", []),
    ],
)
def test_data_is_split_into_its_documents(data: str, documents: list[str]) -> None:
    assert split_documents(data) == documents


@pytest.mark.parametrize("data", ["{bad", "{} x", "[" * 100_000, "{'a': 1}"])
def test_data_that_is_no_json_is_refused_in_one_line(data: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_documents(data)
    [problem] = caught.value.problems
    assert problem.startswith("--data: must be JSON: ")
    assert "\n" not in problem


def test_a_unary_method_takes_one_object(pool: DescriptorPool) -> None:
    assert greetings('{"greeting": "hi"}', "Unary", pool) == ["hi"]


@pytest.mark.parametrize("data", ['[{"greeting": "a"}, {"greeting": "b"}]', '{"greeting": "a"}\n{"greeting": "b"}'])
def test_a_method_that_takes_a_stream_takes_an_array_or_lines(data: str, pool: DescriptorPool) -> None:
    assert greetings(data, "Upload", pool) == ["a", "b"]


@pytest.mark.parametrize("data", ["", "[]"])
def test_a_stream_may_be_empty(data: str, pool: DescriptorPool) -> None:
    assert greetings(data, "Upload", pool) == []


@pytest.mark.parametrize(
    ("data", "name", "problem"),
    [
        ("", "Unary", "must be one message for t.Echo.Unary (got 0)"),
        ("{} {}", "Unary", "must be one message for t.Echo.Unary (got 2)"),
        ("[{}]", "Unary", "must be a JSON object for protos.PingMessage (got '[{}]')"),
        ("3", "Unary", "must be a JSON object for protos.PingMessage (got '3')"),
        ("[3]", "Upload", "must be a JSON object for protos.PingMessage (got '3')"),
        (
            '{"nothing": 1}',
            "Unary",
            'must be a protos.PingMessage: Message type "protos.PingMessage" has no field',
        ),
        ('{"greeting": 1}', "Unary", "must be a protos.PingMessage: Failed to parse greeting field"),
        ('{"greeting": "\\ud800"}', "Unary", "must be a protos.PingMessage: Failed to parse greeting field"),
    ],
)
def test_data_that_does_not_fit_the_method_is_refused_in_one_line(
    data: str, name: str, problem: str, pool: DescriptorPool
) -> None:
    with pytest.raises(UsageError) as caught:
        greetings(data, name, pool)
    [line] = caught.value.problems
    assert line.startswith(f"--data: {problem}")
    assert "\n" not in line


def test_protobufs_own_types_may_be_other_json_than_an_object(pool: DescriptorPool) -> None:
    [request] = parse_requests(split_documents("[1, 2]"), method(pool, "Any"), pool)
    assert MessageToJson(request, indent=None) == "[1.0, 2.0]"


def test_a_method_is_listed_as_call_takes_it_with_its_types() -> None:
    described = {
        "name": "Chat",
        "request": "t.A",
        "response": "t.B",
        "client_streaming": True,
        "server_streaming": False,
    }
    assert method_lines({"t.Echo": [described], "t.Gone": []}) == [
        "t.Echo/Chat (stream t.A) returns (t.B)",
        "t.Gone (no methods described)",
    ]
