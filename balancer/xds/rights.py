"""Which applications a client may have, by the names in its certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ANY = "*"
# By the names of clients, the applications; * for all.
Allowed = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Rights:
    """The rights of one client.

    Attributes:
        applications: those that it may have; ``*`` for all.
    """

    applications: frozenset[str] = field(default_factory=frozenset)

    def allow(self, application: str) -> bool:
        """Returns whether the client may have an application."""
        return application in self.applications or _ANY in self.applications


ALL = Rights(frozenset([_ANY]))


def find_rights(allowed: Allowed, names: Iterable[str]) -> Rights:
    """Returns the rights of a client whose certificate has these names; all if nothing is said about any client."""
    if not allowed:
        return ALL
    return Rights(frozenset(one for name in names for one in allowed.get(name, ())))


def parse_allowed(words: Iterable[str]) -> Allowed:
    """Reads words such as ``billing:hello_server``; a name may be in several.

    Raises:
        ValueError: a word has another form; the message is the word.
    """
    found: dict[str, set[str]] = {}
    for word in words:
        name, _, application = word.rpartition(":")
        if not name or not application:
            raise ValueError(word)
        found.setdefault(name, set()).add(application)
    return {name: frozenset(applications) for name, applications in found.items()}
