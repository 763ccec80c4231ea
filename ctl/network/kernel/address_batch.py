"""Prepared requests that add, remove or announce the VIPs in microseconds each.

A takeover must not wait for a dump of interfaces or for a thread. Each `AddressBatch` holds one rtnetlink request for all
its addresses and one Ethernet frame per address. Does I/O only; nothing here blocks. Layouts: rtnetlink(7), linux/if_addr.h,
linux/neighbour.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ctl.network.kernel.announcements import announcement
from ctl.network.kernel.messages import (
    HEADER,
    NLMSG_ERROR,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    attribute,
)
from ctl.network.kernel.rtnetlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, RECEIVE_BYTES
from ctl.network.network import InterfaceAddress

NDA_DST = 1
RTA_DST, RTA_OIF = 1, 4
RT_TABLE_LOCAL, RTPROT_STATIC, RTN_LOCAL = 255, 4, 2
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO = 1, 2, 6
IFA_F_NODAD = 0x02
FOREVER = 0xFFFFFFFF
RECEIVE_BUFFER_BYTES = 4 << 20
REQUESTS_PER_MESSAGE = 64

_IFADDR = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_IFREQ = struct.Struct("16s24x")
_CACHEINFO = struct.Struct("=IIII")
_SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8927, 0x8933


@dataclass(frozen=True, slots=True)
class Announcement:
    """One frame and its egress interface."""

    device: str
    address: str
    frame: bytes


class AddressBatch:
    """Implements `ctl.network.network.ReadyAddresses`.

    The requests hold the index of an interface and the frames its MAC. Both are compared with the kernel's before each use, at
    2 µs per interface: an interface may have been created again or have another MAC since.
    """

    def __init__(self, addresses: Sequence[InterfaceAddress]) -> None:
        self._all = tuple(addresses)
        self._devices = tuple(dict.fromkeys(each.device for each in addresses))
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        self._link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._netlink.bind((0, 0))
        self._links = self._look()
        self._prepare()

    def _look(self) -> dict[str, tuple[int, bytes]]:
        """Index and MAC of each interface that exists."""
        found = {}
        for device in self._devices:
            try:
                index = fcntl.ioctl(self._link, _SIOCGIFINDEX, _IFREQ.pack(device.encode()[:15]))
                hardware = fcntl.ioctl(self._link, _SIOCGIFHWADDR, _IFREQ.pack(device.encode()[:15]))
            except OSError:
                continue
            found[device] = (struct.unpack_from("=i", index, 16)[0], hardware[18:24])
        return found

    def _refresh(self) -> None:
        links = self._look()
        if links != self._links:
            self._links = links
            self._prepare()

    def _prepare(self) -> None:
        links = self._links
        known = [each for each in self._all if each.device in links]
        self.addresses = tuple(known)
        unknown = [each for each in self._all if each.device not in links]
        self._unknown = [
            f"cannot add {each.address}/{each.prefix_length} on {each.device}: the interface does not exist" for each in unknown
        ]
        rows = [(each, links[each.device][0]) for each in known]
        add = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
        self._add = _pack([_request(RTM_NEWADDR, add, number, *row) for number, row in enumerate(rows)])
        self._remove = _pack([_request(RTM_DELADDR, NLM_F_REQUEST, number, *row) for number, row in enumerate(rows)])
        self._forget = _pack([_forget(number, *row) for number, row in enumerate(rows)])
        self._here = _pack([_local_route(RTM_NEWROUTE, add, number, *row) for number, row in enumerate(rows) if _six(row[0])])
        gone = [_local_route(RTM_DELROUTE, NLM_F_REQUEST, number, *row) for number, row in enumerate(rows) if _six(row[0])]
        self._gone = _pack(gone)
        self._frames = tuple(
            Announcement(each.device, each.address, announcement(each.address, links[each.device][1]))
            for each in known
            if any(links[each.device][1])
        )

    def add(self) -> list[str]:
        self._refresh()
        # The kernel adds the local route of a new IPv6 address later, in a work queue. Until then it would forward packets for
        # the address, including answers to its own neighbour solicitations, and repeat those after a second.
        refused = self._request(self._here, "route", (errno.EEXIST,))
        refused += self._request(self._add, "add", (errno.EEXIST,))
        return self._unknown + refused

    def remove(self) -> list[str]:
        self._refresh()
        # The neighbour entry of the peer for this address is from an earlier epoch. With it, the kernel would send packets
        # before the peer is active; without an entry it queues them until the peer announces the address.
        self._request(self._forget, "forget", (errno.ENOENT, errno.ENODEV))
        refused = self._request(self._remove, "remove", (errno.EADDRNOTAVAIL, errno.ENODEV))
        return refused + self._request(self._gone, "unroute", (errno.ESRCH, errno.ENODEV))

    def announce(self) -> list[str]:
        self._refresh()
        refused = []
        for each in self._frames:
            try:
                self._link.sendto(each.frame, (each.device, 0))
            except OSError as error:
                refused.append(f"cannot announce {each.address} on {each.device}: {error.strerror}")
        return refused

    @property
    def macs(self) -> dict[str, str]:
        return {device: mac.hex(":") for device, (_, mac) in self._links.items()}

    def close(self) -> None:
        self._netlink.close()
        self._link.close()

    def _request(self, messages: Sequence[bytes], verb: str, no_errors: Sequence[int]) -> list[str]:
        """The kernel executes a request during send, and answers with errors only."""
        refused = []
        for message in messages:
            try:
                self._netlink.send(message)
            except OSError as error:
                refused.append(f"cannot {verb} addresses: {error.strerror}")
                break
            refused += self._refusals(verb, no_errors)
        return refused

    def _refusals(self, verb: str, no_errors: Sequence[int]) -> list[str]:
        refused: list[str] = []
        while True:
            try:
                data = self._netlink.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return refused
            except OSError as error:
                return [*refused, f"cannot read the kernel's answer to '{verb} addresses': {error.strerror}"]
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
                code = -struct.unpack_from("=i", data, offset + HEADER.size)[0] if kind == NLMSG_ERROR else 0
                if code and code not in no_errors:
                    each = self.addresses[sequence]
                    refused.append(f"cannot {verb} {each.address}/{each.prefix_length} on {each.device}: {os.strerror(code)}")
                offset += max(HEADER.size, (length + 3) & ~3)


def _pack(requests: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(
        b"".join(requests[start : start + REQUESTS_PER_MESSAGE]) for start in range(0, len(requests), REQUESTS_PER_MESSAGE)
    )


def _request(kind: int, flags: int, sequence: int, address: InterfaceAddress, index: int) -> bytes:
    six = _six(address)
    packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address.address)
    # IPv6: without duplicate address detection, and deprecated from the start; see KernelNetwork.add_addresses.
    body = _IFADDR.pack(socket.AF_INET6 if six else socket.AF_INET, address.prefix_length, IFA_F_NODAD if six else 0, 0, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if six and kind == RTM_NEWADDR:
        body += attribute(IFA_CACHEINFO, _CACHEINFO.pack(0, FOREVER, 0, 0))
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def _forget(sequence: int, address: InterfaceAddress, index: int) -> bytes:
    """A request that deletes the neighbour entry of this address."""
    family = socket.AF_INET6 if _six(address) else socket.AF_INET
    body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + attribute(NDA_DST, socket.inet_pton(family, address.address))
    return HEADER.pack(HEADER.size + len(body), RTM_DELNEIGH, NLM_F_REQUEST, sequence, 0) + body


def _local_route(kind: int, flags: int, sequence: int, address: InterfaceAddress, index: int) -> bytes:
    """A copy of the kernel's local route of an IPv6 address, effective immediately."""
    body = _ROUTE.pack(socket.AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, 0, RTN_LOCAL, 0)
    body += attribute(RTA_DST, socket.inet_pton(socket.AF_INET6, address.address)) + attribute(
        RTA_OIF, struct.pack("=I", index)
    )
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def _six(address: InterfaceAddress) -> bool:
    return ":" in address.address
