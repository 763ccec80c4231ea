"""What a backend of mode ipip needs, on kernels without tunnel devices: unwraps packets, and echoes datagrams from the VIPs.

Run in the backend's namespace: decapsulate.py NAME PORT VIP…. Packets in packets come from raw sockets, and what is inside goes
to the kernel through a tun device. The echo is bound to the VIPs, so that its answers come from there.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
DEVICE = "unwrap0"


def open_tun() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)
    return descriptor


def main(name: str, port: int, vips: list[str]) -> None:
    tun, selector = open_tun(), selectors.DefaultSelector()

    def unwrap(raw: socket.socket) -> None:
        packet = raw.recv(65536)
        skipped = (packet[0] & 15) * 4 if raw.family == socket.AF_INET else 0  # IPv6 raw sockets give the payload alone
        os.write(tun, packet[skipped:])

    def echo(datagrams: socket.socket) -> None:
        data, peer = datagrams.recvfrom(65536)
        datagrams.sendto(f"{name} {peer[0]} {peer[1]}\n".encode() + data, peer)

    for family in (socket.AF_INET, socket.AF_INET6):
        for inner in (socket.IPPROTO_IPIP, socket.IPPROTO_IPV6):
            raw = socket.socket(family, socket.SOCK_RAW, inner)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
            selector.register(raw, selectors.EVENT_READ, unwrap)
    for vip in vips:
        bound = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind((vip, port))
        selector.register(bound, selectors.EVENT_READ, echo)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            key.data(key.fileobj)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
