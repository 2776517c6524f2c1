"""The programs that the stack needs, and which versions of them are suitable.

Versions live here for the stack without Docker. `docker-compose.yaml` and the Dockerfiles name the same
versions as ARG, and a test compares the two.
"""

import re
from dataclasses import dataclass

CONSUL_VERSION = "1.22.7"  # 1.22.4 was withdrawn, 1.22.5 lacks a fix in grpc-go
CONSUL_TEMPLATE_VERSION = "0.42.1"
NGINX_VERSION = "1.22"  # the oldest that balances gRPC as the stack configures it

Version = tuple[int, int, int]

# Major, minor, patch; then what makes it a pre-release: "-dev", "-rc1" or Debian's "~rc1". Alpine's revision
# ("-r0") and Debian's ("-1ubuntu1") do not.
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?P<pre>[-~](?!r\d)[A-Za-z][\w.]*)?")


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """How a tool is built with Go.

    Attributes:
        package: the main package's import path.
        module: the directory in local_stack/go that holds a go.mod for it; empty when `go install
            package@version` works as it is.
        go_version: the oldest Go that its go.mod allows.
        minutes: about how long a first build takes on two cores.
        disk_gigabytes: about what Go's own caches grow by.

    """

    package: str
    module: str = ""
    go_version: str
    minutes: int
    disk_gigabytes: int


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program that the stack runs.

    Attributes:
        name: the program's file name.
        title: its name in messages.
        version: the oldest suitable version, and the one that is downloaded or built.
        below: the first version that is too new; empty if none is.
        version_arguments: make the program print its version.
        version_label: a regular expression for what stands before the version in that output.
        needs: what else a suitable one must have, for messages; empty if nothing.
        apt_packages: the Debian and Ubuntu packages; the first one's version counts.
        apk_packages: the Alpine packages, likewise.
        go: how it is built; None when it has neither an official release nor a Go module.
        download_megabytes: about how big the official release is.

    """

    name: str
    title: str
    version: str
    below: str = ""
    version_arguments: tuple[str, ...]
    version_label: str
    needs: str = ""
    apt_packages: tuple[str, ...]
    apk_packages: tuple[str, ...]
    go: GoBuild | None = None
    download_megabytes: int = 0

    def __str__(self) -> str:
        """Name it as messages do: title and version."""
        return f"{self.title} {self.version}"

    @property
    def wanted(self) -> str:
        """What is suitable, in words."""
        below = f" and older than {self.below}" if self.below else ""
        needs = f", with {self.needs}" if self.needs else ""
        return f"{self} or newer{below}{needs}"

    def unsuitable(self, version: str) -> str:
        """Say why a version, as a program or a package manager prints it, does not suit; empty if it does."""
        found = _VERSION.search(version)
        if not found:
            return f"no version in {version!r}"
        if found["pre"]:
            return f"version {found[0]} is a pre-release"
        if "+ent" in version:
            return f"version {found[0]} is the Enterprise edition, which needs a licence"
        if parse_version(found[0]) < parse_version(self.version):
            return f"version {found[0]} is older than {self.version}"
        if self.below and parse_version(found[0]) >= parse_version(self.below):
            return f"version {found[0]} is not older than {self.below}"
        return ""


def parse_version(text: str) -> Version:
    """Return the first version number in a text; a missing patch number is 0.

    Raises:
        ValueError: if there is none.

    """
    found = _VERSION.search(text)
    if not found:
        raise ValueError(f"no version in {text!r}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


NGINX = Tool(
    name="nginx",
    title="nginx",
    version=NGINX_VERSION,
    version_arguments=("-v",),
    version_label=r"nginx version: [^/\s]+/",
    needs="lua-nginx-module, lua-resty-core and lua-cjson",
    apt_packages=("nginx", "libnginx-mod-http-lua", "lua-cjson"),
    apk_packages=("nginx", "nginx-mod-http-lua", "lua5.1-cjson"),
)
CONSUL = Tool(
    name="consul",
    title="Consul",
    version=CONSUL_VERSION,
    below="2.0",
    version_arguments=("version",),
    version_label=r"Consul v",
    apt_packages=("consul",),
    apk_packages=("consul",),
    go=GoBuild(
        package="github.com/hashicorp/consul",
        module="consul",
        go_version="1.25.9",
        minutes=7,
        disk_gigabytes=5,
    ),
    download_megabytes=70,
)
CONSUL_TEMPLATE = Tool(
    name="consul-template",
    title="consul-template",
    version=CONSUL_TEMPLATE_VERSION,
    below="1.0",
    version_arguments=("-version",),
    version_label=r"consul-template v",
    apt_packages=("consul-template",),
    apk_packages=("consul-template",),
    go=GoBuild(package="github.com/hashicorp/consul-template", go_version="1.26.4", minutes=1, disk_gigabytes=1),
    download_megabytes=10,
)

TOOLS = {tool.name: tool for tool in (NGINX, CONSUL, CONSUL_TEMPLATE)}
