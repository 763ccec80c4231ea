"""A frame and what its headers say (RFC 791, RFC 8200, RFC 9293, RFC 768), and checksums (RFC 1071, RFC 1624).

Parsing ends early with the verdict that a packet with these headers gets if it is for a VIP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from bpf.constants import MAX_IPV6_EXTENSIONS
from tests.model.state import Key

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS)
FIN, SYN, RST, ACK = 1, 2, 4, 16
IP = 14  # where the IP header begins, in a frame without tags


class Verdict(Exception):
    """The packet's path ends here."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(slots=True)
class Packet:
    """`frame` is what leaves; before it is rewritten, what came."""

    frame: bytearray
    ingress: int
    size: int = 0  # bytes of the frame as it came, without priority tags
    farm: int = 0  # that a drop is counted for
    ip_bytes: int = 0
    transport: int = 0  # where the TCP, UDP or ICMP header begins
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    is_fragment: bool = False
    is_later: bool = False  # a fragment without ports
    fragment_id: bytes = bytes(4)
    flags: int = 0  # TCP
    ports: tuple[int, int] = (0, 0)
    egress: int = 0
    mtu: int = 0  # that was exceeded
    is_tagged: bool = False  # it came with the tag of a VLAN, and no other
    established: bool = False
    key: Key = field(default=Key(b"", b"", 0, 0, 0))

    @property
    def is_v4(self) -> bool:
        return len(self.source) == 4

    @property
    def icmp_protocol(self) -> int:
        return ICMP if self.is_v4 else ICMPV6

    @property
    def hop_limit(self) -> int:
        return self.frame[IP + (8 if self.is_v4 else 7)]

    @property
    def is_syn(self) -> bool:
        return self.flags & (SYN | ACK) == SYN

    @property
    def is_midstream(self) -> bool:
        return self.protocol == TCP and not self.is_syn

    @property
    def fragment_key(self) -> Key:
        """Of all fragments of the datagram: the identification takes the place of the ports."""
        one, two = struct.unpack(">HH", self.fragment_id)
        return Key(self.source, self.destination, one, two, self.protocol if self.is_v4 else FRAGMENT)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.frame[offset : offset + 2])

    def within(self, offset: int) -> bool:
        return offset <= self.size

    def flow_key(self) -> Key:
        return Key(self.source, self.destination, *self.ports, self.protocol)


def parse_v4(packet: Packet) -> None:
    frame = packet.frame
    if not packet.within(IP + 20):
        raise Verdict("drop_malformed")
    packet.source, packet.destination = bytes(frame[IP + 12 : IP + 16]), bytes(frame[IP + 16 : IP + 20])
    packet.protocol = frame[IP + 9]
    header_bytes = (frame[IP] & 15) * 4
    packet.ip_bytes = packet.word(IP + 2)
    whole = header_bytes <= packet.ip_bytes and packet.within(IP + packet.ip_bytes)
    if frame[IP] >> 4 != 4 or header_bytes < 20 or not whole:
        raise Verdict("drop_malformed")
    packet.transport = IP + header_bytes
    packet.fragment_id = bytes(frame[IP + 4 : IP + 6]) + bytes(2)
    packet.is_fragment, packet.is_later = bool(packet.word(IP + 6) & 0x3FFF), bool(packet.word(IP + 6) & 0x1FFF)
    if packet.is_later:
        raise Verdict("drop_fragment")
    parse_transport(packet)


def parse_v6(packet: Packet) -> None:
    frame = packet.frame
    if not packet.within(IP + 40):
        raise Verdict("drop_malformed")
    packet.source, packet.destination = bytes(frame[IP + 8 : IP + 24]), bytes(frame[IP + 24 : IP + 40])
    packet.ip_bytes = 40 + packet.word(IP + 4)
    if frame[IP] >> 4 != 6 or not packet.within(IP + packet.ip_bytes):
        raise Verdict("drop_malformed")
    packet.protocol, packet.transport = skip_extensions(packet, IP + 40, frame[IP + 6])
    if packet.transport > IP + packet.ip_bytes:
        raise Verdict("drop_malformed")
    parse_transport(packet)


def skip_extensions(packet: Packet, at: int, protocol: int) -> tuple[int, int]:
    """Protocol and offset of what follows the extension headers."""
    for _ in range(MAX_IPV6_EXTENSIONS + 1):
        if protocol not in EXTENSIONS:
            return protocol, at
        packet.protocol = protocol
        if not packet.within(at + 8):
            raise Verdict("drop_malformed")
        following, length = packet.frame[at], packet.frame[at + 1]
        if protocol == ROUTING and packet.frame[at + 3]:  # segments left: another destination comes
            raise Verdict("drop_ipv6_extension")
        if protocol == FRAGMENT:
            if length:
                raise Verdict("drop_ipv6_extension")
            offset = packet.word(at + 2)
            packet.fragment_id = bytes(packet.frame[at + 4 : at + 8])
            packet.protocol = following
            packet.is_later = offset >> 3 > 0
            packet.is_fragment = packet.is_later or bool(offset & 1)  # neither: an only fragment (RFC 6946)
            if packet.is_later:
                raise Verdict("drop_fragment")
        protocol, at = following, at + 8 + 8 * length
    raise Verdict("drop_ipv6_extension")


def parse_transport(packet: Packet) -> None:
    """The header must be whole, in a first fragment too (RFC 8200 4.5, RFC 1858), and the lengths must agree."""
    at, payload = packet.transport, IP + packet.ip_bytes - packet.transport
    if packet.protocol == TCP:
        if payload < 20 or not 20 <= (packet.frame[at + 12] >> 4) * 4 <= payload:
            raise Verdict("drop_malformed")
        packet.flags = packet.frame[at + 13]
    elif packet.protocol == UDP:
        if payload < 8 or packet.word(at + 4) < 8 or (not packet.is_fragment and packet.word(at + 4) > payload):
            raise Verdict("drop_malformed")
    else:
        return
    packet.ports = packet.word(at), packet.word(at + 2)


def segment_bytes(packet: Packet) -> int:
    """Payload of a TCP segment."""
    return IP + packet.ip_bytes - packet.transport - (packet.frame[packet.transport + 12] >> 4) * 4


# --- checksums -----------------------------------------------------------------------------------------------


def word_sum(data: bytes | bytearray) -> int:
    return sum(struct.unpack(f">{len(data) // 2}H", data))


def folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~folded(word_sum(data + bytes(len(data) & 1))) & 0xFFFF


def difference(before: bytes | bytearray, after: bytes | bytearray) -> int:
    """RFC 1624: what is added to the complement of a checksum when words change."""
    return folded(word_sum(after) + 0xFFFF * (len(before) // 2) - word_sum(before))


def change_checksum(frame: bytearray, at: int, delta: int, udp: bool = False) -> None:
    """Of UDP, 0 means that there is none (RFC 768)."""
    old = int.from_bytes(frame[at : at + 2])
    if udp and old == 0:
        return
    new = ~folded((~old & 0xFFFF) + delta) & 0xFFFF
    frame[at : at + 2] = (new or 0xFFFF if udp else new).to_bytes(2)
