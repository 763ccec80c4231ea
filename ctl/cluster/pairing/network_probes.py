"""Frames and packets that find out what the network between and around the two nodes lets through.

Does I/O, in threads: every function blocks for at most the seconds it is given. What the outcome means is decided in
`ctl.cluster.pairing.check`.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from ctl.network.kernel.announcements import ETH_P_ARP, ETH_P_IPV6, internet_checksum
from sync.errors import WireError
from sync.vrrp import codec as vrrp_codec

MAX_PROBED = 64
PROBE_INTERVAL_S = 0.1
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT, _ICMPV6 = 135, 136, 58
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50


def arp_probe(address: str, mac: bytes) -> bytes:
    """RFC 5227 section 2.1.1: an ARP probe with an empty sender address, so that no cache changes."""
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + bytes(4) + bytes(6) + socket.inet_aton(address)
    return (b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP) + arp).ljust(60, b"\0")


def solicitation_probe(address: str, mac: bytes) -> bytes:
    """RFC 4862 section 5.4.2: duplicate address detection, from the unspecified address."""
    target = socket.inet_pton(socket.AF_INET6, address)
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + target[13:]
    body = struct.pack("!BBHI", _NEIGHBOUR_SOLICITATION, 0, 0, 0) + target
    pseudo = bytes(16) + group + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + bytes(16) + group
    return b"\x33\x33" + group[12:] + mac + struct.pack("!H", ETH_P_IPV6) + ip + body


def claimed_by(frame: bytes) -> tuple[str, str] | None:
    """(address, MAC) that a frame claims: any ARP packet's sender, or the target of a neighbour advertisement; else None."""
    kind = frame[12:14]
    mac = frame[6:12].hex(":")
    if kind == struct.pack("!H", ETH_P_ARP) and len(frame) >= 42 and frame[14:20] == b"\x00\x01\x08\x00\x06\x04":
        return socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":")
    if kind == struct.pack("!H", ETH_P_IPV6) and len(frame) >= 78 and frame[20] == _ICMPV6:
        return (socket.inet_ntop(socket.AF_INET6, frame[62:78]), mac) if frame[54] == _NEIGHBOUR_ADVERTISEMENT else None
    return None


def find_duplicates(device: str, own_mac: str, addresses: Sequence[str], seconds: float) -> dict[str, str]:
    """Addresses that another machine on the link has: address to MAC. Raises OSError."""
    mac = bytes.fromhex(own_mac.replace(":", ""))
    wanted, found = set(addresses[:MAX_PROBED]), dict[str, str]()
    with ExitStack() as stack:
        sockets = []
        for protocol in (ETH_P_ARP, ETH_P_IPV6):
            link = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC))
            link.bind((device, protocol))
            sockets.append(link)
        deadline_s, probe_s = time.monotonic() + seconds, 0.0
        while (now_s := time.monotonic()) < deadline_s:
            if now_s >= probe_s:
                probe_s = now_s + seconds / 3  # three probes, as RFC 5227 has it
                for address in sorted(wanted):
                    sockets[0].send(solicitation_probe(address, mac) if ":" in address else arp_probe(address, mac))
            for link in select.select(sockets, [], [], min(deadline_s, probe_s) - now_s if probe_s > now_s else 0)[0]:
                claim = claimed_by(link.recv(2048))
                if claim and claim[0] in wanted and claim[1] != own_mac:
                    found[claim[0]] = claim[1]
    return found


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
