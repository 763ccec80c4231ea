"""The verdict on one fault, from frames on the switch and from what clients saw. Pure.

Decides what an outage is, when two nodes answered at once, and which connections a fault broke. Must not know what kind of pair
is judged: it sees frames with the name of the node whose MAC sent them, and times in ns of CLOCK_MONOTONIC.

The old node is the one that sent the last data frame before the fault, the successor the first other one after it.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

NS_PER_MS = 1_000_000
NEVER_MS = float("inf")
AGES = {"younger than 10 ms": (0, 10), "10 to 100 ms old": (10, 100), "older": (100, NEVER_MS)}
"""Ages of connections in ms, at the moment of the old node's last data frame."""
LATER = "opened afterwards"

_IPV4, _IPV6, _ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"
_ICMP6, _NEIGHBOUR_ADVERTISEMENT = 58, 136
_ARP_REPLY = b"\x00\x02"


class Kind(enum.Enum):
    """What a frame that a node sent as the VIP is; the value is the text of the report.

    REBUTTAL: the unicast "is-at" that Linux sends in answer to a gratuitous ARP for an address it still has. It reaches the
    other node only, so no client believes it; it shows that the old node still has the address.
    """

    DATA = "data"
    DATA6 = "data (IPv6)"
    ARP = "ARP"
    NDP = "NDP"
    REBUTTAL = "is-at to its successor"


ANSWERS = (Kind.DATA, Kind.DATA6, Kind.ARP, Kind.NDP)
"""Kinds that reach or attract clients."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that left the switch: when, sent by which node, and what it is."""

    at_ns: int
    node: str
    kind: Kind


def kind_of(head: bytes, nodes: Collection[bytes]) -> Kind:
    """What the frame with this beginning is, that a node sent as the VIP. nodes: the MAC addresses of both."""
    protocol = head[12:14]
    if protocol == _ARP:
        return Kind.REBUTTAL if head[:6] in nodes and head[20:22] == _ARP_REPLY else Kind.ARP
    if protocol == _IPV6:
        advertises = len(head) > 54 and head[20] == _ICMP6 and head[54] == _NEIGHBOUR_ADVERTISEMENT
        return Kind.NDP if advertises else Kind.DATA6
    return Kind.DATA


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection: when its handshake was complete, and why it is broken, if it is."""

    born_ns: int
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one fault cost; times in ms.

    wire: from the old node's last data frame to the successor's first; infinite: there was no successor. outage: the longest
    time in which no client's new connection succeeded. both: kind of frame to the time in which both nodes sent such frames.
    rebuttals: frames of that kind. broken: age to connections that broke; held: age to all connections. wrong_bytes: of their
    payload. noise: the longest outage that the prober found before the fault.
    """

    old: str
    successor: str
    wire_ms: float
    outage_ms: float
    both_ms: Mapping[Kind, float]
    rebuttals: int
    broken: Mapping[str, int]
    held: Mapping[str, int]
    wrong_bytes: int = 0
    noise_ms: float = 0.0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_broken(self) -> int:
        return sum(self.broken.values())

    @property
    def both_answered_ms(self) -> float:
        """The longest time in which both nodes answered or attracted clients, in any kind of frame."""
        return max((self.both_ms[kind] for kind in ANSWERS), default=0.0)

    @property
    def harmless(self) -> bool:
        """Nothing was lost, and two nodes never answered at once, however long the outage was."""
        return not (self.total_broken or self.wrong_bytes or self.both_answered_ms) and self.wire_ms != NEVER_MS


def sender_before(frames: Sequence[Frame], struck_ns: int) -> str:
    """The node that sent the last data frame before the fault; empty: none did."""
    data = [frame for frame in frames if frame.kind is Kind.DATA and frame.at_ns < struck_ns]
    return max(data, key=lambda frame: frame.at_ns).node if data else ""


def wire(frames: Sequence[Frame], struck_ns: int) -> tuple[str, str, int, float]:
    """Old node, successor, time of the old one's last data frame before the successor's first, and the gap in ms."""
    old = sender_before(frames, struck_ns)
    first = min(
        (frame for frame in frames if frame.kind is Kind.DATA and frame.node != old and frame.at_ns >= struck_ns),
        key=lambda frame: frame.at_ns,
        default=None,
    )
    until_ns = first.at_ns if first else 1 << 62
    last_ns = max(
        (frame.at_ns for frame in frames if frame.kind is Kind.DATA and frame.node == old and frame.at_ns <= until_ns),
        default=struck_ns,
    )
    if first is None:
        return old, "", last_ns, NEVER_MS
    return old, first.node, last_ns, (first.at_ns - last_ns) / NS_PER_MS


def both_ms(frames: Iterable[Frame], old: str, kind: Kind, since_ns: int) -> float:
    """How long both nodes sent frames of this kind: from the first frame of another node to the last of the old one."""
    of_kind = [frame for frame in frames if frame.kind is kind and frame.at_ns >= since_ns]
    first_ns = min((frame.at_ns for frame in of_kind if frame.node != old), default=None)
    last_ns = max((frame.at_ns for frame in of_kind if frame.node == old), default=None)
    if first_ns is None or last_ns is None:
        return 0.0
    return max(0, last_ns - first_ns) / NS_PER_MS


def age_of(born_ns: int, at_ns: int) -> str:
    """The name of the age that a connection had at that moment."""
    age_ms = (at_ns - born_ns) / NS_PER_MS
    return next((name for name, (least, most) in AGES.items() if least <= age_ms < most), LATER)


def judge(
    frames: Sequence[Frame],
    connections: Iterable[Connection],
    struck_ns: int,
    outage_ms: float,
    noise_ms: float = 0.0,
    wrong_bytes: int = 0,
) -> Verdict:
    """frames: of the whole observation, in any order; connections: all that clients held."""
    old, successor, last_ns, wire_ms = wire(frames, struck_ns)
    names = (*AGES, LATER)
    broken, held, reasons = dict.fromkeys(names, 0), dict.fromkeys(names, 0), dict[str, int]()
    for connection in connections:
        age = age_of(connection.born_ns, last_ns)
        held[age] += 1
        if connection.broken:
            broken[age] += 1
            reasons[connection.broken] = reasons.get(connection.broken, 0) + 1
    return Verdict(
        old,
        successor,
        wire_ms,
        outage_ms,
        {kind: both_ms(frames, old, kind, struck_ns) for kind in Kind},
        sum(frame.kind is Kind.REBUTTAL and frame.at_ns >= struck_ns for frame in frames),
        broken,
        held,
        wrong_bytes,
        noise_ms,
        reasons,
    )


@dataclass(frozen=True, slots=True)
class PowerOn:
    """Both nodes began at nearly the same time: ms until clients are served, and how long both nodes answered."""

    served_ms: float
    both_answered_ms: float
    moves: int


def judge_power_on(frames: Sequence[Frame], began_ns: int, served_ns: int) -> PowerOn:
    """served_ns: when the first connection that succeeded was started."""
    answers = sorted((frame for frame in frames if frame.kind in ANSWERS), key=lambda frame: frame.at_ns)
    first = answers[0].node if answers else ""
    both = max((both_ms(answers, first, kind, began_ns) for kind in ANSWERS), default=0.0)
    return PowerOn((served_ns - began_ns) / NS_PER_MS, both, moves(answers))


def moves(frames: Iterable[Frame]) -> int:
    """How often the VIPs moved, by the frames that announce them: an announcement by another node than the one before."""
    speakers = [frame.node for frame in sorted(frames, key=lambda frame: frame.at_ns) if frame.kind in (Kind.ARP, Kind.NDP)]
    return sum(before != after for before, after in itertools.pairwise(speakers))
