"""The registrar's part in a container's supervisord."""

from __future__ import annotations

import http.client
import signal
import xmlrpc.client
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

_SOCKET = "run/supervisor.sock"


class SupervisionError(Exception):
    """A request to supervisord failed; the message says why."""


def restart(program: str) -> None:
    """Stops a program of this container and starts it again.

    Raises:
        SupervisionError: supervisord is out of reach or refuses.
    """
    transport = SupervisorTransport(None, None, f"unix://{_SOCKET}")
    proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
    try:
        try:
            proxy.supervisor.stopProcess(program)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.NOT_RUNNING:
                raise
        proxy.supervisor.startProcess(program, False)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        raise SupervisionError(f"supervisord: {error}") from error


class _Nothing:
    """An interface of no methods."""


def make_interface(supervisord: Any, **_settings: str) -> _Nothing:
    """A plug-in of supervisord: it ignores SIGHUP, on which it would restart all its programs.

    Servers usually read their configuration again on SIGHUP (``docker kill -s HUP``). Here changes apply by themselves,
    and a restart would fail calls. Supervisord calls each factory of XML-RPC interfaces at its start
    (supervisord.org/xmlrpc.html).
    """
    options = supervisord.options
    get_signal = options.get_signal

    def get_signal_but_hup() -> int | None:
        number: int | None = get_signal()
        if number != signal.SIGHUP:
            return number
        options.logger.info("SIGHUP is ignored: changes apply by themselves, use restart")
        return None

    options.get_signal = get_signal_but_hup
    return _Nothing()
