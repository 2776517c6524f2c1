"""``python -m grpc_client``: calls a gRPC server, alone or many times, and reports who answered."""

from __future__ import annotations

import asyncio
import os
import sys

from grpc_client.commands import run
from grpc_client.errors import ClientError, UsageError
from grpc_client.options import parse_arguments


def main() -> int:
    """Parse, run and return the exit code: 0 every call OK, 1 failed at run time, 2 wrong usage."""
    try:
        return asyncio.run(run(parse_arguments(sys.argv[1:])))
    except UsageError as error:
        for problem in error.problems:
            print(f"grpc_client: {problem}", file=sys.stderr)
        return error.exit_code
    except ClientError as error:
        print(f"grpc_client: {error}", file=sys.stderr)
        return error.exit_code
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("grpc_client: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Nobody reads on, for example `| head -1`; the interpreter's flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
