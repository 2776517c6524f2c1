"""Docker engines on one machine as nodes, each in namespaces of its own, joined by a bridge; they may form a Swarm.

A node is a tree of processes in a PID namespace: when its first one is killed, the kernel kills its engine and all its
containers, and its mounts go with them, as when a machine loses its power. Its disk is a directory that stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.wait import wait_for
from tests.support.drivers import ROOT, run
from tests.support.local import SLOT
from tests.support.missing import missing
from tests.support.scenarios import wait_for_replicas_of

STACK = "grpc"
IMAGES = ("lb", "server", "consul-server")
PORT = 5000
# The namespace of the bridge.
SWITCH = f"glb{SLOT}-net"
# This machine's address on the bridge.
OUTSIDE = f"10.213.{SLOT}.254"
_ENGINE_SECONDS = 60.0
# Processes start slowly on two cores that run three nodes.
PATIENCE_SECONDS = 120.0


def need_programs() -> None:
    """Skips the test where nodes can't be made."""
    if os.geteuid():
        missing("namespaces need root")
    for program in ("dockerd", "dnsmasq", "ip", "nsenter", "unshare"):
        if not shutil.which(program):
            missing(f"{program} is not here")


def _ip(*arguments: str) -> None:
    run(["ip", *arguments])


class Node:
    """One engine.

    Args:
        number: from 1; a part of its name and address.
        home: its directory, with a short path because of its sockets.
    """

    def __init__(self, number: int, home: Path) -> None:
        self.name = f"n{number}"
        self.address = f"10.213.{SLOT}.{10 + number}"
        self.target = f"{self.address}:{PORT}"
        self.namespace = f"glb{SLOT}-{self.name}"
        self._port = f"glb{SLOT}p{number}"
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        """Makes its network namespace, and the link to the bridge in another one."""
        _ip("netns", "add", self.namespace)
        _ip("link", "add", "eth0", "netns", self.namespace, "type", "veth", "peer", "name", self._port, "netns", SWITCH)
        _ip("-n", SWITCH, "link", "set", self._port, "master", "bridge", "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")

    def set_link(self, state: str) -> None:
        """Cuts its link (``down``) or mends it (``up``) at the bridge."""
        _ip("-n", SWITCH, "link", "set", self._port, state)

    def start(self) -> None:
        """Starts its engine and waits until that answers."""
        self._home.mkdir(exist_ok=True)
        # Of an engine that was killed.
        shutil.rmtree(self._home / "run", ignore_errors=True)
        (self._home / "pid").unlink(missing_ok=True)
        engine = ["dockerd", "--host", self.socket, "--data-root", str(self._home / "data")]
        engine += ["--exec-root", str(self._home / "run"), "--pidfile", str(self._home / "pid")]
        engine += ["--cgroup-parent", f"/glb{SLOT}", "--dns", OUTSIDE]
        # The shell is the first process, and takes the orphans.
        shell = ["sh", "-c", 'hostname "$0"; "$@" & wait', self.name]
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc"]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", *apart, *shell, *engine],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: self.attempt("version").returncode, (0).__eq__, _ENGINE_SECONDS, f"{self.name}'s engine")

    def kill(self) -> None:
        """Ends all its processes at once."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Kills it and removes what it had."""
        self.kill()
        with suppress(AssertionError):
            _ip("netns", "delete", self.namespace)

    @property
    def socket(self) -> str:
        """Returns the address of its engine, as in DOCKER_HOST."""
        return f"unix://{self._home}/socket"

    def attempt(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs a command of docker with this engine, which may fail."""
        command = ["docker", "--host", self.socket, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    def docker(self, *arguments: str, **env: str) -> str:
        """Runs a command of docker with this engine and some variables, and returns its output."""
        return run(["docker", "--host", self.socket, *arguments], env)

    def log(self) -> str:
        """Returns the last lines of its engine."""
        return (self._home / "log").read_text(errors="replace")[-3000:]

    def failed_calls(self) -> str:
        """Returns the last lines about failed calls in the access logs of its balancers; none if it does not run."""
        found = []
        balancers = self.attempt("ps", "--all", "--quiet", "--filter", f"name={STACK}_load-balancer").stdout.split()
        for container in balancers:
            lines = self.attempt("logs", container).stdout.splitlines()
            calls = [line for line in lines if '"grpc_status":' in line and '"method":"/malformed"' not in line]
            found += [line for line in calls if '"grpc_status":"OK"' not in line]
        # They begin with the time.
        return "\n".join(sorted(found)[-20:])


class Nodes:
    """Some nodes, with images of this machine's engine; leaving the ``with`` block removes them.

    Args:
        home: a directory for them.
        count: how many.
        images: their names.
    """

    def __init__(self, home: Path, count: int, images: Sequence[str]) -> None:
        self._home, self._images = home, images
        self._dns: subprocess.Popen[bytes] | None = None
        self.nodes = [Node(number, home / f"n{number}") for number in range(1, count + 1)]

    def __enter__(self) -> Self:
        self._home.mkdir()
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _start(self) -> None:
        images = str(self._home / "images")
        run(["docker", "save", "--output", images, *self._images])
        # No rule of this machine's firewall holds in the bridge's namespace.
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "bridge", "up")
        outside = f"glb{SLOT}"
        _ip("link", "add", outside, "type", "veth", "peer", "name", "outside", "netns", SWITCH)
        _ip("-n", SWITCH, "link", "set", "outside", "master", "bridge", "up")
        _ip("address", "add", f"{OUTSIDE}/24", "dev", outside)
        _ip("link", "set", outside, "up")
        # Docker asks it for names that it doesn't know. Without an answer each lookup of one takes 10 s.
        dns = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--no-resolv", "--no-hosts"]
        dns += ["--address=/#/", "--bind-interfaces", f"--listen-address={OUTSIDE}"]
        self._dns = subprocess.Popen(dns, stderr=subprocess.DEVNULL)
        for node in self.nodes:
            node.connect()
            node.start()
            node.docker("load", "--quiet", "--input", images)
        Path(images).unlink()

    def _remove(self) -> None:
        for node in self.nodes:
            node.remove()
        if self._dns:
            self._dns.kill()
            self._dns.wait()
        with suppress(AssertionError):
            # The other end of the link to this machine goes with it.
            _ip("netns", "delete", SWITCH)
        shutil.rmtree(self._home)
        for group in sorted(Path("/sys/fs/cgroup").glob(f"**/glb{SLOT}/**/"), reverse=True):
            with suppress(OSError):
                group.rmdir()


class Swarm(Nodes):
    """Three nodes, all of them managers of one Swarm, with the images of the stack.

    Args:
        home: a directory for it.
    """

    def __init__(self, home: Path) -> None:
        super().__init__(home, 3, IMAGES)

    def _start(self) -> None:
        super()._start()
        first, *others = self.nodes
        first.docker("swarm", "init", "--advertise-addr", first.address)
        token = first.docker("swarm", "join-token", "--quiet", "manager").strip()
        for node in others:
            node.docker("swarm", "join", "--advertise-addr", node.address, "--token", token, f"{first.address}:2377")

    def docker(self, *arguments: str) -> str:
        """Runs a command of docker with the first node, which no test takes away."""
        return self.nodes[0].docker(*arguments)

    def deploy(self) -> None:
        """Starts the stack of swarm.yaml."""
        command = ["stack", "deploy", "--resolve-image", "never", "--compose-file", "swarm.yaml", STACK]
        self.nodes[0].docker(*command, CONSUL_SERVERS_PER_NODE="1")

    @property
    def targets(self) -> list[str]:
        """Returns the balancers' addresses, one a node."""
        return [node.target for node in self.nodes]

    def scale(self, replicas: int) -> None:
        """Gives it so many replicas; does not wait for them."""
        self.docker("service", "scale", "--detach", f"{STACK}_hello_server={replicas}")

    def spread(self) -> Counter[str]:
        """Returns how many running replicas each node has."""
        flags = ["--filter", "desired-state=running", "--format", "{{.Node}}"]
        return Counter(self.docker("service", "ps", f"{STACK}_hello_server", *flags).split())

    def attach(self) -> str:
        """Returns what the nodes and services look like, for a failed test."""
        parts = [f"== {node.name}\n{node.log()}\n{node.failed_calls()}" for node in self.nodes]
        commands = [["node", "ls"], ["stack", "ps", "--no-trunc", STACK]]
        services = ("load-balancer", "hello_server", "consul-server")
        commands += [["service", "logs", "--tail", "40", f"{STACK}_{service}"] for service in services]
        for command in commands:
            # The log of a node that is cut off never ends.
            with suppress(subprocess.TimeoutExpired):
                parts.append(self.nodes[0].attempt(*command, timeout=10).stdout[-6000:])
        return "\n".join(parts)


def wait_for_replicas(targets: Iterable[str], count: int, seconds: float = PATIENCE_SECONDS) -> set[str]:
    """Waits until exactly ``count`` replicas answer through each of these balancers, and returns their names."""
    found: set[str] = set()
    for target in targets:
        found = wait_for_replicas_of(target, count, seconds)
    return found
