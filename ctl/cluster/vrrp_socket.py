"""A raw socket for VRRPv3 advertisements (RFC 9568) between the two nodes' data addresses.

Does I/O. `sync.vrrp.endpoint` decides what is sent and which packets are the peer's. Unicast to the peer; where multicast is
wanted, to the group of RFC 9568 as well. The addresses are the nodes' own, so XDP leaves these packets to the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable

from ctl.errors import Code, XlbError
from ctl.network.kernel.own_addresses import index_of, source_towards
from ctl.runtime.clock import Clock, monotonic_ns
from sync.errors import WireError
from sync.transport import TOS_NETWORK_CONTROL
from sync.vrrp import codec
from sync.vrrp.authentication import Session
from sync.vrrp.endpoint import Datagram, Endpoint, VrrpCounts

READS_PER_TURN = 64
MAX_PACKET_BYTES = 8192
CONTROL_BYTES = 128
_IP_PKTINFO = 8  # socket.IP_PKTINFO came with Python 3.12

_NOT_THERE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EPERM})

log = logging.getLogger(__name__)


ALARMS = {
    "unsigned": "an older version of xlb runs there, or somebody on the data network pretends to be",
    "forged": "they cannot be verified: somebody on the data network pretends to be",
    "replayed": "they were sent before: somebody on the data network pretends to be",
}


class VrrpSocket:
    """Create on a running loop. `heard(priority, sender_is_greater)` is called for each advertisement of the peer.

    own, peer: addresses of one family, on the data network; device: where multicast leaves, empty for none; virtual: the VIPs
    at this moment, the same object as long as they do not change; session: the pair's keys, None to believe anybody as RFC 9568
    does. Raises XlbError naming what cannot be had.
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
        session: Session | None = None,
        now_ns: Clock = monotonic_ns,
    ) -> None:
        interval_cs = codec.interval_cs(interval_ms * 1_000_000)
        self._endpoint = Endpoint(own, peer, router_id, interval_cs, bool(device), virtual, session, now_ns())
        self._home, self._device, self._virtual = own, device, virtual
        self._heard, self._now_ns = heard, now_ns
        self._six = ":" in own
        self._complaint = ""
        self._loop = asyncio.get_running_loop()
        self._open()

    def _open(self) -> None:
        own, family = self._endpoint.own, socket.AF_INET6 if self._six else socket.AF_INET
        self._index = index_of(self._device)
        try:
            self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, codec.PROTOCOL)
        except OSError as error:
            raise XlbError(
                f"no VRRP socket: {error.strerror}; run xlbd as root or with CAP_NET_RAW", Code.NOT_PERMITTED
            ) from None
        try:
            self._set_up(self._device)
        except OSError as error:
            self._socket.close()
            raise XlbError(
                f"no VRRP from {own} to {self._endpoint.peer}: {error.strerror}; is the address on this node's data network?"
            ) from None
        # Not left to the kernel: for ff02::12 it would take the link-local address, which the peer does not know us by and
        # the checksum was not made for.
        self._from = _source(own)
        self._loop.add_reader(self._socket.fileno(), self.drain)

    def follow(self) -> None:
        """Open the socket again if this node's address on the data network, or the interface of multicast, is another one."""
        own, endpoint = self._own_now(), self._endpoint
        is_open = self._socket.fileno() >= 0
        if not own or (is_open and (own, index_of(self._device)) == (endpoint.own, self._index)):
            return
        self.close()
        if own != endpoint.own:
            log.warning("VRRP is spoken from %s now, not from %s: this node's address was replaced", own, endpoint.own)
            endpoint.move(own, self._now_ns())
        try:
            self._open()
        except XlbError as error:
            self._complain(error.detail)

    def _complain(self, message: str) -> None:
        """Log a message once, until another one takes its place."""
        if message != self._complaint:
            log.error("%s", message)
        self._complaint = message

    def _own_now(self) -> str:
        """The address the pair was made with, or the one that leads to the peer while the node lacks it; empty if none does."""
        peer = self._endpoint.peer
        try:
            return source_towards(peer, own=self._home)
        except OSError:
            pass
        try:
            found = source_towards(peer)
        except OSError:
            return ""
        return "" if found in self._virtual() else found

    @property
    def counts(self) -> VrrpCounts:
        """What the socket has seen since it was opened."""
        return self._endpoint.counts

    def _set_up(self, device: str) -> None:
        one, index = self._socket, socket.if_nametoindex(device) if device else 0
        one.bind((self._endpoint.own, 0)) if not device else None
        if self._six:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, codec.TTL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, TOS_NETWORK_CONTROL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, codec.TTL)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            if device:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
                group = socket.inet_pton(socket.AF_INET6, codec.GROUP_V6) + struct.pack("=I", index)
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            return
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, codec.TTL)
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS_NETWORK_CONTROL)
        if device:
            membership = struct.pack("=4s4si", socket.inet_aton(codec.GROUP_V4), socket.inet_aton(self._endpoint.own), index)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, codec.TTL)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def send(self, priority: int) -> None:
        """One advertisement to the peer, and to the group where multicast is wanted. Not heard is not an error."""
        self._send(self._endpoint.advertisement(priority))

    def greet(self) -> None:
        """To be called with each heartbeat: let the nodes know each other's incarnation where the cluster link does not."""
        self._send(self._endpoint.greeting(self._now_ns()))

    def peer_lives(self, boot: int) -> None:
        """The cluster link brought a heartbeat of this incarnation of the peer."""
        self._endpoint.peer_lives(boot, self._now_ns())

    def shows(self, within_ns: int) -> bool:
        """Whether a peer that does not know of trailers seems to advertise; nothing may depend on it."""
        return self._endpoint.shows(self._now_ns(), within_ns)

    def _send(self, packets: Iterable[Datagram]) -> None:
        for packet, target in packets:
            try:
                self._socket.sendmsg([packet], [self._from], 0, (target, 0))
                self.counts.sent += 1
            except OSError as error:
                self.counts.unsent += 1
                if error.errno not in _NOT_THERE and not isinstance(error, BlockingIOError):
                    log.warning("an advertisement to %s could not be sent: %s", target, error.strerror)

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
        payload, ttl, destination = self._without_header(data, controls)
        try:
            taken = self._endpoint.take(payload, sender, destination, ttl, self._now_ns())
        except WireError as error:
            log.debug("an advertisement of %s was dropped: %s", sender, error)
            return
        if taken.alarm:
            text = "%s advertisements in the name of %s rejected, without effect: %s it"
            log.warning(text, taken.alarm, sender, ALARMS[taken.alarm])
        self._send(taken.answers)
        if taken.priority is not None:
            self._heard(taken.priority, self._endpoint.peer_is_greater)

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
