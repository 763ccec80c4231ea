"""Announces an address on a link: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour advertisement
(RFC 4861 section 7.2.6).

Pure: `ctl.network.kernel.address_batch` sends the frames.
"""

from __future__ import annotations

import socket
import struct

ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = b"\x33\x33\x00\x00\x00\x01"
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
_ICMPV6, _NEIGHBOUR_ADVERTISEMENT, _OVERRIDE = 58, 136, 0x20000000
_ROUTER = 0x80000000  # the node forwards, so RFC 4861 requires the flag


def announcement(address: str, mac: bytes) -> bytes:
    """The Ethernet frame that binds `address` to `mac` in every neighbour's cache."""
    return _neighbour_advertisement(address, mac) if ":" in address else _gratuitous_arp(address, mac)


def _gratuitous_arp(address: str, mac: bytes) -> bytes:
    packed = socket.inet_aton(address)
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + packed + b"\0" * 6 + packed
    return (_BROADCAST + mac + struct.pack("!H", ETH_P_ARP) + arp).ljust(60, b"\0")


def _neighbour_advertisement(address: str, mac: bytes) -> bytes:
    source = socket.inet_pton(socket.AF_INET6, address)
    option = b"\x02\x01" + mac  # target link-layer address, one unit of 8 bytes
    head = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE | _ROUTER)
    body = head + source + option
    pseudo = source + _ALL_NODES + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + source + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", ETH_P_IPV6) + ip + body


def internet_checksum(data: bytes) -> int:
    """RFC 1071 checksum of an even or odd number of bytes."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
