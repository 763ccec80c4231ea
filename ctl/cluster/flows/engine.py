"""The flow replication engine: carries out the effects of sender and receiver, one bounded step at a time.

Single-threaded and without a clock of its own: the worker that owns it calls `step` again and again. What to send and when the
maps of both nodes are in step is decided in `sync.flows.sender` and `sync.flows.receiver`. Must not know
threads, sockets, roles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from bpf.dataplane import Array, PlaneError
from ctl.cluster.flows.replica import ReplicaMaps
from ctl.cluster.flows.source import BLOCK_RECORDS, FlowSource, Records, ReplicatedPlane, make_codec
from sync.errors import WireError
from sync.flows import message_codec, receiver, sender
from sync.flows.receiver import Apply, BeginMark, Receiver, SendAcknowledgement, SweepUnmarked
from sync.flows.sender import Flushed, ReadPart, SendBlock, Sender
from sync.flows.stream import Acknowledgement, Block, Limits, StepChanged

LIMITS = Limits(window_blocks=16)
"""A window bounds what a takeover must still apply: 16 blocks of 4,096 connections."""

POLL_MIN_NS = 2_000_000
POLL_MAX_NS = 8_000_000
TICK_NS = 50_000_000
IDLE_NS = 500_000_000

_FAMILY_NUMBERS = {"v4": 4, "v6": 6}
_FAMILY_NAMES = {number: name for name, number in _FAMILY_NUMBERS.items()}

_Work = Apply | BeginMark | SweepUnmarked | Callable[[], None]


@dataclass(slots=True)
class Outlets:
    """Where the engine's results go; each is called in the engine's thread and must return at once."""

    send: Callable[[bytes], None]
    step_changed: Callable[[bool, str], None]
    flushed: Callable[[int], None]
    failed: Callable[[str], None]


@dataclass(slots=True)
class EngineCounts:
    """Besides those of the flow maps."""

    sent_records: int = 0
    lost_events: int = 0
    bad_messages: int = 0


class ReplicationEngine:
    """One per plane. `now_ns` is CLOCK_MONOTONIC, the clock of the flows' ticks."""

    def __init__(
        self,
        plane: ReplicatedPlane,
        boot: int,
        clock_offset_ns: Callable[[], int | None],
        outlets: Outlets,
        limits: Limits = LIMITS,
        unreadable: Callable[[], int] = lambda: 0,
    ) -> None:
        self._codec = make_codec(plane)
        self._source = FlowSource(plane, self._codec)
        self.maps = ReplicaMaps(plane, self._codec, unreadable)
        self.sender = Sender(boot, self._codec.layout, limits)
        self.receiver = Receiver(self._codec.layout, limits)
        self.counts = EngineCounts()
        self._clock_offset_ns, self._out = clock_offset_ns, outlets
        self._present, self._peer_boot = False, 0
        self._serving_epoch: int | None = None
        self._work: deque[_Work] = deque()
        self._sweep: Iterator[None] | None = None
        self._part_wanted: ReadPart | None = None
        self._working = False
        self._poll_ns, self._poll_due_ns, self._tick_due_ns = POLL_MIN_NS, 0, 0
        self._flush_number: int | None = None
        self._held = False  # changes were read that could not be sent yet

    def close(self) -> None:
        self._source.close()

    def give_up(self) -> None:
        """Nothing works any more: this node is not in step."""
        self.sender.stop()
        self.receiver.in_step = False

    # --- what happens to this node ---------------------------------------------------------------------------

    def peer_present(self, present: bool, boot: int, now_ns: int) -> None:
        """The peer can be reached or not; `boot`: its present incarnation, 0 while unknown.

        A peer that is given up keeps its stream: this node may have been the only one not to hear the other.
        """
        is_news = present != self._present or (present and boot != self._peer_boot)
        if boot:
            self.receiver.set_peer(boot)
            self._peer_boot = boot
        if is_news:
            self._present = present
            self._follow(now_ns)

    def serve(self, epoch: int, now_ns: int) -> None:
        """This node is active."""
        self._serving_epoch = epoch
        self.receiver.set_serving(True)
        # Received before, and not in the maps yet: it must not overwrite what clients have changed since the lease opened.
        self._work = deque(replace(work, only_absent=True) if isinstance(work, Apply) else work for work in self._work)
        self._sweep = None
        self._follow(now_ns)

    def stop_serving(self, now_ns: int) -> None:
        """This node is no longer active."""
        self._serving_epoch = None
        self.receiver.set_serving(False)
        self._follow(now_ns)

    def _follow(self, now_ns: int) -> None:
        """A stream runs while this node is active and the peer is present."""
        self.sender.stop()
        self._part_wanted, self._flush_number, self._held = None, None, False
        if self._serving_epoch is None or not self._present:
            return
        self._source.discard()
        self._poll_ns, self._poll_due_ns = POLL_MIN_NS, now_ns
        self._do(self.sender.start(self._serving_epoch, now_ns), now_ns)

    # --- what is asked ---------------------------------------------------------------------------------------

    def message(self, raw: bytes, now_ns: int) -> None:
        """One message of the peer; what is none of ours is counted and dropped."""
        try:
            message = message_codec.decode(raw)
            if isinstance(message, Block) and message.layout == self.receiver.layout and message.count:
                self._codec.check(_FAMILY_NAMES[message.family], message.count, message.payload)
        except WireError:
            self.counts.bad_messages += 1
            return
        if isinstance(message, Acknowledgement):
            self._do(self.sender.acknowledged(message, now_ns), now_ns)
        else:
            self._do(self.receiver.block(message, now_ns), now_ns)

    def flush(self, number: int, now_ns: int) -> None:
        """Report `flushed(number)` once the peer has applied all changes up to now; if it is not in step, all flows."""
        self._flush_number = number
        self._continue_flush(now_ns)

    def _continue_flush(self, now_ns: int) -> None:
        if self._flush_number is None or not self.sender.in_step:
            return
        self._read_everything(now_ns)
        self._notice_loss(now_ns)
        if self.sender.in_step:
            self._do(self.sender.flush(self._flush_number), now_ns)

    def after_pending(self, done: Callable[[], None]) -> None:
        """Call `done` once everything received so far is in the maps.

        A node about to serve does not wait for the deletion of what the peer lacks: those entries expire by themselves.
        """
        self._sweep = None
        self._work.append(done)

    def release(self, now_ns: int) -> None:
        """The program can read more flows than before: those that were held back for it go into the maps, and to the peer."""
        too_many = self.maps.held.lost
        released = self._attempt(self.maps.release)
        for family, keys, values in released if isinstance(released, list) else ():
            self.still_alive(family, keys, values, now_ns)
        if too_many:
            self._do(self.receiver.lost_flows(f"{too_many} flows were too many to hold back"), now_ns)

    def removed(self, family: str, keys: Array, now_ns: int) -> None:
        """These forward entries were deleted on purpose."""
        if not self.sender.running:
            return
        self._read_everything(now_ns)  # the kernel's earlier events of them come first
        records = self._source.removals(family, keys)
        if records is not None:
            self._changes(records, now_ns)

    def still_alive(self, family: str, keys: Array, values: Array, now_ns: int) -> None:
        """These forward entries are older than their connections."""
        if self.sender.running and len(keys):
            self._changes(self._source.entries(family, keys, values), now_ns)

    # --- the steps -------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> int:
        """Do one bounded piece of work; returns in how many ns the next is due, 0 for at once."""
        if now_ns >= self._tick_due_ns:
            self._tick(now_ns)
        worked = self._step_maps(now_ns)
        if self.sender.running:
            if now_ns >= self._poll_due_ns:
                self._poll(now_ns)
            if self._part_wanted is not None:
                self._read_part(self._part_wanted, now_ns)
                worked = True
        if worked:
            return 0
        due = min(self._poll_due_ns, self._tick_due_ns) if self.sender.running else now_ns + IDLE_NS
        return max(0, due - now_ns)

    @property
    def idle(self) -> bool:
        """Whether everything received is in the maps; may be read in any thread."""
        return not self._work and not self._working and self._sweep is None

    def _tick(self, now_ns: int) -> None:
        self._tick_due_ns = now_ns + TICK_NS
        if self.sender.running:
            self._notice_loss(now_ns)
            self._do(self.sender.tick(now_ns), now_ns)

    def _notice_loss(self, now_ns: int) -> None:
        lost = self._source.lost()
        if lost:
            self.counts.lost_events += lost
            self._source.discard()  # the new snapshot has what waits
            self._do(self.sender.overflow(now_ns), now_ns)

    def _poll(self, now_ns: int) -> None:
        """Read the rings; while earlier changes wait for the peer, only whole blocks, so that few big ones wait, not many."""
        if self._held and self._source.backlog() < BLOCK_RECORDS:
            self._poll_due_ns = now_ns + POLL_MIN_NS
            return
        found = 0
        for records in self._source.read():
            found += records.count
            self._changes(records, now_ns)
        self._poll_ns = POLL_MIN_NS if found else min(2 * self._poll_ns, POLL_MAX_NS)
        behind = self._source.backlog() >= BLOCK_RECORDS
        self._poll_due_ns = now_ns if behind else now_ns + self._poll_ns

    def _read_everything(self, now_ns: int) -> None:
        for records in self._source.read_everything():
            self._changes(records, now_ns)

    def _changes(self, records: Records, now_ns: int) -> None:
        self.counts.sent_records += records.count
        self._held = True
        self._do(self.sender.changes(_FAMILY_NUMBERS[records.family], records.count, records.payload, now_ns), now_ns)

    def _read_part(self, wanted: ReadPart, now_ns: int) -> None:
        self._part_wanted = None
        records, last = self._source.read_part(wanted.first)
        self.counts.sent_records += records.count
        family = _FAMILY_NUMBERS[records.family] if records.count else 0
        self._do(self.sender.part_read(wanted.session, family, records.count, records.payload, last, now_ns), now_ns)

    def _step_maps(self, now_ns: int) -> bool:
        """One block into the maps, then one part of a sweep. False if there was nothing to do."""
        if self._sweep is not None and self._attempt(lambda: next(self._sweep or iter(()), self)) is self:
            self._sweep = None
        if not self._work:
            return self._sweep is not None
        self._working = True  # before it leaves the queue: `idle` is asked by another thread
        try:
            self._work_on(self._work.popleft(), now_ns)
        finally:
            self._working = False
        return True

    def _work_on(self, work: _Work, now_ns: int) -> None:
        if isinstance(work, Apply):
            self._apply(work, now_ns)
        elif isinstance(work, BeginMark):
            self._sweep = None
            self.maps.begin_mark()
        elif isinstance(work, SweepUnmarked):
            # Every flow of the peer is here: the blocks behind this one need not wait for the deletion of what is too much.
            self._sweep = None if self.receiver.serving else self.maps.sweep()
            self._do(self.receiver.applied(work.block), now_ns)
        else:
            work()

    def _apply(self, work: Apply, now_ns: int) -> None:
        block = work.block
        if block.count:
            family, offset_ns = _FAMILY_NAMES[block.family], self._offset_ns(block, now_ns)
            arguments = (family, block.count, block.payload, offset_ns)
            if work.only_absent:
                added = self._attempt(lambda: self.maps.apply_absent(*arguments))
                for keys, values in added if isinstance(added, list) else ():
                    self.still_alive(family, keys, values, now_ns)
            else:
                self._attempt(lambda: self.maps.apply(*arguments))
        self._do(self.receiver.applied(block), now_ns)

    def _attempt(self, act: Callable[[], object]) -> object:
        """A map the kernel refuses to write must not end replication: what is missing shows in the counts."""
        try:
            return act()
        except (PlaneError, OSError) as error:
            self._out.failed(f"replicated flows could not be written: {error}")
            return self

    def _offset_ns(self, block: Block, now_ns: int) -> int:
        """Without a measured offset the block counts as read just now: flows then seem younger by its travel time."""
        known = self._clock_offset_ns()
        return now_ns - block.clock_ns if known is None else known

    def _do(self, effects: Iterable[sender.Effect | receiver.Effect], now_ns: int) -> None:
        for effect in effects:
            match effect:
                case SendBlock(block):
                    self._held = False
                    self._out.send(message_codec.encode(block))
                case SendAcknowledgement(acknowledgement):
                    self._out.send(message_codec.encode(acknowledgement))
                case Apply() | BeginMark() | SweepUnmarked():
                    self._work.append(effect)
                case ReadPart():
                    self._part_wanted = effect
                case Flushed(number):
                    self._flush_number = None
                    self._out.flushed(number)
                case StepChanged(in_step, why):
                    self._out.step_changed(in_step, why)
                    self._continue_flush(now_ns)  # a flush that was requested during a snapshot
