"""Asks a server for its services and their descriptors (gRPC Server Reflection Protocol)."""

from __future__ import annotations

import contextlib

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import (  # type: ignore[import-untyped,unused-ignore] # typed only with types-grpcio-reflection
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from grpc_client.channel import call_failed
from grpc_client.errors import CallFailedError, ClientError, one_line
from grpc_client.options import Options

# The two versions have the same messages on the wire (gRFC A15). v1alpha comes first because grpcio-reflection has only
# that one, and servers count a question for a missing version as UNIMPLEMENTED.
_VERSIONS = ("v1alpha", "v1")
_METHOD = "/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"


class SymbolNotFoundError(ClientError):
    """The server does not have the file or the symbol."""


class ReflectionClient:
    """Fetches the descriptors of a server when they are needed.

    Args:
        channel: a channel to the server; the caller closes it.
        options: the server's address, the deadline and the metadata of each request.
    """

    def __init__(self, channel: grpc.aio.Channel, options: Options) -> None:
        self.pool = DescriptorPool()
        self._channel = channel
        self._options = options
        self._address = options.address
        self._versions = list(_VERSIONS)
        self._files: dict[str, FileDescriptorProto] = {}
        self._added: set[str] = set()

    async def services(self) -> list[str]:
        """Returns the full names of the server's services, sorted.

        Raises:
            ClientError: the server can't be reached or has no reflection.
        """
        response = await self._ask(ServerReflectionRequest(list_services="*"))
        return sorted(one_line(service.name) for service in response.list_services_response.service)

    async def service(self, name: str) -> ServiceDescriptor:
        """Returns the descriptor of a service, and adds the files that it imports to ``pool``.

        Raises:
            SymbolNotFoundError: the server has no service of this name.
            ClientError: the server can't be reached, has no reflection or sends broken descriptors.
        """
        response = await self._ask(ServerReflectionRequest(file_containing_symbol=name))
        await self._fetch(response)
        try:
            for file_name in self._files:
                self._add(file_name)
            return self.pool.FindServiceByName(name)
        except KeyError:
            raise SymbolNotFoundError(f"{self._address}: no service {name}") from None
        except TypeError as error:
            raise ClientError(f"{self._address}: broken descriptor: {one_line(str(error))}") from None

    async def _fetch(self, response: ServerReflectionResponse) -> None:
        """Keeps the files of a response, and asks for imported files that the server has left out."""
        self._keep(response)
        while missing := self._missing_imports():
            name = min(missing)
            with contextlib.suppress(SymbolNotFoundError):
                self._keep(await self._ask(ServerReflectionRequest(file_by_filename=name)))
            if name not in self._files:
                raise ClientError(f"{self._address}: the server does not send {name}")

    def _missing_imports(self) -> set[str]:
        imports = {name for file in self._files.values() for name in file.dependency}
        return imports - self._files.keys()

    def _keep(self, response: ServerReflectionResponse) -> None:
        try:
            for serialized in response.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(serialized)
                self._files.setdefault(file.name, file)
        except DecodeError:
            raise ClientError(f"{self._address}: broken descriptor") from None

    def _add(self, name: str) -> None:
        if name not in self._added:
            self._added.add(name)
            for imported in self._files[name].dependency:
                self._add(imported)
            self.pool.Add(self._files[name])

    async def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        while True:
            try:
                response = await self._ask_version(self._versions[0], request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise call_failed(self._channel, self._options, error) from None
                self._versions.pop(0)
                if not self._versions:
                    message = "the server has no reflection, which --list and --call need"
                    raise CallFailedError(self._address, "UNIMPLEMENTED", message) from None
            else:
                return self._checked(response)

    async def _ask_version(self, version: str, request: ServerReflectionRequest) -> ServerReflectionResponse:
        # One request looks the same on the wire as a stream, of which grpc.aio often reports INTERNAL when the server
        # refuses it (grpc/grpc issue 36066).
        method = self._channel.unary_stream(
            _METHOD.format(version=version),
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        answers = method(request, timeout=self._options.timeout_seconds, metadata=self._options.metadata)
        responses = [answer async for answer in answers]
        return responses[0] if responses else ServerReflectionResponse()

    def _checked(self, response: ServerReflectionResponse) -> ServerReflectionResponse:
        kind = response.WhichOneof("message_response")
        if kind is None:
            raise ClientError(f"{self._address}: the reflection service has not answered")
        if kind == "error_response":
            message = one_line(response.error_response.error_message)
            if response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]:
                raise SymbolNotFoundError(f"{self._address}: {message}")
            raise ClientError(f"{self._address}: reflection: {message}")
        return response
