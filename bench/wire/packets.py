"""UDP packets of many flows: the frame that they vary, as bytes. Pure; must not know programs, namespaces or subjects."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

VIP_PORT = 701
SERVER_PORT, SERVER_PORTS = 702, 4
"""Below 1024, which no client has as its source port. Servers listen on SERVER_PORT … SERVER_PORT + SERVER_PORTS - 1."""
PAYLOAD = b"packet of xlb wire"
FIRST_SOURCE = int(ipaddress.IPv4Address("16.0.0.0"))
"""The least significant or only word of the first client's address; `MOST_FLOWS` follow, unicast in IPv4."""
MOST_FLOWS = 1 << 30

_MAC_BYTES, _PORT_BYTES, _UDP = 6, 2, 17


@dataclass(frozen=True, slots=True)
class Family:
    """Offsets in bytes from the start of an Ethernet frame without tags. address_bytes: of one address."""

    version: int
    ether_type: int
    network_bytes: int
    address_bytes: int
    protocol_offset: int
    addresses_offset: int

    @property
    def source_word_offset(self) -> int:
        """Of the 32 bits of the source address that differ between flows."""
        return self.addresses_offset + self.address_bytes - 4

    @property
    def frame_bytes(self) -> int:
        return 14 + self.network_bytes + 8 + len(PAYLOAD)


V4 = Family(4, 0x0800, 20, 4, 23, 26)
V6 = Family(6, 0x86DD, 40, 16, 20, 22)
FAMILIES = {4: V4, 6: V6}


@dataclass(frozen=True, slots=True)
class Template:
    """A frame with zeros in place of what differs, and the sums over it that checksums are made of."""

    frame: bytes
    network_sum: int
    transport_sum: int


def template(family: Family, macs: bytes, source_network: str, destination: str, port: int) -> Template:
    """macs: destination, then source. source_network: its address bits of which the last 32 are zero; ignored for IPv4."""
    source = bytes(4) if family is V4 else ipaddress.IPv6Address(source_network).packed[:12] + bytes(4)
    target = ipaddress.ip_address(destination).packed
    udp = struct.pack("!HHHH", 0, port, 8 + len(PAYLOAD), 0) + PAYLOAD
    if family is V4:
        network = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, _UDP, 0) + source + target
    else:
        network = struct.pack("!IHBB", 6 << 28, len(udp), _UDP, 64) + source + target
    pseudo = source + target + struct.pack("!HH", _UDP, len(udp))
    frame = macs + struct.pack("!H", family.ether_type) + network + udp
    return Template(frame, words(network), words(pseudo + udp))


def words(octets: bytes) -> int:
    """The sum of 16-bit words in network order, not folded: what a one's complement checksum is made of."""
    padded = octets + bytes(len(octets) % 2)
    return sum(struct.unpack(f"!{len(padded) // 2}H", padded))


def definitions(family: Family) -> list[str]:
    """For the compiler of bench/wire/programs.c."""
    values = {
        "FRAME_BYTES": family.frame_bytes,
        "NETWORK_BYTES": family.network_bytes,
        "SOURCE_OFFSET": family.source_word_offset,
        "ADDRESSES_OFFSET": family.addresses_offset,
        "ADDRESS_BYTES": family.address_bytes,
        "PROTOCOL_OFFSET": family.protocol_offset,
        "FIRST_SOURCE": f"{FIRST_SOURCE}U",
        "VIP_PORT": VIP_PORT,
        "SERVER_PORT": SERVER_PORT,
        "SERVER_PORTS": SERVER_PORTS,
    }
    return [f"-D{name}={value}" for name, value in values.items()]
