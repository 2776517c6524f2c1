"""Runs servers on one port, each a process with its event loop; the kernel distributes the connections."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from common import log
from grpc_server import lines, metrics
from grpc_server.config import ServerConfig
from grpc_server.server import ServerError, check_port_free, serve, serve_metrics

LOG = logging.getLogger("grpc_server")


def exit_code(serving: Callable[[ServerConfig], int], config: ServerConfig) -> int:
    """Returns the exit code of ``serving``; 1 after an error of the server, which is logged."""
    try:
        return serving(config)
    except ServerError as error:
        LOG.error("%s", error)  # noqa: TRY400 - an expected failure, no stack trace
        return 1
    finally:
        # Before the stack trace of another error.
        lines.STDERR.flush()


def run(config: ServerConfig) -> int:
    """Runs ``config.workers`` servers and returns the exit code.

    The end of one worker ends all, so that supervisord restarts the whole server.

    Raises:
        ServerError: the server can't run.
    """
    check_port_free(config)
    shared = metrics.share() if config.metrics_port and config.workers > 1 else contextlib.nullcontext()
    with shared:
        serve_metrics(config)
        return _run_one(config) if config.workers == 1 else _run_several(config)


def _run_one(config: ServerConfig) -> int:
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(serve(config))
    return 0


def _new_loop() -> asyncio.AbstractEventLoop:
    """Returns a loop of uvloop, with which a call takes a tenth less processor time, or asyncio's own without it."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _run_several(config: ServerConfig) -> int:
    # Spawned, because gRPC's threads don't survive a fork.
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = []
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()
        _terminate(workers)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while len(workers) < config.workers and not stopping.is_set():
        worker: BaseProcess = context.Process(target=_worker, args=(config,), daemon=True)
        worker.start()
        workers.append(worker)
    # A signal may have come during the start of the last worker.
    if not stopping.is_set():
        wait([worker.sentinel for worker in workers])
    if not stopping.is_set():
        LOG.error("a worker ended, stopping the others")
    _terminate(workers)
    for worker in workers:
        worker.join()
    # A worker that was stopped before it had its handlers ends by the signal, which is no error.
    return int(any(worker.exitcode not in (0, -signal.SIGTERM) for worker in workers))


def _terminate(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


def _worker(config: ServerConfig) -> None:
    log.configure(lines.STDERR)
    sys.exit(exit_code(_run_one, config))
