"""Requests to the kernel's rtnetlink: dumps of links, addresses and neighbours, route lookups, managed neighbours.

Ten thousand backends are looked up whenever a route changes: 5 µs each. Does I/O only, and blocks.
Layouts: rtnetlink(7), linux/neighbour.h, linux/rtnetlink.h; `ctl.network.kernel.messages` decodes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

from ctl.network.kernel.messages import (
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_NEWNEIGH,
    Address,
    Link,
    Message,
    NeighbourEntry,
    NeighbourTable,
    attribute,
    attributes,
    decode,
    family_and_bytes,
    headers,
    text_of,
)
from ctl.network.network import Route

NETLINK_ROUTE = 0
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETNEIGHTBL = 18, 22, 26, 30, 66
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x100, 0x400, 0x300
_NLM_F_DUMP_INTR = 0x10
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA = 1, 4, 5, 18
RTN_UNICAST, RTN_LOCAL = 1, 2
NDA_DST, NDA_FLAGS_EXT = 1, 15
NTF_USE, NTF_EXT_MANAGED = 0x01, 0x01
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
RECEIVE_BYTES = 65536
MAX_DUMPS = 4
"""So often is a dump repeated that the kernel calls inconsistent, because the table changed meanwhile."""
_RTM_F_FIB_MATCH = 0x2000  # the entry itself: an answer without it names the loopback interface for every own address

_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")

M = TypeVar("M", bound=Message)


class RouteSocket:
    """One request at a time to the kernel's routing tables. A context manager; raises OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(2.0)  # the kernel answers at once; a lost answer must not hang a thread
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def route(self, destination: str) -> Route | None:
        """The route to `destination`, or None if there is none or it is this node."""
        family, packed = family_and_bytes(destination)
        body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, packed)
        try:
            answer = self._ask(RTM_GETROUTE, NLM_F_REQUEST, body)
        except OSError:
            return None
        if answer[HEADER.size + 7] != RTN_UNICAST:
            return None
        found = dict(attributes(answer, HEADER.size + _ROUTE.size, HEADER.unpack_from(answer)[0]))
        if RTA_OIF not in found:
            return None
        gateway = found.get(RTA_GATEWAY, b"")
        if RTA_VIA in found:  # a gateway of the other family: u16 family, then the address
            gateway = found[RTA_VIA][2:]
        return Route(struct.unpack("=I", found[RTA_OIF])[0], text_of(gateway))

    def holder(self, address: str) -> int:
        """The index of the interface that has `address`, also while it is down; 0 if this node does not have it."""
        family, packed = family_and_bytes(address)
        body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH) + attribute(RTA_DST, packed)
        try:
            answer = self._ask(RTM_GETROUTE, NLM_F_REQUEST, body)
        except OSError:
            return 0
        if answer[HEADER.size + 7] != RTN_LOCAL:
            return 0
        found = dict(attributes(answer, HEADER.size + _ROUTE.size, HEADER.unpack_from(answer)[0]))
        return int(struct.unpack("=I", found.get(RTA_OIF, bytes(4)))[0])

    def use_neighbour(self, index: int, address: str, managed: bool) -> None:
        """Make the kernel resolve `address` on link `index` as if it had traffic; managed: and keep it resolved."""
        family, packed = family_and_bytes(address)
        body = _NEIGHBOUR.pack(family, index, 0, NTF_USE, 0) + attribute(NDA_DST, packed)
        if managed:
            body += attribute(NDA_FLAGS_EXT, struct.pack("=I", NTF_EXT_MANAGED))
        self._ask(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)

    def links(self) -> list[Link]:
        """Every link of the namespace."""
        mask = attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
        return self._dump(Link, RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + mask)

    def addresses(self) -> list[Address]:
        """Every address of the namespace."""
        return self._dump(Address, RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))

    def neighbours(self) -> list[NeighbourEntry]:
        """Every neighbour entry of the namespace."""
        return self._dump(NeighbourEntry, RTM_GETNEIGH, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))

    def neighbour_tables(self) -> list[NeighbourTable]:
        """The capacity of the neighbour tables, which all namespaces share."""
        return self._dump(NeighbourTable, RTM_GETNEIGHTBL, b"\0\0\0\0")

    def _dump(self, kind: type[M], request: int, body: bytes) -> list[M]:
        """After MAX_DUMPS attempts an inconsistent dump is as good as it gets: the notifications of the changes follow."""
        for _ in range(MAX_DUMPS):
            found, consistent = self._dump_once(request, body)
            if consistent:
                break
        return [each for each in found if isinstance(each, kind)]

    def _dump_once(self, request: int, body: bytes) -> tuple[list[Message], bool]:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), request, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + body)
        found: list[Message] = []
        consistent = True
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            found += decode(data)
            for kind, offset, _ in headers(data):
                _, _, flags, sequence, _ = HEADER.unpack_from(data, offset)
                if sequence != self._sequence:
                    continue
                consistent = consistent and not flags & _NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return found, consistent
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, offset + HEADER.size)[0]
                    raise OSError(code, os.strerror(code))

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            answer = self._socket.recv(RECEIVE_BYTES)
            _, answer_kind, _, sequence, _ = HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue
            if answer_kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", answer, HEADER.size)[0]
                if code:
                    raise OSError(code, os.strerror(code))
            return answer


def kernel_manages_neighbours(sock: RouteSocket, index: int, address: str) -> bool:
    """Ask for a managed neighbour; False if this kernel does not support them (the entry is then resolved only once)."""
    try:
        sock.use_neighbour(index, address, managed=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True


def resolve_routes(destinations: Sequence[str]) -> list[Route | None]:
    """`RouteSocket.route` for each destination, on one socket."""
    with RouteSocket() as sock:
        return [sock.route(destination) for destination in destinations]
