"""``python -m security``: makes the secrets of the secure stack, and gives Consul its tokens and policies."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from common import log
from common.environment import ConfigError
from security.errors import SecurityError
from security.files import read_tokens
from security.options import add_create_options, create

# In a container, of which secure.yaml mounts it; and by default of `create`.
_DIRECTORY = Path("secrets")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser; ``command`` is the subcommand."""
    result = argparse.ArgumentParser(prog="python -m security", description=__doc__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make the files that are missing in secrets/")
    add_create_options(create)
    commands.add_parser("apply", help="give Consul the policies and tokens of secrets/acl; may run again")
    return result


def main() -> int:
    """Parses and runs. Exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    arguments = make_parser().parse_args()
    log.configure()
    try:
        if arguments.command == "create":
            create(_DIRECTORY, arguments)
        else:
            _apply()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except SecurityError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _apply() -> None:
    # Imported here because `create` needs no HTTP client.
    from common.consul_access import ConsulAccess
    from common.environment import EnvironmentReader
    from security.acl import AccessControl

    reader = EnvironmentReader(os.environ)
    access = ConsulAccess.read(reader)
    url = access.make_url(reader.host("CONSUL_ADDRESS", "127.0.0.1"), reader.port("CONSUL_PORT", 8500))
    reader.raise_problems()
    document = read_tokens(_DIRECTORY / "tokens.json")
    AccessControl(url, access.make_session(), document["tokens"]["management"]["secret"]).apply(document)


if __name__ == "__main__":
    sys.exit(main())
