"""The balancers that are compared, each in front of peers that may change."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from testbed import programs, render
from testbed.calls import wait_for_answers
from testbed.catalogue import catalogue
from testbed.certificate import wait_for_handshake, write_pair
from testbed.errors import BenchmarkError, MissingError
from testbed.processes import Processes, children
from testbed.wait import wait_for

_START_SECONDS = 15.0
_ANSWERS = partial(wait_for_answers, count=1, seconds=_START_SECONDS)
_SLOTS = 16


class Balancer:
    """A balancer on 127.0.0.1.

    Args:
        processes: starts and ends it.
        port: where it listens.
    """

    name = ""
    how = ""
    # The program, unless it is one of the stack's.
    program = ""
    # Whether its callers speak TLS.
    tls = False

    def __init__(self, processes: Processes, port: int) -> None:
        self.processes = processes
        self.port = port
        self.directory = processes.directory / f"{type(self).__name__.lower()}-{port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Returns the address of calls."""
        return f"127.0.0.1:{self.port}"

    def require(self) -> None:
        """Raises MissingError when its program is not installed."""
        if self.program:
            programs.program(self.program)

    def start(self, peers: Sequence[str], *, ready: Callable[[str], object] = _ANSWERS) -> None:
        """Starts it and waits until it is ready: by default, until it answers a call of Ping."""
        self.require()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        with self.processes.explained(self.name, self._log):
            self._launch(peers)
            (wait_for_handshake if self.tls else ready)(self.target)

    def stop(self) -> None:
        """Ends it."""
        if self.process:
            self.processes.stop(self.process)
            self.process = None

    def tail(self) -> str:
        """Returns its last lines."""
        return self.processes.tail(self._log)

    def change(self, peers: Sequence[str]) -> None:
        """Replaces its peers, while calls go on."""
        raise NotImplementedError

    def _launch(self, peers: Sequence[str]) -> None:
        raise NotImplementedError

    @property
    def _log(self) -> str:
        return self.directory.name

    def _spawn(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self.process = self.processes.start(self._log, command, cwd=self.directory, env=env)


class LuaNginx(Balancer):
    """The stack's own nginx with the files of build/config/nginx, without Consul and the control plane."""

    name = "nginx with the Lua balancer"
    # Off here, and on in one of the variants below.
    variables: Mapping[str, str] = {"METRICS_PORT": "", "LB_ACCESS_LOG": "off"}

    def workers(self) -> list[int]:
        """Returns the worker processes."""
        if not self.process:
            raise BenchmarkError("nginx does not run")
        return children(self.process.pid)

    def _launch(self, peers: Sequence[str]) -> None:
        shutil.copytree(programs.ROOT / "build" / "config" / "nginx", self.directory, dirs_exist_ok=True)
        for needed in ("etc/nginx/conf.d", "run", "var/lib/load-balancer"):
            (self.directory / needed).mkdir(parents=True, exist_ok=True)
        path = [str(self.directory / "usr" / "bin"), str(programs.tool("nginx").parent), os.environ["PATH"]]
        env = {
            "PATH": os.pathsep.join(path),
            "LB_LISTEN": self.target,
            "LB_STATUS_PORT": str(self.port + 1),
            "PEER_CIDR": "127.0.0.0/8",
            "NGINX_UPDATE": "dynamic",
            "BIND_ADDRESS": "127.0.0.1",
            **self.variables,
        }
        self._configure(env, peers)
        self._spawn(["nginx-start"], env)

    def _configure(self, env: Mapping[str, str], peers: Sequence[str]) -> None:
        self._render(env)
        # nginx starts with the control plane's snapshot.
        (self.directory / "var/lib/load-balancer/snapshot.json").write_text(render.snapshot(peers))

    def _render(self, env: Mapping[str, str]) -> None:
        """Renders the configuration, with consul-template as in the stack."""
        template = programs.ROOT / "build/config/consul-template/etc/consul-templates/load-balancer.tpl"
        rendered = self.directory / "etc/nginx/conf.d/load-balancer.conf"
        command: list[str | Path] = [
            programs.tool("consul-template"),
            "-once",
            "-log-level=err",
            "-template",
            f"{template}:{rendered}",
        ]
        self.processes.run(command, cwd=self.directory, env=env)


class CountingNginx(LuaNginx):
    """The same with metrics."""

    name = "the same with metrics"

    def _launch(self, peers: Sequence[str]) -> None:
        self.variables = {**LuaNginx.variables, "METRICS_PORT": str(self.port + 2)}
        super()._launch(peers)


class LoggingNginx(LuaNginx):
    """The same with a line of JSON a call, which goes to a file."""

    name = "the same with the access log"
    variables: Mapping[str, str] = {**LuaNginx.variables, "LB_ACCESS_LOG": "on"}


class TlsNginx(LuaNginx):
    """The same with TLS for callers, and with metrics and the access log, as in the stack."""

    name = "this stack's nginx with TLS for callers"
    tls = True

    def _launch(self, peers: Sequence[str]) -> None:
        own = self.directory / "run/certificate.pem"
        own.parent.mkdir(parents=True, exist_ok=True)
        # In the stack the control plane copies it there.
        write_pair(own)
        files = {"LB_TLS_CERTIFICATE": str(own), "LB_TLS_KEY": str(own)}
        self.variables = {"METRICS_PORT": str(self.port + 2), "LB_ACCESS_LOG": "on", **files}
        super()._launch(peers)


class StaticNginx(LuaNginx):
    """The stack's own nginx with NGINX_UPDATE=reload: nginx's own round robin, and no Lua."""

    name = "nginx, the same with a static upstream and no Lua"
    variables: Mapping[str, str] = {**LuaNginx.variables, "NGINX_UPDATE": "reload"}

    def _configure(self, env: Mapping[str, str], peers: Sequence[str]) -> None:
        with catalogue(self.processes, peers) as address:
            self._render({**env, "CONSUL_HTTP_ADDR": address})


class OriginalNginx(Balancer):
    """nginx as the original of this stack configured it."""

    name = "nginx, the original's settings"
    how = "restart"

    def change(self, peers: Sequence[str]) -> None:
        """Writes the configuration and restarts nginx, as the original's consul-template did."""
        self._configure(peers)
        self.stop()
        self._start_nginx()

    def _launch(self, peers: Sequence[str]) -> None:
        self._configure(peers)
        self._start_nginx()

    def _configure(self, peers: Sequence[str]) -> None:
        text = render.fill("original.conf", {"PORT": str(self.port), "SERVERS": render.servers(peers)})
        (self.directory / "nginx.conf").write_text(text)

    def _start_nginx(self) -> None:
        prefix: list[str | Path] = ["-p", self.directory, "-c", self.directory / "nginx.conf", "-e", "error.log"]
        self._spawn([programs.tool("nginx"), *prefix, "-g", "daemon off;"])


class OriginalStack(OriginalNginx):
    """The same, for the original's own servers as peers."""

    name = "the original as a whole"


class HAProxy(Balancer):
    """HAProxy as its documents advise for gRPC."""

    name = "HAProxy"
    how = "runtime API"
    program = "haproxy"

    def change(self, peers: Sequence[str]) -> None:
        """Gives each new peer a free slot; a peer that leaves is drained, and its slot is free again."""
        for peer in set(self._slots) - set(peers):
            self._say(f"set server grpc_servers/replica{self._slots.pop(peer)} state drain")
        for peer in peers:
            if peer not in self._slots:
                slot = next(number for number in range(1, _SLOTS + 1) if number not in self._slots.values())
                address, _, port = peer.rpartition(":")
                self._slots[peer] = slot
                self._say(f"set server grpc_servers/replica{slot} addr {address} port {port}")
                self._say(f"set server grpc_servers/replica{slot} state ready")

    def _launch(self, peers: Sequence[str]) -> None:
        tls = ""
        if self.tls:
            write_pair(self.directory / "certificate.pem")
            tls = " ssl crt certificate.pem alpn h2 ssl-min-ver TLSv1.2 prefer-client-ciphers no-tls-tickets"
        values = {"PORT": str(self.port), "WORKERS": str(worker_count()), "SLOTS": str(_SLOTS), "TLS": tls}
        (self.directory / "haproxy.cfg").write_text(render.fill("haproxy.cfg", values))
        self._slots: dict[str, int] = {}
        self._spawn([programs.program(self.program), "-f", "haproxy.cfg", "-db"])
        wait_for(self._is_listening, bool, _START_SECONDS, "haproxy.sock", 0.01)
        self.change(peers)

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as control:
            return control.connect_ex(str(self.directory / "haproxy.sock")) == 0

    def _say(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(self.directory / "haproxy.sock"))
            control.sendall(f"{command}\n".encode())
            answer = b"".join(iter(lambda: control.recv(4096), b"")).decode().strip()
        # It answers a change of an address only.
        if answer and "changed" not in answer and "no need to change" not in answer:
            raise BenchmarkError(f"HAProxy: {command}: {answer}")


class TlsHAProxy(HAProxy):
    """The same with TLS for callers."""

    name = "HAProxy with TLS for callers"
    tls = True


class Envoy(Balancer):
    """Envoy as its documents advise, its endpoints in a file."""

    name = "Envoy"
    how = "EDS file"
    program = "envoy"

    def change(self, peers: Sequence[str]) -> None:
        """Moves a new list of endpoints into place."""
        (self.directory / "eds.new").write_text(render.endpoints(peers))
        (self.directory / "eds.new").replace(self.directory / "eds.yaml")

    def _launch(self, peers: Sequence[str]) -> None:
        values = {"PORT": str(self.port), "DIRECTORY": str(self.directory)}
        (self.directory / "envoy.yaml").write_text(render.fill("envoy.yaml", values))
        self.change(peers)
        options = ["--concurrency", str(worker_count()), "--log-level", "error", "--disable-hot-restart"]
        self._spawn([programs.program(self.program), "-c", "envoy.yaml", *options])


class FedEnvoy(Balancer):
    """The stack's own Envoy with the files of build/config/envoy, without Consul; balancer/answers.py feeds it."""

    name = "Envoy fed by the control plane"
    how = "xDS"
    program = "envoy"
    # As those that it is compared with.
    variables: Mapping[str, str] = {"LB_ACCESS_LOG": "off"}

    def __init__(self, processes: Processes, port: int) -> None:
        super().__init__(processes, port)
        self._answers: subprocess.Popen[bytes] | None = None

    def change(self, peers: Sequence[str]) -> None:
        """Moves a new document into place."""
        (self.directory / "run" / "document.new").write_text(render.snapshot(peers))
        (self.directory / "run" / "document.new").replace(self.directory / "run" / "document.json")

    def stop(self) -> None:
        """Ends it and its control plane."""
        super().stop()
        if self._answers:
            self.processes.stop(self._answers)
            self._answers = None

    def _launch(self, peers: Sequence[str]) -> None:
        (self.directory / "run").mkdir()
        self.change(peers)
        self._run()

    def _run(self) -> None:
        """Starts what is fed and what feeds it."""
        shutil.copytree(programs.ROOT / "build" / "config" / "envoy", self.directory, dirs_exist_ok=True)
        path = [str(self.directory / "usr" / "bin"), str(programs.program(self.program).parent), os.environ["PATH"]]
        env = {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(programs.ROOT),
            "LB_ENGINE": "envoy",
            "LB_LISTEN": self.target,
            "PEER_CIDR": "127.0.0.0/8",
            **self.variables,
        }
        command = [sys.executable, "-m", "balancer", "answers"]
        self._answers = self.processes.start(f"{self._log}-answers", command, cwd=self.directory, env=env)
        self._spawn(["envoy-start", "named"], env)


def start_available(
    candidates: Iterable[Balancer], peers: Sequence[str], stops: ExitStack
) -> tuple[list[Balancer], dict[str, str]]:
    """Starts the balancers whose programs are here, which ``stops`` ends.

    Returns:
        Those that run, and by name why the others are missing.
    """
    started, missing = [], {}
    for one in candidates:
        try:
            one.start(peers)
        except MissingError as error:
            missing[one.name] = str(error)
        else:
            stops.callback(one.stop)
            started.append(one)
    return started, missing


def worker_count() -> int:
    """Returns the number of workers or threads of every balancer: one a core, as NGINX_WORKERS=auto."""
    return os.cpu_count() or 1
