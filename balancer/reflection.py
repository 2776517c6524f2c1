"""gRPC server reflection over all applications: each request goes to the application that has the answer.

Answers are not cached, so they are always those of the version that serves now. The balancer itself answers the list of
services, and the descriptors of health and reflection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from balancer.directory import Directory
from balancer.replica_tls import ReplicaTls, open_channel

_NAME = "grpc.reflection.{version}.ServerReflection"
# The balancer serves these.
SERVICES = tuple(_NAME.format(version=version) for version in ("v1", "v1alpha"))
# v1alpha comes first, because grpcio counts calls of a missing service as failed, and few servers have v1 alone.
_METHODS = tuple(f"/{name}/ServerReflectionInfo" for name in reversed(SERVICES))
_TIMEOUT_SECONDS = 5.0
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # The descriptors of a large service may exceed grpcio's default of 4 MiB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]
# This metadata belongs to one connection, or gRPC sets it.
_NOT_FORWARDED = ("user-agent", "content-type", "te", "host", "connection")
# The replica does not have the symbol, or no reflection.
_HAS_NOTHING = (grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0])
_own = reflection.ReflectionServicer((health.SERVICE_NAME, *SERVICES))


class Session:
    """The requests of one stream; an answer names files that the caller requests next.

    Args:
        directory: the applications and their replicas.
        metadata: the caller's metadata, for the replicas.
    """

    def __init__(self, directory: Directory, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._directory = directory
        self._metadata = tuple(
            (name, value)
            for name, value in metadata
            if name not in _NOT_FORWARDED and not name.startswith((":", "grpc-"))
        )
        self._peers: dict[str, _Peer] = {}
        # The application of the last answer, because a file's name does not show its application.
        self._last = ""

    async def answer(self, request: Any) -> Any:
        """Returns the response to a request; NOT_FOUND if no application has the symbol."""
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            return self._list(request)
        own = next(_own.ServerReflectionInfo(iter([request]), None))
        if not own.HasField("error_response"):
            return own
        problem = own
        for application in self._find_candidates(request, kind):
            found = await self._ask(application, request)
            if not found.HasField("error_response"):
                self._last = application
                return found
            if found.error_response.error_code not in _HAS_NOTHING:
                problem = found
        return problem

    def close(self) -> None:
        """Ends the connections to replicas."""
        for peer in self._peers.values():
            peer.close()
        self._peers = {}

    def _list(self, request: Any) -> Any:
        names = sorted({health.SERVICE_NAME, *SERVICES, *self._directory.owners})
        services = [reflection_pb2.ServiceResponse(name=name) for name in names]
        return reflection_pb2.ServerReflectionResponse(
            valid_host=request.host,
            original_request=request,
            list_services_response=reflection_pb2.ListServiceResponse(service=services),
        )

    def _find_candidates(self, request: Any, kind: str | None) -> list[str]:
        """Returns the applications that may have the answer, the likeliest first."""
        if kind == "file_containing_symbol":
            # The symbol is a service, or one of its methods.
            symbol = request.file_containing_symbol
            for name in (symbol, symbol.rpartition(".")[0]):
                if name in self._directory.owners:
                    return [self._directory.owners[name]]
        others = sorted(set(self._directory.targets) - {self._last})
        return [self._last, *others] if self._last in self._directory.targets else others

    async def _ask(self, application: str, request: Any) -> Any:
        targets = self._directory.targets.get(application, [])
        peer = self._peers.get(application)
        if peer is None or peer.target not in targets:
            if peer is not None:
                peer.close()
            if not targets:
                return _make_error(request, grpc.StatusCode.UNAVAILABLE, f"no replica of {application} serves")
            target = random.choice(targets)  # noqa: S311 - no secret
            secure = (application, target) in self._directory.secure
            tls = ReplicaTls.read(self._directory.copies) if secure else None
            if secure and tls is None:
                return _make_error(request, grpc.StatusCode.UNAVAILABLE, f"{application} has TLS, and there is no CA")
            peer = self._peers[application] = _Peer(application, target, tls, self._metadata)
        try:
            return await peer.ask(request)
        except grpc.aio.AioRpcError as error:
            return _make_error(request, error.code(), f"{application}: {error.details()}")


class _Peer:
    """The connection to a replica's reflection."""

    def __init__(
        self, application: str, target: str, tls: ReplicaTls | None, metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None:
        self.target = target
        self._metadata = metadata
        self._channel = open_channel(target, application, tls, _OPTIONS)
        self._methods = list(_METHODS)

    async def ask(self, request: Any) -> Any:
        """Sends a request, and returns the response.

        Raises:
            grpc.aio.AioRpcError: there is no answer; UNIMPLEMENTED if the replica has no reflection.
        """
        while True:
            try:
                return await self._ask(self._methods[0], request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED or len(self._methods) == 1:
                    raise
                self._methods.pop(0)

    async def _ask(self, method: str, request: Any) -> Any:
        call = self._channel.stream_stream(
            method,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([request]), metadata=self._metadata, timeout=_TIMEOUT_SECONDS)
        answer = await call.read()
        if answer is grpc.aio.EOF or answer is None:
            return _make_error(request, grpc.StatusCode.INTERNAL, f"{self.target} gave no answer")
        return answer

    def close(self) -> None:
        """Ends the connection."""
        task = asyncio.ensure_future(self._channel.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)


# asyncio has only weak references to tasks.
_closing: set[asyncio.Future[None]] = set()


def _make_error(request: Any, code: grpc.StatusCode, message: str) -> Any:
    return reflection_pb2.ServerReflectionResponse(
        valid_host=request.host,
        original_request=request,
        error_response=reflection_pb2.ErrorResponse(error_code=code.value[0], error_message=message),
    )
