"""The distribution's packages, with small shell scripts as package managers."""

from pathlib import Path

import pytest

from local_stack.tools import ToolError, find
from local_stack.tools.places import Places

APT_NGINX = """\
nginx:
  Installed: (none)
  Candidate: {version}
  Version table:
     {version} 500
        500 http://deb.example/debian stable/main amd64 Packages
libnginx-mod-http-lua:
  Installed: (none)
  Candidate: 1:0.10.23-1
  Version table:
     1:0.10.23-1 500
        500 http://deb.example/debian stable/main amd64 Packages
lua-cjson:
  Installed: (none)
  Candidate: 2.1.0+dfsg-2.2
  Version table:
     2.1.0+dfsg-2.2 500
        500 http://deb.example/debian stable/main amd64 Packages
"""
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


def program(path: Path, body: str) -> None:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


class Machine:
    """A machine with a package manager whose `install` puts an nginx into its bin directory."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.policy_file = directory / "policy-rc.d"
        self.calls_file = directory / "calls"
        self.calls_file.touch()
        self.nginx = self.bin / "nginx"

    def places(self, *, root: bool) -> Places:
        return Places(directories=(self.bin,), cache=self.bin / "cache", root=root, policy_file=self.policy_file)

    def has_apt(self, policy: str, *, install: str = "", update: str = "") -> None:
        """Give it apt; `install` and `update` are shell lines that its apt-get runs."""
        (self.bin / "policy").write_text(policy, encoding="utf-8")
        program(self.bin / "apt-cache", f"cat {self.bin}/policy")
        program(
            self.bin / "apt-get",
            f"""echo "$*" >> {self.calls_file}
            case "$*" in
            update*) {update or ":"} ;;
            *) {install or self._installs()} ;;
            esac""",
        )

    def has_apk(self, policy: str) -> None:
        (self.bin / "policy").write_text(policy, encoding="utf-8")
        program(
            self.bin / "apk",
            f"""case $1 in
            policy) cat {self.bin}/policy ;;
            *) echo "$*" >> {self.calls_file}; {self._installs()} ;;
            esac""",
        )

    def calls(self) -> list[str]:
        """Return what was asked of the package manager, without the options of apt."""
        lines = self.calls_file.read_text(encoding="utf-8").splitlines()
        return [" ".join(word for word in line.split() if not word.startswith("-o=")) for line in lines]

    def _installs(self) -> str:
        script = "#!/bin/sh\\necho nginx version: nginx/1.30.1\\n"
        return f"printf '{script}' > {self.nginx}; chmod 755 {self.nginx}"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


APT_INSTALL = "install -y --no-install-recommends nginx libnginx-mod-http-lua lua-cjson"


def test_root_installs_nginx_with_apt(machine: Machine) -> None:
    machine.has_apt(APT_NGINX.format(version="1.26.3-3"))
    assert find("nginx", places=machine.places(root=True)) == machine.nginx
    assert machine.calls() == [APT_INSTALL]


def test_root_installs_nginx_with_apk(machine: Machine) -> None:
    machine.has_apk(APK_NGINX)
    assert find("nginx", places=machine.places(root=True)) == machine.nginx
    assert machine.calls() == ["add --no-cache nginx nginx-mod-http-lua lua5.1-cjson"]


def test_who_is_not_root_installs_nothing_and_is_told_the_command(machine: Machine) -> None:
    machine.has_apt(APT_NGINX.format(version="1.26.3-3"))
    with pytest.raises(ToolError) as raised:
        find("nginx", places=machine.places(root=False))
    assert f"not root, so nothing is installed; as root: apt-get {APT_INSTALL}\n" in str(raised.value)
    assert str(raised.value).endswith(f"by hand, as root: apt-get {APT_INSTALL}")
    assert machine.calls() == []


def test_package_that_is_too_old_is_not_installed(machine: Machine) -> None:
    machine.has_apt(APT_NGINX.format(version="1.18.0-6ubuntu14"))
    with pytest.raises(ToolError, match=r"package nginx: version 1\.18\.0 is older than 1\.22"):
        find("nginx", places=machine.places(root=True))
    assert machine.calls() == []


def test_lists_are_updated_when_the_package_is_not_in_them(machine: Machine) -> None:
    machine.has_apt("", update=f"cp {machine.bin}/new {machine.bin}/policy")
    (machine.bin / "new").write_text(APT_NGINX.format(version="1.26.3-3"), encoding="utf-8")
    assert find("nginx", places=machine.places(root=True)) == machine.nginx
    assert machine.calls() == ["update", APT_INSTALL]


def test_lists_are_updated_once_when_the_installation_fails(machine: Machine) -> None:
    machine.has_apt(APT_NGINX.format(version="1.26.3-3"), install="echo 'E: 404 Not Found'; exit 100")
    with pytest.raises(ToolError, match=r"apt-get failed \(exit 100\): E: 404 Not Found"):
        find("nginx", places=machine.places(root=True))
    assert machine.calls() == [APT_INSTALL, "update", APT_INSTALL]


def test_consul_has_no_package_in_debian_and_no_update_is_made_for_it(machine: Machine) -> None:
    machine.has_apt("consul:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n")
    with pytest.raises(ToolError, match="distribution's package: no package consul\n"):
        find("consul", places=_offline(machine))
    assert machine.calls() == []


def test_package_of_a_repository_that_the_user_added_is_installed(machine: Machine) -> None:
    consul = machine.bin / "consul"
    policy = "consul:\n  Installed: (none)\n  Candidate: 1.23.0-1\n  Version table:\n     1.23.0-1 500\n"
    machine.has_apt(policy, install=f"printf '#!/bin/sh\\necho Consul v1.23.0' > {consul}; chmod 755 {consul}")
    assert find("consul", places=machine.places(root=True)) == consul


def test_services_may_not_start_during_the_installation_and_may_afterwards(machine: Machine) -> None:
    seen = machine.bin / "seen"
    machine.has_apt(
        APT_NGINX.format(version="1.26.3-3"),
        install=f"{machine.policy_file} nginx start; echo $? >> {seen}; false",
    )
    with pytest.raises(ToolError):
        find("nginx", places=machine.places(root=True))
    assert seen.read_text(encoding="utf-8").split() == ["101", "101"]
    assert not machine.policy_file.exists()


def test_policy_of_the_machine_is_left_alone(machine: Machine) -> None:
    program(machine.policy_file, "exit 0")
    before = machine.policy_file.read_text(encoding="utf-8")
    machine.has_apt(APT_NGINX.format(version="1.26.3-3"))
    find("nginx", places=machine.places(root=True))
    assert machine.policy_file.read_text(encoding="utf-8") == before


def test_policy_left_by_a_process_that_was_killed_is_replaced_and_removed(machine: Machine) -> None:
    program(machine.policy_file, "# Written by local_stack\nexit 101")
    machine.has_apt(APT_NGINX.format(version="1.26.3-3"))
    find("nginx", places=machine.places(root=True))
    assert not machine.policy_file.exists()


def _offline(machine: Machine) -> Places:
    """Give the machine without Go, and with releases out of reach."""
    program(machine.bin / "go", "exit 1")
    return Places(
        directories=(machine.bin,),
        cache=machine.bin / "cache",
        releases_url="http://127.0.0.1:9",
        root=True,
        policy_file=machine.policy_file,
    )
