"""After a join: the pair's check waits as long as the pair makes progress."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ctl.creation.settling import IN_STEP_S, until_in_step


class Clock:
    """A clock that moves by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_s(self) -> float:
        return self.now

    async def sleep(self, duration_s: float) -> None:
        self.now += duration_s


class FakeControl:
    """Answers with a peer whose protected share grows by `growth` per second, until it is in step."""

    def __init__(self, clock: Clock, growth: float) -> None:
        self._clock, self._growth = clock, growth

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        assert (command, args) == ("cluster.status", None)
        protected = round(min(1.0, self._clock.now * self._growth), 2)
        peer = {"role": "backup", "alive": True, "generation": 1}
        return {"role": "active", "peer": peer, "sync": {"in_step": protected == 1.0, "protected": protected}}


@pytest.mark.parametrize(("growth", "until_s"), [(0.001, 1000), (0.0, IN_STEP_S), (1.0, 1)])
def test_the_limit_counts_the_time_without_progress(growth: float, until_s: float) -> None:
    clock = Clock()
    done = asyncio.run(until_in_step(FakeControl(clock, growth), clock.now_s, clock.sleep))
    assert done == (growth > 0)
    assert abs(clock.now - until_s) <= 6
