"""Flow replication, the active node's side: changes and parts of the flow maps in, blocks out.

Decides what is sent, in which order, what is sent again, and when a new snapshot is needed. Must not know sockets, clocks, the
kernel, what a flow is, or how the peer takes blocks in; `sync.flows.stream` proves that the order is right.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sync.flows.stream import Acknowledgement, Block, Kind, Limits, StepChanged

WHEN_IN_STEP = 1 << 62
"""A flush that waits for a snapshot is due at no block: none has so high a number."""

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendBlock:
    block: Block


@dataclass(frozen=True, slots=True)
class ReadPart:
    """Read the next part of the flow maps and call `part_read` with it. `first`: from the beginning."""

    session: int
    first: bool


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything read before flush(number) is applied on the peer."""

    number: int


Effect = SendBlock | ReadPart | Flushed | StepChanged


class _Pending:
    """A block's content before it has a number."""

    __slots__ = ("clock_ns", "count", "family", "kind", "payload")

    def __init__(self, kind: Kind, clock_ns: int, family: int = 0, count: int = 0, payload: bytes = b"") -> None:
        self.kind, self.clock_ns, self.family, self.count, self.payload = kind, clock_ns, family, count, payload


class Sender:
    """The active node's side. boot: random number of this run; layout: which struct layouts payloads have."""

    def __init__(self, boot: int, layout: int, limits: Limits) -> None:
        self.boot, self.layout, self.limits = boot, layout, limits
        self.epoch = self.session = 0
        self.running = self.in_step = False
        self.resyncs = 0
        self._queue: deque[_Pending] = deque()
        self._queued_records = 0
        self._window: deque[Block] = deque()
        self._sent = self._acked = self._limit = 0
        self._part_requested = self._parts_done = False
        self._snapshot_acked = self._parts_read = 0
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
        self._enqueue(_Pending(Kind.DELTA, now_ns, family, count, payload))
        if self._queued_records > self.limits.queued_records:
            return self._resync("the queue of changes is full", now_ns)
        return self._pump()

    def overflow(self, now_ns: int) -> list[Effect]:
        """The kernel lost changes because its ring was full."""
        return self._resync("the kernel's ring buffer overflowed", now_ns) if self.running else []

    def part_read(self, session: int, family: int, count: int, payload: bytes, last: bool, now_ns: int) -> list[Effect]:
        """Answer to ReadPart. `last`: the table has no more."""
        if session != self.session or not self._part_requested:
            return []
        self._part_requested = False
        self._parts_read += 1
        # In front of every change read since the part was requested: those may be newer than it.
        if last:
            self._parts_done = True
            self._enqueue(_Pending(Kind.END, now_ns), front=True)
        if count:
            self._enqueue(_Pending(Kind.SNAPSHOT, now_ns, family, count, payload), front=True)
        return self._pump()

    def acknowledged(self, ack: Acknowledgement, now_ns: int) -> list[Effect]:
        """The peer acknowledges what it has applied."""
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
            self._snapshot_acked += block.count if block.kind is Kind.SNAPSHOT else 0
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
            if block.kind is Kind.DELTA:
                return max(0, now_ns - block.clock_ns)
        for pending in self._queue:
            if pending.kind is Kind.DELTA:
                return max(0, now_ns - pending.clock_ns)
        return 0

    def protected(self, flows: int, unreplicated: int = 0) -> float:
        """Share of `flows` that the peer has: 0.0 to 1.0. unreplicated: how many of them are in no block."""
        if not flows:
            return 1.0 if self.in_step else 0.0
        if not self.in_step:
            return min(1.0, self._snapshot_acked / flows)
        waiting = unreplicated + self._queued_records + sum(block.count for block in self._window)
        return max(0.0, 1.0 - waiting / flows)

    def _clear(self) -> None:
        self._queue.clear()
        self._window.clear()
        self._flushes.clear()
        self._queued_records = self._sent = self._acked = self._limit = self._entered = 0
        self._snapshot_acked = self._parts_read = 0
        self._part_requested = self._parts_done = False

    def _resync(self, why: str, now_ns: int) -> list[Effect]:
        self.resyncs += 1
        flushes = [number for number, _ in self._flushes]
        out = [StepChanged(False, f"sending a new snapshot: {why}"), *self.start(self.epoch, now_ns)]
        # What is to be flushed is now in the snapshot: due when that has arrived.
        self._flushes.extend((number, WHEN_IN_STEP) for number in flushes)
        return out

    def _enqueue(self, pending: _Pending, front: bool = False) -> None:
        (self._queue.appendleft if front else self._queue.append)(pending)
        self._queued_records += pending.count
        self._entered += 1

    def _pump(self) -> list[Effect]:
        """Send what may be sent; with nothing left to send, request the next part of an unfinished snapshot."""
        out: list[Effect] = []
        while self._queue and self._sent < self._limit and not self._part_requested:
            pending = self._queue.popleft()
            self._queued_records -= pending.count
            self._sent += 1
            block = Block(
                self.boot, self.session, self._sent, self.epoch, pending.kind, self.layout,
                pending.clock_ns, pending.family, pending.count, pending.payload,
            )  # fmt: skip
            self._window.append(block)
            out.append(SendBlock(block))
        if not self._queue and self._acked and self._sent < self._limit and not (self._parts_done or self._part_requested):
            self._part_requested = True
            out.append(ReadPart(self.session, first=self._parts_read == 0))
        return out

    def _again(self, now_ns: int) -> list[Effect]:
        self._progress_ns = now_ns
        return [SendBlock(block) for block in self._window]
