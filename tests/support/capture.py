"""What travels on this machine's interfaces."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Of all protocols, because a bridge takes a packet before a socket for IPv4 sees it.
_ALL, _IPV4 = 0x0003, 0x0800
# socket(7); the module socket does not have it.
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 * 1024 * 1024


@contextmanager
def captured(prefixes: Sequence[bytes], without_ports: Sequence[int] = ()) -> Iterator[list[bytes]]:
    """Collects the IPv4 packets of all interfaces from or to addresses that begin with one of the prefixes."""
    packets: list[bytes] = []
    stop = threading.Event()

    def is_wanted(packet: bytes) -> bool:
        offset = 4 * (packet[0] & 15)
        ports = struct.unpack("!HH", packet[offset : offset + 4])
        ends = (packet[12:16], packet[16:20])
        return any(end.startswith(tuple(prefixes)) for end in ends) and not set(ports) & set(without_ports)

    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL)) as sniffer:
        # FORCE: beyond the limit of net.core.rmem_max.
        sniffer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sniffer.settimeout(0.2)

        def collect() -> None:
            while not stop.is_set():
                try:
                    packet, address = sniffer.recvfrom(65536)
                except TimeoutError:
                    continue
                if address[1] == _IPV4 and len(packet) >= 24 and is_wanted(packet):
                    packets.append(packet)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield packets
        finally:
            stop.set()
            thread.join()
