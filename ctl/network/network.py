"""The interface to the node's network: values and protocols. `kernel` implements it; the tests have a fake.

Decides nothing, does no I/O. Methods that touch the kernel may block for some milliseconds: the daemon calls
them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ctl.errors import Advice


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of the node."""

    name: str
    index: int
    mac: str
    mtu: int
    up: bool  # administratively
    carrier: bool
    driver: str  # "" for those without one, e.g. loopback
    xdp_program: int = 0  # id of the XDP program on it, of any owner; 0: none
    xdp_mode: str = ""  # "native", "generic", or "other": offloaded, or several programs
    lower: int = 0  # index of the device below it, 0: none in this namespace
    kind: str = ""  # "vlan", "bond", …; empty for hardware
    vlan_id: int = 0
    vlan_protocol: int = 0  # EtherType of a VLAN device's tag; 0: it is none


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address on an interface."""

    device: str
    address: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Route:
    """Egress interface and next hop of an address; `gateway` is empty if the address is on the link."""

    index: int
    gateway: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address on a link, and whether the kernel has resolved its MAC."""

    index: int
    address: str
    resolved: bool
    mac: str
    managed: bool = False  # the kernel keeps it resolved


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl under net/ and the value that forwarding requires.

    instead_of: change only this value; empty: change any other.
    """

    path: str
    wanted: str
    instead_of: str = ""

    @property
    def name(self) -> str:
        return "net." + self.path.replace("/", ".")

    def is_wrong(self, value: str) -> bool:
        return value == self.instead_of if self.instead_of else value != self.wanted


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel has at one moment. addresses: to whether it is a secondary one; settings: to the value now.

    neighbours: None when they were not looked at. They are the resolved or managed ones.
    """

    interfaces: Mapping[str, Interface]
    addresses: Mapping[InterfaceAddress, bool]
    settings: Mapping[Setting, str]
    neighbours: frozenset[tuple[int, str]] | None = None


@dataclass(frozen=True, slots=True)
class NetworkEvents:
    """What the watcher calls, on the event loop, when the kernel reports a change."""

    next_hops_changed: Callable[[], None]  # a route, link or neighbour's MAC: cached next hops may be wrong
    neighbour_lost: Callable[[int, str], None]  # the kernel dropped this entry (interface index, address)
    routes_changed: Callable[[], None]  # routes to the backends may have changed
    link_changed: Callable[[str, str], None]  # (interface, "up"|"down"|"gone"|"new")
    changed: Callable[[], None]  # something that xlb depends on may be other than it should: compare
    overrun: Callable[[], None]  # the kernel dropped notifications: anything may have changed


class ReadyAddresses(Protocol):
    """Addresses made ready beforehand: nothing here blocks, so that a takeover may do it on the event loop.

    Each method continues after a refusal and returns one message per refusal.
    """

    @property
    def addresses(self) -> Sequence[InterfaceAddress]:
        """The addresses whose interface exists."""

    def add(self) -> list[str]:
        """An address that already exists is no error."""

    def remove(self) -> list[str]:
        """An address that does not exist is no error."""

    def announce(self) -> list[str]:
        """Gratuitous ARP or unsolicited neighbour advertisement for each."""

    @property
    def macs(self) -> Mapping[str, str]:
        """The MAC of each interface that the last announcement gave."""

    def close(self) -> None: ...


class Network(Protocol):
    """The kernel's addresses, links, routes and neighbours."""

    def interfaces(self) -> Mapping[str, Interface]: ...

    def addresses(self) -> frozenset[InterfaceAddress]: ...

    def add_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Raises XlbError at the first refusal of the kernel; an address that already exists is no error."""

    def remove_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        """An address that does not exist is no error."""

    def ready(self, addresses: Sequence[InterfaceAddress]) -> ReadyAddresses:
        """Prepare adding, removing and announcing these addresses. Prepare again when an interface changes."""

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Send gratuitous ARP or an unsolicited neighbour advertisement for each address."""

    def who_answers(self, addresses: Sequence[InterfaceAddress]) -> Mapping[InterfaceAddress, str]:
        """Which of these another machine on the link answers for, to its MAC. Takes about 0.2 s. Raises XlbError."""

    def routes(self, destinations: Sequence[str]) -> Sequence[Route | None]:
        """The route to each destination, or None."""

    def observe(self, interfaces: Sequence[str], vip_interfaces: Sequence[str], neighbours: bool = False) -> Observed:
        """Everything that is reconciled. interfaces, vip_interfaces: whose settings for data and for VIPs are read.

        neighbours: look at these too.
        """

    def correct(self, setting: Setting) -> None:
        """Set a sysctl to the wanted value. Raises XlbError."""

    def neighbour_capacity(self) -> tuple[int, int]:
        """How many neighbours the kernel keeps, IPv4 and IPv6 (gc_thresh3); 0: unknown."""

    def keep_resolved(self, neighbours: Collection[tuple[int, str]]) -> Sequence[str]:
        """Make the kernel resolve these (interface index, address), now and continuously without traffic.

        Continues after a refusal; returns one message per refusal.
        """

    def release(self, neighbours: Collection[tuple[int, str]]) -> None:
        """Stop keeping them resolved."""

    @property
    def needs_repeating(self) -> bool:
        """Whether keep_resolved must be called repeatedly, because this kernel has no managed neighbours."""

    def neighbours(self) -> Sequence[Neighbour]: ...

    def forwarding_problems(self, interfaces: Sequence[str]) -> Sequence[Advice]:
        """One message for each sysctl that is not as forwarding requires."""

    def keep_frames_whole(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Switch off receive offloads that merge frames below these; one message per change or failure."""

    def joining_frames(self, interfaces: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Devices below these that merge received frames, and the active features."""

    def keep_tags(self, devices: Collection[str]) -> Sequence[str]:
        """Switch off receive offloads that take VLAN tags out of the frames; one message per change or failure."""

    def stripping_tags(self, devices: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Those of the devices that take VLAN tags out of received frames, and the active features."""

    def watch(self, events: NetworkEvents) -> None:
        """Report changes on the running event loop; the first reports may come immediately."""

    def close(self) -> None: ...
