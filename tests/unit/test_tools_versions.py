"""Which versions of the tools are suitable."""

import pytest

from local_stack.tools import TOOLS
from local_stack.tools.tool import parse_version


@pytest.mark.parametrize(
    ("tool", "version", "reason"),
    [
        ("consul", "1.22.7", ""),
        ("consul", "1.22.10", ""),
        ("consul", "1.23.0", ""),
        ("consul", "1.22.7-1", ""),  # HashiCorp's package for Debian
        ("consul-template", "0.42.1", ""),
        ("consul-template", "0.43.0", ""),
        ("nginx", "1.22", ""),
        ("nginx", "1.22.1-9+deb12u11", ""),
        ("nginx", "1:1.26.3-3", ""),
        ("nginx", "1.24.0-2ubuntu7", ""),
        ("nginx", "1.30.1-r0", ""),  # Alpine
        ("nginx", "1.25.3.1", ""),  # OpenResty
        ("consul", "1.22.5", "version 1.22.5 is older than 1.22.7"),
        ("consul", "1.9.12", "version 1.9.12 is older than 1.22.7"),
        ("consul", "2.0.0", "version 2.0.0 is not older than 2.0"),
        ("consul", "1.23.0-dev", "version 1.23.0-dev is a pre-release"),
        ("consul", "1.23.0~rc1-1", "version 1.23.0~rc1 is a pre-release"),
        ("consul", "1.22.7+ent", "version 1.22.7 is the Enterprise edition, which needs a licence"),
        ("consul-template", "0.42.0", "version 0.42.0 is older than 0.42.1"),
        ("consul-template", "1.0.0", "version 1.0.0 is not older than 1.0"),
        ("nginx", "1.18.0", "version 1.18.0 is older than 1.22"),
        ("nginx", "unknown", "no version in 'unknown'"),
    ],
)
def test_version_is_suitable_or_the_reason_is_said(tool: str, version: str, reason: str) -> None:
    assert TOOLS[tool].unsuitable(version) == reason


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("1.9.12") < parse_version("1.22") == (1, 22, 0)
    assert parse_version("go1.26.8") == (1, 26, 8)
