"""Connections by client address, from the kernel's lists."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest

from balancer.connections import Connections, Listener, count, read_listeners

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TAIL = " 00000000:00000000 02:000004B0 00000000     0        0 1234 2 0000000000000000 20 4 30 10 -1\n"
# 127.0.0.1:5000 and [::1]:5000, and others, as a machine with little-endian words has them.
LOCAL, LOCAL6 = "0100007F:1388", "00000000000000000000000001000000:1388"
MAPPED = "0000000000000000FFFF0000{}"


def table(*rows: str) -> str:
    return HEAD + "".join(f"{number:4d}: {row}{TAIL}" for number, row in enumerate(rows))


ALL = (Listener(port=5000),)


def test_connections_are_counted_by_remote_address() -> None:
    text = table(
        "00000000:1388 00000000:0000 0A",  # listens
        f"{LOCAL} 0200007F:D431 01",
        f"{LOCAL} 0200007F:D432 01",
        f"{LOCAL} 0200007F:D433 08",  # CLOSE_WAIT
        f"{LOCAL} 0200007F:D434 06",  # TIME_WAIT
        f"{LOCAL} 0200007F:D435 03",  # SYN_RECV
        f"{LOCAL} 0300000A:D431 01",
        f"0100007F:D431 {LOCAL} 01",  # the other end of a connection
        "0100007F:1389 0200007F:D436 01",  # another port
    )
    assert count(text, ALL) == {"127.0.0.2": 3, "10.0.0.3": 1}


def test_ipv6_addresses_are_counted_too_and_mapped_ones_are_ipv4() -> None:
    text = table(
        f"{LOCAL6} B80D0120000000000000000001000000:D431 01",
        f"{MAPPED.format(LOCAL)} {MAPPED.format('0200007F')}:D431 01",
    )
    assert count(text, ALL) == {"2001:db8::1": 1, "127.0.0.2": 1}
    assert count(text, [Listener(port=5000, address=ip_address("127.0.0.1"))]) == {"127.0.0.2": 1}
    assert count(text, [Listener(port=5000, address=ip_address("::1"))]) == {"2001:db8::1": 1}


def test_only_the_listeners_own_addresses_count() -> None:
    text = table(f"{LOCAL} 0200007F:D431 01", "0500007F:1388 0200007F:D432 01", "0500007F:1389 0200007F:D433 01")
    assert count(text, read_listeners("127.0.0.5:5000")) == {"127.0.0.2": 1}
    assert count(text, read_listeners("127.0.0.5:5000 grpc://127.0.0.5:5001")) == {"127.0.0.2": 2}
    assert count(text, read_listeners("grpcs://0.0.0.0:5000")) == {"127.0.0.2": 2}
    assert not count(text, read_listeners("127.0.0.9:5000"))


@pytest.mark.parametrize("text", ["", HEAD, "nonsense\n" * 3])
def test_a_table_without_connections_has_none(text: str) -> None:
    assert not count(text, ALL)


def test_the_kernel_of_this_machine_is_understood() -> None:
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net") / name
        if path.exists():
            assert path.read_text().startswith("  sl  local_address ")


@pytest.mark.parametrize(
    ("text", "listeners"),
    [
        ("5000", [Listener(port=5000)]),
        ("0.0.0.0:5000 [::]:5001", [Listener(port=5000), Listener(port=5001)]),
        ("grpc://[::1]:5000", [Listener(port=5000, address=ip_address("::1"))]),
        ("[::ffff:127.0.0.1]:5000", [Listener(port=5000, address=ip_address("127.0.0.1"))]),
        ("balancer:5000", [Listener(port=5000)]),
    ],
)
def test_listeners_are_read_from_lb_listen(text: str, listeners: list[Listener]) -> None:
    assert read_listeners(text) == listeners


def test_an_address_is_crowded_at_once_and_free_after_five_calm_counts() -> None:
    changes: list[list[str]] = []
    one = Connections(2, ALL, lambda: changes.append(one.crowded))
    one.apply(Counter({"127.0.0.2": 2, "127.0.0.3": 3}))
    assert changes == [["127.0.0.3"]]
    one.apply(Counter({"127.0.0.2": 3, "127.0.0.3": 9}))
    assert changes[1:] == [["127.0.0.2", "127.0.0.3"]]
    for _ in range(4):
        one.apply(Counter({"127.0.0.2": 3}))
    # One count above the limit begins the calm time again.
    one.apply(Counter({"127.0.0.2": 3, "127.0.0.3": 3}))
    for _ in range(4):
        one.apply(Counter({"127.0.0.2": 3}))
    assert len(changes) == 2
    one.apply(Counter({"127.0.0.2": 3}))
    assert changes[2:] == [["127.0.0.2"]]
