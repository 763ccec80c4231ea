"""What the sweep tells replication: deletions on purpose, and connections that only their reply direction keeps alive."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from bpf.constants import FlowState
from bpf.dataplane import Array
from ctl.config.model import Config
from ctl.dataplane import expiry
from ctl.dataplane.flow_selection import EVERYTHING
from ctl.dataplane.kernel.sweeper import Sweeper
from tests.fakes.flows import connections, put
from tests.fakes.plane import FakePlane

LIMIT = expiry.to_ticks(expiry.NO_FARM_S)


@dataclass
class Heard:
    """A follower that remembers."""

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


def test_a_connection_that_only_its_reply_direction_keeps_is_told_with_its_own_age() -> None:
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


def test_a_replicated_one_is_told_before_the_peer_would_forget_it() -> None:
    """This node took over: its own patience with the entry is as long as the peer's, so it has to speak earlier."""
    plane = FakePlane()
    key = aged(plane, 1, LIMIT, 7, int(FlowState.SEEN | FlowState.REPLICATED))
    made, heard = sweeper(plane)
    made._sweep()
    assert heard.alive == [("v4", key, plane.tick - 7)]
    made.close()


def test_deletions_on_purpose_are_told_by_forward_key() -> None:
    plane = FakePlane()
    keys = {("v4", aged(plane, number, 1, 1)) for number in (1, 2)}
    made, heard = sweeper(plane)
    assert asyncio.run(made.flush(EVERYTHING)) == 4
    assert set(heard.gone) == keys and len(heard.gone) == 2
    made.close()


def test_expiry_is_not_told_because_the_peer_expires_by_itself() -> None:
    plane = FakePlane()
    aged(plane, 1, LIMIT, LIMIT)
    made, heard = sweeper(plane)
    made._sweep()
    assert not plane.flow_maps["flows", "v4"] and not heard.gone and not heard.alive
    made.close()
