"""How long each node's lease may be: only as long as its peer is known to wait, also when the node files differ.

Decides which lease this node may use, how long it waits for the peer's, what of that must be on disk, and what people should
know. Must not know files or roles: storing is an effect.

Each node's heartbeats carry its own lease and the lease it allows its peer: one that it waits for from now on, after a restart
as well, because it is on its disk. A raised lease is used once the peer, having heard of it, allows it; until then the previous
one is. A lowered lease is used at once, and sent once no restart can find the longer one on disk.

The peer believes a longer lease at once, a shorter one only with proof that the sender is not an earlier incarnation: it has
heard something that was sent after the receiver heard of that incarnation.
"""

from __future__ import annotations

from sync.failover.timing import NS_PER_MS, Timing, timing_in_force
from sync.failover.types import Heartbeat, Leases, PersistLeases


class Agreement:
    """Both leases of a pair as one node knows them. `timing` is what is in force."""

    __slots__ = (
        "_config",
        "_peer",
        "_peer_boot",
        "_reported_ns",
        "_since",
        "_stored",
        "_storing",
        "own_ns",
        "peer_ns",
        "timing",
    )

    def __init__(self, timing: Timing, stored: Leases, peer: str) -> None:
        """timing: the node file's. A node that has stored nothing yet is new in its pair, which began with equal times."""
        self._config, self._stored, self._peer = timing, stored, peer
        self._storing: Leases | None = None
        self._reported_ns = timing.lease_ns  # which lease of the peer people know of, if not this node's
        self.own_ns = min(timing.lease_ns, stored.own_ns or timing.lease_ns)
        self.peer_ns = stored.peer_ns or timing.lease_ns
        self._peer_boot = self._since = 0
        self._put_in_force()

    def _put_in_force(self) -> None:
        self.timing = timing_in_force(self._config, self.own_ns, self.peer_ns)

    @property
    def said_ns(self) -> int:
        """The longest lease that this node, or a later incarnation, may use without asking again; or the one it asks for."""
        return max(self._config.lease_ns, self._stored.own_ns)

    @property
    def allowed_ns(self) -> int:
        """The lease of the peer that this node waits for even after a restart at this moment."""
        certain = [self.peer_ns, self._stored.peer_ns] + ([self._storing.peer_ns] if self._storing else [])
        return min(certain)

    def heard(self, beat: Heartbeat, boot: int, sent: int) -> None:
        """A heartbeat of the peer. boot: this incarnation of this node; sent: the number of its last heartbeat."""
        if beat.boot != self._peer_boot:
            self._peer_boot, self._since = beat.boot, sent
        echoes_this = beat.echo_boot == boot
        if beat.lease_ns > self.peer_ns or (echoes_this and beat.echo_sequence > self._since):
            self.peer_ns = beat.lease_ns
        if echoes_this and beat.allows_ns >= self._config.lease_ns:
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

    # --- what people should know --------------------------------------------------------------------------------------

    def first_message(self) -> str:
        """What a node that starts reports; empty if its node file's lease is in force."""
        own_ms, config_ms = _ms(self.own_ns), _ms(self._config.lease_ns)
        if self.own_ns >= self._config.lease_ns:
            return ""
        return f"lease_ms is {config_ms}, but {self._peer} waits for {own_ms} only, which stays in force until it is heard"

    def in_force_message(self) -> str:
        """The peer waits for the node file's lease now."""
        return f"lease_ms {_ms(self._config.lease_ns)} is in force, {self._peer} waits for it"

    def difference_message(self, peer_lease_ns: int) -> str:
        """How the node files differ, once for each lease that the peer uses; else empty."""
        if peer_lease_ns == self._reported_ns:
            return ""
        self._reported_ns = peer_lease_ns
        if peer_lease_ns == self._config.lease_ns:
            return ""
        return (
            f"{self._peer} has lease_ms {_ms(peer_lease_ns)}, this node {_ms(self._config.lease_ns)}: "
            f"takeovers here wait {_ms(self.timing.takeover_ns)} ms; make both node files equal"
        )


def _ms(duration_ns: int) -> int:
    """In whole milliseconds, as node files have them; rounded up."""
    return -(-duration_ns // NS_PER_MS)
