"""Epochs: which number this node may become active with next, that it is on disk before it is needed, and claims and promises.

Decides epochs. Must not know files: storing is an effect. Each node uses only numbers of its own parity, so no epoch ever
belongs to two nodes and no tie is possible. The disk has a limit far above the epochs in use, so that a node whose disk is full
or read-only can still take over, hundreds of times. After a crash every epoch up to the limit counts as spent.
"""

from __future__ import annotations

from sync.failover.types import Heartbeat, PersistEpoch, Role

AHEAD = 1000
"""How far the limit on disk is above the next epoch when it is stored; half of it is left when it is stored again."""


class Epochs:
    """`current` is the highest epoch this node knows to have begun; `reserved` an unspent, durable one, 0 if there is none."""

    __slots__ = ("_limit", "_parity", "_storing", "current", "reserved")

    def __init__(self, parity: int, persisted_epoch: int, persisted_reserved: int) -> None:
        # Every number up to the limit may have begun before a crash: none must be used again.
        self.current = self._limit = self._storing = max(persisted_epoch, persisted_reserved)
        self.reserved = 0
        self._parity = parity

    def seen(self, epoch: int) -> None:
        """The peer knows `epoch`."""
        self.current = max(self.current, epoch)

    def reserve(self, above: int = 0) -> PersistEpoch | None:
        """Have an unspent epoch greater than the current one and than `above`; ask for a limit on disk where that is near."""
        known = max(self.current, above)
        if self.reserved <= known:
            self._take(known)
        needed = max(self.reserved, known)
        if max(self._limit, self._storing) - needed >= AHEAD // 2:
            return None
        self._storing = needed + AHEAD
        return PersistEpoch(self.current, self._storing)

    def _take(self, known: int) -> None:
        """The next number of this node above `known`, if it is on disk."""
        following = known + 1
        following += following % 2 != self._parity
        self.reserved = following if following <= self._limit else 0

    def persisted(self, limit: int) -> None:
        """The disk has this limit."""
        self._limit = max(self._limit, limit)
        if not self.reserved:
            self._take(self.current)

    def give_back(self) -> PersistEpoch:
        """This incarnation ends in order: no epoch above the current one has begun."""
        self.reserved = 0
        self._limit = self._storing = self.current
        return PersistEpoch(self.current, self.current)

    def spend(self) -> int:
        """Begin the reserved epoch."""
        assert self.reserved > self.current, "an epoch must be on disk before it begins"
        self.current, self.reserved = self.reserved, 0
        return self.current


class Claim:
    """What this node asks of its peer and promises it. `epoch`: what it claims; `grants`: what it follows; 0: nothing."""

    __slots__ = ("_since_ns", "epoch", "grants")

    def __init__(self) -> None:
        self.epoch = self.grants = self._since_ns = 0

    def begin(self, epoch: int, now_ns: int) -> None:
        """Claim `epoch` from now on."""
        self.epoch, self._since_ns = epoch, now_ns

    def withdraw(self) -> None:
        """Claim nothing."""
        self.epoch = 0

    def promise(self, beat: Heartbeat, known: int) -> bool:
        """Follow the peer if it is active, or claims an epoch later than every `known` one; False if it gets no promise."""
        later_claim = beat.claim if beat.claim > known else 0
        self.grants = beat.epoch if beat.role is Role.ACTIVE else later_claim
        return self.grants != 0

    def is_granted_by(self, beat: Heartbeat, boot: int, now_ns: int, lease_ns: int) -> bool:
        """Whether the peer promised after it heard this very claim, and the promise is fresh enough for a lease."""
        if beat.grants != self.epoch or beat.echo_boot != boot:
            return False
        return self._since_ns <= beat.echo_sent_ns <= now_ns < beat.echo_sent_ns + lease_ns
