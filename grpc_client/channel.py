"""Opens and connects channels: the retry policy and the channel arguments."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from pathlib import Path

import grpc
from grpc import experimental

from grpc_client.errors import CallFailedError, UsageError, one_line
from grpc_client.options import Options
from protos.api_pb2 import PingMessage
from protos.api_pb2_grpc import PingStub

_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_TLS_SECONDS = 1.0

# gRFC A6 (Client Retries): maxAttempts counts the first attempt and is capped at 5; the waits between
# them are random around 0.1, 0.2, 0.4 and 0.8 s, so all five are made within about 1.5 s, in which a
# balancer restarts. The name [{}] is every method of every service (doc/service_config.md).
# No retryThrottling: many calls fail at once while a balancer restarts, and throttling would switch off the retries
# of these calls.
RETRY_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def channel_arguments(options: Options) -> list[tuple[str, str | int]]:
    """Returns the channel arguments (``grpc_types.h``) for the options."""
    arguments: list[tuple[str, str | int]] = [
        # Channels to one address share a connection unless each has its own pool.
        ("grpc.use_local_subchannel_pool", 1),
        # gRPC waits 1 s and then longer before it connects again, which would use up most of the retries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # 0 also switches off transparent retries.
        ("grpc.enable_retries", int(options.retry)),
    ]
    config: dict[str, object] = dict(RETRY_SERVICE_CONFIG) if options.retry else {}
    if options.target:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        # A machine that dies says no goodbye: a PING finds it, and the calls in flight there go to another address.
        # Not for one address, because gRPC's servers end a connection with a PING more often than each five minutes.
        arguments += [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
    if config:
        arguments.append(("grpc.service_config", json.dumps(config)))
    literal = options.target is not None and options.target.startswith(("ipv4:", "ipv6:", "unix:"))
    if literal or options.host in {"localhost", "::1"} or options.host.startswith("127."):
        # gRPC would send even these through http_proxy.
        arguments.append(("grpc.enable_http_proxy", 0))
    if options.server_name:
        arguments.append(("grpc.ssl_target_name_override", options.server_name))
    return arguments


def open_channel(options: Options) -> grpc.aio.Channel:
    """Opens a channel with a connection of its own, made at the first call.

    Raises:
        ClientError: a file of the options for TLS can't be read.
    """
    credentials = _make_credentials(options)
    if credentials:
        return grpc.aio.secure_channel(options.address, credentials, options=channel_arguments(options))
    return grpc.aio.insecure_channel(options.address, options=channel_arguments(options))


def open_blocking_channel(options: Options) -> grpc.Channel:
    """Opens the same for calls that block.

    Raises:
        ClientError: a file of the options for TLS can't be read.
    """
    credentials = _make_credentials(options)
    if credentials:
        return grpc.secure_channel(options.address, credentials, options=channel_arguments(options))
    return grpc.insecure_channel(options.address, options=channel_arguments(options))


def _make_credentials(options: Options) -> grpc.ChannelCredentials | None:
    """Makes the credentials; None for clear text. With xDS the control plane says who speaks TLS."""
    credentials = _read_credentials(options)
    if options.target and options.target.startswith("xds:"):
        return grpc.xds_channel_credentials(credentials or experimental.insecure_channel_credentials())  # type: ignore[no-untyped-call]
    return credentials


def _read_credentials(options: Options) -> grpc.ChannelCredentials | None:
    if not options.tls:
        return None
    contents = {}
    for name in ("cacert", "key", "cert"):
        path = getattr(options, name)
        try:
            contents[name] = Path(path).read_bytes() if path else None
        except OSError as error:
            raise UsageError(f"--{name}: must be a readable file: {error.strerror} (got {path!r})") from None
        if path and b"-----BEGIN " not in (contents[name] or b""):
            raise UsageError(f"--{name}: must be a file in PEM (got {path!r})")
    if options.cert:
        try:
            ssl.create_default_context().load_cert_chain(options.cert, options.key)
        except ssl.SSLError as error:
            raise UsageError(f"--key: must be the key of --cert: {error.reason} (got {options.key!r})") from None
    return grpc.ssl_channel_credentials(contents["cacert"], contents["key"], contents["cert"])


async def connect(channel: grpc.aio.Channel, options: Options) -> None:
    """Connects before the first call.

    Raises:
        CallFailedError: the connection failed, or took longer than the timeout.
    """
    try:
        async with asyncio.timeout(options.timeout_seconds):
            state = channel.get_state(try_to_connect=True)
            while state not in {_READY, _FAILED}:
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        raise _no_connection(options) from None
    if state is _FAILED:
        await _explain(channel, options)


async def _explain(channel: grpc.aio.Channel, options: Options) -> None:
    """Connects again by a call, because only the error of a call has the reason of a failed connection."""
    try:
        await PingStub(channel).SayHello(PingMessage(greeting=options.greeting), timeout=options.timeout_seconds)
    except grpc.aio.AioRpcError as error:
        if channel.get_state() is not _READY:
            raise call_failed(channel, options, error) from None


def call_failed(channel: grpc.aio.Channel, options: Options, error: grpc.aio.AioRpcError) -> CallFailedError:
    """Translates gRPC's exception; a deadline that passed without a connection has a message of its own."""
    status, detail = error.code(), _explain_tls(error.details() or "no message", options)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and channel.get_state() is not _READY:
        return _no_connection(options)
    return CallFailedError(options.address, status.name, detail)


def _explain_tls(detail: str, options: Options) -> str:
    """Returns a message of gRPC as one line, or the reason of a failed handshake."""
    if not options.tls:
        return "the server speaks TLS (see --tls)" if _speaks_tls(detail, options) else one_line(detail)
    if found := re.search(r"CERTIFICATE_VERIFY_FAILED: ([\w ()-]+)", detail):
        return f"the server's certificate is not trusted: {found[1]} (see --cacert)"
    if "Hostname Verification Check failed" in detail:
        name = options.server_name or options.host
        return f"the server's certificate is not for {name} (see --server-name)"
    return "the server does not speak TLS" if "WRONG_VERSION_NUMBER" in detail else one_line(detail)


def _speaks_tls(detail: str, options: Options) -> bool:
    """Returns whether a connection in clear text failed at a port with TLS.

    gRPC's message does not say so: nginx answers in HTTP/1.1, and gRPC may report another address of the name.
    """
    if options.target or "failed to connect to all addresses" not in detail:
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((options.host, options.port), timeout=_TLS_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=options.server_name or options.host),
        ):
            return True
    except (OSError, ValueError):
        return False


def _no_connection(options: Options) -> CallFailedError:
    message = f"no connection within {options.timeout_seconds:g} s"
    return CallFailedError(options.address, grpc.StatusCode.DEADLINE_EXCEEDED.name, message)
