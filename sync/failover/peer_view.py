"""What this node knows of its peer: its last heartbeat, what was heard by which path, and whether it is silent.

Decides whether the peer is alive, silent, and able to become active. Must not know this node's role or lease.

Silence counts only for a node that could have received something: it has been awake for two heartbeats, it is past the time
in which silence means nothing (after starting, after closing its own lease, after a lost carrier), and it has looked for one
heartbeat at the end of the silence, because messages that arrived during a short sleep are handed over after the timer fires.
"""

from __future__ import annotations

from sync.failover.session import SessionGuard
from sync.failover.timing import NEVER_NS, Timing
from sync.failover.types import Heartbeat, Role


class Wakefulness:
    """Since when this process has run without a pause in which it could have missed heartbeats."""

    __slots__ = ("event_ns", "sent_ns", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self.since_ns = self.event_ns = now_ns
        self.sent_ns = NEVER_NS

    def event(self, now_ns: int, timing: Timing) -> None:
        """An event is being handled."""
        if now_ns - self.event_ns > timing.stall_ns:
            self.since_ns = now_ns
        self.event_ns = now_ns

    def sent(self, now_ns: int, timing: Timing) -> None:
        """A heartbeat is being sent. After a longer pause the peer could not have answered, whatever was handled meanwhile."""
        if now_ns - self.sent_ns > timing.stall_ns:
            self.since_ns = now_ns
        self.sent_ns = now_ns


class PeerView:
    """The peer as this node sees it. `heartbeat` is the last one accepted, None before the first."""

    __slots__ = (
        "_greeted_boot",
        "_guard",
        "_looking_since_ns",
        "_quiet_until_ns",
        "advertisement_ns",
        "heard_ns",
        "heartbeat",
        "name",
    )

    def __init__(self, name: str, quiet_until_ns: int) -> None:
        """quiet_until_ns: silence counts only from then on."""
        self.name = name
        self.heartbeat: Heartbeat | None = None
        self.heard_ns = self.advertisement_ns = NEVER_NS
        self._guard = SessionGuard()
        self._greeted_boot = 0
        self._quiet_until_ns = quiet_until_ns
        self._looking_since_ns: int | None = None

    # --- what was heard ---------------------------------------------------------------------------------------------

    @property
    def boot(self) -> int:
        """The peer's present incarnation, 0 before it was heard."""
        return self._guard.boot

    @property
    def left(self) -> bool:
        """Whether the peer announced that it shuts down."""
        return self.heartbeat is not None and self.heartbeat.role is Role.LEFT

    @property
    def last_heard_ns(self) -> int:
        """When it was last heard on any path."""
        return max(self.heard_ns, self.advertisement_ns)

    def greet(self, boot: int) -> bool:
        """Whether this incarnation is foreign and heard for the first time: it must hear this node to prove that it is new.

        Once: two nodes that refuse each other's heartbeats must not answer each answer.
        """
        if boot in (self._guard.boot, self._greeted_boot):
            return False
        self._greeted_boot = boot
        return True

    def accept(self, beat: Heartbeat, echoed: int, now_ns: int, timing: Timing) -> bool:
        """Take in a heartbeat; False if it is a replay, late, or of an incarnation that is not proven to be the present one.

        echoed: which heartbeat of this incarnation of this node the sender heard last, 0 if none.
        """
        if beat.boot != self._guard.boot and now_ns - self.heard_ns >= timing.start_wait_ns:
            self._guard.forget()
        if not self._guard.accept(beat.boot, beat.sequence, echoed):
            return False
        self.heartbeat, self.heard_ns, self._looking_since_ns = beat, now_ns, None
        return True

    def advertised(self, now_ns: int) -> None:
        """A VRRP advertisement arrived."""
        self.advertisement_ns, self._looking_since_ns = now_ns, None

    def resigned(self) -> None:
        """A VRRP advertisement of priority 0 arrived."""
        self.advertisement_ns = NEVER_NS

    # --- alive, silent ----------------------------------------------------------------------------------------------

    @property
    def link_ns(self) -> int:
        """When the cluster link last brought a sign of life: a peer that shut down counts as silent from then on."""
        return NEVER_NS if self.left else self.heard_ns

    def is_alive(self, now_ns: int, timing: Timing) -> bool:
        """Whether the cluster link has brought a heartbeat within the takeover time."""
        return now_ns - self.link_ns < timing.takeover_ns

    def is_advertising(self, now_ns: int, timing: Timing) -> bool:
        """Whether the data network has brought an advertisement within the takeover time."""
        return now_ns - self.advertisement_ns < timing.takeover_ns

    def silence_ends_ns(self, timing: Timing) -> int:
        """When every path will have been silent for the takeover time."""
        return max(self.link_ns, self.advertisement_ns) + timing.takeover_ns

    def _look_from_ns(self, timing: Timing) -> int:
        """From when this node checks whether the peer is silent: early enough that timers a little late cost nothing."""
        return self.silence_ends_ns(timing) - timing.heartbeat_ns * 3 // 2

    def look(self, now_ns: int, timing: Timing) -> None:
        """The timer fired: start looking if the end of the silence is near."""
        if self._looking_since_ns is None and now_ns >= self._look_from_ns(timing):
            self._looking_since_ns = now_ns

    def stop_looking(self) -> None:
        """Look for another heartbeat before silence counts."""
        self._looking_since_ns = None

    def ignore_silence_until(self, quiet_until_ns: int) -> None:
        """Silence counts only from then on."""
        self._quiet_until_ns = quiet_until_ns

    def ignore_silence_at_least_until(self, quiet_until_ns: int) -> None:
        """Silence counts only from then on, or later if that was decided before."""
        self._quiet_until_ns = max(self._quiet_until_ns, quiet_until_ns)

    def is_silent(self, now_ns: int, awake_since_ns: int, timing: Timing) -> bool:
        """Whether the peer is silent on every path and this node could have received something."""
        if self._looking_since_ns is None:
            return False
        looked_ns = NEVER_NS if self.left else self._looking_since_ns + timing.heartbeat_ns
        listened_ns = max(awake_since_ns + timing.listen_ns, self._quiet_until_ns, looked_ns)
        return now_ns >= max(listened_ns, self.silence_ends_ns(timing))

    def next_look_ns(self, awake_since_ns: int, timing: Timing) -> int:
        """When the timer should fire next for the sake of silence."""
        silent_ns = max(self.silence_ends_ns(timing), self._quiet_until_ns, awake_since_ns + timing.listen_ns)
        if self._looking_since_ns is None:
            return min(silent_ns, self._look_from_ns(timing))
        return max(silent_ns, self._looking_since_ns + timing.heartbeat_ns)

    # --- what it can do ---------------------------------------------------------------------------------------------

    def inability(self, now_ns: int, timing: Timing) -> str:
        """Why the peer cannot be handed the VIPs; empty if it can."""
        beat = self.heartbeat
        if beat is None or not self.is_alive(now_ns, timing):
            return f"{self.name} is not heard on the cluster link"
        if beat.role is not Role.BACKUP:
            return f"{self.name} is {beat.role.value} and cannot become active"
        if not beat.can_serve:
            return f"{self.name} reports a fault: see xlbctl doctor on {self.name}"
        return "" if beat.in_step else f"{self.name} is not in step yet: it lacks flows, or its program is not compiled yet"

    def can_become_active(self, now_ns: int, timing: Timing) -> bool:
        """Whether the peer would take the VIPs, in step or not."""
        beat = self.heartbeat
        return beat is not None and self.is_alive(now_ns, timing) and beat.role is Role.BACKUP and beat.can_serve
