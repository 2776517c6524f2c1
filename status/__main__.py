"""``python -m status``: shows the replicas, in the catalogue and at the balancer."""

from __future__ import annotations

import argparse
import sys

from status.command import add_address_options, add_status_options, run_status


def main() -> int:
    """Parses and runs. Exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m status", description="Shows the replicas, in the catalogue and at the balancer."
    )
    add_status_options(parser)
    add_address_options(parser)
    return run_status(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
