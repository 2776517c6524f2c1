"""The distribution's packages of a tool: apt on Debian and Ubuntu, apk on Alpine."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.tools.catalogue import Tool, parse_version
from local_stack.tools.errors import UnavailableError
from local_stack.tools.places import Places
from local_stack.tools.probe import on_path
from local_stack.tools.progress import say

_UPDATE_TIMEOUT_SECONDS = 120
_SYSTEMD = Path("/run/systemd/system")
_MARK = "# Written by local_stack"
# invoke-rc.d and deb-systemd-invoke ask this file before they start a service; 101 is "forbidden by policy"
# (policy-rc.d specification). It forbids nothing once the process that wrote it has ended.
_POLICY = """\
#!/bin/sh
{mark} while it installs a package that would start a service; it removes it again.
kill -0 {pid} 2>/dev/null || exit 0
exit 101
"""
_APT_GET = (
    "-o=Acquire::http::Timeout=10",
    "-o=Acquire::https::Timeout=10",
    "-o=Acquire::Retries=1",
    "-o=DPkg::Lock::Timeout=120",
)


def install(tool: Tool, places: Places) -> Path:
    """Install a tool's packages, if they are of a suitable version, and return the program's path.

    Raises:
        UnavailableError: if there is no package manager that is known here, its packages do not suit, this
            process is not root (then the reason is the command to run), or the installation fails.

    """
    if manager := _manager(places):
        _install_apt(tool, places) if manager == "apt-get" else _install_apk(tool, places)
        return on_path(tool, places)
    raise UnavailableError("neither apt-get nor apk is here")


def command(tool: Tool, places: Places) -> list[str]:
    """Return the one command that installs a tool's packages here; empty without a package manager."""
    match _manager(places):
        case "apt-get":
            return ["apt-get", "install", "-y", "--no-install-recommends", *tool.apt_packages]
        case "apk":
            return ["apk", "add", "--no-cache", *tool.apk_packages]
    return []


def _manager(places: Places) -> str:
    for name in ("apt-get", "apk"):
        try:
            places.program(name)
        except UnavailableError:
            continue
        return name
    return ""


def _install_apt(tool: Tool, places: Places) -> None:
    candidates = _apt_candidates(tool, places)
    # Only nginx is worth an update: no release of Debian or Ubuntu has a suitable Consul or consul-template,
    # and whoever has added HashiCorp's own repository has updated since.
    updated = places.root and tool.go is None and len(candidates) < len(tool.apt_packages)
    if updated:
        _update_apt(places)
        candidates = _apt_candidates(tool, places)
    _require(tool, tool.apt_packages, candidates)
    _require_root(tool, places)
    say(f"{tool}: installing {' '.join(tool.apt_packages)} with apt-get (usually under a minute)")
    with _services_forbidden(places):
        try:
            _install(tool, places, *_APT_GET)
        except UnavailableError:
            if updated:
                raise
            _update_apt(places)  # a list that is too old names packages that the mirror no longer has
            _install(tool, places, *_APT_GET)
    if _SYSTEMD.is_dir():
        say(f"{tool}: its own service was not started; `systemctl disable {tool.name}` keeps it off at boot")


def _update_apt(places: Places) -> None:
    say("apt-get update: usually a few seconds, at most 2 minutes")
    _run(places, "apt-get", "update", *_APT_GET, timeout_seconds=_UPDATE_TIMEOUT_SECONDS)


def _apt_candidates(tool: Tool, places: Places) -> dict[str, str]:
    """Return the version that apt would install of each package it knows."""
    output = _run(places, "apt-cache", "policy", *tool.apt_packages)
    found = re.findall(r"^(\S+):\n(?:[ ]{2}.*\n)*?[ ]{2}Candidate: (\S+)$", output, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def _install_apk(tool: Tool, places: Places) -> None:
    # --no-cache reads the index from the mirror, and needs no `apk update`.
    output = _run(places, "apk", "policy", "--no-cache", *tool.apk_packages)
    policies = re.findall(r"^(\S+) policy:\n((?:[ ].*\n?)*)", output, re.MULTILINE)
    versions = {name: re.findall(r"^[ ]{2}(\d\S*):$", policy, re.MULTILINE) for name, policy in policies}
    newest = {name: max(listed, key=parse_version) for name, listed in versions.items() if listed}
    _require(tool, tool.apk_packages, newest)
    _require_root(tool, places)
    say(f"{tool}: installing {' '.join(tool.apk_packages)} with apk (usually a few seconds)")
    _install(tool, places)


def _require(tool: Tool, packages: tuple[str, ...], candidates: dict[str, str]) -> None:
    """See that every package is there, and the first one at a suitable version."""
    if missing := [name for name in packages if name not in candidates]:
        raise UnavailableError(f"no package {' and no package '.join(missing)}")
    if reason := tool.unsuitable(candidates[packages[0]]):
        raise UnavailableError(f"package {packages[0]}: {reason}")


def _require_root(tool: Tool, places: Places) -> None:
    if not places.root:
        raise UnavailableError(f"not root, so nothing is installed; as root: {' '.join(command(tool, places))}")


def _install(tool: Tool, places: Places, *options: str) -> None:
    name, *arguments = command(tool, places)
    _run(places, name, *options, *arguments)


def _run(places: Places, name: str, *arguments: str, timeout_seconds: float | None = None) -> str:
    """Run a package manager's program and return what it wrote.

    An installation has no time limit here: a package manager that is cut off leaves packages half configured,
    and it has limits of its own for the network.
    """
    quiet = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    try:
        done = subprocess.run(
            [places.program(name), *arguments],
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{name} {arguments[0]} did not end within {timeout_seconds} s") from None
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{name} failed (exit {done.returncode}): {last[0]}")
    return done.stdout


@contextmanager
def _services_forbidden(places: Places) -> Iterator[None]:
    """Keep packages from starting their services; the stack starts its own. A policy that exists stays."""
    policy = places.policy_file
    try:
        if policy.exists() and _MARK in policy.read_text(encoding="utf-8", errors="replace"):
            policy.unlink()  # of a process that was killed
        with policy.open("x", encoding="utf-8") as file:
            file.write(_POLICY.format(mark=_MARK, pid=os.getpid()))
        policy.chmod(0o755)
    except FileExistsError:
        yield
        return
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
