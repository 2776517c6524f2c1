"""The check of callers, by the names of their certificates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc


class Callers:
    """The callers that may call the services of the server.

    Args:
        name: the DNS name that the certificate of a caller must have.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    async def check(self, context: Any) -> None:
        """Ends the call of another caller.

        Raises:
            grpc.aio.AbortError: it is another one.
        """
        names: Iterable[bytes] = context.auth_context().get("x509_subject_alternative_name", ())
        if self._name.encode() not in names:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"the caller's certificate must have the name {self._name}"
            )
