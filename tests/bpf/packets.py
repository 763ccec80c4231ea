"""Frames in and expected frames out, built by scapy, which computes every checksum from scratch."""

from __future__ import annotations

import ipaddress
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from bpf.constants import Mode, Protocol
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, V4, Family

NAT_MODES = (Mode.SNAT, Mode.DNAT)
IDENTIFICATION = 0x1234
PAYLOAD = b"xlb: odd number of bytes."


def network(family: Family, source: str, destination: str, ttl: int = 64, **fields: Any) -> Packet:
    if family is V4:
        return IP(src=source, dst=destination, ttl=ttl, **fields)
    return IPv6(src=source, dst=destination, hlim=ttl, **fields)


def transport(protocol: int, source_port: int, destination_port: int, flags: str = "A", **fields: Any) -> Packet:
    if protocol == Protocol.UDP:
        return UDP(sport=source_port, dport=destination_port, **fields)
    return TCP(sport=source_port, dport=destination_port, flags=flags, seq=7, ack=9, window=1000, **fields)


def from_client(
    family: Family,
    protocol: int = Protocol.TCP,
    flags: str = "S",
    *,
    source: str = "",
    source_port: int = 40000,
    destination: str = "",
    port: int = 80,
    payload: bytes = PAYLOAD,
    ttl: int = 64,
    **fields: Any,
) -> Packet:
    """A client's frame to a VIP, as the gateway hands it to the node."""
    ip = network(family, source or family.client, destination or family.vip, ttl, **fields)
    return Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC) / ip / transport(protocol, source_port, port, flags) / Raw(payload)


def from_backend(
    family: Family,
    source: str,
    destination: str,
    destination_port: int,
    protocol: int = Protocol.TCP,
    flags: str = "SA",
    *,
    port: int = 8080,
    source_mac: str = "02:00:00:00:02:0b",
    node_mac: str = NODE_OUT_MAC,
    payload: bytes = PAYLOAD,
    ttl: int = 64,
) -> Packet:
    """A backend's frame to the address it sees as the client."""
    ip = network(family, source, destination, ttl)
    return Ether(src=source_mac, dst=node_mac) / ip / transport(protocol, port, destination_port, flags) / Raw(payload)


def rewritten(
    packet: Packet,
    source: tuple[str, int],
    destination: tuple[str, int],
    macs: tuple[str, str] | None,
    hops: int = 1,
) -> bytes:
    """`packet` with other addresses and ports, TTL less `hops`, checksums from scratch. macs: source, destination."""
    out = packet.copy()
    if macs:
        out[Ether].src, out[Ether].dst = macs
    ip = out[IP] if IP in out else out[IPv6]
    ip.src, ip.dst = source[0], destination[0]
    if IP in out:
        ip.ttl -= hops
        del ip.chksum
    else:
        ip.hlim -= hops
    layer = out[TCP] if TCP in out else out[UDP]
    layer.sport, layer.dport = source[1], destination[1]
    if not (UDP in out and out[UDP].chksum == 0):
        del layer.chksum
    return bytes(out)


def arp(target: str, operation: int = 1) -> bytes:
    request = ARP(op=operation, hwsrc=GATEWAY_MAC, psrc="10.1.0.254", pdst=target)
    return bytes(Ether(src=GATEWAY_MAC, dst="ff:ff:ff:ff:ff:ff") / request)


def solicitation(target: str) -> bytes:
    last_bytes = int(ipaddress.ip_address(target)) & 0xFFFFFF
    multicast = str(ipaddress.ip_address(int(ipaddress.ip_address("ff02::1:ff00:0")) | last_bytes))
    packet = Ether(src=GATEWAY_MAC) / IPv6(src="fd01::fe", dst=multicast, hlim=255) / ICMPv6ND_NS(tgt=target)
    return bytes(packet)


def echo_request(family: Family, destination: str) -> bytes:
    ping = ICMP(type=8, id=1, seq=1) if family is V4 else ICMPv6EchoRequest(id=1, seq=1)
    return bytes(Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC) / network(family, family.client, destination) / ping / Raw(PAYLOAD))


def icmp_error(
    family: Family, destination: str, quoted: Packet, source: str = "", macs: tuple[str, str] = (GATEWAY_MAC, NODE_IN_MAC)
) -> bytes:
    """An error from `source` (default: the client) to `destination`: `quoted` was too long. macs: source, destination."""
    error = ICMP(type=3, code=4, nexthopmtu=1000) if family is V4 else ICMPv6PacketTooBig(mtu=1280)
    return bytes(Ether(src=macs[0], dst=macs[1]) / network(family, source or family.client, destination) / error / quoted)


def cut(packet: Packet, size: int = 1000) -> list[bytes]:
    """The frames of a datagram in fragments with `size` bytes of data each."""
    ethernet = Ether(src=packet.src, dst=packet.dst)
    if IP in packet:
        packet[IP].id = IDENTIFICATION
        return [bytes(ethernet / part) for part in fragment(IP(bytes(packet[IP])), size)]  # type: ignore[no-untyped-call]
    # scapy replaces the fragment header that it is given
    whole = IPv6(bytes(packet[IPv6]))
    upper = whole.payload
    with_header = IPv6(src=whole.src, dst=whole.dst, hlim=whole.hlim) / IPv6ExtHdrFragment(id=IDENTIFICATION) / upper
    return [bytes(ethernet / part) for part in fragment6(with_header, size + 48)]  # type: ignore[no-untyped-call]
