"""Runs the Lua of nginx's workers in LuaJIT without nginx; ngx.lua stands in for nginx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lupa.luajit21 import LuaRuntime

FILES = Path(__file__).resolve().parents[2] / "build" / "config" / "nginx" / "etc" / "nginx" / "lua"
# ../../etc/nginx/nginx.conf is the balancer's.
_PREFIX = f"{FILES.parent}/"
_NGX = Path(__file__).with_name("ngx.lua")


class Shared:
    """The shared dictionaries of the workers of one nginx."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, Any]] = {}


class _Dictionary:
    """A shared dictionary for one worker. Entries do not expire."""

    def __init__(self, data: dict[str, Any], runtime: LuaRuntime) -> None:
        self._data = data
        self._runtime = runtime

    def get(self, key: str) -> Any:
        return self._data.get(key)

    def set(self, key: str, value: Any, _seconds: float = 0) -> bool:
        if value is None:
            self._data.pop(key, None)
        else:
            self._data[key] = value
        return True

    def safe_set(self, key: str, value: Any) -> bool:
        return self.set(key, value)

    def add(self, key: str, value: Any, _seconds: float = 0) -> bool:
        return key not in self._data and self.set(key, value)

    def incr(self, key: str, value: float, start: float = 0) -> float:
        self._data[key] = self._data.get(key, start) + value
        return float(self._data[key])

    def delete(self, key: str) -> None:
        self._data.pop(key, None)

    def get_keys(self, _most: int) -> Any:
        return self._runtime.table_from(list(self._data))


class Worker:
    """A worker of nginx.

    Args:
        number: of the worker, from 0, among ``count``.
        shared: the dictionaries of all workers.
        prefix: nginx's directory.

    Attributes:
        time: the time of clock.lua; None for the real one.
        wall: nginx's time, ngx.now().
        lines: the log.
        said: the lines of the answers.
        refusing: addresses that nginx refuses.
        connected: the addresses and ports of set_current_peer.
    """

    def __init__(self, number: int = 0, count: int = 1, shared: Shared | None = None, prefix: str = _PREFIX) -> None:
        self.number, self.count, self.prefix = number, count, prefix
        self.time: float | None = None
        self.wall = 1.7e9
        self.lines: list[str] = []
        self.said: list[str] = []
        self.method, self.body = "GET", ""
        self.request, self.more_tries = 1, 0
        self.refusing: set[str] = set()
        self.connected: list[tuple[str, int]] = []
        self._shared = shared or Shared()
        self._runtime = LuaRuntime(unpack_returned_tuples=True)
        self._runtime.execute(f"package.path = {str(FILES / '?.lua')!r}")
        self._runtime.execute(_NGX.read_text(), self)

    def module(self, name: str) -> Any:
        """Returns the module of a Lua file."""
        return self._runtime.eval(f"require({name!r})")

    @property
    def ngx(self) -> Any:
        """The table ``ngx``."""
        return self._runtime.globals().ngx

    def table(self, values: Any) -> Any:
        """Returns a Lua table."""
        return self._runtime.table_from(values)

    def lua(self, text: str) -> Any:
        """Returns the value of a Lua expression."""
        return self._runtime.eval(text)

    def post(self, document: object) -> int:
        """Posts a document, an object or its text, to /configuration; returns the status of the answer."""
        self.method, self.body = "POST", document if isinstance(document, str) else json.dumps(document)
        self.ngx.status = 200
        self.module("configuration").serve()
        return int(self.ngx.status)

    # The rest is for ngx.lua.

    def dictionary(self, name: str) -> _Dictionary:
        """Returns a shared dictionary."""
        return _Dictionary(self._shared.data.setdefault(name, {}), self._runtime)

    def note(self, line: str) -> None:
        """Takes a line of the log."""
        self.lines.append(line)

    def say(self, text: str) -> None:
        """Takes a line of an answer."""
        self.said.append(text)

    def connect(self, address: str, port: int) -> Any:
        """Takes a replica's address, as set_current_peer does."""
        if address in self.refusing:
            return None, "no such address"
        self.connected.append((address, port))
        return True

    def decode(self, text: str) -> Any:
        """Decodes JSON; returns None and the reason where that is impossible."""
        try:
            value = json.loads(text)
        except ValueError as error:
            return None, str(error)
        return self._runtime.table_from(value, recursive=True) if isinstance(value, dict | list) else value

    def encode(self, value: Any) -> str:
        """Encodes a Lua table as JSON."""
        return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if not hasattr(value, "items"):
        return value
    items = dict(value.items())
    if set(items) == set(range(1, len(items) + 1)):
        return [_plain(items[number]) for number in range(1, len(items) + 1)]
    return {key: _plain(one) for key, one in items.items()}
