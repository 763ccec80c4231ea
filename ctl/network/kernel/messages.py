"""Decodes rtnetlink messages, of notifications and of dumps alike, into values. Pure.

Only what xlbd uses: a route's message costs 2 µs, so that a burst of twenty thousand does not hold up the loop. An attribute
that is malformed or unknown is skipped. Layouts: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h,
linux/netconf.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTM_NEWNEIGHTBL = 64
RTM_NEWNETCONF, RTM_DELNETCONF = 80, 81

NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Reachable, stale, delay, probe, noarp, permanent: the entry has a MAC."""
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_RTM_F_CLONED = 0x200
_IFA_F_SECONDARY = 0x01
_NTF_EXT_MANAGED = 0x01

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_LINK_NETNSID, _IFLA_XDP = 37, 43
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_VLAN_ID, _IFLA_VLAN_PROTOCOL = 1, 5
_IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID, _IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID = 2, 4, 5, 6
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NDA_DST, _NDA_LLADDR, _NDA_FLAGS_EXT = 1, 2, 15
_NDTA_NAME, _NDTA_THRESH3 = 1, 4

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ROUTE = struct.Struct("=BBBBBBBBI")
_NETCONF = struct.Struct("=Bxxx")

XDP_MODES = {0: "", 1: "native", 2: "generic"}
"""IFLA_XDP_ATTACHED to a word; anything else is "other": offloaded, or several programs."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link that exists, or `gone`. xdp_program: id of its XDP program, 0: none; xdp_mode: see XDP_MODES.

    below, above: indexes of its lower device and of its master, 0: none in this namespace. kind: "vlan", "bond", …, empty for
    hardware. vlan_protocol: EtherType of the tag of a VLAN device, 0: it is none.
    """

    gone: bool
    index: int
    name: str
    up: bool
    carrier: bool
    mac: str
    mtu: int
    xdp_program: int
    xdp_mode: str
    below: int
    above: int
    kind: str = ""
    vlan_id: int = 0
    vlan_protocol: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """An address that exists on a link, or is `gone`. secondary: the kernel may remove it together with its primary one."""

    gone: bool
    index: int
    address: str
    prefix_length: int
    secondary: bool


@dataclass(frozen=True, slots=True)
class NeighbourEntry:
    """A neighbour entry, or one that is `gone`; `mac` is empty unless it is valid. managed: the kernel keeps it resolved."""

    gone: bool
    index: int
    address: str
    mac: str
    valid: bool
    managed: bool


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """Capacity of a family's neighbour table (gc_thresh3): "arp_cache" or "ndisc_cache"."""

    name: str
    capacity: int


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """A route, rule or next-hop object came or went."""


@dataclass(frozen=True, slots=True)
class SettingChanged:
    """A sysctl of an interface changed (RTM_NEWNETCONF)."""


Message = Link | Address | NeighbourEntry | NeighbourTable | RouteChanged | SettingChanged

_ROUTE_CHANGED, _SETTING_CHANGED = RouteChanged(), SettingChanged()


def headers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, offset, end) of each message in what one recv returned."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, offset, min(len(data), offset + length)
        offset += (length + 3) & ~3


def decode(data: bytes) -> Iterator[Message]:
    """The messages that mean something here; a message that is cut short is skipped."""
    for kind, offset, end in headers(data):
        try:
            message = _decode(kind, data, offset + HEADER.size, end)
        except (struct.error, ValueError, UnicodeDecodeError):
            continue
        if message is not None:
            yield message


def _decode(kind: int, data: bytes, start: int, end: int) -> Message | None:
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return None if _ROUTE.unpack_from(data, start)[8] & _RTM_F_CLONED else _ROUTE_CHANGED
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return _neighbour(kind == RTM_DELNEIGH, data, start, end)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        return _address(kind == RTM_DELADDR, data, start, end)
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return _link(kind == RTM_DELLINK, data, start, end)
    if kind in (RTM_NEWNETCONF, RTM_DELNETCONF):
        return _SETTING_CHANGED
    if kind == RTM_NEWNEIGHTBL:
        return _table(data, start, end)
    # Rules and next-hop objects: rare, and any may move a route. Answers of a dump are neither.
    return _ROUTE_CHANGED if kind > NLMSG_DONE else None


def _link(gone: bool, data: bytes, start: int, end: int) -> Link | None:
    family, _, index, flags, _ = _LINK.unpack_from(data, start)
    if family == socket.AF_BRIDGE:
        return None
    name, mac, mtu, program, mode, below, above, kind, elsewhere = str(index), "", 0, 0, "", 0, 0, "", False
    vlan = (0, 0)
    for attribute, value in attributes(data, start + _LINK.size, end):
        if attribute == _IFLA_IFNAME:
            name = _text(value)
        elif attribute == _IFLA_ADDRESS:
            mac = value.hex(":")
        elif attribute == _IFLA_MTU:
            mtu = _number(value)
        elif attribute == _IFLA_LINK:
            below = _number(value)
        elif attribute == _IFLA_MASTER:
            above = _number(value)
        elif attribute == _IFLA_LINKINFO:
            information = dict(attributes(value))
            kind = _text(information.get(_IFLA_INFO_KIND, b""))
            vlan = _vlan(information.get(_IFLA_INFO_DATA, b"")) if kind == "vlan" else vlan
        elif attribute == _IFLA_LINK_NETNSID:
            elsewhere = True
        elif attribute == _IFLA_XDP:
            program, mode = _xdp(value)
    # A veth's IFLA_LINK is its peer, and an index of another namespace means nothing here: neither is a lower device.
    below = 0 if kind == "veth" or elsewhere else below
    up, carrier = bool(flags & _IFF_UP), bool(flags & _IFF_LOWER_UP)
    return Link(gone, index, name, up, carrier, mac, mtu, program, mode, below, above, kind, *vlan)


def _vlan(data: bytes) -> tuple[int, int]:
    """Number and protocol of a VLAN device's tag."""
    found = dict(attributes(data))
    return _number(found.get(_IFLA_VLAN_ID, b"")[:2]), int.from_bytes(found.get(_IFLA_VLAN_PROTOCOL, b"\x81\0")[:2], "big")


def _xdp(value: bytes) -> tuple[int, str]:
    found = dict(attributes(value))
    attached = found.get(_IFLA_XDP_ATTACHED, b"\0")[0]
    for attribute in (_IFLA_XDP_PROG_ID, _IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID):
        if attribute in found:
            return _number(found[attribute]), XDP_MODES.get(attached, "other")
    return 0, XDP_MODES.get(attached, "other")


def _address(gone: bool, data: bytes, start: int, end: int) -> Address | None:
    _, length, flags, _, index = _ADDRESS.unpack_from(data, start)
    local = remote = b""
    for attribute, value in attributes(data, start + _ADDRESS.size, end):
        if attribute == _IFA_LOCAL:
            local = value
        elif attribute == _IFA_ADDRESS:
            remote = value
        elif attribute == _IFA_FLAGS:
            flags = _number(value)
    address = text_of(local or remote)
    # IPv6 uses the same bit for temporary addresses, which have no primary one.
    return Address(gone, index, address, length, bool(flags & _IFA_F_SECONDARY) and ":" not in address) if address else None


def _neighbour(gone: bool, data: bytes, start: int, end: int) -> NeighbourEntry | None:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(data, start)
    if family == socket.AF_BRIDGE:
        return None
    address, mac, managed = "", "", False
    for attribute, value in attributes(data, start + _NEIGHBOUR.size, end):
        if attribute == _NDA_DST:
            address = text_of(value)
        elif attribute == _NDA_LLADDR:
            mac = value.hex(":")
        elif attribute == _NDA_FLAGS_EXT:
            managed = bool(_number(value) & _NTF_EXT_MANAGED)
    valid = not gone and bool(state & NUD_VALID)
    return NeighbourEntry(gone, index, address, mac if valid else "", valid, managed) if address else None


def _table(data: bytes, start: int, end: int) -> NeighbourTable | None:
    found = dict(attributes(data, start + 4, end))
    if _NDTA_NAME not in found or _NDTA_THRESH3 not in found:
        return None  # the parameters of one interface
    return NeighbourTable(_text(found[_NDTA_NAME]), _number(found[_NDTA_THRESH3]))


def attributes(data: bytes, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute between two offsets."""
    end = len(data) if end is None else end
    while offset + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + ATTRIBUTE.size : min(end, offset + length)]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def family_and_bytes(address: str) -> tuple[int, bytes]:
    """An address as the kernel has it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def text_of(packed: bytes) -> str:
    """The address as text; empty for anything that is neither IPv4 nor IPv6."""
    if len(packed) not in (4, 16):
        return ""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def _number(value: bytes) -> int:
    return int.from_bytes(value[:4], sys.byteorder)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")
