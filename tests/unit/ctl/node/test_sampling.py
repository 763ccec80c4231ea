"""Rates between two readings, and a data plane that cannot be read at the moment."""

from __future__ import annotations

import asyncio
from typing import Any

from bpf.dataplane import PlaneError
from ctl.node.sampling import Sampling, _Counts, rates
from ctl.runtime.event_hub import EventHub
from tests.fakes.plane import FakePlane


def test_rates_are_per_second_and_a_reset_counter_counts_from_zero() -> None:
    before, after = _Counts(10.0, 100, 1000, 10, 50), _Counts(12.0, 300, 5000, 14, 8)
    assert rates(before, after, 3).fields == {
        "packets_per_s": 100.0,
        "bits_per_s": 16000.0,
        "new_connections_per_s": 2.0,
        "drops_per_s": 4.0,
        "connections": 3,
    }


class Unreadable(FakePlane):
    def counters(self) -> dict[str, tuple[int, int]]:
        raise PlaneError("the maps are being replaced")


def test_a_plane_that_cannot_be_read_costs_a_second_of_rates() -> None:
    async def run() -> Any:
        hub = EventHub("lb1")
        sampling = Sampling(hub, Unreadable(), None, 1024, None, lambda: None)  # type: ignore[arg-type]
        await sampling._sample()
        return (await hub.after(0, 0, 0))["rates"]

    assert asyncio.run(run()) is None
