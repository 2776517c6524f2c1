"""The command that makes the secrets: its options, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_create_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``create``."""
    parser.add_argument("--rotate", action="store_true", help="issue all certificates again, by the same CAs")
    parser.add_argument(
        "--application", action="append", default=[], metavar="NAME", help="an application (default: hello_server)"
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="NAME", help="a name or address of the balancer, for its callers"
    )
    parser.add_argument(
        "--client", action="append", default=[], metavar="NAME", help="a client that calls replicas directly (xDS)"
    )


def create(directory: Path, arguments: argparse.Namespace) -> None:
    """Makes the files in a directory and says which; the token for the UI is printed when it is made.

    Raises:
        SecurityError: they can't be made.
    """
    # Imported here because the options are needed more often.
    from security.files import TOKENS, Secrets, read_tokens

    known = (directory / TOKENS).exists()
    applications: Sequence[str] = arguments.application or ([] if known else ["hello_server"])
    made = Secrets(directory, applications, arguments.name, arguments.client)
    made.create(rotate=arguments.rotate)
    print(f"{len(made.written)} files written to {directory}, for {', '.join(made.applications)}")
    if not known:
        print(f"the token for Consul's UI: {read_tokens(directory / TOKENS)['tokens']['ui-user']['secret']}")
