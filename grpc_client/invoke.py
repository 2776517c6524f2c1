"""Lists the methods of a server and calls any of them, by server reflection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from grpc_client.channel import open_blocking_channel, open_channel
from grpc_client.errors import CallFailedError, ClientError, UsageError, one_line
from grpc_client.options import Options
from grpc_client.reflection import ReflectionClient, SymbolNotFoundError


async def list_methods(options: Options) -> dict[str, list[dict[str, Any]]]:
    """Returns the methods of each service of the server: names, types and the sides that stream.

    A service without a descriptor has no methods here.

    Raises:
        ClientError: the server can't be reached or has no reflection.
    """
    listed: dict[str, list[dict[str, Any]]] = {}
    async with open_channel(options) as channel:
        client = ReflectionClient(channel, options)
        for name in await client.services():
            try:
                listed[name] = [_describe(method) for method in (await client.service(name)).methods]
            except SymbolNotFoundError:
                listed[name] = []
    return listed


def method_lines(listed: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns a line for each method: the name for ``--call``, the types as in a .proto file."""
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
    """Calls ``options.method`` with ``options.data`` and yields each answer as one line of JSON.

    Raises:
        UsageError: the server does not have the method, or the data is not JSON of the request's type.
        ClientError: the server can't be reached, has no reflection, or the call failed.
    """
    documents = split_documents("{}" if options.data is None else options.data)
    service_name, _, method_name = (options.method or "").removeprefix("/").partition("/")
    async with open_channel(options) as channel:
        client = ReflectionClient(channel, options)
        method = _find(await _service(client, service_name), method_name)
        requests = parse_requests(documents, method, client.pool)
    async with contextlib.aclosing(_call(options, method, requests)) as answers:
        async for answer in answers:
            yield _to_json(answer, client.pool, options.address)


def split_documents(data: str) -> list[str]:
    """Splits a text into its JSON documents.

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
        raise UsageError(f"--data: must be JSON: {error}") from None
    return documents


def parse_requests(documents: Sequence[str], method: MethodDescriptor, pool: DescriptorPool) -> list[Message]:
    """Parses JSON documents as the requests of a method.

    Raises:
        UsageError: a document or the number of documents is wrong for the method.
    """
    if method.client_streaming and len(documents) == 1 and documents[0].startswith("["):
        documents = [json.dumps(element) for element in json.loads(documents[0])]
    if not method.client_streaming and len(documents) != 1:
        raise UsageError(f"--data: must be one message for {method.full_name} (got {len(documents)})")
    return [_parse_request(document, method.input_type, pool) for document in documents]


def _parse_request(document: str, request_type: Descriptor, pool: DescriptorPool) -> Message:
    name = request_type.full_name
    # Only types of protobuf itself may be another JSON value than an object.
    if not document.startswith("{") and not name.startswith("google.protobuf."):
        raise UsageError(f"--data: must be a JSON object for {name} (got {one_line(document)!r})")
    try:
        return json_format.Parse(document, GetMessageClass(request_type)(), descriptor_pool=pool)
    except (json_format.ParseError, UnicodeEncodeError) as error:
        raise UsageError(f"--data: must be a {name}: {one_line(str(error))}") from None


def _to_json(answer: Message, pool: DescriptorPool, address: str) -> str:
    try:
        return json_format.MessageToJson(answer, indent=None, descriptor_pool=pool)
    except (json_format.Error, TypeError) as error:
        # For example a google.protobuf.Any of an unknown type.
        raise ClientError(f"{address}: the answer can't be shown as JSON: {one_line(str(error))}") from None


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
        raise UsageError(f"--call: the server has no service {name}; it has {known}") from None


def _find(service: ServiceDescriptor, name: str) -> MethodDescriptor:
    for method in service.methods:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in service.methods)
    raise UsageError(f"--call: {service.full_name} has no method {name}; it has {known}")


async def _call(
    options: Options, method: MethodDescriptor, requests: Sequence[Message]
) -> AsyncGenerator[Message, None]:
    """Makes the call as a stream in both directions, because the four kinds look the same on the wire.

    Uses threads because grpc.aio often reports INTERNAL when the server ends a stream of requests early (issue 36066
    of grpc/grpc).
    """
    answers = 0
    with open_blocking_channel(options) as channel:
        call = channel.stream_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(iter(requests), timeout=options.timeout_seconds, metadata=options.metadata)
        try:
            while (answer := await asyncio.to_thread(next, call, None)) is not None:
                answers += 1
                yield answer
        except grpc.RpcError as error:
            raise CallFailedError(
                options.address, error.code().name, one_line(error.details() or "no message")
            ) from None
        finally:
            call.cancel()
    if not method.server_streaming and answers != 1:
        raise CallFailedError(options.address, "INTERNAL", f"OK with {answers} messages instead of one")
