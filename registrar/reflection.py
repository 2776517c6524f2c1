"""Finds the gRPC services of a server, by the gRPC Server Reflection Protocol."""

from __future__ import annotations

import logging

from common.names import GRPC_SERVICE
from registrar.tls import ServiceTls, open_channel

LOG = logging.getLogger("registrar")
# The two versions have the same messages on the wire (gRFC A15).
_VERSIONS = ("v1alpha", "v1")
_METHOD = "/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
# Every server has its own; calls are not routed by them.
_OWN = ("grpc.health.", "grpc.reflection.", "grpc.channelz.")


def find_services(target: str, timeout_seconds: float, tls: ServiceTls | None = None) -> list[str] | None:
    """The full names of the server's services, sorted; an empty list when it has no reflection, or refuses it.

    Args:
        target: its address, ``host:port``.
        timeout_seconds: of each question.
        tls: its files, if it speaks TLS.

    Returns:
        None when no server answers (yet).
    """
    # Imported here: `health` and a registrar that is told the services don't need them.
    import grpc
    from grpc_reflection.v1alpha.reflection_pb2 import (  # type: ignore[import-untyped,unused-ignore] # typed only with types-grpcio-reflection
        ServerReflectionRequest,
        ServerReflectionResponse,
    )

    try:
        opened = open_channel(target, tls)
    except OSError as error:
        LOG.warning("the server is not asked for its services: %s", error)
        return None
    with opened as channel:
        for version in _VERSIONS:
            method = channel.unary_stream(
                _METHOD.format(version=version),
                request_serializer=ServerReflectionRequest.SerializeToString,
                response_deserializer=ServerReflectionResponse.FromString,
            )
            try:
                for answer in method(ServerReflectionRequest(list_services="*"), timeout=timeout_seconds):
                    return _select_routable({service.name for service in answer.list_services_response.service})
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return None
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    LOG.warning("the server does not list its services: %s %s", error.code().name, error.details())
                    return []
    return []


def _select_routable(names: set[str]) -> list[str]:
    wanted = {name for name in names if not name.startswith(_OWN)}
    for name in sorted(wanted):
        if not GRPC_SERVICE.fullmatch(name):
            LOG.warning("not a name of a gRPC service, left out: %r", name)
            wanted.discard(name)
    return sorted(wanted)
