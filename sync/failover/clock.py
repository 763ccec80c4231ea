"""How far the peer's monotonic clock is from ours, estimated from the clocks that heartbeats carry.

Decides an offset. Must not read any clock: every time is an argument in nanoseconds.

A heartbeat carries when it was sent, which of our heartbeats its sender heard last, when we sent that one, and how long it
was held. That is NTP's four timestamps (RFC 5905, section 8). The sample with the shortest round trip among the
last few is the best one: its error is at most half its round trip.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SAMPLES = 16
MAX_ROUND_TRIP_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: add `offset_ns` to a time of the peer's clock to get ours."""

    round_trip_ns: int
    offset_ns: int


class ClockEstimator:
    """Keeps the last samples of one incarnation of the peer. `best`, the best of them, may be read by any thread."""

    __slots__ = ("_boot", "_samples", "best")

    def __init__(self) -> None:
        self._boot = 0
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.best: Sample | None = None
        """The sample with the shortest round trip, or None when there is none yet."""

    def heard(self, boot: int, sent_ns: int, echo_sent_ns: int, echo_held_ns: int, now_ns: int) -> None:
        """Take in one heartbeat of the peer.

        boot: the peer's incarnation (a new one may have a new clock); sent_ns: the peer's clock when it sent; echo_sent_ns: our
        clock when we sent the heartbeat it echoes, 0 if it echoes none; echo_held_ns: how long the peer held it.
        """
        if boot != self._boot:
            self._boot = boot
            self._samples.clear()
            self.best = None
        round_trip_ns = now_ns - echo_sent_ns - echo_held_ns
        if not echo_sent_ns or not 0 <= round_trip_ns <= MAX_ROUND_TRIP_NS:
            return
        self._samples.append(Sample(round_trip_ns, now_ns - round_trip_ns // 2 - sent_ns))
        self.best = min(self._samples, key=lambda sample: sample.round_trip_ns)

    @property
    def offset_ns(self) -> int | None:
        """What to add to the peer's clock to get ours; None when unknown."""
        best = self.best
        return best.offset_ns if best else None
