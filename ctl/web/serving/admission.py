"""Which connections are accepted, and which one is closed for a new one where there is no place for both.

Pure. A connection that has proven who it is (a session, a token) keeps its place; of the others the oldest loses it: a flood
of connections that never ask for anything pushes out itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_CONNECTIONS = 512
MAX_PER_PREFIX = 32
MAX_LOOPBACK = 128
MAX_HANDSHAKES = 64


def prefix_of(address: str) -> str:
    """What counts as one source: an IPv4 address, the first 64 bits of an IPv6 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback:
        return "loopback"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


@dataclass(slots=True)
class _Place:
    prefix: str
    known: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """number: of the accepted connection; None: it is refused. evict: the connections to close for it."""

    number: int | None
    evict: tuple[int, ...] = ()


@dataclass(slots=True)
class Admission:
    """The connections there are, by number, oldest first."""

    total: int = MAX_CONNECTIONS
    per_prefix: int = MAX_PER_PREFIX
    loopback: int = MAX_LOOPBACK
    handshakes: int = MAX_HANDSHAKES
    refused: int = 0
    evicted: int = 0
    _last: int = 0
    _places: dict[int, _Place] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)
    _shaking: dict[int, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._places)

    def arrive(self, address: str) -> Verdict:
        """A connection was made from `address`."""
        prefix = prefix_of(address)
        evict: list[int] = []
        if self._count.get(prefix, 0) >= (self.loopback if prefix == "loopback" else self.per_prefix):
            evict += self._oldest(number for number, each in self._places.items() if each.prefix == prefix)
            if not evict:
                return self._refuse()
        elif len(self._places) >= self.total:
            evict += self._oldest(self._places)
            if not evict:
                return self._refuse()
        if len(self._shaking) - sum(each in self._shaking for each in evict) >= self.handshakes:
            evict.append(next(each for each in self._shaking if each not in evict))
        for each in evict:
            self.evicted += 1
            self.leave(each)
        self._last += 1
        self._places[self._last] = _Place(prefix)
        self._shaking[self._last] = None
        self._count[prefix] = self._count.get(prefix, 0) + 1
        return Verdict(self._last, tuple(evict))

    def _refuse(self) -> Verdict:
        self.refused += 1
        return Verdict(None)

    def _oldest(self, among: Iterable[int]) -> list[int]:
        return [number for number in among if not self._places[number].known][:1]

    def shaken(self, number: int) -> None:
        """The TLS handshake of a connection is finished."""
        self._shaking.pop(number, None)

    def prove(self, number: int) -> None:
        """A request of the connection had a valid session or token."""
        if number in self._places:
            self._places[number].known = True

    def leave(self, number: int) -> None:
        """A connection ended; again is no error."""
        place = self._places.pop(number, None)
        if place is None:
            return
        self._shaking.pop(number, None)
        self._count[place.prefix] -= 1
        if not self._count[place.prefix]:
            del self._count[place.prefix]
