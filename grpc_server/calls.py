"""The four kinds of gRPC methods, for interceptors that wrap them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def rewrap(handler: Any, kind: str, method: Callable[..., Any]) -> Any:
    """A handler like ``handler``, of that kind, that calls ``method``."""
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(method, handler.request_deserializer, handler.response_serializer)
