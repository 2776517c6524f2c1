"""The distribution's packages, with small shell scripts as package managers."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.machine import Machine as BareMachine
from tests.support.machine import prints

APT_INSTALL = "install -y --no-install-recommends nginx libnginx-mod-http-lua lua-cjson"
APK_NGINX = """\
nginx policy:
  1.30.1-r0:
    https://apk.example/alpine/v3.24/main
  1.28.0-r3:
    lib/apk/db/installed
nginx-mod-http-lua policy:
  1.30.1-r0:
    https://apk.example/alpine/v3.24/main
lua5.1-cjson policy:
  2.1.0-r11:
    https://apk.example/alpine/v3.24/main
"""


def apt_policy(**versions: str) -> str:
    """Returns what `apt-cache policy` prints; - in a name is _ here."""
    return "".join(
        f"{name.replace('_', '-')}:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n"
        f"     {version} 500\n        500 http://deb.example/debian stable/main amd64 Packages\n"
        for name, version in versions.items()
    )


def apt_nginx(version: str = "1.26.3-3") -> str:
    return apt_policy(nginx=version, libnginx_mod_http_lua="1:0.10.23-1", lua_cjson="2.1.0+dfsg-2.2")


class Machine(BareMachine):
    """A machine with a package manager whose `install` writes a program."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.nginx = self.bin / "nginx"
        self.policy = directory / "policy"
        self.installs = prints(self.nginx, "nginx version: nginx/1.30.1")

    def has_apt(self, policy: str, *, install: str = "", update: str = ":") -> None:
        """Gives it apt; ``install`` and ``update`` are shell lines that its apt-get runs."""
        self.policy.write_text(policy, encoding="utf-8")
        self.script("apt-cache", f"cat {self.policy}")
        self.has("apt-get", f'case "$*" in update*) {update} ;; *) {install or self.installs} ;; esac')


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_root_installs_nginx_with_apk(machine: Machine) -> None:
    machine.policy.write_text(APK_NGINX, encoding="utf-8")
    machine.has("apk", f"if [ $1 = policy ]; then cat {machine.policy}; else {machine.installs}; fi")
    assert machine.find("nginx") == machine.nginx
    assert machine.calls()[1:] == ["add --no-cache nginx nginx-mod-http-lua lua5.1-cjson"]


@pytest.mark.parametrize(
    ("policy", "calls"),
    [
        (apt_nginx(), [APT_INSTALL]),
        ("", ["update", APT_INSTALL]),  # the package is not in the lists
    ],
)
def test_root_installs_nginx_with_apt(machine: Machine, policy: str, calls: list[str]) -> None:
    machine.has_apt(policy, update=f"cp {machine.bin}/new {machine.policy}")
    (machine.bin / "new").write_text(apt_nginx(), encoding="utf-8")
    assert machine.find("nginx") == machine.nginx
    assert machine.calls() == calls


def test_user_who_is_not_root_installs_nothing_and_is_told_the_command(machine: Machine) -> None:
    machine.has_apt(apt_nginx())
    machine.places = replace(machine.places, root=False)
    refusal = machine.refusal("nginx")
    assert f"not root, so nothing is installed; as root: apt-get {APT_INSTALL}\n" in refusal
    assert refusal.endswith(f"by hand, as root: apt-get {APT_INSTALL}")
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("tool", "policy", "install", "reason", "calls"),
    [
        ("nginx", apt_nginx("1.18.0-6ubuntu14"), "", "package nginx: version 1.18.0 is older than 1.22", []),
        (
            "nginx",
            apt_nginx(),
            "echo 'E: 404 Not Found'; exit 100",
            "apt-get failed (exit 100): E: 404 Not Found",
            [APT_INSTALL, "update", APT_INSTALL],
        ),
        # Debian has no Consul, so no update is made for it.
        ("consul", apt_policy(consul="(none)"), "", "distribution's package: no package consul\n", []),
    ],
)
def test_package_that_is_unavailable_is_a_reason(
    machine: Machine, tool: str, policy: str, install: str, reason: str, calls: list[str]
) -> None:
    machine.has_apt(policy, install=install)
    assert reason in machine.refusal(tool)
    assert machine.calls() == calls


def test_package_of_a_repository_that_the_user_added_is_installed(machine: Machine) -> None:
    machine.has_apt(apt_policy(consul="1.23.0-1"), install=prints(machine.bin / "consul", "Consul v1.23.0"))
    assert machine.find() == machine.bin / "consul"


def test_services_may_not_start_during_the_installation_and_may_afterwards(machine: Machine) -> None:
    seen = machine.bin / "seen"
    policy = machine.places.policy_file
    machine.has_apt(apt_nginx(), install=f"{policy} nginx start; echo $? >> {seen}; false")
    machine.refusal("nginx")
    assert seen.read_text(encoding="utf-8").split() == ["101", "101"]
    assert not policy.exists()


@pytest.mark.parametrize(("content", "left"), [("exit 0", True), ("# Written by local_stack\nexit 101", False)])
def test_policy_of_the_machine_is_left_alone_and_one_of_a_killed_process_is_removed(
    machine: Machine, content: str, left: bool
) -> None:
    policy = machine.script(machine.places.policy_file, content)
    before = policy.read_text(encoding="utf-8")
    machine.has_apt(apt_nginx())
    machine.find("nginx")
    assert policy.exists() == left
    assert not left or policy.read_text(encoding="utf-8") == before
