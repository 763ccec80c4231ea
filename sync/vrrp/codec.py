"""VRRP version 3 advertisements: building and reading them (RFC 9568), with a trailer that authenticates them.

Decides bytes. Must not know sockets: addresses come as arguments because the checksum may cover the pseudo-header, and the
TTL because RFC 9568 (7.1) makes the receiver check it. Nothing that arrives makes `parse` raise anything but WireError.

RFC 5798 left open whether an IPv4 checksum covers a pseudo-header; RFC 9568 (5.2.8) excludes it. keepalived, Wireshark and
scapy cover it by default (keepalived: `v3_checksum_as_v2`), so that is sent by default, and either is accepted.

The trailer follows the message (draft-cassen-vrrp-auth-hmac, keepalived 2.4 `auth_hmac`). The checksum of IPv4 covers the
message alone, that of IPv6 the trailer too, because kernels compute it. What the trailer contains: `sync.vrrp.authentication`.

A greeting is a message of this program's own, of a type that RFC 9568 (5.2.2) leaves unassigned and that receivers discard: the
sender's incarnation and the one of the receiver that it has heard. See `sync.vrrp.endpoint`.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass

from sync.errors import WireError

PROTOCOL = 112
TTL = 255
GROUP_V4 = "224.0.0.18"
GROUP_V6 = "ff02::12"
VERSION = 3
ADVERTISEMENT_TYPE = VERSION << 4 | 1
GREETING_TYPE = VERSION << 4 | 2
TRAILER_BYTES = 28
MAX_ADDRESSES = 255
MAX_INTERVAL_CS = 4095
RESIGN_PRIORITY = 0
MIN_PRIORITY, MAX_PRIORITY = 1, 254
OWNER_PRIORITY = 255

_HEADER = struct.Struct("!BBBBHH")
_GREETING = struct.Struct("!BBHHHQQ")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Trailer = Callable[[bytes], bytes]
"""Makes the TRAILER_BYTES that follow a message, given the message with a checksum of zero."""


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


@dataclass(frozen=True, slots=True)
class Greeting:
    """Which incarnation the sender is, and which one of the receiver it has heard last; 0: none."""

    router_id: int
    boot: int
    echo: int


@dataclass(frozen=True, slots=True)
class Packet:
    """What was read. message: the bytes that the trailer covers, with a checksum of zero; trailer: empty if there is none."""

    content: Advertisement | Greeting
    message: bytes
    trailer: bytes


def build(
    advertisement: Advertisement,
    source: str,
    destination: str,
    ipv4_pseudo_header: bool = True,
    trailer: Trailer | None = None,
) -> bytes:
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
    if len({address.version for address in (from_address, to_address, *advertisement.addresses)}) != 1:
        raise ValueError("IPv4 and IPv6 addresses do not fit one advertisement")
    header = _HEADER.pack(
        ADVERTISEMENT_TYPE,
        advertisement.router_id,
        advertisement.priority,
        len(advertisement.addresses),
        advertisement.interval_cs,
        0,
    )
    message = header + b"".join(address.packed for address in advertisement.addresses)
    return _complete(message, from_address, to_address, ipv4_pseudo_header, trailer)


def build_greeting(greeting: Greeting, source: str, destination: str, trailer: Trailer) -> bytes:
    """The packet after its IP header."""
    message = _GREETING.pack(GREETING_TYPE, greeting.router_id, 0, 0, 0, greeting.boot, greeting.echo)
    return _complete(message, ipaddress.ip_address(source), ipaddress.ip_address(destination), True, trailer)


def _complete(message: bytes, source: Address, destination: Address, pseudo_header: bool, trailer: Trailer | None) -> bytes:
    """Add the trailer and the checksum."""
    end = trailer(message) if trailer is not None else b""
    covered = message if source.version == 4 else message + end
    pseudo = _pseudo_header(source, destination, len(covered)) if pseudo_header or source.version == 6 else b""
    return message[:6] + struct.pack("!H", _checksum(pseudo + covered)) + message[8:] + end


def parse(packet: bytes, source: str, destination: str, ttl: int) -> Packet:
    """Read what follows the IP header. Raises WireError with the rule of RFC 9568 (7.1) that is broken."""
    if ttl != TTL:
        raise WireError(f"TTL is {ttl}, not {TTL}: the advertisement came through a router")
    if len(packet) < _HEADER.size:
        raise WireError(f"{len(packet)} bytes are too short for an advertisement")
    try:
        from_address, to_address = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    except ValueError as error:
        raise WireError(str(error)) from None
    if from_address.version != to_address.version:
        raise WireError("source and destination are of different families")
    if packet[0] == ADVERTISEMENT_TYPE:
        length = _HEADER.size + packet[3] * (4 if from_address.version == 4 else 16)
    elif packet[0] == GREETING_TYPE:
        length = _GREETING.size
    else:
        raise WireError(f"version {packet[0] >> 4} type {packet[0] & 15} is not a VRRPv3 advertisement")
    if len(packet) not in (length, length + TRAILER_BYTES):
        raise WireError(f"{len(packet)} bytes are not the {length} of the message, with or without a trailer")
    covered = packet[:length] if from_address.version == 4 else packet
    without = from_address.version == 4 and not _checksum(covered)
    if not without and _checksum(_pseudo_header(from_address, to_address, len(covered)) + covered):
        raise WireError("checksum is wrong")
    message = packet[:6] + bytes(2) + packet[8:length]
    content = _greeting(message) if packet[0] == GREETING_TYPE else _advertisement(message, from_address.version)
    return Packet(content, message, packet[length:])


def _greeting(message: bytes) -> Greeting:
    _, router_id, *_, boot, echo = _GREETING.unpack(message)
    if not router_id or not boot:
        raise WireError("a greeting without a router or an incarnation")
    return Greeting(router_id, boot, echo)


def _advertisement(message: bytes, version: int) -> Advertisement:
    _, router_id, priority, count, interval, _ = _HEADER.unpack_from(message)
    if not router_id or not count:
        raise WireError(f"{count} addresses of router {router_id}")
    if not interval & MAX_INTERVAL_CS:
        raise WireError("interval is zero")
    width, kind = (4, ipaddress.IPv4Address) if version == 4 else (16, ipaddress.IPv6Address)
    addresses = tuple(kind(message[start : start + width]) for start in range(_HEADER.size, len(message), width))
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
