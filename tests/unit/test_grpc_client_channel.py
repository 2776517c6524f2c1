"""The channel arguments and the retry policy, held against gRFC A6."""

import json
import re

import grpc
import pytest

from grpc_client.channel import channel_arguments
from grpc_client.options import Options


def test_the_retry_policy_obeys_the_rules_of_grfc_a6() -> None:
    config = json.loads(str(dict(channel_arguments(Options()))["grpc.service_config"]))
    [method] = config["methodConfig"]
    policy = method["retryPolicy"]
    duration = re.compile(r"\d+(\.\d{1,9})?s")
    assert method["name"] == [{}]
    assert isinstance(policy["maxAttempts"], int)
    assert 1 < policy["maxAttempts"] <= 5
    for field in ("initialBackoff", "maxBackoff"):
        assert duration.fullmatch(policy[field])
        assert float(policy[field][:-1]) > 0
    assert policy["backoffMultiplier"] > 0
    assert policy["retryableStatusCodes"] == [grpc.StatusCode.UNAVAILABLE.name]
    assert "retryThrottling" not in config


def test_without_retries_grpc_is_told_so_and_gets_no_policy() -> None:
    arguments = dict(channel_arguments(Options(retry=False)))
    assert arguments["grpc.enable_retries"] == 0
    assert "grpc.service_config" not in arguments


def test_every_channel_has_a_connection_of_its_own() -> None:
    assert dict(channel_arguments(Options()))["grpc.use_local_subchannel_pool"] == 1


@pytest.mark.parametrize(
    ("host", "proxied"),
    [("localhost", False), ("127.0.0.5", False), ("::1", False), ("lb.example", True), ("10.0.0.1", True)],
)
def test_this_machine_is_never_reached_through_a_proxy(host: str, *, proxied: bool) -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_arguments(Options(host=host)) or proxied
