"""Flow replication, the backup's side: blocks in, work on the flow maps and acknowledgements out.

Decides what counts as received, which stream is followed, and when the two tables are in step. Must not know sockets, clocks,
the kernel, what a flow is, or why the sender sends what it sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from sync.flows.stream import Acknowledgement, Block, Kind, Limits, StepChanged

# --- effects ---------------------------------------------------------------------------------------------------------


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


Effect = SendAcknowledgement | BeginMark | Apply | SweepUnmarked | StepChanged


class Receiver:
    """The backup's side. layout: which struct layouts this node has."""

    def __init__(self, layout: int, limits: Limits) -> None:
        self.layout, self.limits = layout, limits
        self.in_step = False
        self.serving = False
        self._boot = self._session = 0  # the stream followed last; only the peer's present incarnation is followed
        self._known = False  # whether this node is in the middle of that stream
        self._epoch = 0
        self._received = self._applied = 0
        self._complete_at = 0  # the END block, once received
        self._gap_said_ns = -(1 << 62)

    def set_peer(self, boot: int) -> None:
        """The peer's present incarnation (`Failover.peer_boot`): streams of any other are late."""
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

    def lost_flows(self, why: str) -> list[Effect]:
        """Flows that were applied are lost here: have the peer send a new snapshot, unless this node serves."""
        if self.serving or not self._known:
            return []
        self._known = False
        out: list[Effect] = [StepChanged(False, why)] if self.in_step else []
        self.in_step = False
        return [*out, SendAcknowledgement(Acknowledgement(self._boot, self._session, 0, 1, unknown=True))]

    def block(self, block: Block, now_ns: int) -> list[Effect]:
        """A block arrived."""
        if block.layout != self.layout:
            return [
                self._refuse(
                    block,
                    f"flow layout {block.layout:#x}, expected {self.layout:#x}: install the same version on both nodes",
                )
            ]
        if self.serving and block.kind is not Kind.DELTA:
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
                out.append(StepChanged(False, f"receiving a new snapshot, stream {block.session}"))
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
            out.append(StepChanged(True, f"this node has every flow of the peer, stream {block.session}"))
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
