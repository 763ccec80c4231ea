"""VRRP version 3 advertisements: building and reading them (RFC 9568).

Decides bytes. Must not know sockets: addresses come as arguments because the checksum may cover the pseudo-header, and the
TTL because RFC 9568 (7.1) makes the receiver check it. Nothing that arrives makes `parse` raise anything but WireError.

RFC 5798 left open whether an IPv4 checksum covers a pseudo-header; RFC 9568 (5.2.8) excludes it. keepalived, Wireshark and
scapy cover it by default (keepalived: `v3_checksum_as_v2`), so that is sent by default, and either is accepted.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from sync.errors import WireError

PROTOCOL = 112
TTL = 255
GROUP_V4 = "224.0.0.18"
GROUP_V6 = "ff02::12"
VERSION_AND_TYPE = 0x31
MAX_ADDRESSES = 255
MAX_INTERVAL_CS = 4095
RESIGN_PRIORITY = 0
MIN_PRIORITY, MAX_PRIORITY = 1, 254
OWNER_PRIORITY = 255

_HEADER = struct.Struct("!BBBBHH")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Advertisement:
    """One advertisement. interval_cs: Max Advertise Interval in hundredths of a second, 12 bits; priority 0 resigns.

    addresses: the virtual addresses, all of one family; for IPv6 the first one is to be link-local (RFC 9568 5.2.9).
    """

    router_id: int
    priority: int
    interval_cs: int
    addresses: tuple[Address, ...]


def interval_cs(heartbeat_ns: int) -> int:
    """A heartbeat interval in the unit of VRRP: rounded up to hundredths of a second, at most MAX_INTERVAL_CS."""
    return max(1, min(MAX_INTERVAL_CS, -(-heartbeat_ns // 10_000_000)))


def build(advertisement: Advertisement, source: str, destination: str, ipv4_pseudo_header: bool = True) -> bytes:
    """The packet after its IP header; `ipv4_pseudo_header`: whether an IPv4 checksum covers one.

    Raises ValueError if a field does not fit its width or families are mixed."""
    if not 1 <= advertisement.router_id <= 255:
        raise ValueError(f"virtual router id {advertisement.router_id} is not between 1 and 255")
    if not 0 <= advertisement.priority <= OWNER_PRIORITY:
        raise ValueError(f"priority {advertisement.priority} is not between 0 and {OWNER_PRIORITY}")
    if not 1 <= advertisement.interval_cs <= MAX_INTERVAL_CS:
        raise ValueError(f"interval {advertisement.interval_cs} cs is not between 1 and {MAX_INTERVAL_CS}")
    if not 1 <= len(advertisement.addresses) <= MAX_ADDRESSES:
        raise ValueError(f"{len(advertisement.addresses)} virtual addresses: 1 to {MAX_ADDRESSES} fit an advertisement")
    from_address, to_address = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    versions = {address.version for address in (from_address, to_address, *advertisement.addresses)}
    if len(versions) != 1:
        raise ValueError("IPv4 and IPv6 addresses do not fit one advertisement")
    header = _HEADER.pack(
        VERSION_AND_TYPE,
        advertisement.router_id,
        advertisement.priority,
        len(advertisement.addresses),
        advertisement.interval_cs,
        0,
    )
    packet = header + b"".join(address.packed for address in advertisement.addresses)
    covered = _pseudo_header(from_address, to_address, len(packet)) if ipv4_pseudo_header or versions == {6} else b""
    checksum = _checksum(covered + packet)
    return packet[:6] + struct.pack("!H", checksum) + packet[8:]


def parse(packet: bytes, source: str, destination: str, ttl: int) -> Advertisement:
    """Read what follows the IP header. Raises WireError with the rule of RFC 9568 (7.1) that is broken."""
    if ttl != TTL:
        raise WireError(f"TTL is {ttl}, not {TTL}: the advertisement came through a router")
    if len(packet) < _HEADER.size:
        raise WireError(f"{len(packet)} bytes are too short for an advertisement")
    version_and_type, router_id, priority, count, interval, _ = _HEADER.unpack_from(packet)
    if version_and_type != VERSION_AND_TYPE:
        raise WireError(f"version {version_and_type >> 4} type {version_and_type & 15} is not a VRRPv3 advertisement")
    try:
        from_address, to_address = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    except ValueError as error:
        raise WireError(str(error)) from None
    if from_address.version != to_address.version:
        raise WireError("source and destination are of different families")
    width = 4 if from_address.version == 4 else 16
    if not router_id or not count or len(packet) != _HEADER.size + count * width:
        raise WireError(f"{len(packet)} bytes do not hold {count} addresses of router {router_id}")
    without = width == 4 and not _checksum(packet)
    if not without and _checksum(_pseudo_header(from_address, to_address, len(packet)) + packet):
        raise WireError("checksum is wrong")
    if not interval & MAX_INTERVAL_CS:
        raise WireError("interval is zero")
    kind = ipaddress.IPv4Address if width == 4 else ipaddress.IPv6Address
    starts = range(_HEADER.size, len(packet), width)
    addresses = tuple(kind(packet[start : start + width]) for start in starts)
    return Advertisement(router_id, priority, interval & MAX_INTERVAL_CS, addresses)


def _pseudo_header(source: Address, destination: Address, length: int) -> bytes:
    """RFC 8200 (8.1), and its like for IPv4."""
    if source.version == 4:
        return source.packed + destination.packed + struct.pack("!BBH", 0, PROTOCOL, length)
    return source.packed + destination.packed + struct.pack("!I3xB", length, PROTOCOL)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); zero over data that carries a right one."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
