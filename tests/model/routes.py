"""A small routing table: what the kernel's FIB answers for a packet that is to be forwarded. Prefixes, next hops, MACs, MTU."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import NamedTuple


class Interface(NamedTuple):
    """number (ifindex), MAC address, and the node's own address on it by address length."""

    number: int
    mac: bytes
    addresses: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Route:
    """To a prefix, through `gateway` or (None) directly. interface None: the kernel does not forward there."""

    prefix: bytes
    bits: int
    interface: Interface | None
    gateway: bytes | None = None
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Hop:
    """The next hop; mac None: not resolved."""

    interface: Interface
    mac: bytes | None
    mtu: int


@dataclass(slots=True)
class Routes:
    """The longest prefix wins."""

    routes: list[Route] = field(default_factory=list)
    neighbours: dict[bytes, bytes] = field(default_factory=dict)
    _known: dict[bytes, Hop | None] = field(default_factory=dict)

    def add(self, prefix: str, interface: Interface | None, gateway: str = "", mtu: int = 1500) -> None:
        network = ipaddress.ip_network(prefix)
        via = ipaddress.ip_address(gateway).packed if gateway else None
        self.routes.append(Route(network.network_address.packed, network.prefixlen, interface, via, mtu))

    def lookup(self, destination: bytes) -> Hop | None:
        """None: no route, or one that leads nowhere."""
        if destination not in self._known:
            self._known[destination] = self._search(destination)
        return self._known[destination]

    def _search(self, destination: bytes) -> Hop | None:
        length = len(destination)
        number = int.from_bytes(destination)

        def matches(route: Route) -> bool:
            shift = 8 * length - route.bits
            return len(route.prefix) == length and number >> shift == int.from_bytes(route.prefix) >> shift

        best = max(filter(matches, self.routes), key=lambda route: route.bits, default=None)
        if best is None or best.interface is None:
            return None
        return Hop(best.interface, self.neighbours.get(best.gateway or destination), best.mtu)
