"""Calls of every client to every server, through the balancer as direct."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed.programs import program
from tests.foreign.conftest import Client, Served, before_grpc_go
from tests.foreign.programs import Library, libraries
from tests.support import frames

FOUR_MIB = 4 * 1024 * 1024 - 4096
CANCELLED, DEADLINE_EXCEEDED, INTERNAL = 1, 4, 13
BINARY = "AAEC/w=="
# google.rpc.Status: code 9, the message of the case, and a google.rpc.RetryInfo of two seconds.
DETAILS = base64.b64encode(
    bytes([0x08, 9, 0x12, 24])
    + "too late, 100 % sure: ä".encode()
    + bytes([0x1A, 48, 0x0A, 40])
    + b"type.googleapis.com/google.rpc.RetryInfo"
    + bytes([0x12, 4, 0x0A, 2, 0x08, 2])
).decode()
# Names and values that gRPC allows, in both directions.
ANY = [
    ["x_user_id", "7"],
    ["tenant.id", "blue"],
    ["trace_ctx-bin", BINARY],
    ["x-repeated", "one"],
    ["x-repeated", "two"],
    ["x-empty", ""],
]
METADATA = [
    *ANY,
    ["x-text", 'a b, c;d="e" %41'],
    ["authorization", "Bearer abc"],
    ["cookie", "a=b"],
    ["range", "bytes=0-3"],
    ["if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT"],
    ["if-none-match", "*"],
    ["expect", "100-continue"],
    ["accept-language", "de"],
    ["x-forwarded-for", "192.0.2.1"],
    ["x-accel-buffering", "no"],
    ["date", "yesterday"],
    ["via", "1.1 somebody"],
]
# Of a response, for which nginx has a meaning.
ANSWERED = [
    *ANY,
    ["x-accel-redirect", "/elsewhere"],
    ["x-accel-expires", "0"],
    ["x-accel-limit-rate", "1"],
    ["x-accel-buffering", "yes"],
    ["x-accel-charset", "latin1"],
    ["status", "204"],
    ["location", "/elsewhere"],
    ["refresh", "0"],
    ["server", "ours"],
    ["date", "yesterday"],
    ["expires", "0"],
    ["cache-control", "max-age=60"],
    ["last-modified", "Thu, 01 Jan 1970 00:00:00 GMT"],
    ["etag", '"1"'],
    ["vary", "*"],
    ["set-cookie", "a=b"],
    ["set-cookie", "c=d"],
    ["content-encoding", "identity"],
    ["content-disposition", "inline"],
    ["content-language", "de"],
    ["content-range", "bytes 0-3/4"],
    ["accept-ranges", "bytes"],
    ["www-authenticate", "Basic"],
    ["link", "</a>; rel=preload"],
]
MANY = [{"payload": f"message {number}"} for number in range(20)]

CASES: dict[str, dict[str, Any]] = {
    "unary": {"method": "Unary", "requests": [{"payload": "hello"}]},
    "server stream": {"method": "ServerStream", "requests": [{"payload": "tick", "count": 20, "pause_ms": 2}]},
    "client stream": {"method": "ClientStream", "requests": MANY},
    "bidi": {"method": "Bidi", "requests": MANY},
    "no request": {"method": "ClientStream", "requests": []},
    "metadata": {"method": "Unary", "metadata": METADATA, "requests": [{"payload": "hello"}]},
    "metadata of a stream": {"method": "Bidi", "metadata": METADATA, "requests": MANY[:2]},
    "initial metadata": {"method": "Unary", "requests": [{"payload": "x", "initial": ANSWERED}]},
    "trailing metadata": {"method": "Unary", "requests": [{"payload": "x", "trailing": ANSWERED}]},
    "trailing metadata of a stream": {"method": "ServerStream", "requests": [{"count": 3, "trailing": ANSWERED}]},
    "status details": {
        "method": "Unary",
        "requests": [
            {"status": [9, "too late, 100 % sure: ä"], "trailing": [["grpc-status-details-bin", DETAILS]]}
        ],
    },
    "status of a stream": {"method": "ServerStream", "requests": [{"count": 3, "status": [10, "no more"]}]},
    "deadline": {"method": "Unary", "requests": [{"pause_ms": 3000}], "timeout_ms": 300},
    "cancelled": {"method": "ServerStream", "requests": [{"count": 1000, "pause_ms": 20}], "cancel_after": 3},
    "gzip": {"method": "Unary", "requests": [{"payload": "z" * 900}], "gzip": True},
    "4 MiB": {"method": "Unary", "requests": [{"size": FOUR_MIB}]},
    "the server ends first": {"method": "Bidi", "requests": [{**MANY[0], "end_after": 1}, *MANY[1:]]},
}  # fmt: skip


Ends = dict[str, tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="session")
def ends(served: Served, client: Client) -> Ends:
    """How each case ends, direct and through the balancer: a client carries out all of them on one connection."""
    cases = list(CASES.values())
    both = zip(client.run(served.direct, cases), client.run(served.through, cases), strict=True)
    return dict(zip(CASES, both, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_call_ends_as_direct(ends: Ends, client: Client, name: str) -> None:
    direct, through = ends[name]
    if name == "deadline" and direct["status"][0] == CANCELLED:
        # The server has reset the call before the client's own time was up, which the balancer gives the client first.
        # tonic's client leaves the deadline to the server once the answer has begun; of a server that resets the call
        # then, nginx makes INTERNAL (docs/limits.md).
        tonic = client.library.name == "tonic"
        direct["status"] = [INTERNAL, direct["status"][1]] if tonic else [DEADLINE_EXCEEDED, ""]
    assert through == direct


# grpc-go's server ends a call itself whose deadline has passed: with RST_STREAM, in the middle of its answer.
@before_grpc_go
@pytest.mark.parametrize("library", libraries("grpcio-threads", "grpc-go", "grpc-js"), ids=lambda one: one.name)
def test_a_deadline_that_passes_in_a_stream_is_exceeded(served: Served, library: Library) -> None:
    stream = {"method": "ServerStream", "requests": [{"payload": "x" * 1000, "count": 10_000, "pause_ms": 20}]}
    found = Client.of(library).run(served.through, [{**stream, "timeout_ms": 700, "at_once": 30}] * 2)
    assert {one["status"][0] for one in found} == {4}


@before_grpc_go
def test_a_call_without_te_is_answered(served: Served, tmp_path: Path) -> None:
    """Proxies in front of the balancer may leave it out; what goes to replicas has it."""
    message = tmp_path / "message"
    message.write_bytes(frames.message(b'{"payload": "hello"}'))
    options = ["-v", "-H", "content-type: application/grpc", "-d", str(message)]
    done = subprocess.run(
        [program("nghttp"), *options, f"http://{served.through}/foreign.Echo/Unary"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=30,
        check=True,
    )
    assert "te: trailers" not in done.stdout
    assert "grpc-status: 0" in done.stdout, done.stdout
