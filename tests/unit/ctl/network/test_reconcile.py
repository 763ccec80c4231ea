"""The comparison of desired with observed state, on a small model of the kernel: repairs converge and harm nobody's address."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from ctl.network.network import Interface, InterfaceAddress, Observed, Setting
from ctl.network.opposition import MAX_REMEMBERED, TIMES, WINDOW_S, Opposition
from ctl.network.reconcile import (
    PROMOTE,
    AddVip,
    AnnounceVips,
    AttachXdp,
    CorrectSetting,
    DemoteVips,
    Desired,
    DesiredVips,
    RemoveVip,
    Repair,
    ResolveNeighbours,
    RestoreAddress,
    TellCarrier,
    YieldXdp,
    reconcile,
)

PROGRAM, OLDER, FOREIGN = 70, 60, 90
DEVICES = ("eth0", "eth1")
SETTINGS = (*(Setting(PROMOTE.format(device), "1") for device in DEVICES), Setting("ipv6/conf/eth0/accept_ra", "2", "1"))
VIPS = tuple(
    InterfaceAddress(device, f"10.7.{number}.10{last}", 24) for device, number in (("eth0", 0), ("eth1", 1)) for last in (0, 1)
)
VIP6 = InterfaceAddress("eth0", "fd77::100", 64)
OWN = (
    InterfaceAddress("eth0", "10.7.0.1", 24),
    InterfaceAddress("eth0", "10.8.0.1", 24),
    InterfaceAddress("eth1", "10.7.1.1", 24),
)


@dataclass
class Kernel:
    """What Linux does with IPv4 addresses: the first of a subnet is primary; without it the next is, or all go."""

    interfaces: dict[str, Interface]
    addresses: list[InterfaceAddress]  # in the order in which they were added
    settings: dict[Setting, str]
    neighbours: set[tuple[int, str]]
    announced: dict[str, str]
    carriers: dict[str, bool]

    def observed(self) -> Observed:
        placed = {each: self._primary(each) != each for each in self.addresses}
        return Observed(dict(self.interfaces), placed, dict(self.settings), frozenset(self.neighbours))

    def _primary(self, address: InterfaceAddress) -> InterfaceAddress:
        return next(each for each in self.addresses if self._subnet(each) == self._subnet(address))

    def _subnet(self, each: InterfaceAddress) -> object:
        if ":" in each.address:
            return each
        return each.device, ipaddress.ip_network(f"{each.address}/{each.prefix_length}", strict=False)

    def add(self, addresses: Iterable[InterfaceAddress]) -> None:
        self.addresses += [each for each in addresses if each.device in self.interfaces and each not in self.addresses]

    def remove(self, address: InterfaceAddress) -> None:
        if address not in self.addresses:
            return
        subnet, was_primary = self._subnet(address), self._primary(address) == address
        self.addresses.remove(address)
        promotes = next(value for setting, value in self.settings.items() if setting.path == PROMOTE.format(address.device))
        if was_primary and promotes != "1":
            self.addresses = [each for each in self.addresses if self._subnet(each) != subnet]

    def apply(self, repair: Repair) -> None:
        match repair:
            case CorrectSetting(setting):
                self.settings[setting] = setting.wanted
            case AttachXdp():
                free = [name for name, each in self.interfaces.items() if each.xdp_program != FOREIGN]
                modes = {self.interfaces[name].xdp_mode for name in free}
                for name in free:
                    mode = "generic" if "generic" in modes else "native"
                    self.interfaces[name] = replace(self.interfaces[name], xdp_program=PROGRAM, xdp_mode=mode)
            case AddVip(address) | RestoreAddress(address):
                self.add([address])
            case RemoveVip(address):
                self.remove(address)
            case DemoteVips(_, addresses):
                for each in sorted(addresses, key=str):
                    self.remove(each)
                self.add(sorted(addresses, key=str))
            case AnnounceVips(interface, _, mac):
                self.announced[interface] = mac
            case TellCarrier(interface, carrier):
                self.carriers[interface] = carrier
            case ResolveNeighbours(neighbours):
                self.neighbours |= neighbours


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    interfaces = {}
    for index, name in enumerate(DEVICES, 2):
        if draw(st.integers(0, 9)):
            program = draw(st.sampled_from((0, PROGRAM, OLDER, FOREIGN)))
            mode = draw(st.sampled_from(("native", "generic"))) if program else ""
            mac = draw(st.sampled_from(("02::1", "02::2")))
            interfaces[name] = Interface(name, index, mac, 1500, True, draw(st.booleans()), "", program, mode)
    there = [each for each in (*VIPS, VIP6, *OWN) if each.device in interfaces]
    addresses = draw(st.permutations(there).flatmap(lambda order: st.integers(0, len(order)).map(lambda n: list(order[:n]))))
    settings = {setting: draw(st.sampled_from(("0", "1", "2"))) for setting in SETTINGS}
    neighbours = draw(st.sets(st.sampled_from(((2, "10.7.0.11"), (3, "10.7.1.11")))))
    announced = dict.fromkeys(DEVICES, "02::1") if draw(st.booleans()) else {}
    return Kernel(interfaces, addresses, settings, neighbours, announced, dict.fromkeys(DEVICES, draw(st.booleans())))


def desired_of(kernel: Kernel, serving: bool) -> Desired:
    ours = frozenset((*VIPS, VIP6))
    vips = DesiredVips(ours if serving else frozenset(), ours)
    next_hops = frozenset(((2, "10.7.0.11"), (3, "10.7.1.11")))
    return Desired(DEVICES, PROGRAM, frozenset((OLDER,)), True, vips, dict(kernel.announced), dict(kernel.carriers), next_hops)


@given(kernels(), st.booleans())
def test_after_its_repairs_nothing_is_left_to_repair_and_no_own_address_is_gone(kernel: Kernel, serving: bool) -> None:
    own = {each for each in kernel.addresses if each in OWN}
    for _ in range(2):  # demoting VIPs needs the setting that the first pass corrects
        for repair in reconcile(desired_of(kernel, serving), kernel.observed()):
            kernel.apply(repair)
    left = reconcile(desired_of(kernel, serving), kernel.observed())
    assert [each for each in left if not isinstance(each, YieldXdp)] == []
    assert own <= set(kernel.addresses), "an address that is not a VIP's was removed"
    there = {each for each in (*VIPS, VIP6) if each.device in kernel.interfaces}
    assert there & set(kernel.addresses) == (there if serving else set())
    placed = kernel.observed().addresses
    assert not any(placed[each] for each in own if each == OWN[0] or serving), "a VIP carries an address of the node"
    for each in kernel.interfaces.values():
        assert each.xdp_program in (PROGRAM, FOREIGN)
    assert len({each.xdp_mode for each in kernel.interfaces.values() if each.xdp_program == PROGRAM}) <= 1


@given(kernels())
def test_what_is_being_moved_is_left_alone(kernel: Kernel) -> None:
    found = reconcile(replace(desired_of(kernel, True), vips=None), kernel.observed())
    assert not any(isinstance(each, AddVip | RemoveVip | DemoteVips | RestoreAddress) for each in found)


def test_an_own_address_that_went_with_a_vip_is_restored() -> None:
    kernel = Kernel({"eth0": Interface("eth0", 2, "", 1500, True, True, "")}, [], {}, set(), {}, {})
    vips = DesiredVips(frozenset(), frozenset(VIPS), frozenset((OWN[0],)))
    assert reconcile(Desired((), vips=vips), kernel.observed()) == [RestoreAddress(OWN[0])]


def test_an_unknown_program_of_xlb_repairs_no_attachment() -> None:
    kernel = Kernel({"eth0": Interface("eth0", 2, "", 1500, True, True, "")}, [], {}, set(), {}, {})
    assert reconcile(Desired(("eth0",)), kernel.observed()) == []


def test_opposition_is_persistent_when_repairs_follow_each_other() -> None:
    watch = Opposition()
    assert [watch.repaired("a", float(second)) for second in range(TIMES + 1)] == [False] * (TIMES - 1) + [True] * 2
    assert not watch.ended("a", TIMES + WINDOW_S - 1)
    assert watch.ended("a", TIMES + WINDOW_S + 1)
    slow = Opposition()
    assert not any(slow.repaired("a", number * WINDOW_S / (TIMES - 2)) for number in range(10))
    for number in range(MAX_REMEMBERED + 5):
        slow.repaired(number, 0.0)
    assert len(slow._repaired) <= MAX_REMEMBERED
