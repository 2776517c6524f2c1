"""Which gRPC services a server has, by the gRPC Server Reflection Protocol."""

from __future__ import annotations

import logging

from registrar.config import GRPC_SERVICE

LOG = logging.getLogger("registrar")
# The two versions have the same messages on the wire (gRFC A15).
_VERSIONS = ("v1alpha", "v1")
_METHOD = "/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
# What every server has for itself, and nobody routes by.
_OWN = ("grpc.health.", "grpc.reflection.", "grpc.channelz.")


def services(target: str, timeout_seconds: float) -> list[str] | None:
    """The full names of the server's services, sorted; none where it has no reflection, or refuses it.

    Args:
        target: its address, ``host:port``.
        timeout_seconds: of each question.

    Returns:
        None when nobody answers (yet).
    """
    # Imported here: `health` and a registrar that is told the services don't need them.
    import grpc
    from grpc_reflection.v1alpha.reflection_pb2 import (  # type: ignore[import-untyped,unused-ignore] # typed only with types-grpcio-reflection
        ServerReflectionRequest,
        ServerReflectionResponse,
    )

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for version in _VERSIONS:
            method = channel.unary_stream(
                _METHOD.format(version=version),
                request_serializer=ServerReflectionRequest.SerializeToString,
                response_deserializer=ServerReflectionResponse.FromString,
            )
            try:
                for answer in method(ServerReflectionRequest(list_services="*"), timeout=timeout_seconds):
                    return _routable({service.name for service in answer.list_services_response.service})
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return None
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    LOG.warning("the server does not tell its services: %s %s", error.code().name, error.details())
                    return []
    return []


def _routable(names: set[str]) -> list[str]:
    wanted = {name for name in names if not name.startswith(_OWN)}
    for name in sorted(wanted):
        if not GRPC_SERVICE.fullmatch(name):
            LOG.warning("no calls by a name that is no gRPC service's: %r", name)
            wanted.discard(name)
    return sorted(wanted)
