"""Slow start: from no time at all to the full weight, in steps that move clients to the new backend only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane.maglev import lookup_table, turn_order
from ctl.dataplane.planner import PlannerState, eligible_backends, plan
from ctl.dataplane.slow_start import WHOLE, SlowStart, weighted
from tests.fakes.plane import FakePlane

NOBODY: frozenset[int] = frozenset()


def config(slow_start_s: int = 20, backends: int = 4, **more: object) -> Config:
    made = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    farm = {"name": "web", "vip": "10.0.0.1", "port": 80, "slow_start_s": slow_start_s}
    made = change(made, "farm.add", farm | more)
    for number in range(1, backends + 1):
        made = change(made, "backend.add", {"farm": "web", "address": f"10.1.0.{number}", "port": 80})
    return made


def ids(made: Config) -> list[int]:
    return [each.id for each in made.farms["web"].backends]


def test_what_is_up_at_the_start_has_its_full_weight() -> None:
    assert SlowStart().follow(config(), NOBODY, 0.0) == {}
    assert SlowStart().next_s is None


def test_a_backend_that_comes_up_gets_its_weight_in_steps() -> None:
    start, made = SlowStart(), config()
    one = ids(made)[0]
    assert start.follow(made, frozenset({one}), 100.0) == {}
    seen = []
    now_s = 200.0
    while shares := start.follow(made, NOBODY, now_s):
        assert set(shares) == {one}
        seen.append(shares[one])
        assert start.next_s is not None and start.next_s > now_s
        now_s = start.next_s
    assert seen == [100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert now_s == 218.0 and start.next_s is None, "the last step begins a tenth before the end"


def test_every_way_to_come_up() -> None:
    start, made = SlowStart(), config()
    start.follow(made, NOBODY, 0.0)
    server = {"farm": "web", "address": "10.1.0.1", "port": 80}
    for number, (away, back) in enumerate(
        [
            (("backend.drain", server), ("backend.set", server | {"draining": False})),
            (("backend.set", server | {"weight": 0}), ("backend.set", server | {"weight": 1})),
            (("backend.remove", server), ("backend.add", server)),
        ],
        1,
    ):
        made = change(made, *away)
        assert start.follow(made, NOBODY, 1000.0 * number) == {}
        made = change(made, *back)
        assert list(start.follow(made, NOBODY, 1000.0 * number + 1).values()) == [100]
        assert start.follow(made, NOBODY, 1000.0 * number + 100) == {}


def test_down_again_begins_anew_and_switching_on_starts_nothing() -> None:
    start, made = SlowStart(), config(0)
    one = ids(made)[0]
    start.follow(made, NOBODY, 0.0)
    made = change(made, "farm.set", {"name": "web", "slow_start_s": 20})
    assert start.follow(made, NOBODY, 1.0) == {}
    start.follow(made, frozenset({one}), 2.0)
    assert start.follow(made, NOBODY, 3.0) == {one: 100}
    assert start.follow(made, NOBODY, 14.0) == {one: 600}
    start.follow(made, frozenset({one}), 15.0)
    assert start.follow(made, NOBODY, 16.0) == {one: 100}


@given(st.integers(1, 3600), st.lists(st.floats(0, 4000), max_size=8))
def test_shares_grow_and_end(slow_start_s: int, times: list[float]) -> None:
    start, made = SlowStart(), config(slow_start_s)
    one = ids(made)[0]
    start.follow(made, frozenset({one}), 0.0)
    last = 0
    for now_s in [0.0, *sorted(times)]:
        share = start.follow(made, NOBODY, now_s).get(one, WHOLE)
        assert last <= share <= WHOLE and share
        assert share == WHOLE or now_s < slow_start_s
        last = share


def test_a_step_moves_clients_to_the_new_backend_only() -> None:
    made = config(backends=6)
    servers = made.farms["web"].backends
    before = lookup_table(servers[:5], 16381)
    for share in range(100, 1001, 100):
        after = lookup_table(weighted(servers, {servers[5].id: share}), 16381)
        others = (before != after) & (after != servers[5].id)
        assert others.mean() < 0.02
        assert abs(np.mean(after == servers[5].id) - share / (5000 + share)) < 0.002
        before = after
    assert (before == lookup_table(servers, 16381)).all()


def test_turns_follow_the_share() -> None:
    servers = config(backends=3).farms["web"].backends
    order = turn_order(weighted(servers, {servers[0].id: 100}))
    assert [int((order == each.id).sum()) for each in servers] == [1, 10, 10]


def test_the_planner_writes_the_tables_of_a_step() -> None:
    made, plane = config(backends=3), FakePlane()
    first = plan(PlannerState(), made, NOBODY)
    plane.apply(first.operations)
    (key,) = plane.services()
    one = ids(made)[0]
    step = plan(first.state, made, NOBODY, {one: 100})
    assert step.operations and step.complete
    plane.apply(step.operations)
    turn = np.array(plane.turn(key))
    assert 0.03 < np.mean(turn == one) < 0.06
    assert plan(step.state, made, NOBODY, {one: 100}).operations == ()
    plane.apply(plan(step.state, made, NOBODY).operations)
    assert (np.array(plane.turn(key)) == lookup_table(made.farms["web"].backends, 16381)).all()


def test_tiers_join_until_there_are_enough() -> None:
    made = config(0, backends=0, tier_minimum=3)
    for number, tier in enumerate((0, 0, 1, 2, 2), 1):
        made = change(made, "backend.add", {"farm": "web", "address": f"10.1.0.{number}", "port": 80, "priority": tier})
    farm, numbers = made.farms["web"], ids(made)

    def chosen(*down: int) -> list[int]:
        return [numbers.index(each.id) for each in eligible_backends(farm, frozenset(numbers[each] for each in down))]

    assert chosen() == [0, 1, 2], "two of the first, completed by the second"
    assert chosen(0) == [1, 2, 3, 4], "a tier joins as a whole"
    assert chosen(0, 2) == [1, 3, 4]
    assert chosen(2, 3, 4) == [0, 1], "fewer than the minimum serve as well"
    assert chosen(0, 1, 2, 3, 4) == []
    one = replace(farm, tier_minimum=1)
    assert [each.id for each in eligible_backends(one, NOBODY)] == numbers[:2]
    two = replace(farm, tier_minimum=2)
    assert [each.id for each in eligible_backends(two, NOBODY)] == numbers[:2]
