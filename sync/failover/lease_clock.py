"""The lease of this node: until when its kernel may answer for the VIPs, and which heartbeats that rests on.

Decides when the lease may be extended. Must not know the peer's role or why this node is active.

A lease needs a promise. The deadline is `sent + lease_ns` of a heartbeat that the peer acknowledged: it stays closed until it
has heard nothing for takeover_ns (timing.py; which times are in force where the nodes differ: agreement.py). Only when
acknowledgements are missing for alone_ns while this node is awake does it extend alone: with a vote configured, from the
moment it asked for a vote it then got (vote.py); without one, from the moment it sends, because the peer is probably dead. If
the peer is cut off instead, both nodes are active until the cut heals: two nodes without a vote cannot know the difference.
"""

from __future__ import annotations

from collections import deque

from sync.failover.timing import FAR_NS, NEVER_NS, Timing

REMEMBERED_BEATS = 16


class LeaseClock:
    """`deadline_ns` is 0 while the lease is closed."""

    __slots__ = ("_acked_ns", "_followed", "_unacked_ns", "deadline_ns")

    def __init__(self) -> None:
        self.deadline_ns = 0
        self._acked_ns = NEVER_NS  # when the last heartbeat that the peer acknowledged was sent
        self._followed = False  # the peer has acknowledged a heartbeat of this epoch
        self._unacked_ns: deque[int] = deque(maxlen=REMEMBERED_BEATS)  # when later heartbeats were sent

    def open(self, basis_ns: int) -> None:
        """A new epoch begins; its lease counts from `basis_ns`."""
        self._acked_ns, self._followed = basis_ns, False
        self._unacked_ns.clear()

    def close(self) -> None:
        """The lease ends now."""
        self.deadline_ns = 0

    def has_expired(self, now_ns: int) -> bool:
        """Whether the kernel has stopped answering, or will before an extension could reach it."""
        return now_ns >= self.deadline_ns

    def extend(self, basis_ns: int, timing: Timing) -> bool:
        """Count the lease from `basis_ns`; False if that is no later than before."""
        deadline_ns = basis_ns + timing.lease_ns
        if deadline_ns <= self.deadline_ns:
            return False
        self.deadline_ns = deadline_ns
        return True

    def sent(self, now_ns: int) -> None:
        """A heartbeat was sent that the peer is to acknowledge."""
        self._unacked_ns.append(now_ns)

    def acknowledge(self, sent_ns: int, now_ns: int) -> bool:
        """The peer acknowledged the heartbeat of `sent_ns`; False if a later one was acknowledged before."""
        if not self._acked_ns < sent_ns <= now_ns:
            return False
        self._acked_ns, self._followed = sent_ns, True
        while self._unacked_ns and self._unacked_ns[0] <= sent_ns:
            self._unacked_ns.popleft()
        return True

    def alone_at_ns(self, timing: Timing) -> int:
        """From when on missing acknowledgements mean that none will come: one must have had time to come back."""
        if not self._unacked_ns:
            return FAR_NS
        return max(self._acked_ns + timing.alone_ns, self._unacked_ns[0] + timing.answer_ns)

    def is_alone(self, now_ns: int, awake_since_ns: int, timing: Timing) -> bool:
        """Whether this node must do without acknowledgements, and has been awake long enough to know."""
        unheard = now_ns >= self.alone_at_ns(timing)
        awake = now_ns - awake_since_ns >= timing.alone_ns
        return unheard and awake

    def is_unacknowledged(self, asked_ns: int, timing: Timing) -> bool:
        """Whether acknowledgements had been missing for alone_ns already at `asked_ns`."""
        return asked_ns >= self._acked_ns + timing.alone_ns

    def is_carried(self, now_ns: int, timing: Timing) -> bool:
        """Whether the peer acknowledges this epoch's heartbeats."""
        return self._followed and now_ns - self._acked_ns < timing.alone_ns

    def has_lost_follower(self, now_ns: int, timing: Timing) -> bool:
        """Whether the peer followed this epoch and then did not acknowledge for the takeover time."""
        return self._followed and now_ns - self._acked_ns >= timing.takeover_ns
