"""Right and wrong HTTP/2 frames (RFC 9113)."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
CANCEL = 8
LARGEST_WINDOW = 2**31 - 1
ENDED = END_HEADERS | END_STREAM


class Frame(NamedTuple):
    """A frame's kind, flags and stream."""

    kind: int
    flags: int
    stream: int


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Returns a frame; ``length`` replaces its true length."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(values: Mapping[int, int] | None = None) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", key, value) for key, value in (values or {}).items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", increment))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def goaway(last_stream: int = 0, *, stream: int = 0) -> bytes:
    """Returns a GOAWAY frame with the code NO_ERROR; a right one has ``stream`` 0."""
    return frame(GOAWAY, stream=stream, payload=struct.pack(">II", last_stream, 0))


def headers(payload: bytes, flags: int = END_HEADERS, stream: int = 1) -> bytes:
    return frame(HEADERS, flags, stream, payload)


def _length(size: int) -> bytes:
    """Returns a string's length in HPACK (RFC 7541, section 5.1), with a prefix of 7 bits."""
    if size < 127:
        return bytes((size,))
    found, size = [127], size - 127
    while size >= 128:
        found.append(size % 128 + 128)
        size //= 128
    return bytes((*found, size))


def block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Returns a header block of literals, without indexing and Huffman's code."""
    found = b""
    for name, value in headers:
        found += b"\0" + _length(len(name)) + name.encode("latin-1") + _length(len(value)) + value.encode("latin-1")
    return found


def whole(received: bytes) -> tuple[list[Frame], bytes]:
    """Returns the frames that have arrived as a whole, and the rest."""
    found, at = [], 0
    while at + 9 <= len(received) and (end := at + 9 + int.from_bytes(received[at : at + 3], "big")) <= len(received):
        found.append(Frame(received[at + 3], received[at + 4], int.from_bytes(received[at + 5 : at + 9], "big")))
        at = end
    return found, received[at:]


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
    return block([*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *more])


def message(payload: bytes) -> bytes:
    """Returns a gRPC message without compression."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


PATH = "/protos.Ping/SayHello"
PREFACE = MAGIC + settings()
HEAD = call_headers(PATH)
CALL = headers(HEAD)
_PADDED_CALL = END_HEADERS | PADDED
_INDEXED = b"\xff\xff\xff\xff\x7f"

# Ends a server of grpcio's asyncio API.
DEADLY = "a path that is not UTF-8"
# Bytes that a client must not send, or not in this place.
WRONG: dict[str, bytes] = {
    "nothing after the magic": MAGIC,
    "half of the magic": MAGIC[:10],
    "a wrong magic": MAGIC[:-2] + b"xx" + settings(),
    "no settings first": MAGIC + frame(PING, payload=b"12345678"),
    "a call before the settings": MAGIC + CALL,
    "an unknown kind of frame": PREFACE + frame(0xEE, 0xFF, 7, b"?" * 100),
    "a frame that is too large": PREFACE + frame(DATA, 0, 1, b"", length=0xFFFFFF),
    "half of a frame": PREFACE + frame(HEADERS, END_HEADERS, 1, HEAD[:5], length=len(HEAD)),
    "settings of a wrong length": PREFACE + frame(SETTINGS, payload=b"12345"),
    "settings on a stream": PREFACE + frame(SETTINGS, stream=1),
    "an acknowledgement with a payload": PREFACE + frame(SETTINGS, ACK, payload=b"123456"),
    "acknowledgements of nothing": PREFACE + frame(SETTINGS, ACK) * 50,
    "a window above the largest": PREFACE + settings({INITIAL_WINDOW_SIZE: 2**31}),
    "a frame size below the smallest": PREFACE + settings({MAX_FRAME_SIZE: 1}),
    "a frame size above the largest": PREFACE + settings({MAX_FRAME_SIZE: 2**24}),
    "push neither on nor off": PREFACE + settings({ENABLE_PUSH: 7}),
    "no header table": PREFACE + settings({HEADER_TABLE_SIZE: 0}) + CALL,
    "a vast header table": PREFACE + settings({HEADER_TABLE_SIZE: 2**32 - 1}) + CALL,
    "unknown settings": PREFACE + settings({0xF000 + number: number for number in range(200)}),
    "a ping of a wrong length": PREFACE + frame(PING, payload=b"1234567"),
    "a ping on a stream": PREFACE + frame(PING, stream=3, payload=b"12345678"),
    "headers on stream 0": PREFACE + frame(HEADERS, END_HEADERS, 0, HEAD),
    "headers on an even stream": PREFACE + frame(HEADERS, END_HEADERS, 2, HEAD),
    "a stream's number lower than the last": PREFACE + frame(HEADERS, END_HEADERS, 5, HEAD) + CALL,
    "the same stream twice": PREFACE + headers(HEAD, ENDED) + CALL,
    "the last number of a stream": PREFACE + frame(HEADERS, END_HEADERS, 2**31 - 1, HEAD),
    "the reserved bit": PREFACE + frame(HEADERS, END_HEADERS, 2**31 + 1, HEAD),
    "headers without a payload": PREFACE + frame(HEADERS, END_HEADERS, 1),
    "padding longer than the frame": PREFACE + frame(HEADERS, _PADDED_CALL, 1, b"\xff" + HEAD[:20]),
    "only padding": PREFACE + frame(HEADERS, _PADDED_CALL, 1, b"\x04" + b"\0" * 4),
    "padding without its length": PREFACE + frame(DATA, PADDED, 1),
    "data with too much padding": PREFACE + CALL + frame(DATA, PADDED, 1, b"\x09abc"),
    "a stream that depends on itself": PREFACE
    + frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, struct.pack(">IB", 1, 1) + HEAD),
    "priority of a wrong length": PREFACE + frame(PRIORITY, stream=1, payload=b"1234"),
    "priority on stream 0": PREFACE + frame(PRIORITY, payload=struct.pack(">IB", 3, 1)),
    "many priorities": PREFACE
    + b"".join(frame(PRIORITY, stream=number, payload=struct.pack(">IB", 0, 1)) for number in range(1, 2001, 2)),
    "HPACK: an index that is not there": PREFACE + headers(b"\xfe"),
    "HPACK: index 0": PREFACE + headers(b"\x80"),
    "HPACK: an endless number": PREFACE + headers(b"\xff" * 50),
    "HPACK: a number of 35 bits": PREFACE + headers(_INDEXED),
    "HPACK: a string longer than the block": PREFACE + headers(b"\0\x7e" + b"a" * 5),
    "HPACK: a wrong Huffman code": PREFACE + headers(b"\0\x84\xff\xff\xff\xff\x01a"),
    "HPACK: a table above the largest": PREFACE + headers(b"\x3f\xff\xff\xff\x07" + HEAD),
    "HPACK: rubbish": PREFACE + headers(bytes(range(256))),
    "no pseudo-headers": PREFACE + headers(block([("te", "trailers")])),
    "the method twice": PREFACE + headers(block([(":method", "POST")]) + HEAD),
    "an unknown pseudo-header": PREFACE + headers(HEAD + block([(":what", "1")])),
    "a pseudo-header at the end": PREFACE + headers(HEAD + block([(":path", "/other")])),
    "an empty path": PREFACE + headers(call_headers("")),
    "a path without a slash": PREFACE + headers(call_headers("protos.Ping")),
    "a path of control characters": PREFACE + headers(call_headers("/a\r\nb\0c/d")),
    "a path that is not UTF-8": PREFACE + headers(call_headers("/a\xff/b"), ENDED),
    "metadata that is not UTF-8": PREFACE + headers(call_headers(PATH, ("x", "\xff\xfe")), ENDED),
    "a path upwards": PREFACE + headers(call_headers("/../../etc/passwd"), ENDED),
    "a path that Lua could read": PREFACE + headers(call_headers("/%s%d%%[^/]+$(x)/.."), ENDED),
    "a name in capitals": PREFACE + headers(call_headers(PATH, ("Upper", "1"))),
    "a line break in a value": PREFACE + headers(call_headers(PATH, ("x", "a\r\nhost: b"))),
    "a zero byte in a name": PREFACE + headers(call_headers(PATH, ("x\0y", "1"))),
    "an empty name": PREFACE + headers(call_headers(PATH, ("", "1"))),
    "headers of HTTP/1.1": PREFACE
    + headers(call_headers(PATH, ("connection", "close"), ("transfer-encoding", "chunked"))),
    "a negative length": PREFACE + headers(call_headers(PATH, ("content-length", "-1"))),
    "a length that the data exceeds": PREFACE
    + headers(call_headers(PATH, ("content-length", "5")))
    + frame(DATA, END_STREAM, 1, b"x" * 500),
    "a metadata field of 15 KiB": PREFACE + headers(call_headers(PATH, ("x", "v" * 15_000))),
    "metadata of 1 MiB": PREFACE
    + headers(HEAD, 0)
    + frame(CONTINUATION, 0, 1, block([("x", "v" * 16_000)])) * 64
    + frame(CONTINUATION, END_HEADERS, 1),
    "ten thousand fields": PREFACE
    + headers(HEAD, 0)
    + frame(CONTINUATION, 0, 1, block([("x", "")] * 4000)) * 3
    + frame(CONTINUATION, END_HEADERS, 1),
    "another frame between headers and their continuation": PREFACE
    + headers(HEAD, 0)
    + frame(PING, payload=b"12345678"),
    "a continuation of nothing": PREFACE + frame(CONTINUATION, END_HEADERS, 1, HEAD),
    "a continuation on another stream": PREFACE + headers(HEAD, 0) + frame(CONTINUATION, 0, 3),
    "data on stream 0": PREFACE + frame(DATA, 0, 0, b"x"),
    "data on a stream that is not open": PREFACE + frame(DATA, 0, 9, b"x" * 100),
    "data after the end": PREFACE + headers(HEAD, ENDED) + frame(DATA, 0, 1, b"x"),
    "a message longer than it says": PREFACE + CALL + frame(DATA, END_STREAM, 1, b"\0\0\0\0\1" + b"x" * 50),
    "a message shorter than it says": PREFACE + CALL + frame(DATA, END_STREAM, 1, b"\0\xff\xff\xff\xffx"),
    "a message with an unknown compression": PREFACE + CALL + frame(DATA, END_STREAM, 1, b"\x07\0\0\0\1x"),
    "a message that is not a PingMessage": PREFACE + CALL + frame(DATA, END_STREAM, 1, message(b"\xff" * 20)),
    "more data than the window": PREFACE + CALL + frame(DATA, 0, 1, b"x" * 16_384) * 40,
    "a reset on stream 0": PREFACE + reset(0),
    "a reset of a stream that is not open": PREFACE + reset(7),
    "a reset of a wrong length": PREFACE + CALL + frame(RST_STREAM, 0, 1, b"123"),
    "a window that overflows": PREFACE + CALL + window_update(1, LARGEST_WINDOW) * 2,
    "a connection's window that overflows": PREFACE + window_update(0, LARGEST_WINDOW) * 2,
    "a window that overflows by a setting": PREFACE
    + CALL
    + window_update(1, LARGEST_WINDOW - 70_000)
    + settings({INITIAL_WINDOW_SIZE: LARGEST_WINDOW}),
    "an increment of 0": PREFACE + CALL + window_update(1, 0) + window_update(0, 0),
    "an increment of a wrong length": PREFACE + frame(WINDOW_UPDATE, payload=b"1"),
    "a window for a stream that is not open": PREFACE + window_update(99, 1),
    "a promise of a client": PREFACE + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + HEAD),
    "goodbye at once": PREFACE + goaway() + CALL,
    "goodbye of a wrong length": PREFACE + frame(GOAWAY, payload=b"1"),
    "goodbye on a stream": PREFACE + goaway(stream=1),
    "a thousand calls at once": PREFACE
    + b"".join(frame(HEADERS, END_HEADERS, number, HEAD) for number in range(1, 2001, 2)),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.1, a gRPC call": b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\n"
    b"Content-Length: 5\r\n\r\n\0\0\0\0\0",
    "HTTP/1.1, upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "HTTP/1.1, smuggled": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5c\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n",
    "HTTP/1.1, long headers": b"GET / HTTP/1.1\r\n" + (b"x: " + b"v" * 8000 + b"\r\n") * 100 + b"\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\0" * 5000,
    "line breaks": b"\r\n" * 5000,
}


def at_random(seed: int) -> bytes:
    """Returns random bytes, or frames with random fields; the same for the same seed."""
    source = random.Random(seed)  # noqa: S311 - has to repeat
    if seed % 4 == 0:
        return source.randbytes(source.randint(1, 4000))
    found = PREFACE
    for _ in range(source.randint(1, 30)):
        payload = source.choice((HEAD, source.randbytes(source.randint(0, 60)), b""))
        length = None if source.random() < 0.9 else source.randint(0, 20_000)
        kind, stream = source.choice((*range(10), 0xFF)), source.choice((0, 1, 1, 3, 5, 2**31 - 1))
        found += frame(kind, source.choice((0, 1, 4, 5, 8, 0x20, 0xFF)), stream, payload, length=length)
    return found
