"""A record of the program as values: what happened to one packet (struct captured of bpf/program/capture.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bpf.constants import COUNTERS, Counter, Kind

_HEADER = struct.Struct("=QQQ10I")
PASS, TX, REDIRECT = 2, 3, 4
"""XDP actions (enum xdp_action)."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The bytes that were kept of a frame, and how many it had."""

    content: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Record:
    """Times in ns of CLOCK_MONOTONIC. ingress, egress: indexes of interfaces, egress 0: it was not sent. after: None: dropped.

    farm, backend: ids, 0: none.
    """

    entered_ns: int
    left_ns: int
    verdict: Counter
    events: tuple[Counter, ...]
    ingress: int
    egress: int
    action: int
    farm: int
    backend: int
    cpu: int
    before: Packet
    after: Packet | None

    @property
    def changed(self) -> bool:
        """Whether what left the program is not what came."""
        return self.after is not None and self.after != self.before


def decode(content: bytes) -> Record:
    """Raises ValueError for what no program writes."""
    if len(content) < _HEADER.size:
        raise ValueError(f"a record of {len(content)} bytes")
    entered, left, counted, *numbers = _HEADER.unpack_from(content)
    ingress, egress, before_bytes, after_bytes, before_kept, after_kept, action, farm, backend, cpu = numbers
    if len(content) != _HEADER.size + before_kept + after_kept:
        raise ValueError(f"a record of {len(content)} bytes for {before_kept} and {after_kept} of packets")
    names = [counter for number, counter in enumerate(COUNTERS) if counted >> number & 1]
    verdict = next((each for each in names if each.kind is not Kind.EVENT), None)
    if verdict is None:
        raise ValueError("a record without a verdict")
    events = tuple(each for each in names if each.kind is Kind.EVENT)
    kept = content[_HEADER.size :]
    before = Packet(kept[:before_kept], before_bytes)
    after = Packet(kept[before_kept:], after_bytes) if action in (PASS, TX, REDIRECT) else None
    return Record(entered, left, verdict, events, ingress, egress, action, farm, backend, cpu, before, after)
