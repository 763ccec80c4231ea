"""Which incarnation of the peer's daemon is the present one, and which of its heartbeats are new.

Decides fresh or not. Must not know what the messages contain.

A boot id is a random number that a daemon draws when it starts. Random numbers have no order, so a late message of an earlier
incarnation could look like a new one. Causality orders them: the present incarnation has heard something of ours that no
earlier one can have heard. A message of another incarnation counts only if it echoes a later message of ours than any message
before; or if the incarnation followed so far has been silent for several takeover times, because two nodes that each follow a
dead incarnation of their peer would wait for ever.
"""

from __future__ import annotations


class SessionGuard:
    """Accepts each (boot, sequence) at most once and in rising order, and follows the peer from incarnation to incarnation."""

    __slots__ = ("boot", "echoed", "sequence")

    def __init__(self) -> None:
        self.boot = self.sequence = self.echoed = 0

    def forget(self) -> None:
        """The incarnation followed so far is gone: follow the next one that sends."""
        self.boot = 0

    def accept(self, boot: int, sequence: int, echoed: int) -> bool:
        """True if the message is newer than every one accepted before; False for a replay or a latecomer.

        echoed: which of our own messages its sender had heard last, 0 if none of this incarnation of ours.
        """
        if boot == self.boot:
            if sequence <= self.sequence:
                return False
        elif self.boot and echoed <= self.echoed:
            return False
        self.boot, self.sequence, self.echoed = boot, sequence, max(echoed, self.echoed)
        return True
