"""Start-up, main loop and shutdown of the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from common import log
from common.environment import host_port
from common.grpc_tls import make_credentials
from grpc_server import lines, metrics
from grpc_server.callers import Callers
from grpc_server.calls import Calls
from grpc_server.config import ServerConfig
from grpc_server.in_flight import CallsInFlight
from grpc_server.metrics import Metrics
from grpc_server.ping import Ping
from protos import api_pb2, api_pb2_grpc

LOG = logging.getLogger("grpc_server")
PING = api_pb2.DESCRIPTOR.services_by_name["Ping"].full_name
# The health service's name for the server as a whole, by the gRPC health checking protocol.
OVERALL = ""
_TELL_SECONDS = 1.0


class ServerError(Exception):
    """The server can't run."""


def check_port_free(config: ServerConfig) -> None:
    """Checks that the port is free, because gRPC's SO_REUSEPORT of several workers shares it with any program.

    Raises:
        ServerError: the port is in use, or the address is not of this host.
    """
    family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.address, config.port))
            # Two sockets with SO_REUSEADDR may both bind, but only one of them may listen.
            probe.listen()
        except OSError as error:
            raise ServerError(f"can't listen on {host_port(config.address, config.port)}: {error.strerror}") from error


def serve_metrics(config: ServerConfig) -> None:
    """Serves ``/metrics`` for this process and its workers, if a port is set.

    Raises:
        ServerError: the port is in use.
    """
    if config.metrics_port:
        try:
            metrics.serve(config.metrics_address or config.address, config.metrics_port)
        except OSError as error:
            where = host_port(config.metrics_address or config.address, config.metrics_port)
            raise ServerError(f"can't serve metrics on {where}: {error.strerror}") from error


async def build(config: ServerConfig, in_flight: CallsInFlight) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Makes the server with its services, listening but not started.

    Args:
        config: its settings.
        in_flight: gets the calls.

    Raises:
        ServerError: the port is in use.
    """
    # Without max_connection_age, connections live until the client or an operator ends them.
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", int(config.workers > 1)),
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 64 * 1024),
            # gRPC measures each connection's bandwidth with PINGs to size a window, which is set here instead. The
            # balancer has a connection for each call in flight, so it would get a PING every few calls.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1024 * 1024),
        ],
    )
    services: Any = Calls(
        in_flight,
        Metrics() if config.metrics_port else None,
        Callers(config.client_names) if config.client_names else None,
    )
    server.add_generic_rpc_handlers((services,))
    api_pb2_grpc.add_PingServicer_to_server(Ping(config.hostname, log.Lines(lines.STDERR, LOG.name).info), services)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, services)
    names = (PING, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), services)
    address = host_port(config.address, config.port)
    try:
        if config.certificates.certificate:
            server.add_secure_port(address, make_credentials(config.certificates, LOG))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise ServerError(f"can't listen on {address}: {error}") from error
    for name in (OVERALL, PING):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, servicer


async def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains: NOT_SERVING, then no new calls; those in flight get the grace.

    A worker without its parent closes its port at once, which the next parent needs; its calls get the grace.

    Raises:
        ServerError: the port is in use, or gRPC has stopped serving by itself.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    orphaned = _watch_parent(stop)
    in_flight = CallsInFlight()
    server, servicer = await build(config, in_flight)
    await server.start()
    LOG.info("serving address=%s", host_port(config.address, config.port))
    await _serve_until(stop, server)
    LOG.info("stopping grace_seconds=%g%s", config.grace_seconds, " reason=orphaned" if orphaned.is_set() else "")
    if orphaned.is_set():
        await server.stop(config.grace_seconds)
    else:
        # A watcher that reads nothing would block it for ever.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(servicer.enter_graceful_shutdown(), _TELL_SECONDS)
        await in_flight.leave(server, config.grace_seconds)
    with contextlib.suppress(asyncio.CancelledError):
        await server.wait_for_termination()
    # This writes the lines of calls too, while a second signal does not yet end the process.
    LOG.info("stopped")


def _watch_parent(stop: asyncio.Event) -> asyncio.Event:
    """Returns the event of the end of this process's parent, if there is one; its end sets ``stop`` too."""
    orphaned = asyncio.Event()
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop, sentinel = asyncio.get_running_loop(), parent.sentinel

        def end() -> None:
            loop.remove_reader(sentinel)
            orphaned.set()
            stop.set()

        loop.add_reader(sentinel, end)
    return orphaned


async def _serve_until(stop: asyncio.Event, server: grpc.aio.Server) -> None:
    """Waits for the event.

    Raises:
        ServerError: the server has ended before. grpcio 1.85 closes its port at a call whose path is not UTF-8; the
            balancer refuses such a call, and supervisord restarts the server.
    """
    told = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(server.wait_for_termination())
    # The other task is not cancelled, because this would cancel gRPC's own future, which stop() needs.
    done, _ = await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    if told not in done:
        raise ServerError(f"gRPC has stopped serving by itself: {ended.exception()}")
