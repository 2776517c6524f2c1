"""The check of callers, by the names of their certificates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc


class Callers:
    """The callers that may call the services of the server.

    Args:
        names: DNS names, one of which the certificate of a caller must have.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(name.encode() for name in names)
        self._message = f"the caller's certificate must have the name {' or '.join(names)}"

    async def check(self, context: Any) -> None:
        """Ends the call of another caller.

        Raises:
            grpc.aio.AbortError: it is another one.
        """
        names: Iterable[bytes] = context.auth_context().get("x509_subject_alternative_name", ())
        if self._names.isdisjoint(names):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self._message)
