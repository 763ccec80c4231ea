"""VLAN tags (IEEE 802.1Q, 802.1ad): which interface a frame belongs to, the tag of what leaves. docs/DATAPLANE.md, step 1."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpf.constants import MAX_PRIORITY_TAGS
from tests.model.packet import Packet, Verdict
from tests.model.state import State

IPV4, IPV6, ARP, TAGS = 0x0800, 0x86DD, 0x0806, (0x8100, 0x88A8)


@dataclass(frozen=True, slots=True)
class Device:
    """A VLAN device: the interface below it, and its tag."""

    lower: int
    number: int
    protocol: int

    @property
    def tag(self) -> bytes:
        return self.protocol.to_bytes(2) + self.number.to_bytes(2)


@dataclass(slots=True)
class Vlans:
    """devices: by index. tagged_only: interfaces whose untagged frames are the kernel's."""

    devices: dict[int, Device] = field(default_factory=dict)
    tagged_only: set[int] = field(default_factory=set)

    def device(self, lower: int, number: int, protocol: int) -> int:
        """Its index. Raises pass_not_ip: there is none."""
        wanted = Device(lower, number, protocol)
        found = next((index for index, each in self.devices.items() if each == wanted), 0)
        if not found:
            raise Verdict("pass_not_ip")
        return found


def receive(state: State, packet: Packet) -> bytes:
    """Removes the tags and returns them. packet.ingress becomes the interface that the frame belongs to.

    Tags of VLAN 0 are removed as Linux does. A frame of a VLAN that is not known is not ours.
    """
    vlans = state.vlans
    most = MAX_PRIORITY_TAGS if vlans is None else MAX_PRIORITY_TAGS + 1
    at, tags, own = 12, 0, (0, 0)  # own: number and protocol of the tag that is not of VLAN 0
    while packet.word(at) in TAGS and tags < most:
        if not packet.within(at + 6):
            raise Verdict("pass_not_ip")
        if number := packet.word(at + 2) & 0xFFF:
            if vlans is None or own[0]:
                raise Verdict("pass_not_ip")
            own = number, packet.word(at)
        at, tags = at + 4, tags + 1
    if own[0] and vlans:
        packet.ingress = vlans.device(packet.ingress, *own)
    elif vlans and packet.ingress in vlans.tagged_only:
        raise Verdict("pass_not_ip")
    if packet.word(at) in TAGS:
        raise Verdict("pass_not_ip" if state.is_open else "drop_fenced")
    if packet.word(at) not in (IPV4, IPV6, ARP):
        return b""
    removed = bytes(packet.frame[12:at])
    del packet.frame[12:at]
    packet.is_tagged = own[0] > 0 and len(removed) == 4
    packet.size -= len(removed)
    return removed


def leave(state: State, packet: Packet) -> None:
    """What leaves by a VLAN device gets its tag, and leaves by the interface below."""
    device = state.vlans.devices.get(packet.egress) if state.vlans else None
    if device:
        packet.egress = device.lower
        packet.frame[12:12] = device.tag
