"""Prints where the tools are, and gets those that are missing first."""

import argparse
import signal
import sys
from types import FrameType

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.progress import say

_EPILOG = """\
environment:
  PATH                      where tools are looked for first
  XDG_CACHE_HOME            where what is downloaded or built is kept (default: ~/.cache)
  LOCAL_STACK_RELEASES_URL  where official releases are (default: https://releases.hashicorp.com)

exit status: 0 all found, 1 a tool was not found, 2 usage."""


def main(arguments: list[str] | None = None) -> int:
    """Find the tools that are named, print them, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local_stack.tools",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tools",
        nargs="*",
        metavar="tool",
        help=f"one of {', '.join(TOOLS)} (default: all). Of one tool the path is printed, of several"
        " a line each: name, tab, path",
    )
    parser.add_argument(
        "--no-install",
        action="store_true",
        help="look on PATH and in the cache only (default: get what is missing)",
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.tools if name not in TOOLS]:
        parser.error(f"no such tool: {', '.join(unknown)} (choose from {', '.join(TOOLS)})")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _print_paths(options.tools or list(TOOLS), install=not options.no_install)
    except KeyboardInterrupt:
        say("interrupted")
        return 1


def _print_paths(names: list[str], *, install: bool) -> int:
    status = 0
    for name in dict.fromkeys(names):
        try:
            path = find(name, install=install)
        except ToolError as error:
            say(str(error))
            status = 1
        else:
            print(path if len(names) == 1 else f"{name}\t{path}", flush=True)
    return status


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Make SIGTERM mean what SIGINT means, so that a build is stopped and cleaned up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
