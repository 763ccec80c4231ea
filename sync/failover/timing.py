"""The pair's times and the inequality that keeps two leases from overlapping.

Decides which times fit together. Must not know clocks: all values are durations.

Why no two leases overlap. An active node's deadline is always `sent + lease`, where `sent` is its own clock when it sent
a heartbeat that the peer heard (or may yet hear). The peer opens its own lease no earlier than `heard + takeover` on its
own clock. In real time `heard >= sent`. A clock that runs wrong by at most `drift` (a fraction) turns a duration d into
something between d*(1-drift) and d*(1+drift) of real time, and the kernel reads a clock that steps every `tick`, so it
may answer for one tick more. Hence

    takeover * (1 - drift) >= (lease + tick) * (1 + drift)

is what `check_timing` asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sync.errors import TimingError

NS_PER_MS = 1_000_000
NEVER_NS = -(1 << 62)
"""Before every time that a clock shows."""
FAR_NS = 1 << 62
"""After every time that a clock shows."""
COARSE_TICK_NS = 4 * NS_PER_MS
"""Step of the kernel's coarse clock at HZ=250."""
COARSEST_TICK_NS = 10 * NS_PER_MS
"""The same at HZ=100, the lowest a kernel is built with: assumed of the peer where its clock step is not known."""

DRIFT_PPM = 1000
"""Bound on how wrong a node's monotonic clock may run: NTP slews by at most 500 ppm, bad crystals add 100."""

MIN_HEARTBEAT_MS = 5
MAX_HEARTBEAT_MS = 10_000
MIN_LEASE_NS = MIN_HEARTBEAT_MS * NS_PER_MS * 5 // 2
MAX_LEASE_NS = 60_000 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class Timing:
    """The durations of one node's failover, all in nanoseconds."""

    heartbeat_ns: int
    lease_ns: int
    takeover_ns: int
    start_wait_ns: int = 0  # 0: three times takeover
    handover_timeout_ns: int = 2000 * NS_PER_MS
    failback_delay_ns: int = 10_000 * NS_PER_MS
    alone_ns: int = field(init=False)  # without an acknowledgement for this long, the peer no longer carries the lease
    answer_ns: int = field(init=False)  # how long an acknowledgement may take to come back
    stall_ns: int = field(init=False)  # without any event for this long, not even a timer, this process slept
    listen_ns: int = field(init=False)  # how long a node that slept listens before silence counts

    def __post_init__(self) -> None:
        if not self.start_wait_ns:
            object.__setattr__(self, "start_wait_ns", 3 * self.takeover_ns)
        object.__setattr__(self, "alone_ns", self.lease_ns // 2)
        object.__setattr__(self, "answer_ns", self.lease_ns // 6)
        object.__setattr__(self, "stall_ns", 2 * self.heartbeat_ns)
        object.__setattr__(self, "listen_ns", 2 * self.heartbeat_ns)

    @staticmethod
    def from_ms(heartbeat_ms: int, lease_ms: int, takeover_ms: int, **more_ns: int) -> Timing:
        """The times as the node file gives them; keyword arguments are further fields in nanoseconds."""
        return Timing(heartbeat_ms * NS_PER_MS, lease_ms * NS_PER_MS, takeover_ms * NS_PER_MS, **more_ns)


def smallest_takeover_ns(lease_ns: int, tick_ns: int = COARSE_TICK_NS, drift_ppm: int = DRIFT_PPM) -> int:
    """The least takeover time with which no overlap is possible (see the module's inequality)."""
    million = 1_000_000
    return -(-(lease_ns + tick_ns) * (million + drift_ppm) // (million - drift_ppm))


def timing_in_force(timing: Timing, lease_ns: int, peer_lease_ns: int) -> Timing:
    """The node file's times as they may be used while the peer waits for `lease_ns` and may itself use `peer_lease_ns`.

    lease_ns: at most the node file's; heartbeats become as frequent as it needs. The takeover time covers the lease of a
    peer with other times, whatever its kernel's clock step; two nodes with the same times have checked theirs.
    """
    takeover_ns = timing.takeover_ns
    if peer_lease_ns != timing.lease_ns:
        takeover_ns = max(takeover_ns, smallest_takeover_ns(peer_lease_ns, COARSEST_TICK_NS))
    return replace(
        timing,
        heartbeat_ns=min(timing.heartbeat_ns, 2 * lease_ns // 5),
        lease_ns=lease_ns,
        takeover_ns=takeover_ns,
        start_wait_ns=timing.start_wait_ns * takeover_ns // timing.takeover_ns,
    )


def check_timing(timing: Timing, tick_ns: int = COARSE_TICK_NS, drift_ppm: int = DRIFT_PPM) -> None:
    """Raise TimingError, naming the key and the remedy, unless the times keep two leases apart.

    tick_ns: step of the node's coarse clock (1/HZ); drift_ppm: bound on either clock's error.
    """
    heartbeat_ms = timing.heartbeat_ns / NS_PER_MS
    if not MIN_HEARTBEAT_MS <= heartbeat_ms <= MAX_HEARTBEAT_MS:
        raise TimingError("heartbeat_ms", f"{heartbeat_ms:g} is not between {MIN_HEARTBEAT_MS} and {MAX_HEARTBEAT_MS}")
    if 2 * timing.lease_ns < 5 * timing.heartbeat_ns:
        raise TimingError(
            "lease_ms",
            f"{timing.lease_ns / NS_PER_MS:g} is less than two and a half heartbeats ({heartbeat_ms:g} ms each): "
            "one late heartbeat would close the lease; raise it or lower heartbeat_ms",
        )
    least_ns = smallest_takeover_ns(timing.lease_ns, tick_ns, drift_ppm)
    if timing.takeover_ns < least_ns:
        raise TimingError(
            "takeover_ms",
            f"{timing.takeover_ns / NS_PER_MS:g} is too short for lease_ms = {timing.lease_ns / NS_PER_MS:g}: with a kernel "
            f"clock step of {tick_ns / NS_PER_MS:g} ms and clocks wrong by up to {drift_ppm} ppm it must be at least "
            f"{-(-least_ns // NS_PER_MS)}, or both nodes could answer at once",
        )
    if timing.start_wait_ns < timing.takeover_ns:
        raise TimingError(
            "start_wait_ms", "must not be shorter than takeover_ms: a promise made before a restart must end first"
        )
