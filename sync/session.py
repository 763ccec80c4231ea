"""Which messages of a peer are new: one counter per boot of the peer's daemon.

Decides fresh or not. Must not know what the messages say.
"""

from __future__ import annotations

from collections import deque

REMEMBERED_BOOTS = 64


class SessionGuard:
    """Accepts each (boot, sequence) at most once, in rising order, and never goes back to an earlier boot.

    A boot id is a random number a daemon draws when it starts. The number of remembered old boots is bounded.
    """

    __slots__ = ("_retired", "boot", "sequence")

    def __init__(self) -> None:
        self.boot = 0
        self.sequence = 0
        self._retired: deque[int] = deque(maxlen=REMEMBERED_BOOTS)

    def accept(self, boot: int, sequence: int) -> bool:
        """True if the message is newer than every one accepted before; False for a replay or a latecomer."""
        if boot == self.boot:
            if sequence <= self.sequence:
                return False
        elif boot in self._retired:
            return False
        else:
            if self.boot:
                self._retired.append(self.boot)
            self.boot = boot
        self.sequence = sequence
        return True
