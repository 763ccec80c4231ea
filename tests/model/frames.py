"""Frames built quickly: valid headers with correct checksums. scapy, which checks them in a test, needs a millisecond each."""

from __future__ import annotations

import itertools
import struct

from tests.model.packet import FRAGMENT, ICMPV6, TCP, UDP, checksum


def ethernet(source: bytes, destination: bytes, payload: bytes, tags: tuple[int, ...] = ()) -> bytes:
    """tags: VLAN numbers with priority, outermost first."""
    kind = {4: 0x0800, 6: 0x86DD}.get(payload[0] >> 4, 0x0806)
    return destination + source + b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags) + struct.pack(">H", kind) + payload


def arp(operation: int, sender_mac: bytes, sender: bytes, target: bytes) -> bytes:
    """For `ethernet`, which takes it for ARP by its first byte."""
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + sender + bytes(6) + target


def ip(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    hops: int = 64,
    *,
    options: bytes = b"",
    identification: int = 0,
    fragment: tuple[int, bool] | None = None,
    may_fragment: bool = False,
    extensions: tuple[int, ...] = (),
) -> bytes:
    """options: IPv4. extensions: IPv6 headers of 8 bytes. fragment: offset in bytes, and whether more follow."""
    offset, more = fragment or (0, False)
    if len(source) == 4:
        bits = offset // 8 | more << 13 | (not may_fragment and fragment is None) << 14
        length = 20 + len(options) + len(payload)
        head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, length, identification, bits, hops, protocol, 0)
        head += source + destination + options
        return head[:10] + checksum(head).to_bytes(2) + head[12:] + payload
    chain = [*extensions, *([FRAGMENT] if fragment else []), protocol]
    headers = b""
    for this, following in itertools.pairwise(chain):
        rest = struct.pack(">HI", offset | more, identification) if this == FRAGMENT else bytes((1, 4, 0, 0, 0, 0))
        headers += bytes((following, 0)) + (bytes(6) if this == 43 else rest)
    return struct.pack(">IHBB", 6 << 28, len(headers + payload), chain[0], hops) + source + destination + headers + payload


def transport(
    source: bytes, destination: bytes, protocol: int, ports: tuple[int, int], flags: int, payload: bytes, numbers: int = 7
) -> bytes:
    """TCP or UDP. numbers: sequence and acknowledgement are made from it."""
    if protocol == TCP:
        segment = struct.pack(">HHIIBBHHH", *ports, numbers, numbers * 3 & 0xFFFFFFFF, 0x50, flags, 1000, 0, 0) + payload
        at = 16
    else:
        segment = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
        at = 6
    total = checksum(source + destination + struct.pack(">II", len(segment), protocol) + segment)
    if protocol == UDP and total == 0:
        total = 0xFFFF
    return segment[:at] + total.to_bytes(2) + segment[at + 2 :]


def icmp(source: bytes, destination: bytes, kind: int, code: int, rest: bytes) -> bytes:
    """rest: everything behind the checksum."""
    head = bytes((kind, code, 0, 0)) + rest
    pseudo = source + destination + struct.pack(">II", len(head), ICMPV6) if len(source) == 16 else b""
    return head[:2] + checksum(pseudo + head).to_bytes(2) + head[4:]
