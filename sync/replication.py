"""Flow replication: one machine that sends the active node's flow changes, one that takes them in on the backup.

Decides what is sent, in which order, what counts as received, and when the two tables are in step. Must not know
sockets, clocks, the kernel, or what a flow is: a payload is opaque bytes with a count of records.

A stream is (boot, session): BEGIN, then SLICEs of a snapshot mixed with LIVE changes, then END, then LIVE changes. Blocks are
numbered from 1; the receiver takes them in order only, acknowledges what it has applied, and says how far it may be sent.
A gap makes the sender send again what it still holds; if it no longer holds it, or changes were lost before they
became a block, or the receiver does not know the stream, a new stream starts from a new snapshot.

Why no snapshot entry overwrites a newer change. Every change of a key enters the stream in the order it happened, and a
slice is put before every change that was read from the kernel after the slice was asked for. Look at the last record of a
key in the stream. If it is a change, it is the latest one: a later one would have been read later and be behind it. If it is
from a slice, no change of the key was read after the slice was asked for, so the slice saw the latest.
Records are applied in stream order, so the last record is what remains. Keys the sender does not have are not in
the stream at all: END deletes what no record since BEGIN named.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """What a block is."""

    BEGIN = 1
    SLICE = 2
    LIVE = 3
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


WHEN_IN_STEP = 1 << 62

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendBlock:
    block: Block


@dataclass(frozen=True, slots=True)
class ReadSlice:
    """Read the next part of the flow table and call `slice_read` with it. `first`: from the table's beginning."""

    session: int
    first: bool


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything read before flush(number) is applied on the peer."""

    number: int


@dataclass(frozen=True, slots=True)
class SendAcknowledgement:
    acknowledgement: Acknowledgement


@dataclass(frozen=True, slots=True)
class BeginMark:
    """From now on remember which keys blocks name: a snapshot begins."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Put the block's records into the table, then call `applied`.

    `only_absent`: late news for a node that serves by now. Add only what the table does not have, delete nothing, and
    hand what was added to this node's own sender: no ring reports it.
    """

    block: Block
    only_absent: bool = False


@dataclass(frozen=True, slots=True)
class SweepUnmarked:
    """Delete every key that no block has named since BeginMark, then call `applied` for the block."""

    block: Block


@dataclass(frozen=True, slots=True)
class StepChanged:
    """The tables are or are no longer in step; `why` is the sentence for the log."""

    in_step: bool
    why: str


Effect = SendBlock | ReadSlice | Flushed | SendAcknowledgement | BeginMark | Apply | SweepUnmarked | StepChanged


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of both machines."""

    window_blocks: int = 64  # sent and not yet applied
    queued_records: int = 1 << 20  # read and not yet sent; beyond it the stream starts again
    retry_ns: int = 200_000_000  # no progress for so long: send again


class _Pending:
    """A block's content before it has a number."""

    __slots__ = ("clock_ns", "count", "family", "kind", "payload")

    def __init__(self, kind: Kind, clock_ns: int, family: int = 0, count: int = 0, payload: bytes = b"") -> None:
        self.kind, self.clock_ns, self.family, self.count, self.payload = kind, clock_ns, family, count, payload


class Sender:
    """The active node's side. boot: random number of this run; layout: which struct layouts payloads have."""

    def __init__(self, boot: int, layout: int, limits: Limits = Limits()) -> None:
        self.boot, self.layout, self.limits = boot, layout, limits
        self.epoch = self.session = 0
        self.running = self.in_step = False
        self.resyncs = 0
        self._queue: deque[_Pending] = deque()
        self._queued_records = 0
        self._window: deque[Block] = deque()
        self._sent = self._acked = self._limit = 0
        self._slice_asked = self._slices_done = False
        self._snapshot_acked = self._slices_read = 0
        self._progress_ns = 0
        self._flushes: deque[tuple[int, int]] = deque(maxlen=16)  # number, blocks that must be applied
        self._entered = 0  # blocks that entered the queue in this stream

    def start(self, epoch: int, now_ns: int) -> list[Effect]:
        """This node serves with `epoch` and the peer can be reached: begin a new stream."""
        self.epoch, self.session, self.running, self.in_step = epoch, self.session + 1, True, False
        self._clear()
        self._limit, self._progress_ns = 1, now_ns
        self._enqueue(_Pending(Kind.BEGIN, now_ns))
        return self._pump()

    def stop(self) -> None:
        """The peer is gone, or this node serves no more and everything is flushed. Nothing is kept."""
        self.running = self.in_step = False
        self._clear()

    def changes(self, family: int, count: int, payload: bytes, now_ns: int) -> list[Effect]:
        """Flow changes were read from the kernel, in the order they happened."""
        if not self.running:
            return []
        self._enqueue(_Pending(Kind.LIVE, now_ns, family, count, payload))
        if self._queued_records > self.limits.queued_records:
            return self._resync("more changes than the peer takes", now_ns)
        return self._pump()

    def overflow(self, now_ns: int) -> list[Effect]:
        """The kernel lost changes because its ring was full."""
        return self._resync("the kernel's ring was full", now_ns) if self.running else []

    def slice_read(self, session: int, family: int, count: int, payload: bytes, last: bool, now_ns: int) -> list[Effect]:
        """Answer to ReadSlice. `last`: the table has no more."""
        if session != self.session or not self._slice_asked:
            return []
        self._slice_asked = False
        self._slices_read += 1
        # In front of every change read since the slice was asked for: those may be newer than it.
        if last:
            self._slices_done = True
            self._enqueue(_Pending(Kind.END, now_ns), front=True)
        if count:
            self._enqueue(_Pending(Kind.SLICE, now_ns, family, count, payload), front=True)
        return self._pump()

    def acknowledged(self, ack: Acknowledgement, now_ns: int) -> list[Effect]:
        """The peer says what it has applied."""
        if not self.running or (ack.boot, ack.session) != (self.boot, self.session):
            return []
        if ack.problem:
            self.stop()
            return [StepChanged(False, f"the peer refuses the flows: {ack.problem}")]
        if ack.sequence > self._sent:
            return []
        out: list[Effect] = []
        if ack.unknown and self._acked:
            return self._resync("the peer lost the stream", now_ns)
        if ack.sequence > self._acked:
            self._progress_ns = now_ns
        while self._window and self._window[0].sequence <= ack.sequence:
            block = self._window.popleft()
            self._acked = block.sequence
            self._snapshot_acked += block.count if block.kind is Kind.SLICE else 0
        self._limit = max(self._limit, min(ack.limit, self._acked + self.limits.window_blocks))
        if ack.in_step and not self.in_step:
            self.in_step = True
            out.append(StepChanged(True, f"the peer has every flow, stream {self.session}"))
            while self._flushes and self._flushes[0][1] == WHEN_IN_STEP:
                out.append(Flushed(self._flushes.popleft()[0]))
        while self._flushes and self._flushes[0][1] <= self._acked:
            out.append(Flushed(self._flushes.popleft()[0]))
        if (ack.gap or ack.unknown) and ack.sequence == self._acked:
            out += self._again(now_ns)
        return out + self._pump()

    def flush(self, number: int) -> list[Effect]:
        """Report Flushed(number) once everything handed over before this call is applied on the peer."""
        if not self.running:
            return []
        if self._acked >= self._entered:
            return [Flushed(number)]
        self._flushes.append((number, self._entered))
        return []

    def tick(self, now_ns: int) -> list[Effect]:
        """Send again what has made no progress; call at least every retry_ns."""
        if self._window and now_ns - self._progress_ns >= self.limits.retry_ns:
            return self._again(now_ns)
        return []

    def lag_ns(self, now_ns: int) -> int:
        """Age of the oldest change the peer has not applied; 0 when there is none."""
        for block in self._window:
            if block.kind is Kind.LIVE:
                return max(0, now_ns - block.clock_ns)
        for pending in self._queue:
            if pending.kind is Kind.LIVE:
                return max(0, now_ns - pending.clock_ns)
        return 0

    def protected(self, flows: int) -> float:
        """Share of `flows` that the peer has: 0.0 to 1.0."""
        if not flows:
            return 1.0 if self.in_step else 0.0
        if not self.in_step:
            return min(1.0, self._snapshot_acked / flows)
        waiting = self._queued_records + sum(block.count for block in self._window)
        return max(0.0, 1.0 - waiting / flows)

    def _clear(self) -> None:
        self._queue.clear()
        self._window.clear()
        self._flushes.clear()
        self._queued_records = self._sent = self._acked = self._limit = self._entered = 0
        self._snapshot_acked = self._slices_read = 0
        self._slice_asked = self._slices_done = False

    def _resync(self, why: str, now_ns: int) -> list[Effect]:
        self.resyncs += 1
        flushes = [number for number, _ in self._flushes]
        out = [StepChanged(False, f"a new snapshot is sent: {why}"), *self.start(self.epoch, now_ns)]
        # What is to be flushed is now in the snapshot: due when that has arrived.
        self._flushes.extend((number, WHEN_IN_STEP) for number in flushes)
        return out

    def _enqueue(self, pending: _Pending, front: bool = False) -> None:
        (self._queue.appendleft if front else self._queue.append)(pending)
        self._queued_records += pending.count
        self._entered += 1

    def _pump(self) -> list[Effect]:
        """Send what may be sent; with nothing left to send, ask for the next slice of an unfinished snapshot."""
        out: list[Effect] = []
        while self._queue and self._sent < self._limit and not self._slice_asked:
            pending = self._queue.popleft()
            self._queued_records -= pending.count
            self._sent += 1
            block = Block(
                self.boot, self.session, self._sent, self.epoch, pending.kind, self.layout,
                pending.clock_ns, pending.family, pending.count, pending.payload,
            )  # fmt: skip
            self._window.append(block)
            out.append(SendBlock(block))
        if not self._queue and self._acked and self._sent < self._limit and not (self._slices_done or self._slice_asked):
            self._slice_asked = True
            out.append(ReadSlice(self.session, first=self._slices_read == 0))
        return out

    def _again(self, now_ns: int) -> list[Effect]:
        self._progress_ns = now_ns
        return [SendBlock(block) for block in self._window]


class Receiver:
    """The backup's side. layout: which struct layouts this node has."""

    def __init__(self, layout: int, limits: Limits = Limits()) -> None:
        self.layout, self.limits = layout, limits
        self.in_step = False
        self.serving = False
        self._boot = self._session = 0  # the stream followed last; only the peer's present run is followed
        self._known = False  # whether this node is in the middle of that stream
        self._epoch = 0
        self._received = self._applied = 0
        self._complete_at = 0  # the END block, once received
        self._gap_said_ns = -(1 << 62)

    def set_peer(self, boot: int) -> None:
        """The peer's present run, as `Failover.peer_boot` says: streams of any other are late."""
        if boot != self._boot:
            self._boot, self._session, self._known = boot, 0, False

    def set_serving(self, serving: bool) -> None:
        """This node became active or stopped being it.

        An active node takes only late changes of the stream it followed, and no snapshot. What it wrote to its table
        since then is in no stream, so afterwards it needs a new one; until that begins, its table is the best there is.
        """
        if self.serving and not serving:
            self._known = False
        self.in_step = self.in_step or serving
        self.serving = serving

    def block(self, block: Block, now_ns: int) -> list[Effect]:
        """A block arrived."""
        if block.layout != self.layout:
            return [
                self._refuse(block, f"its layout {block.layout:#x} is not this node's {self.layout:#x}: upgrade both nodes")
            ]
        if self.serving and block.kind is not Kind.LIVE:
            return []
        out: list[Effect] = []
        if not self._is_current(block):
            if self.serving:
                return []
            if block.kind is not Kind.BEGIN or block.boot != self._boot:
                unknown = Acknowledgement(block.boot, block.session, 0, 1, unknown=True)
                return [SendAcknowledgement(unknown)] if self._speak(now_ns) else []
            if not self._accept(block):
                return []
            if self.in_step:
                out.append(StepChanged(False, f"a new snapshot arrives, stream {block.session}"))
            self.in_step = False
        if block.sequence != self._received + 1:
            late = block.sequence <= self._received
            return [*out, self._acknowledge(gap=not late)] if self._speak(now_ns) else out
        self._received = block.sequence
        if block.kind is Kind.END:
            self._complete_at = block.sequence
            out.append(SweepUnmarked(block))
        elif block.kind is Kind.BEGIN:
            out += [BeginMark(), *self.applied(block)]
        else:
            out.append(Apply(block, only_absent=self.serving))
        return out

    def applied(self, block: Block) -> list[Effect]:
        """The records of a block are in the table (or it was swept)."""
        if not self._is_current(block) or block.sequence <= self._applied:
            return []
        self._applied = block.sequence
        out: list[Effect] = []
        if self._complete_at and self._applied >= self._complete_at and not self.in_step:
            self.in_step = True
            out.append(StepChanged(True, f"every flow of the peer is here, stream {block.session}"))
        return [*out, self._acknowledge()]

    def _is_current(self, block: Block) -> bool:
        return self._known and block.session == self._session and block.boot == self._boot

    def _accept(self, block: Block) -> bool:
        """Follow a new stream; or the same one from its beginning, if this node lost it."""
        if block.epoch < self._epoch or block.session < self._session:
            return False
        self._known, self._epoch, self._session = True, block.epoch, block.session
        self._received = self._applied = self._complete_at = 0
        return True

    def _acknowledge(self, gap: bool = False) -> SendAcknowledgement:
        limit = self._applied + self.limits.window_blocks
        ack = Acknowledgement(self._boot, self._session, self._applied, limit, self.in_step, gap)
        return SendAcknowledgement(ack)

    def _refuse(self, block: Block, why: str) -> SendAcknowledgement:
        return SendAcknowledgement(Acknowledgement(block.boot, block.session, 0, 0, problem=why))

    def _speak(self, now_ns: int) -> bool:
        """Complaints about blocks out of order are limited to a few per retry time."""
        if now_ns - self._gap_said_ns < self.limits.retry_ns // 8:
            return False
        self._gap_said_ns = now_ns
        return True
