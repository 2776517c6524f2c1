"""What can go wrong, each with the exit code that it ends the program with."""

from __future__ import annotations

from collections.abc import Sequence

SAMPLE_CHARACTERS = 200


class ClientError(Exception):
    """The base of this package's errors: something failed at run time."""

    exit_code = 1


class UsageError(ClientError):
    """What was asked for makes no sense.

    Args:
        problems: every problem found, one line each.

    """

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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
    """Make a text from the network fit to be shown: one line, printable, at most ``limit`` characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
