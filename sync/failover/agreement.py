"""How long each node's lease may be: only as long as the other one is known to wait, also when the node files differ.

Decides which lease this node may use, how long it waits for the peer's, and what of that must be on disk. Must not know files
or roles: storing is an effect.

Each node says its own lease and which lease of its peer it allows: one that it waits for from now on, after a restart as
well, because it is on its disk. A lease that is raised is used once the peer, having heard of it, allows it; until then the
one before is. A lease that is lowered is used at once, and said once no restart can find the longer one on disk.

The peer believes a longer lease at once, a shorter one only with proof that the sender is not an earlier run: it has heard
something which was sent after the receiver heard of that run.
"""

from __future__ import annotations

from sync.failover.timing import Timing, timing_in_force
from sync.failover.types import Heartbeat, Leases, PersistLeases


class Agreement:
    """Both leases of a pair as one node knows them. `timing` is what is in force."""

    __slots__ = ("_config", "_peer_run", "_since", "_stored", "_storing", "own_ns", "peer_ns", "timing")

    def __init__(self, timing: Timing, stored: Leases) -> None:
        """timing: the node file's. A node that has stored nothing yet is new in its pair, which began with equal times."""
        self._config, self._stored = timing, stored
        self._storing: Leases | None = None
        self.own_ns = min(timing.lease_ns, stored.own_ns or timing.lease_ns)
        self.peer_ns = stored.peer_ns or timing.lease_ns
        self._peer_run = self._since = 0
        self._put_in_force()

    def _put_in_force(self) -> None:
        self.timing = timing_in_force(self._config, self.own_ns, self.peer_ns)

    @property
    def said_ns(self) -> int:
        """The longest lease that this node, or a later run of it, may use without asking again; or the one it asks for."""
        return max(self._config.lease_ns, self._stored.own_ns)

    @property
    def allowed_ns(self) -> int:
        """The lease of the peer that this node waits for even after a restart at this moment."""
        surely = [self.peer_ns, self._stored.peer_ns] + ([self._storing.peer_ns] if self._storing else [])
        return min(surely)

    def heard(self, beat: Heartbeat, boot: int, sent: int) -> None:
        """A heartbeat of the peer. boot: this run of this node; sent: the number of its last heartbeat."""
        if beat.boot != self._peer_run:
            self._peer_run, self._since = beat.boot, sent
        to_this_run = beat.echo_boot == boot
        if beat.lease_ns > self.peer_ns or (to_this_run and beat.echo_sequence > self._since):
            self.peer_ns = beat.lease_ns
        if to_this_run and beat.allows_ns >= self._config.lease_ns:
            self.own_ns = self._config.lease_ns
        self._put_in_force()

    def store(self) -> PersistLeases | None:
        """What is to be stored now, if anything; one write at a time."""
        wanted = Leases(self.own_ns, self.peer_ns)
        if self._storing or wanted == self._stored:
            return None
        self._storing = wanted
        return PersistLeases(wanted)

    def stored(self, leases: Leases) -> None:
        """The disk has it."""
        if leases == self._storing:
            self._stored, self._storing = leases, None
