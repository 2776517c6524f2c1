"""The client in Python: ``python -m tests.foreign.python_client TARGET < CASES``."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.foreign.python_server import NAME, decoded, encoded, options

_LONG = 1000


def main() -> None:
    """Makes the calls of the cases, one after the other, on one connection."""
    with grpc.insecure_channel(sys.argv[1], options=options()) as channel, ThreadPoolExecutor(200) as pool:
        for case in json.load(sys.stdin):
            for found in pool.map(carry_out, *zip(*[(channel, case)] * case.get("at_once", 1), strict=True)):
                print(json.dumps(found), flush=True)


def carry_out(plain: grpc.Channel, case: dict[str, Any]) -> dict[str, Any]:
    channel: Any = plain
    requests = [json.dumps(request).encode() for request in case["requests"]]
    given = {
        "metadata": decoded(case.get("metadata", [])),
        "timeout": case["timeout_ms"] / 1000 if "timeout_ms" in case else 30,
        "compression": grpc.Compression.Gzip if case.get("gzip") else None,
    }
    path = f"/{NAME}/{case['method']}"
    streams = {
        "Unary": lambda: channel.unary_stream(path)(requests[0], **given),
        "ServerStream": lambda: channel.unary_stream(path)(requests[0], **given),
        "ClientStream": lambda: channel.stream_stream(path)(iter(requests), **given),
        "Bidi": lambda: channel.stream_stream(path)(iter(requests), **given),
    }
    call = streams[case["method"]]()
    answers = []
    try:
        for message in call:
            answers.append(shortened(json.loads(message)))
            if len(answers) == case.get("cancel_after"):
                call.cancel()
    except grpc.RpcError:
        pass
    return {
        "status": [call.code().value[0], call.details()],
        "initial": encoded(call.initial_metadata()),
        "trailing": encoded(call.trailing_metadata()),
        "answers": answers,
    }


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """Returns an answer with the length in place of a long payload."""
    if len(answer["payload"]) > _LONG:
        answer["payload"] = len(answer["payload"])
    return answer


if __name__ == "__main__":
    main()
