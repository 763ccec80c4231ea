"""VRRP advertisements that find out what the network between the two nodes lets through.

Does I/O, in threads: every function blocks for at most the seconds it is given. What the outcome means is decided in
`ctl.cluster.pairing.check`.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterator

from sync.errors import WireError
from sync.vrrp import codec as vrrp_codec

PROBE_INTERVAL_S = 0.1
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50


def _vrrp_socket(own: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, vrrp_codec.PROTOCOL)


def send_adverts(own: str, peer: str, device: str, router_id: int, seconds: float) -> None:
    """Advertise to the peer and to the group for `seconds`, under an unused router id. Raises OSError."""
    six = ":" in own
    group = vrrp_codec.GROUP_V6 if six else vrrp_codec.GROUP_V4
    with _vrrp_socket(own) as link:
        index = socket.if_nametoindex(device)
        if six:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
                link.setsockopt(socket.IPPROTO_IPV6, option, vrrp_codec.TTL)
        else:
            membership = struct.pack("=4s4si", bytes(4), socket.inet_aton(own), index)
            link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
            for option in (socket.IP_TTL, socket.IP_MULTICAST_TTL):
                link.setsockopt(socket.IPPROTO_IP, option, vrrp_codec.TTL)
        link.bind((own, 0))
        advert = vrrp_codec.Advertisement(router_id, vrrp_codec.MIN_PRIORITY, 100, (ipaddress.ip_address(own),))
        for _ in range(max(1, round(seconds / PROBE_INTERVAL_S))):
            for target in (peer, group):
                link.sendto(vrrp_codec.build(advert, own, target), (target, 0))
            select.select([], [], [], PROBE_INTERVAL_S)


def hear_adverts(own: str, peer: str, device: str, router_id: int, seconds: float) -> dict[str, bool]:
    """Whether the peer's adverts with this router id come in, by "unicast" and "multicast"; ends early when both do."""
    six = ":" in own
    heard = {"unicast": False, "multicast": False}
    with _vrrp_socket(own) as link:
        index = socket.if_nametoindex(device)
        if six:
            link.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            membership = socket.inet_pton(socket.AF_INET6, vrrp_codec.GROUP_V6) + struct.pack("=I", index)
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        else:
            membership = struct.pack("=4s4si", socket.inet_aton(vrrp_codec.GROUP_V4), socket.inet_aton(own), index)
            link.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        for source, target, ttl, packet in _packets(link, six, seconds):
            try:
                advert = vrrp_codec.parse(packet, source, target, ttl).content
            except WireError:
                continue
            if source == peer and advert.router_id == router_id:
                heard["multicast" if ipaddress.ip_address(target).is_multicast else "unicast"] = True
                if all(heard.values()):
                    break
    return heard


def _packets(link: socket.socket, six: bool, seconds: float) -> Iterator[tuple[str, str, int, bytes]]:
    """Source, destination, TTL and payload of what arrives within so many seconds."""
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0 and select.select([link], [], [], left_s)[0]:
        data, extra, _, sender = link.recvmsg(2048, 256)
        if not six:
            header = (data[0] & 0xF) * 4
            yield socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]), data[8], data[header:]
            continue
        values = {kind: value for level, kind, value in extra if level == socket.IPPROTO_IPV6}
        if _IPV6_PKTINFO in values and socket.IPV6_HOPLIMIT in values:
            target = socket.inet_ntop(socket.AF_INET6, values[_IPV6_PKTINFO][:16])
            (ttl,) = struct.unpack("i", values[socket.IPV6_HOPLIMIT])
            yield sender[0].partition("%")[0], target, ttl, data
