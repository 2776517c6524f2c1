"""``python -m grpc_server``: serves Ping, health and reflection until SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys

from common import log
from common.environment import ConfigError
from grpc_server import lines
from grpc_server.config import ServerConfig
from grpc_server.workers import exit_code, run


def main() -> int:
    """Parses, runs and returns the exit code: 0 stopped by a signal, 1 can't run, 2 usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m grpc_server",
        description="A gRPC server that answers protos.Ping/SayHello with its host name. "
        "Settings not given here come from BIND_ADDRESS, APP_PORT, GRPC_WORKERS, GRPC_GRACE_SECONDS and "
        "GRPC_MAX_MESSAGE_BYTES.",
    )
    parser.add_argument("--host", help="address to listen on (default: BIND_ADDRESS, else 0.0.0.0)")
    parser.add_argument("--port", help="port to listen on (default: APP_PORT, else 7777)")
    arguments = parser.parse_args()
    given = {"BIND_ADDRESS": arguments.host, "APP_PORT": arguments.port}
    log.configure(lines.STDERR)
    try:
        config = ServerConfig.from_env({**os.environ, **{name: text for name, text in given.items() if text}})
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return exit_code(run, config)


if __name__ == "__main__":
    sys.exit(main())
