"""``python -m local_stack``: the stack of docker-compose.yaml without Docker."""

from __future__ import annotations

import os
import signal
import sys
import xmlrpc.client

from local_stack.arguments import parser
from local_stack.commands import COMMANDS
from local_stack.errors import LocalStackError, say
from local_stack.settings import Directory
from local_stack.stack import Stack


def main() -> int:
    """Parses the command line and runs the command. Exit code: 0 done, 1 failed, 2 usage."""
    arguments = parser().parse_args()
    # SIGTERM ends a foreground stack as gracefully as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        stack = Stack(Directory.from_env(os.environ), os.environ)
        return COMMANDS[arguments.command](stack, arguments) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of `logs | head` has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LocalStackError, OSError) as error:
        # An OSError is the machine's, such as a full disk; expected failures are LocalStackErrors.
        say(str(error))
        return 1
    except xmlrpc.client.Fault as fault:
        say(f"supervisord: {fault.faultString}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
