"""The faults of one node: what is wrong with it, and whether it could be active all the same.

Decides what the present faults add up to. Must not know how a fault is found, roles or the peer.

With a disabling fault (no carrier on a tracked interface) this node could not answer clients. With any other fault (a state
directory that cannot be written, a setting that somebody else keeps changing) it is worse than a healthy peer and better than
no active node.
"""

from __future__ import annotations

from sync.failover.types import FaultChanged

MAX_FAULTS = 64
"""Further names are ignored: names are interfaces, sysctls and directories of the node file, far fewer."""


class Faults:
    """The present faults by name."""

    __slots__ = ("_present",)

    def __init__(self) -> None:
        self._present: dict[str, FaultChanged] = {}

    def __bool__(self) -> bool:
        return bool(self._present)

    def __str__(self) -> str:
        return ", ".join(sorted(self.messages))

    @property
    def messages(self) -> tuple[str, ...]:
        """What is wrong, one message per fault."""
        return tuple(fault.message for fault in self._present.values())

    @property
    def disabling(self) -> bool:
        """Whether one of them leaves this node unable to be active at all."""
        return any(fault.disables for fault in self._present.values())

    def changed(self, fault: FaultChanged) -> bool:
        """Take in one event; returns whether it changes anything."""
        if not fault.message:
            return self._present.pop(fault.name, None) is not None
        if self._present.get(fault.name) == fault or (fault.name not in self._present and len(self._present) >= MAX_FAULTS):
            return False
        self._present[fault.name] = fault
        return True
