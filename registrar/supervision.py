"""What is done with a container's supervisord."""

from __future__ import annotations

import http.client
import signal
import xmlrpc.client
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

_SOCKET = "run/supervisor.sock"


class SupervisionError(Exception):
    """Supervisord did not do what was asked; the message says why."""


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
    """A plug-in of supervisord: SIGHUP, by which it would stop and start all its programs, does nothing.

    ``docker kill -s HUP`` has a server of the usual kind read its configuration again. Here whatever changes goes live
    by itself, and a restart would lose calls. Supervisord calls each factory of XML-RPC interfaces at its start
    (supervisord.org/xmlrpc.html).
    """
    options = supervisord.options
    get_signal = options.get_signal

    def get_signal_but_hup() -> int | None:
        number: int | None = get_signal()
        if number != signal.SIGHUP:
            return number
        options.logger.info("SIGHUP does nothing: configuration goes live by itself, restart starts anew")
        return None

    options.get_signal = get_signal_but_hup
    return _Nothing()
