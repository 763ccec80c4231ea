"""A kernel network in memory: implements `ctl.network.network.Network` and lets a test make events happen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ctl.errors import Advice, Code, XlbError
from ctl.network.network import Interface, InterfaceAddress, Neighbour, NetworkEvents, Observed, Route, Setting


class FakeReadyAddresses:
    """Implements `ctl.network.network.ReadyAddresses`."""

    def __init__(self, network: FakeNetwork, addresses: Sequence[InterfaceAddress]) -> None:
        self._network, self.closed = network, False
        self.addresses = tuple(each for each in addresses if each.device in network.links)
        unknown = [each for each in addresses if each.device not in network.links]
        self._unknown = [
            f"cannot add {each.address}/{each.prefix_length} on {each.device}: the interface does not exist" for each in unknown
        ]

    def add(self) -> list[str]:
        assert not self.closed
        if self._network.refuse_addresses:
            return [*self._unknown, *(f"cannot add {each.address}: refused by the test" for each in self.addresses)]
        self._network.present |= set(self.addresses)
        return list(self._unknown)

    def remove(self) -> list[str]:
        assert not self.closed
        self._network.remove_addresses(self.addresses)
        return []

    def announce(self) -> list[str]:
        assert not self.closed
        self._network.announce(self.addresses)
        return []

    @property
    def macs(self) -> Mapping[str, str]:
        return {each.device: self._network.links[each.device].mac for each in self.addresses}

    def close(self) -> None:
        self.closed = True


class FakeNetwork:
    """Interfaces eth0 and eth1; every destination is on eth0's link unless `gateways` names its gateway."""

    def __init__(self) -> None:
        self.links = {
            name: Interface(name, index, f"02:00:00:00:00:{index:02x}", 1500, True, True, "fake")
            for index, name in ((2, "eth0"), (3, "eth1"))
        }
        self.present: set[InterfaceAddress] = set()
        self.gateways: dict[str, str] = {}
        self.announced: list[InterfaceAddress] = []
        self.kept: set[tuple[int, str]] = set()
        self.asked: list[tuple[int, str]] = []
        self.problems: list[Advice] = []
        self.settings: dict[Setting, str] = {}
        self.fixed: set[Setting] = set()  # cannot be set
        self.secondary: set[InterfaceAddress] = set()
        self.carried: dict[InterfaceAddress, set[InterfaceAddress]] = {}  # by primary: what goes with it
        self.capacity = (0, 0)
        self.joining: dict[str, list[str]] = {}
        self.stripping: dict[str, list[str]] = {}
        self.keep_stripping: set[str] = set()  # devices whose driver does not let the feature off
        self.refuse_addresses = False
        self.strangers: dict[str, str] = {}  # addresses of other machines, to their MACs
        self.events: NetworkEvents | None = None
        self.closed = False

    @property
    def needs_repeating(self) -> bool:
        return False

    def interfaces(self) -> Mapping[str, Interface]:
        return dict(self.links)

    def addresses(self) -> frozenset[InterfaceAddress]:
        return frozenset(self.present)

    def add_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        for each in addresses:
            if self.refuse_addresses or each.device not in self.links:
                raise XlbError(
                    f"cannot add {each.address}/{each.prefix_length} on {each.device}: refused by the test", Code.KERNEL_REFUSED
                )
            self.present.add(each)

    def remove_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        for each in addresses:
            if each in self.present:
                self.present -= {each, *self.carried.pop(each, ())}

    def ready(self, addresses: Sequence[InterfaceAddress]) -> FakeReadyAddresses:
        return FakeReadyAddresses(self, addresses)

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        assert self.present >= set(addresses), f"{addresses} announced before they were added"
        self.announced += addresses

    def routes(self, destinations: Sequence[str]) -> Sequence[Route | None]:
        return [Route(2, self.gateways.get(destination, "")) for destination in destinations]

    def who_answers(self, addresses: Sequence[InterfaceAddress]) -> Mapping[InterfaceAddress, str]:
        return {each: self.strangers[each.address] for each in addresses if each.address in self.strangers}

    def observe(self, interfaces: Sequence[str], vip_interfaces: Sequence[str], neighbours: bool = False) -> Observed:
        placed = {each: each in self.secondary for each in self.present}
        kept = frozenset(self.kept) if neighbours else None
        return Observed(dict(self.links), placed, dict(self.settings), kept)

    def correct(self, setting: Setting) -> None:
        if setting in self.fixed:
            raise XlbError(f"cannot set {setting.name}={setting.wanted}: refused by the test", Code.KERNEL_REFUSED)
        self.settings[setting] = setting.wanted

    def neighbour_capacity(self) -> tuple[int, int]:
        return self.capacity

    def keep_resolved(self, neighbours: Collection[tuple[int, str]]) -> Sequence[str]:
        self.kept |= set(neighbours)
        self.asked += neighbours
        return []

    def release(self, neighbours: Collection[tuple[int, str]]) -> None:
        self.kept -= set(neighbours)

    def neighbours(self) -> Sequence[Neighbour]:
        return [Neighbour(index, address, True, "02:00:00:00:01:01") for index, address in sorted(self.kept)]

    def forwarding_problems(self, interfaces: Sequence[str]) -> Sequence[Advice]:
        return list(self.problems)

    def keep_frames_whole(self, interfaces: Sequence[str]) -> Sequence[str]:
        return []

    def joining_frames(self, interfaces: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return self.joining if interfaces else {}

    def keep_tags(self, devices: Collection[str]) -> Sequence[str]:
        found = [device for device in devices if device in self.stripping]
        for device in found:
            if device not in self.keep_stripping:
                del self.stripping[device]
        return [f"switched rx-vlan-hw-parse off on {device}" for device in found]

    def stripping_tags(self, devices: Collection[str]) -> Mapping[str, Sequence[str]]:
        return {device: self.stripping[device] for device in devices if device in self.stripping}

    def watch(self, events: NetworkEvents) -> None:
        self.events = events

    def close(self) -> None:
        self.closed = True
