"""The sweep's reports to replication: explicit deletions, and connections kept alive only by their reply flow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from bpf.constants import RECENT_TICKS, FlowState
from bpf.dataplane import Array
from ctl.config.model import Config
from ctl.dataplane import expiry
from ctl.dataplane.flow_selection import EVERYTHING
from ctl.dataplane.kernel.sweeper import Sweeper
from tests.fakes.flows import connections, put
from tests.fakes.plane import FakePlane

LIMIT = expiry.to_ticks(expiry.NO_FARM_S) + RECENT_TICKS


@dataclass
class Heard:
    """A listener that records the sweep's reports."""

    gone: list[tuple[str, bytes]] = field(default_factory=list)
    alive: list[tuple[str, bytes, int]] = field(default_factory=list)

    def removed(self, family: str, keys: Array) -> None:
        self.gone += [(family, key.tobytes()) for key in keys]

    def still_alive(self, family: str, keys: Array, values: Array) -> None:
        self.alive += [(family, key.tobytes(), int(value["last_seen"])) for key, value in zip(keys, values, strict=True)]


def sweeper(plane: FakePlane) -> tuple[Sweeper, Heard]:
    made, heard = Sweeper(plane, Config), Heard()
    made.follow_with(heard)
    return made, heard


def aged(plane: FakePlane, number: int, forward_age: int, reply_age: int, state: int = int(FlowState.SEEN)) -> bytes:
    rows = connections("v4", [number], state=state)
    rows[1]["last_seen"], rows[3]["last_seen"] = plane.tick - forward_age, plane.tick - reply_age
    put(plane, "v4", None, rows)
    return bytes(rows[0][0].tobytes())


def test_a_connection_kept_alive_by_its_reply_flow_is_reported_with_its_own_age() -> None:
    plane = FakePlane()
    one_way = aged(plane, 1, LIMIT, 7)
    aged(plane, 2, LIMIT - 1, 7)
    aged(plane, 3, 7, LIMIT)
    aged(plane, 4, LIMIT, LIMIT)
    made, heard = sweeper(plane)
    made._sweep()
    assert heard.alive == [("v4", one_way, plane.tick - 7)]
    assert len(plane.flow_maps["flows", "v4"]) == 6
    made._sweep()
    assert len(heard.alive) == 1, "not again at once"
    made.close()


def test_a_replicated_one_is_reported_before_it_expires_on_the_peer() -> None:
    """This node took over: both nodes have the same timeout for the entry, so it must report the connection earlier."""
    plane = FakePlane()
    key = aged(plane, 1, LIMIT, 7, int(FlowState.SEEN | FlowState.REPLICATED))
    made, heard = sweeper(plane)
    made._sweep()
    assert heard.alive == [("v4", key, plane.tick - 7)]
    made.close()


def test_explicit_deletions_are_reported_by_forward_key() -> None:
    plane = FakePlane()
    keys = {("v4", aged(plane, number, 1, 1)) for number in (1, 2)}
    made, heard = sweeper(plane)
    assert asyncio.run(made.flush(EVERYTHING)) == 4
    assert set(heard.gone) == keys and len(heard.gone) == 2
    made.close()


def test_expiry_is_not_reported_because_the_peer_expires_flows_itself() -> None:
    plane = FakePlane()
    aged(plane, 1, LIMIT, LIMIT)
    made, heard = sweeper(plane)
    made._sweep()
    assert not plane.flow_maps["flows", "v4"] and not heard.gone and not heard.alive
    made.close()


def test_misplaced_flows_end_in_both_directions_and_the_peer_hears_of_the_established_ones() -> None:
    """The fake flows belong to farm 3 and backend 5, which an empty configuration does not have."""
    plane, clock = FakePlane(), iter((0.0, 0.0, 10.0, 10.0))
    keys = {("v4", aged(plane, number, 1, 1)) for number in (1, 2)}
    made, heard = Sweeper(plane, Config, frozenset), Heard()
    made.follow_with(heard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctl.dataplane.kernel.sweeper.time.monotonic", lambda: next(clock))
        assert made._sweep().misplaced == 0 and len(plane.flow_maps["flows", "v4"]) == 4
        assert made._sweep().misplaced == 4
    assert not plane.flow_maps["flows", "v4"] and set(heard.gone) == keys
    made.close()


def test_a_backup_leaves_flows_to_the_active_node() -> None:
    plane = FakePlane()
    aged(plane, 1, 1, 1)
    made = Sweeper(plane, Config, lambda: None)
    for _ in range(2):
        assert made._sweep().misplaced == 0
    assert len(plane.flow_maps["flows", "v4"]) == 2
    made.close()


@pytest.mark.parametrize(("entries", "kept"), [(6, True), (10, False)])
def test_idle_connections_expire_earlier_while_the_map_is_full(entries: int, kept: bool) -> None:
    """Idle for 90 s of 120: unchanged at 60 %, a minute when the map is full."""
    plane = FakePlane()
    for number in range(entries // 2):
        aged(plane, number, expiry.to_ticks(90), expiry.to_ticks(90))
    made = Sweeper(plane, Config, max_flows=5)
    made.result = made._sweep()
    made._sweep()
    assert bool(plane.flow_maps["flows", "v4"]) == kept
    made.close()
