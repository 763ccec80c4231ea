"""The headers of a frame in one line, for people: "tcp 192.0.2.7:40000 > 10.77.0.100:80 [S]".

Decides what is shown of them; a frame may be cut, or hold anything. Must not know what happened to it.
"""

from __future__ import annotations

import ipaddress
import struct

from ctl.config.model import format_endpoint

_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TCP, _UDP, _ICMP, _ICMPV6, _IPIP, _IPV6_IN, _FRAGMENT = 6, 17, 1, 58, 4, 41, 44
_EXTENSIONS = (0, 43, 60, _FRAGMENT)
_NAMES = {_TCP: "tcp", _UDP: "udp", _ICMP: "icmp", _ICMPV6: "icmp6"}
_FLAGS = "FSRP.UEC"
MOST_TAGS, MOST_EXTENSIONS, MOST_TUNNELS = 3, 6, 2
_ECHO = {(_ICMP, 8): "echo request", (_ICMP, 0): "echo reply", (_ICMPV6, 128): "echo request", (_ICMPV6, 129): "echo reply"}
_KINDS = {
    (_ICMP, 3): "unreachable",
    (_ICMP, 11): "time exceeded",
    (_ICMPV6, 1): "unreachable",
    (_ICMPV6, 2): "too big",
    (_ICMPV6, 3): "time exceeded",
    (_ICMPV6, 135): "neighbour solicitation",
    (_ICMPV6, 136): "neighbour advertisement",
} | _ECHO


def describe(frame: bytes) -> str:
    """Never raises: what cannot be read is left out."""
    if len(frame) < 14:
        return "a frame without headers"
    kind, at, tags = int.from_bytes(frame[12:14]), 14, ""
    for _ in range(MOST_TAGS):
        if kind not in _VLANS or len(frame) < at + 4:
            break
        number, kind = int.from_bytes(frame[at : at + 2]) & 0xFFF, int.from_bytes(frame[at + 2 : at + 4])
        tags, at = f"{tags}vlan {number} ", at + 4
    if kind in (_IPV4, _IPV6):
        return tags + _ip(frame[at:], kind == _IPV6, 0)
    if kind == _ARP and len(frame) >= at + 28:
        sender, target = (ipaddress.IPv4Address(frame[at + n : at + n + 4]) for n in (14, 24))
        asks = int.from_bytes(frame[at + 6 : at + 8]) == 1
        return f"{tags}arp {'who has' if asks else 'reply'} {target if asks else sender}, {'from' if asks else 'to'} " + (
            str(sender if asks else target)
        )
    return f"{tags}ethertype 0x{kind:04x}"


def _ip(packet: bytes, six: bool, depth: int) -> str:
    if len(packet) < (40 if six else 20):
        return "a packet that is cut in its header"
    if six:
        source, destination = (str(ipaddress.IPv6Address(packet[n : n + 16])) for n in (8, 24))
        protocol, payload, offset = _skip_extensions(packet)
    else:
        source, destination = (str(ipaddress.IPv4Address(packet[n : n + 4])) for n in (12, 16))
        protocol, payload = packet[9], packet[(packet[0] & 15) * 4 :]
        offset = (int.from_bytes(packet[6:8]) & 0x1FFF) * 8
    if offset:
        return f"{_NAMES.get(protocol, protocol)} {source} > {destination} fragment at {offset}"
    if protocol in (_IPIP, _IPV6_IN) and depth < MOST_TUNNELS:
        return f"ipip {source} > {destination}: {_ip(payload, protocol == _IPV6_IN, depth + 1)}"
    return _transport(protocol, source, destination, payload)


def _skip_extensions(packet: bytes) -> tuple[int, bytes, int]:
    """Protocol, payload, and the offset of a fragment."""
    protocol, at, offset = packet[6], 40, 0
    for _ in range(MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS or len(packet) < at + 8:
            break
        if protocol == _FRAGMENT:
            offset = int.from_bytes(packet[at + 2 : at + 4]) & 0xFFF8
        size = 8 if protocol == _FRAGMENT else 8 + 8 * packet[at + 1]
        protocol, at = packet[at], at + size
    return protocol, packet[at:], offset


def _transport(protocol: int, source: str, destination: str, payload: bytes) -> str:
    name = _NAMES.get(protocol, f"protocol {protocol}")
    if protocol in (_TCP, _UDP) and len(payload) >= 4:
        source_port, destination_port = struct.unpack_from("!HH", payload)
        ends = f"{format_endpoint(source, source_port)} > {format_endpoint(destination, destination_port)}"
        if protocol == _TCP and len(payload) >= 14:
            flags = "".join(letter for bit, letter in enumerate(_FLAGS) if payload[13] >> bit & 1)
            return f"{name} {ends} [{flags or 'none'}]"
        return f"{name} {ends}"
    if protocol in (_ICMP, _ICMPV6) and payload:
        return f"{name} {source} > {destination} {_KINDS.get((protocol, payload[0]), f'type {payload[0]}')}"
    return f"{name} {source} > {destination}"
