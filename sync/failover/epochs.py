"""Epochs: which number this node may become active with next, that it is on disk before it is needed, and claims and promises.

Decides epochs. Must not know files: storing is an effect. Each node uses only numbers of its own parity, so no epoch
ever belongs to two nodes and no tie is possible.
"""

from __future__ import annotations

from sync.failover.types import Heartbeat, PersistEpoch, Role


class Epochs:
    """`current` is the highest epoch this node knows to have begun; `reserved` an unspent, durable one, 0 if none yet."""

    __slots__ = ("_floor", "_parity", "_reserving", "current", "reserved")

    def __init__(self, parity: int, persisted_epoch: int, persisted_reserved: int) -> None:
        # A reserved number may have begun before a crash: it must not be forgotten.
        self.current = self._floor = max(persisted_epoch, persisted_reserved)
        self.reserved = self._reserving = 0
        self._parity = parity

    def seen(self, epoch: int) -> None:
        """The peer knows `epoch`."""
        self.current = max(self.current, epoch)

    def reserve(self, above: int = 0) -> PersistEpoch | None:
        """Ask for an unspent epoch greater than the current one and than `above`, unless one is there or being stored."""
        known = max(self.current, above)
        if self.reserved > known or self._reserving > known:
            return None
        self._floor = max(self._floor, known) + 1
        self._floor += self._floor % 2 != self._parity
        self.reserved, self._reserving = 0, self._floor
        return PersistEpoch(self.current, self._floor)

    def persisted(self, reserved: int) -> None:
        """The disk has it."""
        if reserved == self._reserving:
            self.reserved, self._reserving = reserved, 0

    def give_back(self) -> PersistEpoch:
        """This incarnation ends in order: the epoch it reserved did not begin."""
        self.reserved = self._reserving = 0
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
