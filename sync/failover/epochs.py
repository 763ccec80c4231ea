"""Terms of leadership: which number this node may serve under next, and that it is on disk before it is needed.

Decides epochs. Must not know files: storing is an effect. Each node uses only numbers of its own parity, so no epoch
ever belongs to two nodes and no tie is possible.
"""

from __future__ import annotations

from sync.failover.types import PersistEpoch


class Epochs:
    """`current` is the highest term this node knows to have begun; `reserved` an unspent, durable one, 0 if none yet."""

    __slots__ = ("_floor", "_parity", "_reserving", "current", "reserved")

    def __init__(self, parity: int, persisted_epoch: int, persisted_reserved: int) -> None:
        # Whether a reserved number was served before a crash nobody knows: an epoch that has begun must not be forgotten.
        self.current = self._floor = max(persisted_epoch, persisted_reserved)
        self.reserved = self._reserving = 0
        self._parity = parity

    def seen(self, epoch: int) -> None:
        """The peer knows of the term `epoch`."""
        self.current = max(self.current, epoch)

    def reserve(self, above: int = 0) -> PersistEpoch | None:
        """Ask for an unspent epoch greater than the current one and than `above`, unless one is there or on its way."""
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
        """This run ends in order: what it reserved was not served."""
        self.reserved = self._reserving = 0
        return PersistEpoch(self.current, self.current)

    def spend(self) -> int:
        """Begin the reserved term."""
        assert self.reserved > self.current, "an epoch must be on disk before it is served"
        self.current, self.reserved = self.reserved, 0
        return self.current
