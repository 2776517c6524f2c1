"""The notes in Consul's key-value store about containers that have the name of another container.

The registrar of such a container writes one (registrar/same_name.py), and ``status`` shows it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

# The notes are below this key.
KEYS = "grpc-load-balancing/same-name"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A replica whose container has the name of another container, as JSON below :data:`KEYS`.

    Attributes:
        holder: the address of the container that has the name.
    """

    application: str
    id: str
    node: str
    address: str
    port: int
    holder: str

    @classmethod
    def from_json(cls, text: str | bytes) -> Note:
        """Reads a note.

        Raises:
            ValueError: the text is not a note.
        """
        try:
            found = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error
        for name, value in asdict(found).items():
            if type(value) is not (int if name == "port" else str):
                raise ValueError(f"{name}: must be {'an integer' if name == 'port' else 'a string'} (got {value!r})")
        return found
