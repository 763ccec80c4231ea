"""A stream of flows from the active node to its peer: its blocks, its acknowledgements, its bounds.

Decides nothing; `sync.flows.sender` and `sync.flows.receiver` do. A payload is opaque bytes with a count of records.

A stream is (boot, session): BEGIN, then SNAPSHOT parts mixed with DELTAs, then END, then DELTAs. Blocks are numbered from 1;
the receiver takes them in order only, acknowledges what it has applied, and grants how far the sender may send.
A gap makes the sender send again what it still holds; if it no longer holds it, or changes were lost before they
became a block, or the receiver does not know the stream, a new stream starts from a new snapshot.

Why no snapshot entry overwrites a newer change. Every change of a key enters the stream in the order it happened, and a
snapshot part is put before every change that was read from the kernel after the part was requested. Look at the last record of
a key in the stream. If it is a change, it is the latest one: a later one would have been read later and be behind it. If it is
from a snapshot part, no change of the key was read after the part was requested, so the part holds the latest.
Records are applied in stream order, so the last record is what remains. Keys the sender does not have are not in
the stream at all: END deletes what no record since BEGIN named.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """What a block is."""

    BEGIN = 1
    SNAPSHOT = 2  # a part of it
    DELTA = 3
    END = 4


@dataclass(frozen=True, slots=True)
class Block:
    """One message of a stream. `clock_ns`: the sender's clock when the records were read, to translate last-seen times."""

    boot: int
    session: int
    sequence: int
    epoch: int
    kind: Kind
    layout: int  # which struct layouts the payload has
    clock_ns: int
    family: int = 0  # 4 or 6; 0: no records
    count: int = 0
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the receiver has: everything of the stream up to `sequence` is applied; it takes blocks up to `limit`."""

    boot: int
    session: int
    sequence: int
    limit: int
    in_step: bool = False
    gap: bool = False  # something in front of what arrived is missing
    unknown: bool = False  # not in the middle of this stream: it must begin again
    problem: str = ""  # why this stream cannot be taken at all


@dataclass(frozen=True, slots=True)
class StepChanged:
    """The maps of both nodes are or are no longer in step; `why` is the reason for the log."""

    in_step: bool
    why: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of both machines."""

    window_blocks: int = 64  # sent and not yet applied
    queued_records: int = 1 << 20  # read and not yet sent; beyond it the stream starts again
    retry_ns: int = 200_000_000  # without progress for this long: send again
