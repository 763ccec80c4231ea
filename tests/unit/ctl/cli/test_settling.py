"""After a join: the pair's check waits as long as the pair makes progress."""

from __future__ import annotations

from typing import Any

import pytest

from ctl.cli import pairing


class Clock:
    """A clock that moves by sleeping only."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


class FakeSession:
    """Answers with a peer whose protected share grows by `growth` per second, until it is in step."""

    def __init__(self, clock: Clock, growth: float) -> None:
        self._clock, self._growth = clock, growth

    def call(self, command: str) -> Any:
        if command == "cluster.check":
            return "checked"
        protected = round(min(1.0, self._clock.now_s * self._growth), 2)
        peer = {"role": "backup", "alive": True, "generation": 1}
        return {"role": "active", "peer": peer, "sync": {"in_step": protected == 1.0, "protected": protected}}


@pytest.mark.parametrize(("growth", "until_s"), [(0.001, 1000), (0.0, pairing.IN_STEP_S), (1.0, 1)])
def test_the_limit_counts_the_time_without_progress(monkeypatch: pytest.MonkeyPatch, growth: float, until_s: float) -> None:
    clock = Clock()
    monkeypatch.setattr(pairing, "time", clock)
    assert pairing._settled_checks(FakeSession(clock, growth)) == "checked"  # type: ignore[arg-type]
    assert abs(clock.now_s - until_s) <= 6
