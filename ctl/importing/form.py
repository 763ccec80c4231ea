"""What every kind of configuration is read into: services, addresses and prefix lists, and findings.

Decides how a finding names a statement. Must not know any kind of input, nor how a farms file is made of it.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from ctl.errors import InvalidInput

MAX_STATEMENT = 160
"""Characters of a statement in a finding."""
MAX_FINDINGS = 20_000
"""Of one import: more than that is no configuration."""
MAX_SERVICES = 8_192

MAIL = ("xlb sends no mail itself", "name a program that does in the node file, [notify] command: it gets all events")
"""Why mail is not carried over, and what to do."""

ANY_V4, ANY_V6 = "*", "::"
"""A listener on all addresses of the machine."""

Settings = dict[str, object]
"""Settings of a farm or of its check, by the names of the farms file."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of the input; `file` as messages name it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Kind(enum.StrEnum):
    """What happened to a statement."""

    LOST = "not carried over"
    CHANGED = "carried over differently"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement that the farms file does not have as it was; `remedy`: what the operator does."""

    place: Place
    kind: Kind
    statement: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.statement}: {self.why}; {self.remedy}"


class Notes:
    """Collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._seen: set[tuple[Place, str, str]] = set()

    def lost(self, place: Place, statement: str, why: str, remedy: str) -> None:
        """The farms file has nothing of the statement."""
        self._add(place, Kind.LOST, statement, why, remedy)

    def changed(self, place: Place, statement: str, why: str, remedy: str) -> None:
        """The farms file has the statement with another effect."""
        self._add(place, Kind.CHANGED, statement, why, remedy)

    def assumed(self, place: Place, statement: str, why: str, remedy: str) -> None:
        """The farms file has something that the input does not name."""
        self._add(place, Kind.ASSUMED, statement, why, remedy)

    def take(self, other: Notes) -> None:
        """Add the findings of another file."""
        for each in other.findings:
            self._add(each.place, each.kind, each.statement, each.why, each.remedy)

    def _add(self, place: Place, kind: Kind, statement: str, why: str, remedy: str) -> None:
        if (place, statement, why) in self._seen:
            return  # a default is used by many proxies
        self._seen.add((place, statement, why))
        if len(self.findings) >= MAX_FINDINGS:
            raise InvalidInput(
                f"more than {MAX_FINDINGS} statements cannot be carried over; is this the right format?", str(place)
            )
        self.findings.append(Finding(place, kind, brief(statement), one_line(why), one_line(remedy)))


@dataclass(slots=True)
class Server:
    """A server of a service. port None: the one that the client connects to, plus `offset`. check None: it is not checked."""

    place: Place
    statement: str
    address: str
    port: int | None = None
    offset: int = 0
    weight: int = 1
    priority: int = 0
    max_connections: int = 0
    draining: bool = False
    check: Settings | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a service listens; `ports` are (first, last), ascending."""

    place: Place
    address: str
    ports: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Service:
    """Becomes one farm, or several where listeners have different ports.

    checks_known: False where the input cannot have checks, so that a check is assumed.
    one_port: the port of a server is for all ports of the service, not for the first.
    """

    place: Place
    statement: str
    name: str
    protocol: str = "tcp"
    mode: str = "snat"
    listeners: list[Listener] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    settings: Settings = field(default_factory=dict)
    checks_known: bool = True
    one_port: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """A virtual address that the input names; None: it names no prefix length or interface."""

    place: Place
    address: str
    length: int | None = None
    device: str | None = None


@dataclass(slots=True)
class Imported:
    """What was read."""

    services: list[Service] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    prefixes: dict[str, list[str]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    def add(self, other: Imported) -> None:
        """Add what was read of another file; a prefix list of the same name gets another one."""
        for name, prefixes in other.prefixes.items():
            names = itertools.chain((name,), (f"{name}-{number}" for number in itertools.count(2)))
            unique = next(each for each in names if self.prefixes.get(each, prefixes) == prefixes)
            self.prefixes[unique] = prefixes
            for service in other.services:
                service.settings |= {key: unique for key in ("allow", "deny") if service.settings.get(key) == name}
        self.services += other.services
        self.addresses += other.addresses
        self.notes.take(other.notes)


@dataclass(frozen=True, slots=True)
class Included:
    """The files that a pattern names, and those of them that cannot be read, with the reason."""

    sources: Sequence[Source] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input. include: reads the files that a pattern names within the file at `path`."""

    name: str
    text: str
    include: Callable[[str, str], Included] = lambda _pattern, _within: Included()
    path: str = ""
    more: Sequence[Source] = ()
    """Files that are read as if they followed."""

    def lines(self) -> list[tuple[Place, str]]:
        """Each line with its place, without its end."""
        own = [(Place(self.name, number), line.rstrip("\r")) for number, line in enumerate(self.text.split("\n"), 1)]
        return [*own, *(line for each in self.more for line in each.lines())]


def one_line(text: str) -> str:
    """A text on one line without control characters: input must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def brief(statement: str) -> str:
    """A statement on one line, printable and short."""
    line = one_line(statement) or '""'
    return line if len(line) <= MAX_STATEMENT else line[: MAX_STATEMENT - 1] + "…"


def whole(text: str, low: int = 0, high: int = 2**31 - 1) -> int | None:
    """A decimal number from low to high, otherwise None."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        return None
    value = int(text)
    return value if low <= value <= high else None


def port_number(text: str) -> int | None:
    """A port as a number or as the name of a well-known service, otherwise None."""
    return PORTS.get(text.lower()) or whole(text, 1, 65535)


PORTS: Mapping[str, int] = {
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "domain": 53,
    "tftp": 69,
    "http": 80,
    "www": 80,
    "kerberos": 88,
    "pop3": 110,
    "ntp": 123,
    "imap2": 143,
    "imap": 143,
    "snmp": 161,
    "ldap": 389,
    "https": 443,
    "microsoft-ds": 445,
    "submissions": 465,
    "urd": 465,
    "ssmtp": 465,
    "syslog": 514,
    "submission": 587,
    "ldaps": 636,
    "imaps": 993,
    "pop3s": 995,
    "radius": 1812,
    "radius-acct": 1813,
    "mysql": 3306,
    "ms-wbt-server": 3389,
    "postgresql": 5432,
    "amqp": 5672,
    "sip": 5060,
    "sips": 5061,
    "http-alt": 8080,
    "webcache": 8080,
    "redis": 6379,
}
"""The names that ipvsadm prints without -n, of /etc/services."""


def host_address(text: str) -> str | None:
    """An address, also in brackets, in its canonical form; None if it is none."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) else str(address)


def cut_endpoint(text: str) -> tuple[str, str]:
    """ADDRESS:PORT, [ADDRESS]:PORT or ADDRESS as (address, port); the port may be missing."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, rest.removeprefix(":")
    if text.count(":") > 1:
        if host_address(text) is None:  # 2001:db8::1:80 is an address; anything else ends in a port
            address, _, port = text.rpartition(":")
            return address, port
        return text, ""
    address, _, port = text.partition(":")
    return address, port


def cut_last_colon(text: str) -> tuple[str, str]:
    """As `cut_endpoint`, where what follows the last colon is the port also after an IPv6 address without brackets."""
    if text.startswith("[") or ":" not in text:
        return cut_endpoint(text)
    address, _, port = text.rpartition(":")
    return address, port


def as_name(text: str) -> str:
    """A text as the name of a farm or list: letters, digits, ".", "_" and "-"; may be empty."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip("._-")[:56].rstrip("-.")


def endpoint_name(address: str, ports: str, protocol: str) -> str:
    """The name of a service that the input does not name."""
    return as_name(f"{address}-{ports}" + ("-udp" if protocol == "udp" else "")) or "service"


def mask_length(text: str) -> int | None:
    """A prefix length, or the netmask 255.255.255.0 as one; None if it is neither."""
    number = whole(text, 0, 128)
    if number is not None:
        return number
    try:
        bits = int(ip_address(text))
    except ValueError:
        return None
    ones = bits.bit_count()
    return ones if ip_address(text).version == 4 and bits == (0xFFFFFFFF << (32 - ones)) & 0xFFFFFFFF else None


def persistence(service: Service, seconds: int, place: Place, statement: str, notes: Notes) -> None:
    """Set `persistence_s`, within its bounds."""
    if seconds > MAX_PERSISTENCE_S:
        notes.changed(place, statement, f"persistence_s is at most {MAX_PERSISTENCE_S}", "nothing to do, or shorten it")
    service.settings["persistence_s"] = min(seconds, MAX_PERSISTENCE_S)


def persistence_prefix(service: Service, length: int, place: Place, statement: str, notes: Notes) -> None:
    """Set the client prefix of the persistence for the family of the service, within its bounds."""
    six = bool(service.listeners) and ":" in service.listeners[0].address
    low, high, key = (16, 128, "persistence_prefix_v6") if six else (8, 32, "persistence_prefix_v4")
    if not low <= length <= high:
        notes.changed(place, statement, f"{key} is from {low} to {high}", "check which clients share a backend")
    service.settings[key] = max(low, min(high, length))


MAX_PERSISTENCE_S = 30 * 24 * 3600


Ports = tuple[tuple[int, int], ...]
"""(first, last), ascending."""


def cut_ports(ports: Ports, by: Ports) -> tuple[Ports, Ports]:
    """The ports that are in `by`, and those that are not."""
    inside: list[tuple[int, int]] = []
    outside = list(ports)
    for first, last in by:
        inside += [(max(low, first), min(high, last)) for low, high in outside if low <= last and first <= high]
        outside = [
            part
            for low, high in outside
            for part in ((low, min(high, first - 1)), (max(low, last + 1), high))
            if part[0] <= part[1]
        ]
    return tuple(sorted(inside)), tuple(outside)


def with_port(listener: Listener, ports: Ports) -> Listener:
    """The listener on other ports."""
    return replace(listener, ports=ports)
