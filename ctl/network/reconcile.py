"""Compares what the kernel should have with what it has, and returns the repairs.

Pure: values in, values out. Nothing here remembers what was done before, so that a lost notification, a re-created interface
or another program's change is repaired like any other difference, and a repair that failed is returned again by the next pass.
`ctl.node.reconciler` observes and carries out. An address that is not a VIP of this node is never removed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctl.network.network import Interface, InterfaceAddress, Observed, Setting

PROMOTE = "ipv4/conf/{}/promote_secondaries"


@dataclass(frozen=True, slots=True)
class DesiredVips:
    """here: VIPs that must be on their interfaces now; ours: those that xlb may remove, present or not.

    vanished: addresses of the node that went with a VIP when xlb removed it.
    """

    here: frozenset[InterfaceAddress]
    ours: frozenset[InterfaceAddress]
    vanished: frozenset[InterfaceAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should have.

    program: id of xlb's pinned program, 0: unknown. other_builds: ids of older ones on interfaces. level: if one interface is
    in generic mode, all must be. vips: None while they are being moved. announced: MAC of each interface as last announced.
    carriers: of tracked interfaces, as the failover machine knows them.
    """

    interfaces: tuple[str, ...]
    program: int = 0
    other_builds: frozenset[int] = frozenset()
    level: bool = True
    vips: DesiredVips | None = None
    announced: Mapping[str, str] | None = None
    carriers: Mapping[str, bool] | None = None
    next_hops: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class AttachXdp:
    """No program of xlb, an older one, or the program in a mode that does not fit the other interfaces."""

    interface: str
    was: str


@dataclass(frozen=True, slots=True)
class YieldXdp:
    """Another program took the place of xlb's: it is not fought over, and this interface does not balance."""

    interface: str
    program: int


@dataclass(frozen=True, slots=True)
class CorrectSetting:
    """A sysctl is not as forwarding requires."""

    setting: Setting
    value: str


@dataclass(frozen=True, slots=True)
class AddVip:
    """A VIP is missing on its interface."""

    address: InterfaceAddress


@dataclass(frozen=True, slots=True)
class RemoveVip:
    """A VIP of ours is where it does not belong now."""

    address: InterfaceAddress


@dataclass(frozen=True, slots=True)
class DemoteVips:
    """A VIP is the primary address that carries `own`: remove and add the VIPs of the subnet, and `own` is primary."""

    own: InterfaceAddress
    addresses: frozenset[InterfaceAddress]


@dataclass(frozen=True, slots=True)
class RestoreAddress:
    """An address of the node went when a VIP was removed."""

    address: InterfaceAddress


@dataclass(frozen=True, slots=True)
class AnnounceVips:
    """The MAC of an interface with VIPs changed, or it had no carrier (`was` is empty): the neighbours must learn it."""

    interface: str
    was: str
    mac: str


@dataclass(frozen=True, slots=True)
class TellCarrier:
    """The failover machine does not know the carrier of a tracked interface as it is."""

    interface: str
    carrier: bool


@dataclass(frozen=True, slots=True)
class ResolveNeighbours:
    """Next hops that the kernel does not keep resolved."""

    neighbours: frozenset[tuple[int, str]]


VipRepair = AddVip | RemoveVip | DemoteVips | RestoreAddress
Repair = AttachXdp | YieldXdp | CorrectSetting | VipRepair | AnnounceVips | TellCarrier | ResolveNeighbours


def reconcile(desired: Desired, observed: Observed) -> list[Repair]:
    """The repairs, in the order in which they should be made: settings first, since the others rely on them."""
    repairs: list[Repair] = [
        CorrectSetting(setting, value) for setting, value in observed.settings.items() if setting.is_wrong(value)
    ]
    repairs += _xdp(desired, observed.interfaces)
    if desired.vips is not None:
        repairs += vip_repairs(desired.vips, observed)
    repairs += _announcements(desired, observed.interfaces)
    for name, known in sorted((desired.carriers or {}).items()):
        carrier = has_carrier(observed.interfaces.get(name))
        if carrier != known:
            repairs.append(TellCarrier(name, carrier))
    if observed.neighbours is not None:
        indexes = {each.index for each in observed.interfaces.values() if has_carrier(each)}
        missing = frozenset(each for each in desired.next_hops if each[0] in indexes) - observed.neighbours
        if missing:
            repairs.append(ResolveNeighbours(missing))
    return repairs


def has_carrier(interface: Interface | None) -> bool:
    """Whether frames can leave and arrive."""
    return interface is not None and interface.up and interface.carrier


def _xdp(desired: Desired, interfaces: Mapping[str, Interface]) -> Iterator[AttachXdp | YieldXdp]:
    if not desired.program:
        return
    present = [interfaces[name] for name in desired.interfaces if name in interfaces]
    ours = [each for each in present if each.xdp_program == desired.program]
    level = desired.level and any(each.xdp_mode == "generic" for each in ours)
    for each in present:
        if each.xdp_program == desired.program:
            if level and each.xdp_mode == "native":
                yield AttachXdp(each.name, "native, while another interface is in generic mode")
        elif not each.xdp_program:
            yield AttachXdp(each.name, "without a program")
        elif each.xdp_program in desired.other_builds:
            yield AttachXdp(each.name, f"with another build, program {each.xdp_program}")
        else:
            yield YieldXdp(each.name, each.xdp_program)


def vip_repairs(desired: DesiredVips, observed: Observed) -> Iterator[VipRepair]:
    """Put back, remove and demote. What is on an interface that does not exist cannot be repaired."""
    present = observed.addresses
    for address in sorted(desired.vanished - set(present), key=_order):
        if address.device in observed.interfaces:
            yield RestoreAddress(address)
    for address in sorted((desired.ours - desired.here) & set(present), key=_order):
        yield RemoveVip(address)
    for address in sorted(desired.here - set(present), key=_order):
        if address.device in observed.interfaces:
            yield AddVip(address)
    yield from _demotions(desired, observed)


def _demotions(desired: DesiredVips, observed: Observed) -> Iterator[DemoteVips]:
    movable = desired.here & desired.ours & set(observed.addresses)
    if all(observed.addresses[each] for each in movable if not _is_six(each)):
        return  # the usual case: no VIP is primary
    promotes = {setting.path: value for setting, value in observed.settings.items()}
    for own, subnet in sorted(at_risk(desired, observed).items(), key=lambda item: _order(item[0])):
        if promotes.get(PROMOTE.format(own.device)) == "1" and any(not observed.addresses[each] for each in subnet & movable):
            yield DemoteVips(own, subnet & movable)


def at_risk(desired: DesiredVips, observed: Observed) -> dict[InterfaceAddress, frozenset[InterfaceAddress]]:
    """Addresses of the node that a VIP of ours may carry, to the VIPs of their subnet: where these are removed, verify.

    The kernel makes the first IPv4 address of a subnet on an interface primary and the others its secondaries; IPv6 has none.
    """
    by_subnet: dict[tuple[str, str], set[InterfaceAddress]] = {}
    for each in desired.ours:
        if not _is_six(each):
            by_subnet.setdefault(_subnet(each), set()).add(each)
    if not by_subnet:
        return {}
    found = {}
    for each, secondary in observed.addresses.items():
        if secondary and each not in desired.ours and not _is_six(each):
            vips = by_subnet.get(_subnet(each))
            if vips:
                found[each] = frozenset(vips)
    return found


def _announcements(desired: Desired, interfaces: Mapping[str, Interface]) -> Iterator[AnnounceVips]:
    for name, mac in sorted((desired.announced or {}).items()):
        now = interfaces.get(name)
        if now is not None and has_carrier(now) and now.mac != mac:
            yield AnnounceVips(name, mac, now.mac)


def _subnet(address: InterfaceAddress) -> tuple[str, str]:
    return address.device, str(ipaddress.ip_network(f"{address.address}/{address.prefix_length}", strict=False))


def _is_six(address: InterfaceAddress) -> bool:
    return ":" in address.address


def _order(address: InterfaceAddress) -> tuple[str, str, int]:
    return address.device, address.address, address.prefix_length
