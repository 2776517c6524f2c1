"""Prints where the tools are, and gets those that are missing first."""

import argparse
import signal
import sys

from local_stack.errors import say
from local_stack.tools import TOOLS, ToolError, find

_EPILOG = """\
environment:
  PATH                      where tools are looked for first
  XDG_CACHE_HOME            where downloaded and built tools are kept (default: ~/.cache)
  LOCAL_STACK_RELEASES_URL  where official releases are (default: https://releases.hashicorp.com)

exit status: 0 all found, 1 a tool was not found, 2 usage."""


def main(arguments: list[str] | None = None) -> int:
    """Finds the tools that are named, prints them, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local_stack.tools",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tools_help = f"one of {', '.join(TOOLS)} (default: all); of one the path is printed, of several name, tab, path"
    parser.add_argument("tools", nargs="*", metavar="tool", help=tools_help)
    install_help = "look on PATH and in the cache only (default: get missing tools)"
    parser.add_argument("--no-install", action="store_true", help=install_help)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.tools if name not in TOOLS]:
        parser.error(f"tool: must be one of {', '.join(TOOLS)} (got {', '.join(unknown)})")
    # SIGTERM means the same as SIGINT, so that a build is stopped and cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = options.tools or list(TOOLS)
    status = 0
    for name in dict.fromkeys(names):
        try:
            path = find(name, install=not options.no_install)
        except ToolError as error:
            say(str(error))
            status = 1
        except KeyboardInterrupt:
            say("interrupted")
            return 1
        else:
            print(path if len(names) == 1 else f"{name}\t{path}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
