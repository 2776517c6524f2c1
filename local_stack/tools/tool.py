"""The programs that the stack needs, and which versions of them are suitable.

`docker-compose.yaml` and the Dockerfiles name the same versions as ARG, and a test compares the two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONSUL_VERSION = "1.22.7"  # 1.22.4 was withdrawn, 1.22.5 lacks a fix in grpc-go
CONSUL_TEMPLATE_VERSION = "0.42.1"
NGINX_VERSION = "1.22"  # the oldest that balances gRPC as the stack configures it
_MODULES = Path(__file__).resolve().parent.parent / "go"

# Major, minor, patch; then the mark of a pre-release: "-dev", "-rc1" or Debian's "~rc1", but not the revision of a
# package, such as Alpine's "-r0" and Debian's "-1ubuntu1".
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?P<pre>[-~](?!r\d)[A-Za-z][\w.]*)?")


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """How a program is built with Go."""

    package: str  # the main package's import path, with @version if it has no module here; "tool" for a module's tools
    module: Path | None = None  # the directory of the go.mod without which `go install` refuses the package
    go_version: str  # the oldest Go that builds it
    minutes: int  # that a first build takes on two cores
    linker_flags: str = ""  # more of them


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program that the stack runs."""

    name: str  # of its file
    version: str  # the oldest suitable one, and the one that is downloaded or built
    below: str = ""  # the first version that is too new, if any
    needs: str = ""  # other requirements, for messages
    # By package manager; the version of the first counts. By default it is one package of the tool's name.
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Of the official release's archives for Linux, by architecture as HashiCorp's releases name it.
    sha256: Mapping[str, str] = field(default_factory=dict)
    go: GoBuild | None = None  # None if it is neither built nor downloaded

    def __str__(self) -> str:
        """Returns its name for messages."""
        return f"{self.name} {self.version}"

    @property
    def wanted(self) -> str:
        """The suitable versions, in words."""
        below = f" and older than {self.below}" if self.below else ""
        return f"{self} or newer{below}" + (f", with {self.needs}" if self.needs else "")

    def unsuitable(self, version: str) -> str:
        """Returns why a version, as a program or package manager prints it, is unsuitable; empty if it is suitable."""
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


def parse_version(text: str) -> tuple[int, int, int]:
    """Returns the first version number in a text; a missing patch number is 0. Raises ValueError if there is none."""
    found = _VERSION.search(text)
    if not found:
        raise ValueError(f"no version in {text!r}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


NGINX = Tool(
    name="nginx",
    version=NGINX_VERSION,
    needs="lua-nginx-module, lua-resty-core and lua-cjson",
    packages={
        "apt-get": ("nginx", "libnginx-mod-http-lua", "lua-cjson"),
        "apk": ("nginx", "nginx-mod-http-lua", "lua5.1-cjson"),
    },
)
# The sums are those of HashiCorp's own Homebrew formulas (hashicorp/homebrew-tap, "Bump consul to 1.22.7" and
# "Bump consul-template to 0.42.1").
CONSUL = Tool(
    name="consul",
    version=CONSUL_VERSION,
    below="2.0",
    sha256={
        "amd64": "fe25cecd8dd3552a8e5b0941cde1d79bb6004eac384aa45679dd1398f947201d",
        "arm64": "db54c5fb7c5ceaef97a38ca45dcc0f649ff592a48c73ab320e2d535c78e136cc",
    },
    go=GoBuild(package="github.com/hashicorp/consul", module=_MODULES / "consul", go_version="1.25.9", minutes=7),
)
CONSUL_TEMPLATE = Tool(
    name="consul-template",
    version=CONSUL_TEMPLATE_VERSION,
    below="1.0",
    sha256={
        "amd64": "ab86817a4acf619c6612d99b8e11496a81027f2b84632887c941c3e7d43cbaa7",
        "arm64": "125afde2fef95fef6e65eb596120e9b45edc9f76f78d001438974f1121abdfaa",
    },
    go=GoBuild(
        package=f"github.com/hashicorp/consul-template@v{CONSUL_TEMPLATE_VERSION}", go_version="1.26.4", minutes=1
    ),
)
TOOLS = {tool.name: tool for tool in (NGINX, CONSUL, CONSUL_TEMPLATE)}
