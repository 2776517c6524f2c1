"""What Consul's ACL system keeps the control plane from reading.

Consul answers 403 for a token that it does not know, because it was revoked or has expired. Without the right to read a
service or its node it answers 200 without the service; the header X-Consul-Results-Filtered-By-ACLs says so, but not to
callers without a token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import requests

LOG = logging.getLogger("balancer")

# After the rights are back consul-template may render what Consul filtered before, until its waiting queries end
# (block_query_wait of 10 s, to which Consul adds up to a sixteenth).
_AFTER_SECONDS = 15.0
_FILTERED = "X-Consul-Results-Filtered-By-ACLs"


class Rights:
    """Whether Consul's answers are whole.

    Args:
        source: where the token comes from.
        clock: seconds of a monotonic clock.

    Attributes:
        problem: the reason why Consul's last answer was not whole; empty if it was.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._advice = f"check the token of {source}"
        self._clock = clock
        self._until = float("-inf")
        self.problem = ""

    @property
    def whole(self) -> bool:
        """Whether Consul has given whole answers for long enough."""
        return not self.problem and self._clock() >= self._until

    def note_refusal(self, text: str) -> None:
        """Notes that Consul has refused a request, with its reason."""
        self._note(f"Consul refuses requests: {text}: {self._advice}")

    def note_answer(self, response: requests.Response) -> None:
        """Notes Consul's answer about all services.

        Raises:
            ValueError: the answer is not JSON.
        """
        # An answer without Consul itself is filtered too.
        filtered = response.headers.get(_FILTERED, "").lower() == "true" or not response.json()
        text = f"Consul filters its answers by rights: {self._advice}, which must read all services and nodes"
        self._note(text if filtered else "")

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            LOG.warning("%s; replicas stay while they answer", problem)
        elif self.problem and not problem:
            LOG.info("Consul answers in full again")
        if problem:
            self._until = self._clock() + _AFTER_SECONDS
        self.problem = problem
