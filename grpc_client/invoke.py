"""Lists the methods of a server and calls any of them, by server reflection."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from grpc_client.channel import open_channel
from grpc_client.errors import CallFailedError, UsageError, one_line
from grpc_client.options import Options
from grpc_client.reflection import ReflectionClient, SymbolNotFoundError


async def list_methods(options: Options) -> dict[str, list[dict[str, Any]]]:
    """The methods of each service of the server: name, types and which side streams.

    A service that the server names but does not describe has no methods here.

    Raises:
        ClientError: the server can't be reached or has no reflection.
    """
    listed: dict[str, list[dict[str, Any]]] = {}
    async with open_channel(options) as channel:
        client = ReflectionClient(channel, options.address, options.timeout_seconds)
        for name in await client.services():
            try:
                listed[name] = [_describe(method) for method in (await client.service(name)).methods]
            except SymbolNotFoundError:
                listed[name] = []
    return listed


def method_lines(listed: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line for each method, its name as ``--call`` takes it and its types as a .proto file has them."""
    lines = []
    for service, methods in listed.items():
        for method in methods:
            takes = "stream " * method["client_streaming"] + method["request"]
            gives = "stream " * method["server_streaming"] + method["response"]
            lines.append(f"{service}/{method['name']} ({takes}) returns ({gives})")
        if not methods:
            lines.append(f"{service} (no methods described)")
    return lines


async def call_method(options: Options) -> AsyncGenerator[str, None]:
    """Calls ``options.method`` with ``options.data`` and gives each answer as one line of JSON.

    Raises:
        UsageError: there is no such method, or the data is no JSON or does not fit the request's type.
        ClientError: the server can't be reached, has no reflection, or the call failed.
    """
    documents = split_documents(options.data or "{}")
    service_name, _, method_name = (options.method or "").removeprefix("/").partition("/")
    async with open_channel(options) as channel:
        client = ReflectionClient(channel, options.address, options.timeout_seconds)
        method = _find(await _service(client, service_name), method_name)
        requests = parse_requests(documents, method, client.pool)
        try:
            async for answer in _call(channel, method, requests, options.timeout_seconds):
                yield json_format.MessageToJson(answer, indent=None, descriptor_pool=client.pool)
        except grpc.aio.AioRpcError as error:
            raise CallFailedError.from_rpc_error(options.address, error) from None


def split_documents(data: str) -> list[str]:
    """Splits text into the JSON documents that stand in it one after the other.

    Raises:
        UsageError: it is not JSON.
    """
    documents, position, decoder = [], 0, json.JSONDecoder()
    try:
        while rest := data[position:].lstrip():
            position = len(data) - len(rest)
            _, end = decoder.raw_decode(data, position)
            documents.append(data[position:end])
            position = end
    except (ValueError, RecursionError) as error:
        raise UsageError([f"--data: not JSON: {error}"]) from None
    return documents


def parse_requests(documents: Sequence[str], method: MethodDescriptor, pool: DescriptorPool) -> list[Message]:
    """Makes the method's requests of JSON documents.

    Raises:
        UsageError: their number or one of them does not fit the method.
    """
    if method.client_streaming and len(documents) == 1 and documents[0].startswith("["):
        documents = [json.dumps(element) for element in json.loads(documents[0])]
    if not method.client_streaming and len(documents) != 1:
        raise UsageError([f"--data: {method.full_name} takes one message, got {len(documents)}"])
    message_class = GetMessageClass(method.input_type)
    try:
        return [json_format.Parse(document, message_class(), descriptor_pool=pool) for document in documents]
    except (json_format.ParseError, UnicodeEncodeError) as error:
        raise UsageError([f"--data: not a {method.input_type.full_name}: {one_line(str(error))}"]) from None


def _describe(method: MethodDescriptor) -> dict[str, Any]:
    return {
        "name": method.name,
        "request": method.input_type.full_name,
        "response": method.output_type.full_name,
        "client_streaming": method.client_streaming,
        "server_streaming": method.server_streaming,
    }


async def _service(client: ReflectionClient, name: str) -> ServiceDescriptor:
    try:
        return await client.service(name)
    except SymbolNotFoundError:
        known = ", ".join(await client.services())
        raise UsageError([f"--call: the server has no service {name}; it has {known}"]) from None


def _find(service: ServiceDescriptor, name: str) -> MethodDescriptor:
    for method in service.methods:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in service.methods)
    raise UsageError([f"--call: {service.full_name} has no method {name}; it has {known}"])


async def _call(
    channel: grpc.aio.Channel, method: MethodDescriptor, requests: Sequence[Message], timeout_seconds: float
) -> AsyncGenerator[Message, None]:
    opener = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    # Which of the four types it is shows only at run time.
    call: Any = opener(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=Message.SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answers = call(iter(requests) if method.client_streaming else requests[0], timeout=timeout_seconds)
    if method.server_streaming:
        async for answer in answers:
            yield answer
    else:
        yield await answers
