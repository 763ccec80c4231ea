"""The bed on which frames come and go with VLAN tags: in0, out0 or both are said to be VLAN devices of other interfaces.

    wire0 [ program ] ── VLAN 100 = in0, VLAN 200 = out0

The kernel that runs the tests need not know VLANs: the program learns from its maps which interface is a VLAN device, and asks
the FIB about that. A test of the plain bed runs here unchanged: `send` tags the frame, and checks and removes the tag of what
leaves.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpf.dataplane import Vlan
from tests.bpf.bed import DROP, PASS, REDIRECT, TX, Bed, Outcome
from tests.rig import xdp_pass

PRIORITY = 5
Q, AD = 0x8100, 0x88A8  # 802.1Q, 802.1ad


@dataclass(frozen=True, slots=True)
class Port:
    """How the frames of a side come: by which interface, and with which tag; 0: without one."""

    lower: str
    number: int = 0
    protocol: int = Q

    def tag(self, priority: int = 0) -> bytes:
        if not self.number:
            return b""
        return self.protocol.to_bytes(2, "big") + (priority << 13 | self.number).to_bytes(2, "big")


WIRINGS: Mapping[str, tuple[Port, Port]] = {
    "two interfaces": (Port("wire0", 100), Port("wire1", 200, AD)),
    "one interface": (Port("wire0", 100), Port("wire0", 200)),
    "to untagged": (Port("wire0", 100), Port("out0")),
    "from untagged": (Port("in0"), Port("wire0", 200)),
    "above the other": (Port("out0", 100), Port("out0")),
}
"""How in0 and out0 are connected."""


@dataclass(slots=True)
class TaggedBed(Bed):
    """Wired by `plug`."""

    ports: dict[str, Port] = field(default_factory=dict)
    indexes: dict[str, int] = field(default_factory=dict)

    def _wire(self) -> None:
        Bed._wire(self)
        self.namespace.ip(
            *(f"link add wire{n} type veth peer name far{n}" for n in (0, 1)),
            *(f"link set {end}{n} up" for end in ("wire", "far") for n in (0, 1)),
        )
        # What asks the FIB about the interface below instead of the VLAN device is not forwarded.
        self.namespace.sysctl({f"net.ipv{v}.conf.wire{n}.forwarding": 0 for v in (4, 6) for n in (0, 1)})
        names = ("in0", "out0", "wire0", "wire1")
        self.indexes = {name: self.namespace.interface_index(name) for name in names}

    def _prepare_receive_queues(self) -> None:
        Bed._prepare_receive_queues(self)
        for name in ("wire0", "wire1"):
            self.inside(functools.partial(xdp_pass.attach, self.indexes[name]))

    def plug(self, in0: Port, out0: Port) -> None:
        self.ports = {"in0": in0, "out0": out0}
        index = self.indexes
        vlans = [Vlan(index[name], index[at.lower], at.number, at.protocol) for name, at in self.ports.items() if at.number]
        self.plane.set_vlans(vlans, [index[name] for name, at in self.ports.items() if not at.number])

    def send(self, frame: bytes, side: str = "in0", tags: int = 0) -> Outcome:
        """As if the VLAN device had received and sent the frames. Fails if a tag is wrong, or was not given back."""
        at, removed = self.ports[side], frame[12:14] in (b"\x08\0", b"\x86\xdd", b"\x08\x06")
        came = at.tag(PRIORITY)
        whole, index, _ = self.arriving(frame, side)
        out = self.run(whole, index, (tags + bool(came)) if removed else 0)
        if out.action == PASS:
            assert out.frame[12:].startswith(came), f"the kernel gets {out.frame.hex()}"
            return self._without(out, came, PASS)
        if out.action == DROP:
            return out if removed else self._without(out, came, DROP)
        leaves = self._egress(out, side)
        same = self.ports[leaves].lower == at.lower
        assert out.action == (TX if same else REDIRECT), f"from {side} to {leaves} by XDP action {out.action}"
        return self._without(out, self.ports[leaves].tag(), TX if leaves == side else REDIRECT)

    def arriving(self, frame: bytes, side: str) -> tuple[bytes, int, int]:
        at = self.ports[side]
        tag = at.tag(PRIORITY)
        return frame[:12] + tag + frame[12:], self.indexes[at.lower], len(tag)

    def _egress(self, out: Outcome, side: str) -> str:
        """The side by which a frame left, by its tag."""
        other = "out0" if side == "in0" else "in0"
        if out.verdict == "forward_redirect":
            leaves = other
        elif out.verdict == "forward_icmp_error":
            tag = self.ports[other].tag()
            leaves = other if out.frame[12:].startswith(tag or self._types()) else side
        else:
            leaves = side
        expected = self.ports[leaves].tag()
        untagged = out.frame[12:14] in self._types()
        assert out.frame[12:].startswith(expected) if expected else untagged, f"{out.verdict}: {out.frame[:22].hex()}"
        return leaves

    def _types(self) -> tuple[bytes, ...]:
        return b"\x08\0", b"\x86\xdd"

    def _without(self, out: Outcome, tag: bytes, action: int) -> Outcome:
        return Outcome(out.verdict, action, out.frame[:12] + out.frame[12 + len(tag) :], out.moved)
