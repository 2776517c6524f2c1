"""The distribution's packages of a tool: apt on Debian and Ubuntu, apk on Alpine."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.errors import UnavailableError, say
from local_stack.tools.binary_check import on_path
from local_stack.tools.places import Places
from local_stack.tools.tool import Tool, parse_version

_UPDATE_TIMEOUT_SECONDS = 120
# apk's --no-cache reads the index from the mirror, so it needs no `apk update`.
_COMMANDS = {
    "apt-get": ("apt-get", "install", "-y", "--no-install-recommends"),
    "apk": ("apk", "add", "--no-cache"),
}
_APT_OPTIONS = (
    *("-o=Acquire::http::Timeout=10", "-o=Acquire::https::Timeout=10"),
    *("-o=Acquire::Retries=1", "-o=DPkg::Lock::Timeout=120"),
)
_MARK = "# Written by local_stack"
# invoke-rc.d and deb-systemd-invoke run this file before they start a service; 101 is "forbidden by policy"
# (policy-rc.d specification). It forbids nothing once the process that wrote it has ended.
_POLICY = """\
#!/bin/sh
{mark} while it installs a package that would start a service; it removes it again.
kill -0 {pid} 2>/dev/null || exit 0
exit 101
"""


def command(tool: Tool, places: Places) -> list[str]:
    """Returns the one command that installs a tool's packages here; empty without a package manager."""
    for manager, words in _COMMANDS.items():
        if any(os.access(directory / manager, os.X_OK) for directory in places.directories):
            return [*words, *_names(tool, manager)]
    return []


def install(tool: Tool, places: Places) -> Path:
    """Installs a tool's packages, if their version is suitable and this is root, and returns the program's path."""
    words = command(tool, places)
    if not words:
        raise UnavailableError("neither apt-get nor apk is here")
    manager = words[0]
    names = _names(tool, manager)
    versions = _versions(places, manager, names)
    # Only nginx is worth an update: no release of Debian or Ubuntu has a suitable Consul or consul-template, and with
    # HashiCorp's own repository comes an update.
    if updated := manager == "apt-get" and places.root and not tool.go and len(versions) < len(names):
        _update_apt(places)
        versions = _versions(places, manager, names)
    if missing := [name for name in names if name not in versions]:
        raise UnavailableError(f"no package {' and no package '.join(missing)}")
    if reason := tool.unsuitable(versions[names[0]]):
        raise UnavailableError(f"package {names[0]}: {reason}")
    if not places.root:
        raise UnavailableError(f"not root, so nothing is installed; as root: {' '.join(words)}")
    say(f"{tool}: installing {' '.join(names)} with {manager} (usually under a minute)")
    if manager == "apk":
        _run(places, *words)
        return on_path(tool, places)
    with _services_forbidden(places.policy_file):
        try:
            _run(places, *words, *_APT_OPTIONS)
        except UnavailableError:
            if updated:
                raise
            _update_apt(places)  # a list that is too old names packages that the mirror no longer has
            _run(places, *words, *_APT_OPTIONS)
    if Path("/run/systemd/system").is_dir():
        say(f"{tool}: its own service was not started; `systemctl disable {tool.name}` keeps it off at boot")
    return on_path(tool, places)


def _names(tool: Tool, manager: str) -> tuple[str, ...]:
    return tool.packages.get(manager, (tool.name,))


def _update_apt(places: Places) -> None:
    say(f"apt-get update: usually a few seconds, at most {_UPDATE_TIMEOUT_SECONDS} s")
    _run(places, "apt-get", "update", *_APT_OPTIONS, timeout_seconds=_UPDATE_TIMEOUT_SECONDS)


def _versions(places: Places, manager: str, names: tuple[str, ...]) -> dict[str, str]:
    """Returns the version that a package manager would install of each package that it knows."""
    if manager == "apt-get":
        output = _run(places, "apt-cache", "policy", *names)
        return dict(re.findall(r"^(\S+):\n(?:[ ]{2}.*\n)*?[ ]{2}Candidate: (\d\S*)$", output, re.MULTILINE))
    output = _run(places, "apk", "policy", "--no-cache", *names)
    policies = re.findall(r"^(\S+) policy:\n((?:[ ].*\n?)*)", output, re.MULTILINE)
    versions = {name: re.findall(r"^[ ]{2}(\d\S*):$", policy, re.MULTILINE) for name, policy in policies}
    return {name: max(listed, key=parse_version) for name, listed in versions.items() if listed}


def _run(places: Places, name: str, *arguments: str, timeout_seconds: float | None = None) -> str:
    """Runs a package manager and returns its output.

    An installation has no time limit, because a package manager that is killed leaves packages half configured; it has
    limits of its own for the network.
    """
    try:
        done = subprocess.run(
            [places.program(name), *arguments],
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"},
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
def _services_forbidden(policy: Path) -> Iterator[None]:
    """Keeps packages from starting their services, because the stack starts its own. A policy that exists stays."""
    if policy.exists() and _MARK not in policy.read_text(encoding="utf-8", errors="replace"):
        yield
        return
    policy.write_text(_POLICY.format(mark=_MARK, pid=os.getpid()), encoding="utf-8")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
