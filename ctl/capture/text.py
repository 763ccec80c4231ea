"""What a capture shows of a packet: the comments of a pcapng file, a line for people, a document for programs.

Decides words and numbers. Names of farms, backends and interfaces come from outside (`Names`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bpf.constants import Counter, Kind
from ctl.capture import pcapng
from ctl.capture.headers import describe
from ctl.capture.record import PASS, Packet, Record
from ctl.config.model import Config

RECEIVED, SENT, TO_KERNEL = "received", "sent", "given to the kernel"


@dataclass(frozen=True, slots=True)
class Names:
    """farms, backends: by the ids of the kernel's maps; interface: the name of an index."""

    farms: Mapping[int, str]
    backends: Mapping[int, str]
    interface: Callable[[int], str]

    @classmethod
    def of(cls, config: Config, interface: Callable[[int], str]) -> Names:
        """Those of a configuration."""
        farms = config.farms.values()
        return cls(
            {one.id: one.name for one in farms}, {each.id: each.endpoint for one in farms for each in one.backends}, interface
        )

    def farm(self, number: int) -> str:
        return self.farms.get(number, f"(deleted farm {number})") if number else ""

    def backend(self, number: int) -> str:
        return self.backends.get(number, f"(removed backend {number})") if number else ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a packet was seen: interface, and what happened there."""

    interface: int
    where: str


def places(record: Record) -> tuple[Place, Place | None]:
    """Where the packet came, and where it left if it did so other than it came."""
    came = Place(record.ingress, RECEIVED)
    if record.action == PASS:
        return came, Place(record.ingress, TO_KERNEL) if record.changed else None
    return came, Place(record.egress, SENT) if record.after is not None else None


def comment(record: Record, names: Names, after: bool) -> str:
    """The fields are separated by "; ": place in the path, verdict, farm, backend, the verdict's meaning, events."""
    farm, backend = names.farm(record.farm), names.backend(record.backend)
    parts = ["after xlb" if after else "before xlb", record.verdict.name]
    parts += [f"farm {farm}"] if farm else []
    parts += [f"backend {backend}"] if backend else []
    parts.append(_meaning(record.verdict))
    parts += [f"{each.name}: {_meaning(each)}" for each in record.events]
    return "; ".join(parts)


def line(record: Record, names: Names, when: str) -> str:
    """when: the packet came, for people."""
    _, left = places(record)
    way = names.interface(record.ingress)
    if left is not None and left.where == SENT:
        way += f">{names.interface(left.interface)}"
    parts = [when, way, describe(record.before.content)]
    if left is not None and record.after is not None:
        shown = describe(record.after.content)
        if record.verdict.kind is Kind.DROP:
            parts.append(f"answered: {shown}")
        elif shown != parts[-1]:
            parts.append(f"=> {shown}")
    parts.append(record.verdict.name)
    farm, backend = names.farm(record.farm), names.backend(record.backend)
    parts += [f"farm {farm}"] if farm else []
    parts += [f"backend {backend}"] if backend else []
    parts += [each.name for each in record.events]
    parts += [f"({_meaning(record.verdict)})"] if record.verdict.kind is Kind.DROP else []
    return "  ".join(parts)


def document(record: Record, names: Names, when: str, number: int) -> dict[str, Any]:
    """For programs. when: the packet came; `after` is null for what was dropped, or went to the kernel as it came."""
    came, left = places(record)
    after = record.after if left is not None else None
    return {
        "number": number,
        "time": when,
        "ns": record.left_ns - record.entered_ns,
        "cpu": record.cpu,
        "verdict": record.verdict.name,
        "kind": record.verdict.kind.value,
        "reason": _meaning(record.verdict),
        "events": [each.name for each in record.events],
        "farm": names.farm(record.farm),
        "backend": names.backend(record.backend),
        "before": {
            "interface": names.interface(came.interface),
            "bytes": record.before.length,
            "packet": describe(record.before.content),
        },
        "after": {
            "interface": names.interface(left.interface),
            "where": left.where,
            "bytes": after.length,
            "packet": describe(after.content),
        }
        if left is not None and after is not None
        else None,
    }


class Capture:
    """The blocks of one file. Interfaces get their number with their first packet."""

    def __init__(self, application: str, system: str, snap_bytes: int) -> None:
        self._begin = pcapng.section(application, system)
        self._snap_bytes = snap_bytes
        self._numbers: dict[Place, int] = {}
        self._delivered: dict[Place, int] = {}

    def begin(self) -> bytes:
        """The first block."""
        return self._begin

    def packets(self, record: Record, names: Names, real_ns: int, number: int) -> bytes:
        """The packet before and after. number: of the record; that of both. real_ns: what to add to times of CLOCK_MONOTONIC
        for those of CLOCK_REALTIME."""
        came, left = places(record)
        blocks = self._interface(came, names)
        before, after = record.before, record.after
        blocks += self._packet(came, record.entered_ns + real_ns, before, comment(record, names, False), number)
        if left is not None and after is not None:
            blocks += self._interface(left, names)
            blocks += self._packet(left, record.left_ns + real_ns, after, comment(record, names, True), number)
        return blocks

    def end(self, start_ns: int, end_ns: int, matched: int, lost: int) -> bytes:
        """Statistics of each interface. Losses are not known by interface: the first has those of all."""
        blocks = b""
        for place, number in self._numbers.items():
            delivered = self._delivered[place]
            note = f"{matched} packets matched the filter, {lost} of them were lost, on all interfaces"
            received, gone = (matched, lost) if number == 0 else (delivered, 0)
            blocks += pcapng.statistics(number, start_ns, end_ns, received, gone, delivered, note)
        return blocks

    def _interface(self, place: Place, names: Names) -> bytes:
        if place in self._numbers:
            return b""
        self._numbers[place], self._delivered[place] = len(self._numbers), 0
        words = {RECEIVED: "received, before xlb", SENT: "sent, after xlb", TO_KERNEL: "given to the kernel, after xlb"}
        return pcapng.interface(names.interface(place.interface), words[place.where], self._snap_bytes)

    def _packet(self, place: Place, time_ns: int, packet: Packet, comment: str, number: int) -> bytes:
        self._delivered[place] += 1
        direction = pcapng.OUTBOUND if place.where == SENT else pcapng.INBOUND
        return pcapng.packet(self._numbers[place], time_ns, packet.content, packet.length, comment, direction, number)


def _meaning(counter: Counter) -> str:
    return counter.reason.rstrip(".")
