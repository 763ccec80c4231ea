"""What the daemon may ask of the node's network, as values; the kernel implements it, and a fake in the tests.

Decides nothing and does nothing. Methods that touch the kernel may block for some milliseconds: the daemon calls
them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Interface:
    """A link of the node as the kernel describes it."""

    name: str
    index: int
    mac: str
    mtu: int
    up: bool  # administratively
    carrier: bool
    driver: str  # "" for those without one, e.g. loopback


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address on an interface."""

    device: str
    address: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to an address leave; `gateway` is empty when it is on the link itself."""

    index: int
    gateway: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address on a link and whether the kernel knows its MAC now."""

    index: int
    address: str
    resolved: bool
    mac: str


@dataclass(frozen=True, slots=True)
class NetworkEvents:
    """What the watcher calls, on the event loop, when the kernel reports a change."""

    next_hops_changed: Callable[[], None]  # a route, link or neighbour's MAC: cached next hops may be wrong
    neighbour_lost: Callable[[int, str], None]  # the kernel dropped this entry (interface index, address)
    routes_changed: Callable[[], None]  # ways to the backends may have moved
    link_changed: Callable[[str, str], None]  # (interface, "up"|"down"|"gone"|"new")
    address_lost: Callable[[int, str], None]  # an address was removed from an interface (interface index, address)


class ReadyAddresses(Protocol):
    """Addresses made ready beforehand: nothing here blocks, so that a takeover may do it on the event loop.

    Each method goes on after a refusal and returns one sentence for each.
    """

    @property
    def addresses(self) -> Sequence[InterfaceAddress]:
        """Those whose interface exists."""

    def add(self) -> list[str]:
        """An address that is there already is no error."""

    def remove(self) -> list[str]:
        """An address that is gone already is no error."""

    def announce(self) -> list[str]:
        """Gratuitous ARP or unsolicited neighbour advertisement for each."""

    def close(self) -> None: ...


class Network(Protocol):
    """The kernel's addresses, links, routes and neighbours."""

    def interfaces(self) -> Mapping[str, Interface]: ...

    def addresses(self) -> frozenset[InterfaceAddress]: ...

    def add_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Raises XlbError at the first the kernel refuses; an address that is there already is no error."""

    def remove_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        """An address that is gone already is no error."""

    def ready(self, addresses: Sequence[InterfaceAddress]) -> ReadyAddresses:
        """Look up and pack what adding, removing and announcing these needs. Must be made anew when an interface changes."""

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Tell the links where the addresses are now: gratuitous ARP or unsolicited neighbour advertisement."""

    def routes(self, destinations: Sequence[str]) -> Sequence[Route | None]:
        """The way to each destination; None where there is none."""

    def keep_resolved(self, neighbours: Collection[tuple[int, str]]) -> None:
        """Ask the kernel to resolve these (interface index, address) now and to keep doing so without traffic."""

    def release(self, neighbours: Collection[tuple[int, str]]) -> None:
        """Stop keeping them resolved."""

    @property
    def needs_repeating(self) -> bool:
        """Whether keep_resolved must be called again and again, because this kernel does not do it by itself."""

    def neighbours(self) -> Sequence[Neighbour]: ...

    def enable_forwarding(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Set what forwarding needs; returns one sentence for each setting that had to be changed or could not be."""

    def forwarding_problems(self, interfaces: Sequence[str]) -> Sequence[str]:
        """One sentence for each setting that is not as forwarding needs it."""

    def keep_frames_whole(self, interfaces: Sequence[str]) -> Sequence[str]:
        """See that nothing below these joins received frames; one sentence for each device changed or not changeable."""

    def joining_frames(self, interfaces: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Devices below these that join received frames now, and the features that do it."""

    def watch(self, events: NetworkEvents) -> None:
        """Start to report changes on the running event loop; the first reports may come at once."""

    def close(self) -> None: ...
