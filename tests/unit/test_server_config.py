"""The server's settings from environment variables."""

from __future__ import annotations

import socket

import pytest

from common.environment import ConfigError
from grpc_server.config import ServerConfig


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_env(variables)
    return caught.value.problems


def test_nothing_is_required() -> None:
    assert ServerConfig.from_env({}) == ServerConfig(
        address="0.0.0.0", port=7777, workers=1, grace_seconds=20, hostname=socket.gethostname()
    )


def test_every_variable_is_read() -> None:
    env = {
        "BIND_ADDRESS": "::1",
        "APP_PORT": "1",
        "GRPC_WORKERS": "256",
        "GRPC_GRACE_SECONDS": "0.5s",
        "HOSTNAME": "box",
    }
    assert ServerConfig.from_env(env) == ServerConfig(
        address="::1", port=1, workers=256, grace_seconds=0.5, hostname="box"
    )


def test_every_problem_has_a_line() -> None:
    wrong = {"BIND_ADDRESS": "a b", "APP_PORT": "0", "GRPC_WORKERS": "0", "GRPC_GRACE_SECONDS": "x"}
    assert [line.split(":")[0] for line in problems(**wrong)] == list(wrong)


@pytest.mark.parametrize(
    ("variable", "high", "wrong"),
    [
        *(("APP_PORT", 65535, text) for text in ("-1", "0", "65536", "x")),
        *(("GRPC_WORKERS", 256, text) for text in ("-1", "0", "257", "two")),
    ],
)
def test_a_number_outside_its_range_is_refused(variable: str, high: int, wrong: str) -> None:
    assert problems(**{variable: wrong}) == [f"{variable}: must be an integer from 1 to {high} (got {wrong!r})"]
