"""The commands: call Ping once, load it, list the methods of a server, call any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import grpc

from grpc_client.channel import call_failed, open_channel
from grpc_client.invoke import call_method, list_methods, method_lines
from grpc_client.load import run_load
from grpc_client.options import Options
from grpc_client.report import text_report
from grpc_client.tally import Tally
from protos.api_pb2 import PingMessage
from protos.api_pb2_grpc import PingStub

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def run(options: Options) -> int:
    """Runs the command of the options and returns the exit code.

    Raises:
        ClientError: the command failed.
        asyncio.CancelledError: a signal ended it before the report.
    """
    if options.list_services:
        command = _list_methods
    elif options.method is not None:
        command = _call_method
    elif options.is_load or options.json_output:
        return await _load(options)
    else:
        command = _say_hello
    with _on_stop_signal(_cancel_this_task()):
        await command(options)
    return 0


async def _say_hello(options: Options) -> None:
    request = PingMessage(greeting=options.greeting)
    async with open_channel(options) as channel:
        try:
            answer = await PingStub(channel).SayHello(request, timeout=options.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise call_failed(channel, options, error) from None
    print(f"Response from server: {answer.greeting}")


async def _list_methods(options: Options) -> None:
    listed = await list_methods(options)
    print(json.dumps(listed, indent=2) if options.json_output else "\n".join(method_lines(listed)))


async def _call_method(options: Options) -> None:
    async with contextlib.aclosing(call_method(options)) as answers:
        async for answer in answers:
            print(answer, flush=True)


async def _load(options: Options) -> int:
    tally, stop = Tally(), asyncio.Event()
    live = None if options.json_output or not sys.stdout.isatty() else _import_live()
    with _on_stop_signal(stop.set, _cancel_this_task()):
        async with live.shown(options, tally) if live else contextlib.nullcontext():
            report = await run_load(options, stop=stop, tally=tally)
    if options.json_output:
        print(json.dumps(report.to_json(), indent=2))
    elif live:
        live.print_report(report)
    else:
        print(text_report(report))
    return 0 if report.ok and not report.failed else 1


def _import_live() -> ModuleType | None:
    try:
        # Imported here because only a terminal needs rich, and the images do not have it.
        from grpc_client import live
    except ModuleNotFoundError:
        print("grpc_client: no live view without rich: install grpc-load-balancing[cli]", file=sys.stderr)
        return None
    return live


@contextlib.contextmanager
def _on_stop_signal(*actions: Callable[[], object]) -> Iterator[None]:
    """Runs one action a SIGINT or SIGTERM, in their order, and the last one at each further signal."""
    loop, left = asyncio.get_running_loop(), list(actions)

    def act() -> None:
        (left.pop(0) if len(left) > 1 else left[0])()

    for stop_signal in _STOP_SIGNALS:
        loop.add_signal_handler(stop_signal, act)
    try:
        yield
    finally:
        for stop_signal in _STOP_SIGNALS:
            loop.remove_signal_handler(stop_signal)


def _cancel_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("not called from a task")
    return task.cancel
