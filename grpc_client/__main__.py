"""``python -m grpc_client``: calls a gRPC server once or many times and reports the replicas that answered."""

from __future__ import annotations

import asyncio
import os
import sys

from grpc_client.errors import ClientError


def main() -> int:
    """Parses the command line, runs and returns the exit code: 0 every call OK, 1 failed at run time, 2 wrong usage."""
    # gRPC, which reads this when it is loaded, would log each failed handshake; the error of the call has the reason.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from grpc_client.commands import run
    from grpc_client.options import parse_arguments

    try:
        return asyncio.run(run(parse_arguments(sys.argv[1:])))
    except ClientError as error:
        for line in str(error).splitlines():
            print(f"grpc_client: {line}", file=sys.stderr)
        return error.exit_code
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("grpc_client: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has ended, as in `| head -1`; the interpreter's flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
