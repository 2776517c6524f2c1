"""Makes the configuration files of the candidates: texts in, texts out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError

CONFIGS = Path(__file__).parent / "configs"
# Lua that runs, as a block, and the settings of the Lua module.
_LUA_BLOCK = re.compile(r"^[ \t]*\w+_by_lua_block[ \t]*\{", re.MULTILINE)
_LUA_SETTING = re.compile(r"^[ \t]*lua_\w+ [^\n]*;[^\n]*\n", re.MULTILINE)
_NEVER_USED = re.compile(r"^[ \t]*server 0\.0\.0\.1:1;[^\n]*\n", re.MULTILINE)


def fill(name: str, values: Mapping[str, str]) -> str:
    """A file of ``configs`` with every ``@NAME@`` filled in.

    Raises:
        BenchmarkError: the file names something that is not in ``values``.
    """
    text = (CONFIGS / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    left = re.search(r"@[A-Z]+@", text)
    if left:
        raise BenchmarkError(f"{name}: nothing fills {left[0]}")
    return text


def servers(peers: Sequence[str]) -> str:
    """The lines of a static nginx upstream."""
    return "\n        ".join(f"server {peer};" for peer in peers)


def peer_lines(peers: Sequence[str]) -> str:
    """What consul-template renders of some peers: the form of peers.tpl."""
    lines = []
    for peer in peers:
        address, _, port = peer.rpartition(":")
        lines.append(f'"bench"\t"{address}"\t{port}\t1\t"{address}"\tnull\tnull\n')
    return "".join(lines) + "# end\n"


def endpoints(peers: Sequence[str]) -> str:
    """Envoy's EDS file; JSON is YAML too."""
    found = []
    for peer in peers:
        address, _, port = peer.rpartition(":")
        socket_address = {"address": address, "port_value": int(port)}
        found.append({"endpoint": {"address": {"socket_address": socket_address}}})
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "grpc_servers",
        "endpoints": [{"lb_endpoints": found}],
    }
    return json.dumps({"version_info": "1", "resources": [assignment]}, indent=1) + "\n"


def without_lua(text: str) -> str:
    """An nginx configuration without any Lua.

    Raises:
        BenchmarkError: a block does not end.
    """
    while block := _LUA_BLOCK.search(text):
        depth, end = 1, block.end()
        while depth:
            if end == len(text):
                raise BenchmarkError(f"a block of Lua does not end: {block[0].strip()}")
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[: block.start()] + text[end:].lstrip(" \t").removeprefix("\n")
    return _LUA_SETTING.sub("", text)


def static_upstream(text: str, peers: Sequence[str]) -> str:
    """The balancer's rendered configuration with a plain upstream of nginx in place of everything in Lua.

    Raises:
        BenchmarkError: it is not of the form that is expected here.
    """
    changed, count = _NEVER_USED.subn(f"    {servers(peers)}\n", without_lua(text))
    if count != 1:
        raise BenchmarkError(f"load-balancer.conf has {count} lines `server 0.0.0.1:1;`, 1 is expected")
    return changed


def message(text: str) -> bytes:
    """A PingMessage as it goes over the wire: gRPC's prefix of five bytes, then the greeting (field 1)."""
    greeting = text.encode()
    # A varint: seven bits a byte, the least first (Protocol Buffers, "Encoding").
    length, rest = bytearray(), len(greeting)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    field = bytes([0x0A, *length, rest]) + greeting
    return b"\0" + len(field).to_bytes(4, "big") + field
