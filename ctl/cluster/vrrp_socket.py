"""A raw socket for VRRPv3 advertisements (RFC 9568) between the two nodes' data addresses.

Does I/O and checks what the RFC asks of a receiver before anything is parsed: protocol 112, TTL 255 (it crossed no router),
the peer's address. `sync.failover.vrrp_codec` decides what an advertisement contains. Unicast to the peer; where multicast is
wanted, to the group of RFC 9568 as well. The addresses are the nodes' own, so XDP leaves these packets to the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ctl.errors import Code, XlbError
from sync.errors import WireError
from sync.failover import vrrp_codec
from sync.transport import TOS_NETWORK_CONTROL

READS_PER_TURN = 64
MAX_PACKET_BYTES = 8192
CONTROL_BYTES = 128
_IP_PKTINFO = 8  # socket.IP_PKTINFO came with Python 3.12

_NOT_THERE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EPERM})

log = logging.getLogger(__name__)


@dataclass(slots=True)
class VrrpCounts:
    """What the socket has seen since it was opened."""

    sent: int = 0
    unsent: int = 0
    received: int = 0
    foreign: int = 0  # not from the peer, or of another virtual router
    malformed: int = 0


class VrrpSocket:
    """Create on a running loop. `heard(priority, sender_is_greater)` is called for each advertisement of the peer.

    own, peer: addresses of one family, on the data network; device: where multicast leaves, empty for none; virtual: the VIPs
    at this moment, the same object as long as they do not change. Raises XlbError naming what cannot be had.
    """

    def __init__(
        self,
        own: str,
        peer: str,
        router_id: int,
        interval_ms: int,
        device: str,
        virtual: Callable[[], Collection[str]],
        heard: Callable[[int, bool], None],
    ) -> None:
        self.counts = VrrpCounts()
        self._own, self._peer = own, peer
        self._router_id, self._interval_cs = router_id, vrrp_codec.interval_cs(interval_ms * 1_000_000)
        self._virtual, self._heard = virtual, heard
        self._built_for: object = None
        self._six = ":" in own
        self._greater = ipaddress.ip_address(peer).packed > ipaddress.ip_address(own).packed
        family = socket.AF_INET6 if self._six else socket.AF_INET
        try:
            self._socket = socket.socket(
                family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, vrrp_codec.PROTOCOL
            )
        except OSError as error:
            raise XlbError(
                f"no VRRP socket: {error.strerror}; run xlbd as root or with CAP_NET_RAW", Code.NOT_PERMITTED
            ) from None
        try:
            self._set_up(device)
        except OSError as error:
            self._socket.close()
            raise XlbError(
                f"no VRRP from {own} to {peer}: {error.strerror}; is the address on this node's data network?"
            ) from None
        # Not left to the kernel: for ff02::12 it would take the link-local address, which the peer does not know us by and
        # the checksum was not made for.
        self._from = _source(own)
        self._targets = [peer, *([vrrp_codec.GROUP_V6 if self._six else vrrp_codec.GROUP_V4] if device else [])]
        self._frames: dict[int, list[tuple[bytes, str]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self.drain)

    def _set_up(self, device: str) -> None:
        one, index = self._socket, socket.if_nametoindex(device) if device else 0
        one.bind((self._own, 0)) if not device else None
        if self._six:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, vrrp_codec.TTL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, TOS_NETWORK_CONTROL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, vrrp_codec.TTL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            if device:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
                group = socket.inet_pton(socket.AF_INET6, vrrp_codec.GROUP_V6) + struct.pack("=I", index)
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            return
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, vrrp_codec.TTL)
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS_NETWORK_CONTROL)
        if device:
            membership = struct.pack("=4s4si", socket.inet_aton(vrrp_codec.GROUP_V4), socket.inet_aton(self._own), index)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, vrrp_codec.TTL)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def send(self, priority: int) -> None:
        """One advertisement to the peer, and to the group where multicast is wanted. Not heard is not an error."""
        for packet, target in self._packets(priority):
            try:
                self._socket.sendmsg([packet], [self._from], 0, (target, 0))
                self.counts.sent += 1
            except OSError as error:
                self.counts.unsent += 1
                if error.errno not in _NOT_THERE and not isinstance(error, BlockingIOError):
                    log.warning("an advertisement to %s could not be sent: %s", target, error.strerror)

    def _packets(self, priority: int) -> list[tuple[bytes, str]]:
        virtual = self._virtual()
        if virtual is not self._built_for:
            self._built_for = virtual
            self._frames.clear()
        if priority not in self._frames:
            own = ipaddress.ip_address(self._own)
            of_family = [each for each in map(ipaddress.ip_address, virtual) if each.version == own.version]
            addresses = tuple(of_family[: vrrp_codec.MAX_ADDRESSES]) or (own,)  # an advertisement without any is malformed
            advert = vrrp_codec.Advertisement(self._router_id, priority, self._interval_cs, addresses)
            self._frames[priority] = [(vrrp_codec.build(advert, self._own, target), target) for target in self._targets]
        return self._frames[priority]

    def drain(self) -> None:
        """Hand over the advertisements that have arrived."""
        for _ in range(READS_PER_TURN):
            if self._socket.fileno() < 0:
                return
            try:
                data, controls, _, sender = self._socket.recvmsg(MAX_PACKET_BYTES, CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an earlier advertisement
            self._take(data, controls, sender[0].partition("%")[0])

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _take(self, data: bytes, controls: list[tuple[int, int, bytes]], sender: str) -> None:
        if sender != self._peer:
            self.counts.foreign += 1
            return
        payload, ttl, destination = self._without_header(data, controls)
        try:
            advert = vrrp_codec.parse(payload, sender, destination, ttl)
        except WireError as error:
            self.counts.malformed += 1
            log.debug("an advertisement of %s was dropped: %s", sender, error)
            return
        if advert.router_id != self._router_id:
            self.counts.foreign += 1
            return
        self.counts.received += 1
        self._heard(advert.priority, self._greater)

    def _without_header(self, data: bytes, controls: list[tuple[int, int, bytes]]) -> tuple[bytes, int, str]:
        """(VRRP packet, TTL, destination): an IPv4 raw socket delivers the IP header, an IPv6 one does not."""
        if self._six:
            found = {kind: value for level, kind, value in controls if level == socket.IPPROTO_IPV6}
            ttl = int.from_bytes(found.get(socket.IPV6_HOPLIMIT, b""), sys.byteorder)
            target = found.get(socket.IPV6_PKTINFO, bytes(16))[:16]
            return data, ttl, socket.inet_ntop(socket.AF_INET6, target)
        if len(data) < 20:
            return b"", 0, ""
        return data[(data[0] & 0xF) * 4 :], data[8], socket.inet_ntoa(data[16:20])


def _source(own: str) -> tuple[int, int, bytes]:
    """The ancillary datum that makes a packet leave with this source address (ip(7), RFC 3542 6.2)."""
    if ":" in own:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(socket.AF_INET6, own) + bytes(4)
    return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + socket.inet_aton(own) + bytes(4)
