"""Which flows must leave their backend: compared with the configuration, whatever happened before."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bpf.constants import MAX_BACKENDS
from bpf.dataplane import Array
from ctl.config.changes import change
from ctl.config.model import Config, Protocol
from ctl.dataplane.placement import GONE_AFTER_S, UDP_MOVES_AFTER_S, Placement
from ctl.dataplane.planner import eligible_backends, unavailable_backends
from tests.fakes.plane import flow_dtype, key_dtype

UDP, TCP = 17, 6


def config(*backends: dict[str, Any], protocol: str = "udp", all_down: str = "drop", base: Config | None = None) -> Config:
    """One farm."""
    if base is None:
        base = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
        base = change(base, "farm.add", {"name": "a", "vip": "10.0.0.1", "port": 53, "proto": protocol, "all_down": all_down})
    for each in backends:
        base = change(base, "backend.add", {"farm": "a", "port": 53, **each})
    return base


def flows(of: Config, protocol: int, *more: tuple[int, int]) -> tuple[Array, Array]:
    """One flow to each backend, then `more`: (farm, backend) by id."""
    pairs = [(farm.id, backend.id) for farm in of.farms.values() for backend in farm.backends] + list(more)
    keys, values = np.zeros(len(pairs), key_dtype("v4")), np.zeros(len(pairs), flow_dtype("v4"))
    keys["protocol"] = protocol
    values["farm"], values["backend"] = [farm for farm, _ in pairs], [number for _, number in pairs]
    return keys, values


def ids(of: Config) -> list[int]:
    return [backend.id for farm in of.farms.values() for backend in farm.backends]


def leave(placement: Placement, of: Config, down: frozenset[int], now: float, flows: tuple[Array, Array]) -> list[int]:
    """Backends that the flows of a sweep at `now` must leave."""
    placement.follow(of, down, now)
    return [int(number) for number in flows[1]["backend"][placement.misplaced(*flows)]]


THREE = ({"address": "10.0.1.1"}, {"address": "10.0.1.2"}, {"address": "10.0.1.3", "priority": 1})


def test_flows_of_a_removed_backend_end_after_the_configuration_had_time_to_follow() -> None:
    now = config(*THREE)
    for protocol in (TCP, UDP):
        placement, held = Placement(), flows(now, protocol, (1, 77), (9, ids(now)[0]))
        assert leave(placement, now, frozenset(), 0.0, held) == []
        assert leave(placement, now, frozenset(), GONE_AFTER_S - 0.1, held) == []
        assert leave(placement, now, frozenset(), GONE_AFTER_S, held) == [77, ids(now)[0]]
        assert leave(placement, now, frozenset(), 9.0, held) == [77, ids(now)[0]], "and whatever is created later"


def test_a_new_backend_whose_configuration_is_late_keeps_its_flows() -> None:
    before = config(*THREE)
    after = config({"address": "10.0.1.4"}, base=before)
    placement, held = Placement(), flows(after, UDP)
    assert leave(placement, before, frozenset(), 0.0, held) == []
    assert leave(placement, after, frozenset(), GONE_AFTER_S, held) == []
    assert leave(placement, before, frozenset(), GONE_AFTER_S + 1, held) == [], "forgotten meanwhile"


def test_udp_leaves_a_dead_backend_at_once_and_tcp_stays() -> None:
    for protocol, expected in (("udp", [0]), ("tcp", [])):
        now = config(*THREE, protocol=protocol)
        held = flows(now, UDP if protocol == "udp" else TCP)
        assert leave(Placement(), now, frozenset({ids(now)[0]}), 0.0, held) == [ids(now)[each] for each in expected]


def test_udp_stays_where_every_backend_is_down_and_all_are_tried() -> None:
    now = config(*THREE, all_down="all")
    assert leave(Placement(), now, frozenset(ids(now)), 0.0, flows(now, UDP)) == []
    now = config(*THREE)
    assert leave(Placement(), now, frozenset(ids(now)), 0.0, flows(now, UDP)) == ids(now)


def test_udp_leaves_the_reserve_tier_in_bounded_time() -> None:
    now = config(*THREE)
    one, two, reserve = ids(now)
    placement, held = Placement(), flows(now, UDP)
    both = frozenset({one, two})
    assert leave(placement, now, both, 0.0, held) == [one, two]
    assert leave(placement, now, frozenset(), 100.0, held) == []
    assert leave(placement, now, frozenset(), 100.0 + UDP_MOVES_AFTER_S - 0.1, held) == []
    assert leave(placement, now, frozenset(), 100.0 + UDP_MOVES_AFTER_S, held) == [reserve]
    assert leave(placement, now, both, 200.0, held) == [one, two], "needed again"
    assert leave(placement, now, frozenset(), 201.0, held) == [], "the time starts again"
    tcp = config(*THREE, protocol="tcp")
    placement = Placement()
    assert [leave(placement, tcp, frozenset(), at, flows(tcp, TCP)) for at in (0.0, 1000.0)] == [[], []]


def test_udp_leaves_draining_backends_and_those_of_weight_0_if_there_is_another() -> None:
    one = {"address": "10.0.1.1"}
    for closed in ({"draining": True}, {"weight": 0}):
        now = change(config(one), "backend.set", {"farm": "a", "address": "10.0.1.1", "port": 53, **closed})
        placement = Placement()
        assert [leave(placement, now, frozenset(), at, flows(now, UDP)) for at in (0.0, 99.0)] == [[], []]
        now = config({"address": "10.0.1.2"}, base=now)
        assert leave(placement, now, frozenset(), 100.0, flows(now, UDP)) == []
        assert leave(placement, now, frozenset(), 100.0 + UDP_MOVES_AFTER_S, flows(now, UDP)) == [ids(now)[0]]


STATES = st.lists(
    st.tuples(st.frozensets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.floats(0.5, 40)),
    min_size=1,
    max_size=8,
)


@given(STATES, st.sampled_from(["drop", "all"]))
def test_after_the_bounds_no_flow_is_where_it_must_not_be(
    history: list[tuple[frozenset[int], set[int], set[int], float]], all_down: str
) -> None:
    """Whatever happened: once nothing changes for the longest bound, flows are exactly where the configuration allows them."""
    everyone = config(*({"address": f"10.0.1.{n}", "priority": n // 3} for n in range(6)), all_down=all_down)
    held = flows(everyone, UDP)
    numbers = ids(everyone)
    placement, now, last, down_ids = Placement(), 0.0, everyone, frozenset[int]()
    for down, removed, draining, passed in history:
        last = everyone
        for number in draining:
            last = change(last, "backend.drain", {"farm": "a", "address": f"10.0.1.{number}", "port": 53})
        for number in removed:
            last = change(last, "backend.remove", {"farm": "a", "address": f"10.0.1.{number}", "port": 53})
        now += passed
        down_ids = frozenset(numbers[each] for each in down)
        leave(placement, last, down_ids, now, held)
    leave(placement, last, down_ids, now + 1, held)
    left = set(leave(placement, last, down_ids, now + 1 + UDP_MOVES_AFTER_S, held))
    farm = last.farms["a"]
    eligible = {each.id for each in eligible_backends(farm, down_ids)}
    present = {each.id for each in farm.backends}
    allowed = eligible if eligible else present - unavailable_backends(farm, down_ids)
    assert left == set(numbers) - allowed and farm.protocol is Protocol.UDP


def drained(now: Config, until: int, then: str = "cut") -> Config:
    which = {"farm": "a", "address": "10.0.1.1", "port": 53}
    return change(now, "backend.drain", which | {"drain_until": until, "drain_then": then})


def test_a_drain_cuts_at_its_deadline() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000)
    one = ids(now)[0]
    held = flows(now, TCP)
    placement = Placement()
    assert placement.follow(now, frozenset(), 50.0, 999_990.0) == []
    assert placement.next_s == 60.0 and not placement.misplaced(*held).any()
    (ended,) = placement.follow(now, frozenset(), 60.0, 1_000_000.0)
    assert (ended.farm, ended.backend, ended.id, ended.cut) == ("a", "10.0.1.1:53", one, True)
    assert [int(each) for each in held[1]["backend"][placement.misplaced(*held)]] == [one]
    assert placement.next_s is None
    assert placement.follow(now, frozenset(), 61.0, 1_000_001.0) == [], "reported once"
    assert placement.misplaced(*held).any(), "and what is created later ends too"


def test_a_drain_that_keeps_is_only_reported() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000, "keep")
    placement = Placement()
    placement.follow(now, frozenset(), 50.0, 999_990.0)
    (ended,) = placement.follow(now, frozenset(), 61.0, 1_000_001.0)
    assert not ended.cut and not placement.misplaced(*flows(now, TCP)).any()


def test_a_clock_that_is_set_cuts_nothing_and_keeps_no_drain_open() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000)
    for jump in (5000.0, -5000.0):
        placement, held = Placement(), flows(now, TCP)
        placement.follow(now, frozenset(), 50.0, 999_990.0)
        placement.follow(now, frozenset(), 55.0, 999_995.0 + jump)
        assert not placement.misplaced(*held).any()
        placement.follow(now, frozenset(), 60.0, 1_000_000.0 + jump)
        assert placement.misplaced(*held).any()


def test_a_node_that_takes_over_cuts_what_is_due() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000)
    placement, held = Placement(), flows(now, TCP)
    assert len(placement.follow(now, frozenset(), 7.0, 1_000_010.0)) == 1
    assert placement.misplaced(*held).any()
    late = Placement()
    assert late.follow(now, frozenset(), 7.0, 1_000_100.0) == [], "long over: not worth a line at each start"
    assert late.misplaced(*held).any()


def test_a_new_deadline_of_the_same_drain_counts() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000)
    placement, held = Placement(), flows(now, TCP)
    placement.follow(now, frozenset(), 50.0, 999_990.0)
    later = drained(now, 1_000_100)
    assert placement.follow(later, frozenset(), 60.0, 1_000_000.0) == [] and placement.next_s == 160.0
    assert not placement.misplaced(*held).any()
    ended = change(later, "backend.set", {"farm": "a", "address": "10.0.1.1", "port": 53, "draining": False})
    placement.follow(ended, frozenset(), 500.0, 1_000_500.0)
    assert not placement.misplaced(*held).any(), "the drain was ended before its deadline"


def counts(now: Config, *connections: int) -> Array:
    """Connections by backend id, of the farm's backends in their order."""
    made = np.zeros(MAX_BACKENDS, np.intp)
    made[ids(now)[: len(connections)]] = connections
    return made


def test_a_drain_is_complete_once_its_backend_has_no_connections() -> None:
    before = config(*THREE, protocol="tcp")
    placement = Placement()
    placement.follow(before, frozenset(), 40.0, 999_980.0)
    assert placement.emptied(counts(before, 0, 0)) == [], "neither is drained"
    now = drained(before, 1_000_000)
    placement.follow(now, frozenset(), 50.0, 999_990.0)
    assert placement.emptied(counts(now, 2, 0)) == []
    (complete,) = placement.emptied(counts(now, 0, 0))
    assert (complete.farm, complete.backend) == ("a", "10.0.1.1:53")
    assert placement.emptied(counts(now, 0, 0)) == [], "reported once"
    assert placement.follow(now, frozenset(), 60.0, 1_000_000.0) == [], "and its deadline is of no interest any more"
    undone = change(now, "backend.set", {"farm": "a", "address": "10.0.1.1", "port": 53, "draining": False})
    placement.follow(undone, frozenset(), 61.0, 1_000_001.0)
    again = drained(undone, 0, "keep")
    placement.follow(again, frozenset(), 62.0, 1_000_002.0)
    assert [each.until for each in placement.emptied(counts(again, 0, 0))] == [0], "another drain, without a deadline"


def test_after_its_deadline_a_drain_is_not_reported_as_complete() -> None:
    now = drained(config(*THREE, protocol="tcp"), 1_000_000)
    placement = Placement()
    placement.follow(now, frozenset(), 50.0, 999_990.0)
    placement.emptied(counts(now, 2, 0))
    assert len(placement.follow(now, frozenset(), 60.0, 1_000_000.0)) == 1
    assert placement.emptied(counts(now, 0, 0)) == []


def test_a_drain_that_was_complete_before_a_node_serves_is_not_reported() -> None:
    now = drained(config(*THREE, protocol="tcp"), 0, "keep")
    for left, reported in ((0, 0), (3, 1)):
        placement = Placement()
        placement.follow(now, frozenset(), 50.0, 999_990.0)
        assert placement.emptied(counts(now, left)) == []
        placement.follow(now, frozenset(), 51.0, 999_991.0)
        assert len(placement.emptied(counts(now, 0))) == reported


def test_what_a_farm_does_with_connections_of_a_failed_backend() -> None:
    wanted = {
        ("tcp", ""): False, ("tcp", "keep"): False, ("tcp", "reset"): True,
        ("udp", ""): True, ("udp", "keep"): False, ("udp", "reset"): True, ("udp", "move"): True,
    }  # fmt: skip
    for (protocol, policy), leaves in wanted.items():
        now = change(config(*THREE, protocol=protocol), "farm.set", {"name": "a", "on_backend_down": policy})
        held = flows(now, TCP if protocol == "tcp" else UDP)
        one = ids(now)[0]
        assert leave(Placement(), now, frozenset({one}), 0.0, held) == ([one] if leaves else []), (protocol, policy)


def test_what_a_farm_does_with_connections_of_a_removed_backend() -> None:
    for policy, leaves in {"": True, "keep": False, "reset": True}.items():
        now = change(config(*THREE, protocol="tcp"), "farm.set", {"name": "a", "on_backend_removed": policy})
        farm = now.farms["a"].id
        placement, held = Placement(), flows(now, TCP, (farm, 77), (farm + 1, 78))
        leave(placement, now, frozenset(), 0.0, held)
        assert leave(placement, now, frozenset(), GONE_AFTER_S, held) == ([77, 78] if leaves else [78]), policy


def test_weight_0_keeps_connections_and_moves_udp_in_time() -> None:
    for protocol, number in (("tcp", TCP), ("udp", UDP)):
        now = config({"address": "10.0.1.1", "weight": 0}, {"address": "10.0.1.2"}, protocol=protocol)
        placement, held = Placement(), flows(now, number)
        assert [each.address for each in eligible_backends(now.farms["a"], frozenset())] == ["10.0.1.2"]
        assert leave(placement, now, frozenset(), 0.0, held) == []
        assert leave(placement, now, frozenset(), UDP_MOVES_AFTER_S, held) == ([] if protocol == "tcp" else [ids(now)[0]])
