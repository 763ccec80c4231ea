"""Where the program handles the frames of a VLAN device: natively on the interface below it, or on the VLAN device itself.

Pure. Decides which VLAN devices can be handled below, and what the program must know of them: by an observation alone, so that
a device that is created again, renamed or gone is followed like any other difference. Must not know how XDP is attached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bpf.constants import MAX_INTERFACES
from bpf.dataplane import Vlan
from ctl.network.network import Interface

_DIRECT = frozenset({"", "veth", "tun", "dummy"})
"""Kinds of devices whose driver runs the program on the frames as they come, with the device as the ingress interface."""

Interfaces = Mapping[str, Interface]


@dataclass(frozen=True, slots=True)
class Plan:
    """How data interfaces are handled in native mode.

    devices: each data interface to the one that has the program. why: of VLAN devices that cannot be handled below, why not.
    """

    devices: Mapping[str, str]
    why: Mapping[str, str]

    @property
    def vlans(self) -> frozenset[str]:
        """The VLAN devices whose frames are handled below them."""
        return frozenset(name for name, device in self.devices.items() if name != device)


def plan(names: Sequence[str], interfaces: Interfaces) -> Plan:
    """Of the data interfaces that exist."""
    devices, why = {}, {}
    for name in names:
        link = interfaces.get(name)
        if link is None:
            continue
        devices[name] = name
        if link.vlan_protocol:
            lower = _lower(link, interfaces)
            reason = _why_not(link, lower)
            if reason or lower is None:
                why[name] = reason
            else:
                devices[name] = lower.name
    return Plan(devices, why)


def maps(names: Sequence[str], interfaces: Interfaces, below: Collection[str]) -> tuple[frozenset[Vlan], frozenset[int]]:
    """The VLANs that the program is to handle, and the interfaces whose untagged frames it handles.

    below: the VLAN devices that are handled below them. One that is down gets no frames, as from the kernel.
    """
    vlans = set()
    for name in below:
        link = interfaces.get(name)
        lower = _lower(link, interfaces) if link is not None else None
        if link is not None and lower is not None and link.up:
            vlans.add(Vlan(link.index, lower.index, link.vlan_id, link.vlan_protocol))
    untagged = {interfaces[name].index for name in names if name in interfaces and name not in below}
    return frozenset(vlans), frozenset(untagged)


def handled_below(names: Sequence[str], interfaces: Interfaces, programs: Collection[int]) -> dict[str, Interface]:
    """The VLAN devices that have no program while the interface below has one of `programs` natively, to that interface."""
    found = {}
    for name, device in plan(names, interfaces).devices.items():
        lower = interfaces[device]
        if name != device and not interfaces[name].xdp_program and lower.xdp_mode == "native" and lower.xdp_program in programs:
            found[name] = lower
    return found


def as_handled(names: Sequence[str], interfaces: Interfaces, programs: Collection[int]) -> Interfaces:
    """The interfaces as they would be if a VLAN device that is handled below had the program itself."""
    below = handled_below(names, interfaces, programs)
    if not below:
        return interfaces
    seen = {
        name: replace(interfaces[name], xdp_program=lower.xdp_program, xdp_mode=lower.xdp_mode, driver=lower.driver)
        for name, lower in below.items()
    }
    return {**interfaces, **seen}


def need_tags(devices: Collection[str], interfaces: Interfaces) -> list[str]:
    """Those of the devices that must not take tags out of frames: with VLAN devices above them."""
    above = {each.lower for each in interfaces.values() if each.vlan_protocol}
    return sorted(name for name in devices if name in interfaces and interfaces[name].index in above)


def _lower(link: Interface, interfaces: Interfaces) -> Interface | None:
    return next((each for each in interfaces.values() if link.lower and each.index == link.lower), None)


def _why_not(link: Interface, lower: Interface | None) -> str:
    if lower is None:
        return "the interface below it is in another network namespace"
    if lower.kind not in _DIRECT:
        return f"{lower.name} below it is of kind {lower.kind}"
    if not link.vlan_id:
        return "its frames, of VLAN 0, are untagged ones to xlb"
    if max(link.index, lower.index) >= MAX_INTERFACES:
        return f"interface indexes from {MAX_INTERFACES} on are not supported below it"
    return ""
