"""The errors of the client, each with the exit code of the program."""

from __future__ import annotations

SAMPLE_CHARACTERS = 200


class ClientError(Exception):
    """The base of this package's errors: a failure at run time."""

    exit_code = 1


class UsageError(ClientError):
    """The command line is wrong; ``problems`` has a line for each problem."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CallFailedError(ClientError):
    """A call failed.

    Args:
        address: ``host:port`` of the server.
        status: the gRPC status' name, for example ``UNAVAILABLE``.
        detail: the status' message.
    """

    def __init__(self, address: str, status: str, detail: str) -> None:
        super().__init__(f"{address}: {status}: {detail}")
        self.status = status


def one_line(text: str, *, limit: int = SAMPLE_CHARACTERS) -> str:
    """Returns a text from the network as one printable line of at most ``limit`` characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
