"""Which connections are accepted, and which one is closed for a new one where there is no place for both.

Pure. A connection that has proven who it is (a session, a token) keeps its place. Of the others, first of those that have not
sent their hello yet, the source with the most loses its oldest one: a flood that never asks for anything pushes out itself.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_CONNECTIONS = 512
MAX_PER_PREFIX = 32
MAX_LOOPBACK = 128
MAX_HANDSHAKES = 64
MAX_STRANGERS = 128
"""With TLS and without a proof: each takes up to 100 kB."""
LOOPBACK = "loopback"


def prefix_of(address: str) -> str:
    """What counts as one source: an IPv4 address, the first 64 bits of an IPv6 address."""
    found = _parsed(address)
    if found.is_loopback:
        return LOOPBACK
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _source(address: str) -> tuple[str, bool]:
    """As `prefix_of`, but that each address of the loopback is a source; and whether it is of the loopback."""
    prefix = prefix_of(address)
    return (str(_parsed(address)), True) if prefix == LOOPBACK else (prefix, False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """number: of the accepted connection; None: it is refused. evict: the connections to close for it."""

    number: int | None
    evict: tuple[int, ...] = ()


@dataclass(slots=True)
class Admission:
    """The connections there are, by number; a later one has a greater number."""

    total: int = MAX_CONNECTIONS
    per_prefix: int = MAX_PER_PREFIX
    loopback: int = MAX_LOOPBACK
    handshakes: int = MAX_HANDSHAKES
    strangers: int = MAX_STRANGERS
    refused: int = 0
    evicted: int = 0
    _last: int = 0
    _prefixes: dict[int, str] = field(default_factory=dict)
    _count: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, dict[int, None]] = field(default_factory=dict)  # by source; without a hello
    _secured: dict[int, None] = field(default_factory=dict)  # with TLS, unproven
    _shaking: dict[int, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._prefixes)

    def arrive(self, address: str) -> Verdict:
        """A connection was made from `address`."""
        prefix, local = _source(address)
        evict: tuple[int, ...] = ()
        if self._count[prefix] >= (self.loopback if local else self.per_prefix):
            own = self._waiting.get(prefix) or [each for each in self._secured if self._prefixes[each] == prefix]
            evict = tuple(own)[:1]
        elif len(self) >= self.total:
            evict = self._of_the_most(self._waiting or self._by_prefix(self._secured))
        else:
            return Verdict(self._enter(prefix))
        if not evict:
            self.refused += 1
            return Verdict(None)
        self._evict(evict)
        return Verdict(self._enter(prefix), evict)

    def greet(self, number: int) -> tuple[int, ...]:
        """The TLS handshake of a connection begins. Returns the connections to close for it."""
        full = (
            self._shaking
            if len(self._shaking) >= self.handshakes
            else self._secured
            if len(self._secured) >= self.strangers
            else {}
        )
        evict = self._of_the_most(self._by_prefix(full))
        self._evict(evict)
        if number in self._prefixes:
            self._hello(number)
            self._shaking[number] = self._secured[number] = None
        return evict

    def shaken(self, number: int) -> None:
        """The TLS handshake of a connection is finished."""
        self._shaking.pop(number, None)

    def prove(self, number: int) -> None:
        """A request of the connection had a valid session or token."""
        self._secured.pop(number, None)

    def leave(self, number: int) -> None:
        """A connection ended; again is no error."""
        if number not in self._prefixes:
            return
        self._hello(number)
        self._shaking.pop(number, None)
        self._secured.pop(number, None)
        prefix = self._prefixes.pop(number)
        self._count[prefix] -= 1
        if not self._count[prefix]:
            del self._count[prefix]

    def _enter(self, prefix: str) -> int:
        self._last += 1
        self._prefixes[self._last] = prefix
        self._count[prefix] += 1
        self._waiting.setdefault(prefix, {})[self._last] = None
        return self._last

    def _evict(self, numbers: tuple[int, ...]) -> None:
        for each in numbers:
            self.evicted += 1
            self.leave(each)

    def _hello(self, number: int) -> None:
        """It does not wait for its hello any more."""
        prefix = self._prefixes[number]
        numbers = self._waiting.get(prefix, {})
        numbers.pop(number, None)
        if not numbers:
            self._waiting.pop(prefix, None)

    def _by_prefix(self, numbers: Iterable[int]) -> dict[str, dict[int, None]]:
        found: dict[str, dict[int, None]] = {}
        for each in numbers:
            found.setdefault(self._prefixes[each], {})[each] = None
        return found

    @staticmethod
    def _of_the_most(by_prefix: dict[str, dict[int, None]]) -> tuple[int, ...]:
        """The oldest connection of the source that has the most of these; where several have, the oldest of theirs."""
        most = max(map(len, by_prefix.values()), default=0)
        return (min(next(iter(each)) for each in by_prefix.values() if len(each) == most),) if most else ()
