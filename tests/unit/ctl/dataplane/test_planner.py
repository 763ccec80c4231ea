"""Planning rounds on a plane that refuses illegal operations: same result as from scratch, no slot in use is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf.constants import MAX_SLOT_CHUNKS, SLOTS_PER_CHUNK, BackendFlag, FarmFlag, VipFlag
from bpf.dataplane import (
    DeleteServer,
    DeleteService,
    Operation,
    PutBackend,
    PutFarm,
    PutMembers,
    PutServer,
    PutService,
    PutSlots,
    PutVip,
    ServerKey,
    ServiceKey,
    ZeroTraffic,
)
from ctl.config import table_sizes
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane import planner, servers
from ctl.dataplane.planner import Plan, PlannerState, adopt, eligible_backends, plan, replan_everything, unavailable_backends
from ctl.errors import XlbError
from tests.fakes.plane import FakePlane

Command = tuple[str, dict[str, object]]


def configured(*commands: Command, config: Config | None = None) -> Config:
    config = config or Config()
    for command, arguments in commands:
        config = change(config, command, arguments)
    return config


VIP: Command = ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
VIP2: Command = ("vip.add", {"address": "10.0.0.2/24", "device": "eth0"})
VIP6: Command = ("vip.add", {"address": "2001:db8::1/64", "device": "eth0"})
WEB: Command = ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80})


def backend(farm: str, last: int, **more: object) -> Command:
    return "backend.add", {"farm": farm, "address": f"10.0.1.{last}", "port": 80, **more}


def settle(
    plane: FakePlane, state: PlannerState, config: Config, down: frozenset[int] = frozenset()
) -> tuple[PlannerState, list[Operation]]:
    """Plan and execute until complete; check after each round that freed slots stay unused for a round."""
    done: list[Operation] = []
    for _ in range(50):
        result = plan(state, config, down)
        check_rest(state, result)
        plane.apply(result.operations)
        state = result.state
        done += result.operations
        assert dict(state.services) == plane.services() and dict(state.vips) == plane.vips()
        if result.complete:
            assert plane.servers() == wanted_servers(config)
            return state, done
    raise AssertionError("planning does not come to an end")


def check_rest(before: PlannerState, result: Plan, table_chunks: int = MAX_SLOT_CHUNKS) -> None:
    written = [
        (each.offset // SLOTS_PER_CHUNK, -(-len(each.backends) // SLOTS_PER_CHUNK))
        for each in result.operations
        if isinstance(each, PutSlots)
    ]
    for first, length in result.state.resting:
        assert not any(first < start + count and start < first + length for start, count in written)
    in_use = chunks_in_use(result.state)
    idle = sum(length for _, length in (*result.state.free, *result.state.resting))
    assert in_use + idle == table_chunks, "slots leaked or are owned twice"


def chunks_in_use(state: PlannerState) -> int:
    """The listeners of a farm share its slots."""
    runs = {(value.slot_offset, value.slot_count) for value in state.services.values()}
    return sum(-(-count // SLOTS_PER_CHUNK) for _, count in runs)


def meaning(plane: FakePlane) -> object:
    """The content of the maps, independent of slot offsets."""
    services = {}
    for key, value in plane.services().items():
        services[key] = (replace(value, slot_offset=0), [plane.backends[number] for number in plane.turn(key)])
    return services, plane.vips()


def kinds(operations: Sequence[Operation]) -> list[str]:
    """Names of the operations; those of the services of backends are checked in test_servers.py, and by `settle`."""
    return [type(each).__name__ for each in operations if not isinstance(each, PutServer | DeleteServer)]


def wanted_servers(config: Config) -> dict[ServerKey, int]:
    followed, _ = servers.follow({}, [(name, None, farm) for name, farm in config.farms.items()])
    return {key: flags for host, uses in followed.items() for key, flags in servers.server_flags(host, uses).items()}


def test_a_farm_is_added_slots_first_service_last() -> None:
    plane = FakePlane()
    _, operations = settle(plane, PlannerState(), configured(VIP, WEB, backend("web", 1)))
    assert kinds(operations) == ["ZeroTraffic", "PutFarm", "PutBackend", "PutSlots", "PutVip", "PutService"]


def test_an_unchanged_configuration_plans_nothing() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    assert plan(state, config, frozenset()) == Plan((), state, True)
    renamed = configured(("farm.set", {"name": "web", "health": {"kind": "tcp"}}), config=config)
    assert plan(state, renamed, frozenset()).operations == ()


def test_one_changed_farm_leaves_the_others_alone() -> None:
    plane = FakePlane()
    config = configured(
        VIP, WEB, backend("web", 1), ("farm.add", {"name": "api", "vip": "10.0.0.1", "port": 81}), backend("api", 1)
    )
    state, _ = settle(plane, PlannerState(), config)
    state, operations = settle(plane, state, configured(backend("api", 2), config=config))
    assert kinds(operations) == ["ZeroTraffic", "PutBackend", "PutSlots", "PutService"]


def test_a_change_of_mode_keeps_the_slots() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    _, operations = settle(plane, state, configured(("farm.set", {"name": "web", "mode": "dnat"}), config=config))
    assert kinds(operations) == ["PutMembers", "PutService"]
    assert operations[0] == PutMembers(config.farms["web"].id, frozenset({"10.0.1.1"}))


def test_a_moved_listener_keeps_its_slots_and_is_always_present() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    state, operations = settle(plane, state, configured(("farm.set", {"name": "web", "port": 81}), config=config))
    assert kinds(operations) == ["PutService", "DeleteService"]
    assert state.resting == ()


BOTH: Command = ("farm.add", {"name": "web", "vip": "10.0.0.1,10.0.0.2,2001:db8::1", "port": "80,443,8000-8010"})
SIX: Command = ("backend.add", {"farm": "web", "address": "2001:db8:1::1", "port": 80})


def test_a_farm_on_several_vips_and_ports_has_slots_per_address_family() -> None:
    plane, config = FakePlane(), configured(VIP, VIP2, VIP6, BOTH, backend("web", 1), backend("web", 2, priority=1), SIX)
    state, operations = settle(plane, PlannerState(), config)
    assert kinds(operations).count("PutSlots") == 2 and kinds(operations).count("PutService") == 9
    assert {(key.address, key.port, key.port_last) for key in plane.services()} == {
        (vip, *ports) for vip in config.farms["web"].vips for ports in ((80, 80), (443, 443), (8000, 8010))
    }
    for key, value in plane.services().items():
        assert (value.port_first, value.snat_address) == (80, key.address), "backends see the VIP of the client"
        assert {plane.backends[number][0] for number in set(plane.turn(key))} == {
            "2001:db8:1::1" if ":" in key.address else "10.0.1.1"
        }
    assert plane.vips() == dict.fromkeys(config.farms["web"].vips, VipFlag.RANGES)
    down = frozenset({config.farms["web"].backends[0].id})
    settle(plane, state, config, down)
    used = {key.address: plane.backends[int(plane.turn(key)[0])][0] for key in plane.services()}
    assert used == {"10.0.0.1": "10.0.1.2", "10.0.0.2": "10.0.1.2", "2001:db8::1": "2001:db8:1::1"}, "a tier is of one family"


def test_a_port_or_vip_more_or_less_leaves_the_slots_and_the_other_listeners_alone() -> None:
    plane, config = FakePlane(), configured(VIP, VIP2, VIP6, BOTH, backend("web", 1), SIX)
    state, _ = settle(plane, PlannerState(), config)
    more = configured(("farm.set", {"name": "web", "port": "80,443,444,8000-8010"}), config=config)
    state, operations = settle(plane, state, more)
    assert kinds(operations).count("DeleteService") == 3 and set(kinds(operations)) == {"PutService", "DeleteService"}, (
        "443 and 444 adjoin, so that they are a range now"
    )
    fewer = configured(("farm.set", {"name": "web", "vip": "10.0.0.2,2001:db8::1", "port": "80"}), config=more)
    state, operations = settle(plane, state, fewer)
    assert set(kinds(operations)) == {"DeleteService", "PutVip"}
    assert state.resting == () and len(plane.services()) == 2


def test_sources_of_both_families_reach_the_farm() -> None:
    plane, config = FakePlane(), configured(VIP, VIP2, VIP6, BOTH, backend("web", 1), SIX)
    config = configured(("farm.set", {"name": "web", "snat_address": "10.0.0.2"}), config=config)
    settle(plane, PlannerState(), config)
    assert plane.farm_snat == {config.farms["web"].id: ("10.0.0.2",)}
    assert {(key.address, value.snat_address) for key, value in plane.services().items()} == {
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.2", "10.0.0.2"),
        ("2001:db8::1", "2001:db8::1"),
    }


def test_ranges_are_looked_up_only_while_some_exist() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    ranged = configured(("farm.set", {"name": "web", "port": "80-90"}), config=config)
    state, _ = settle(plane, state, ranged)
    assert plane.vips() == {"10.0.0.1": VipFlag.RANGES}
    state, operations = settle(plane, state, configured(("farm.set", {"name": "web", "port": 80}), config=ranged))
    assert kinds(operations) == ["PutService", "DeleteService", "PutVip"], "the range stays until the single port is added"
    assert plane.vips() == {"10.0.0.1": 0}


def test_a_range_that_overlaps_the_one_it_replaces_is_deleted_first() -> None:
    plane, config = (
        FakePlane(),
        configured(VIP, ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": "80-90"}), backend("web", 1)),
    )
    state, _ = settle(plane, PlannerState(), config)
    _, operations = settle(plane, state, configured(("farm.set", {"name": "web", "port": "80-99"}), config=config))
    assert kinds(operations) == ["DeleteService", "PutService"]


def test_an_open_vip_and_one_only_for_snat() -> None:
    plane = FakePlane()
    config = configured(("vip.add", {"address": "10.0.0.1/24", "device": "eth0", "guard": False}), WEB, backend("web", 1))
    config = configured(("vip.add", {"address": "10.0.0.9/24", "device": "eth0"}), config=config)
    config = configured(("farm.set", {"name": "web", "snat_address": "10.0.0.9"}), config=config)
    state, _ = settle(plane, PlannerState(), config)
    assert plane.vips() == {"10.0.0.1": VipFlag.OPEN, "10.0.0.9": 0}
    stopped = configured(("farm.stop", {"name": "web"}), config=config)
    state, operations = settle(plane, state, stopped)
    assert kinds(operations) == ["DeleteService"], "flows of a stopped farm still need the address"


def test_whether_a_farm_refuses_or_drops_is_written_when_it_changes_and_to_adopted_maps() -> None:
    plane = FakePlane()
    config = configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    number = config.farms["web"].id
    assert plane.farm_flags == {number: 0}
    config = configured(("farm.set", {"name": "web", "on_no_backend": "drop"}), config=config)
    state, operations = settle(plane, state, config)
    assert operations == [PutFarm(number, FarmFlag.SILENT, ())]
    config = configured(("farm.stop", {"name": "web"}), config=config)
    state, operations = settle(plane, state, config)
    assert "PutFarm" not in kinds(operations)
    plane.farm_flags.clear()
    settle(plane, adopt(plane.vips(), plane.services(), plane.servers()), config)
    assert plane.farm_flags == {number: FarmFlag.SILENT}


def test_services_of_backends_that_adopted_maps_have_too_many_are_deleted() -> None:
    plane = FakePlane()
    config = configured(VIP, WEB, backend("web", 1), backend("web", 2))
    settle(plane, PlannerState(), config)
    config = configured(("backend.remove", {"farm": "web", "address": "10.0.1.2", "port": 80}), config=config)
    settle(plane, adopt(plane.vips(), plane.services(), plane.servers()), config)


def test_eligible_backends() -> None:
    config = configured(
        *(
            VIP,
            WEB,
            backend("web", 1),
            backend("web", 2, weight=0),
            backend("web", 3, priority=1),
            backend("web", 4, draining=True),
        ),
    )
    farm = config.farms["web"]
    one, _, three, _ = farm.backends
    assert eligible_backends(farm, frozenset()) == (one,)
    assert eligible_backends(farm, {one.id}) == (three,)
    assert eligible_backends(farm, {one.id, three.id}) == ()
    everyone = configured(("farm.set", {"name": "web", "all_down": "all"}), config=config).farms["web"]
    assert eligible_backends(everyone, {one.id, three.id}) == (one, three)


def test_backends_without_connections_are_marked_after_the_services_left_them() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1), backend("web", 2), backend("web", 3))
    one, two, three = (each.id for each in config.farms["web"].backends)
    state, _ = settle(plane, PlannerState(), config)
    state, operations = settle(plane, state, config, frozenset({one}))
    assert kinds(operations) == ["PutSlots", "PutService", "PutBackend"]
    config = configured(("backend.remove", {"farm": "web", "address": "10.0.1.2", "port": 80}), config=config)
    config = configured(("backend.set", {"farm": "web", "address": "10.0.1.3", "port": 80, "draining": True}), config=config)
    state, _ = settle(plane, state, config, frozenset({one}))
    assert plane.backend_flags == {one: BackendFlag.UNAVAILABLE, two: BackendFlag.UNAVAILABLE, three: 0}
    config = configured(("farm.set", {"name": "web", "all_down": "all"}), config=config)
    settle(plane, state, config, frozenset({one}))
    assert plane.backend_flags[one] == 0, "the farm tries it"


def test_a_farm_without_backends_refuses_in_the_kernel() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    down = frozenset({config.farms["web"].backends[0].id})
    state, _ = settle(plane, PlannerState(), config, down)
    (value,) = plane.services().values()
    assert (value.slot_offset, value.slot_count) == (0, 0)
    settle(plane, state, config)
    (value,) = plane.services().values()
    assert value.slot_count == table_sizes.PREFERRED


def test_restart_keeps_traffic_and_removes_what_is_stale() -> None:
    plane = FakePlane()
    config = configured(
        VIP, WEB, backend("web", 1), backend("web", 2), ("farm.add", {"name": "old", "vip": "10.0.0.1", "port": 81})
    )
    settle(plane, PlannerState(), configured(backend("old", 1), config=config))
    before = {key: plane.turn(key) for key in plane.services()}
    config = configured(("farm.delete", {"name": "old"}), config=config)
    result = replan_everything(config, frozenset(), plane.vips(), plane.services(), plane.servers())
    check_rest(adopt(plane.vips(), plane.services(), plane.servers()), result)
    plane.apply(result.operations)
    assert result.complete and not any(isinstance(each, ZeroTraffic) for each in result.operations)
    (key,) = plane.services()
    assert plane.turn(key) == before[key] and key.port == 80
    assert DeleteService(ServiceKey("10.0.0.1", 81, 81, 6)) in result.operations


def test_impossible_kernel_services_are_replaced_without_touching_their_slots() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    settle(plane, PlannerState(), config)
    ((key, value),) = plane.services().items()
    strange = {
        key: replace(value, slot_offset=value.slot_offset + 16),
        replace(key, port=9): value,
        replace(key, port=8): replace(value, slot_offset=MAX_SLOT_CHUNKS * SLOTS_PER_CHUNK),
    }
    result = replan_everything(config, frozenset(), {"10.0.0.1": 0}, strange)
    assert set(result.state.services) == {key}
    assert all(each.offset >= 16 + value.slot_count for each in result.operations if isinstance(each, PutSlots))
    plan(result.state, configured(backend("web", 2), config=config), frozenset())


def test_a_reused_id_waits_until_no_service_uses_it_and_its_counters_are_zeroed() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    farm = config.farms["web"]
    moved = replace(farm, backends=(replace(farm.backends[0], address="10.0.1.99"),))
    state, operations = settle(plane, state, replace(config, farms={"web": moved}))
    number = farm.backends[0].id
    assert plane.backends[number] == ("10.0.1.99", 80)
    assert ZeroTraffic((), (number,)) in operations
    assert kinds(operations) == ["PutService", "PutBackend", "ZeroTraffic", "PutBackend", "PutSlots", "PutService"]
    assert plane.backend_flags[number] == 0


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> int:
    """A capacity of exactly two farms' lookup tables."""
    monkeypatch.setattr(table_sizes, "choose", lambda farm, used: 509)
    chunks = 2 * -(-509 // SLOTS_PER_CHUNK)
    monkeypatch.setattr(planner, "MAX_SLOT_CHUNKS", chunks)
    return chunks


def test_exhausted_slots_are_an_error_and_plan_nothing(small_table: int) -> None:
    empty = PlannerState(free=((0, small_table),))
    farms: list[Command] = [("farm.add", {"name": f"f{n}", "vip": "10.0.0.1", "port": n}) for n in (1, 2, 3)]
    config = configured(VIP, *farms)
    config = configured(*(backend(f"f{n}", n) for n in (1, 2, 3)), config=config)
    with pytest.raises(XlbError, match=r"slot map is full: no slots for farm f3"):
        plan(empty, config, frozenset())


def test_farms_wait_for_space_that_a_round_frees(small_table: int) -> None:
    plane, state = FakePlane(), PlannerState(free=((0, small_table),))
    config = configured(VIP, WEB, backend("web", 1), backend("web", 2))
    first = plan(state, config, frozenset())
    plane.apply(first.operations)
    config = configured(("farm.add", {"name": "api", "vip": "10.0.0.1", "port": 81}), backend("api", 1), config=config)
    config = configured(("backend.remove", {"farm": "web", "address": "10.0.1.2", "port": 80}), config=config)
    second = plan(first.state, config, frozenset())
    plane.apply(second.operations)
    assert not second.complete, "the new slots of web used the last space"
    third = plan(second.state, config, frozenset())
    plane.apply(third.operations)
    assert third.complete and len(plane.services()) == 2


def test_after_a_restart_farms_that_wait_for_space_keep_forwarding(small_table: int) -> None:
    config = configured(
        VIP, WEB, backend("web", 1), ("farm.add", {"name": "api", "vip": "10.0.0.1", "port": 81}), backend("api", 2)
    )
    plane = FakePlane()
    settle(plane, PlannerState(), config)
    chunks = small_table // 2 * 3
    found = replace(adopt(plane.vips(), plane.services(), plane.servers()), free=((small_table, chunks - small_table),))
    first = plan(found, config, frozenset())
    plane.apply(first.operations)
    assert not first.complete and len(plane.services()) == 2
    second = plan(first.state, config, frozenset())
    plane.apply(second.operations)
    assert second.complete and len(plane.services()) == 2
    assert {value.slot_offset for value in plane.services().values()} == {0, small_table * SLOTS_PER_CHUNK}


@pytest.fixture
def starved(small_table: int) -> tuple[FakePlane, Plan, Config, Config]:
    """Farm first took the port of farm web, which moved, changed its backends and found no space for them."""
    plane = FakePlane()
    before = configured(VIP, ("farm.add", {"name": "first", "vip": "10.0.0.1", "port": 81}), WEB, backend("web", 1))
    state, _ = settle_small(plane, PlannerState(free=((0, small_table),)), before)
    config = configured(("farm.set", {"name": "web", "port": 99}), ("farm.set", {"name": "first", "port": 80}), config=before)
    config = configured(("farm.set", {"name": "web", "port": 81}), backend("first", 3), backend("web", 2), config=config)
    result = plan(state, config, frozenset())
    plane.apply(result.operations)
    assert not result.complete and [key.port for key in plane.services()] == [80]
    return plane, result, before, config


def settle_small(plane: FakePlane, state: PlannerState, config: Config) -> tuple[PlannerState, int]:
    """Plan and execute until complete with the small capacity; returns the number of rounds."""
    chunks = sum(length for _, length in (*state.free, *state.resting))
    chunks += chunks_in_use(state)
    for number in range(1, 6):
        result = plan(state, config, frozenset())
        check_rest(state, result, chunks)
        plane.apply(result.operations)
        state = result.state
        if result.complete:
            return state, number
    raise AssertionError("planning does not come to an end")


def test_a_port_taken_from_a_waiting_farm_stays_with_the_taker(starved: tuple[FakePlane, Plan, Config, Config]) -> None:
    plane, result, _, config = starved
    settle_small(plane, result.state, config)
    assert sorted((key.port, value.farm) for key, value in plane.services().items()) == [
        (80, config.farms["first"].id),
        (81, config.farms["web"].id),
    ]


def test_a_waiting_farm_does_not_reuse_slots_it_lost(starved: tuple[FakePlane, Plan, Config, Config]) -> None:
    plane, result, _, config = starved
    config = configured(("backend.remove", {"farm": "web", "address": "10.0.1.2", "port": 80}), config=config)
    settle_small(plane, result.state, config)
    assert len(plane.services()) == 2


def test_an_id_a_waiting_farm_gave_up_can_be_used(starved: tuple[FakePlane, Plan, Config, Config]) -> None:
    plane, result, _, config = starved
    first, web = config.farms["first"], config.farms["web"]
    taken = replace(first.backends[0], id=web.backends[1].id, address="10.0.1.77")
    farms = {"first": replace(first, backends=(taken,)), "web": replace(web, backends=web.backends[:1])}
    settle_small(plane, result.state, replace(config, farms=farms))
    assert plane.backends[taken.id] == ("10.0.1.77", 80)


PORTS = st.sampled_from([80, 81, "80-90", "85-99", "100-120", "80,82,85-99", "79,80-90,101", "100-110,112", "all"])
FARMS = st.sampled_from(["a", "b", "c"])
LAST = st.integers(1, 4)
SERVERS = st.builds("{}{}".format, st.sampled_from(["10.0.1.", "2001:db8:1::"]), LAST)
VIPS = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.1,10.0.0.2", "10.0.0.2,2001:db8::1", "2001:db8::1"])
COMMANDS = st.one_of(
    st.tuples(
        st.just("farm.add"),
        st.fixed_dictionaries(
            {"name": FARMS, "vip": VIPS, "port": PORTS},
            optional={
                "scheduler": st.sampled_from(["maglev", "roundrobin", "source"]),
                "all_down": st.sampled_from(["drop", "all"]),
                "snat_address": st.sampled_from(["", "10.0.0.2"]),
            },
        ),
    ),
    st.tuples(
        st.just("farm.set"),
        st.fixed_dictionaries(
            {"name": FARMS},
            optional={
                "vip": VIPS,
                "port": PORTS,
                "scheduler": st.sampled_from(["maglev", "roundrobin"]),
                "mode": st.sampled_from(["snat", "dnat"]),
            },
        ),
    ),
    st.tuples(st.sampled_from(["farm.delete", "farm.start", "farm.stop"]), st.fixed_dictionaries({"name": FARMS})),
    st.tuples(
        st.sampled_from(["backend.add", "backend.set"]),
        st.fixed_dictionaries(
            {"farm": FARMS, "address": SERVERS},
            optional={
                "port": st.just(80),
                "weight": st.integers(0, 3),
                "priority": st.integers(0, 1),
                "draining": st.booleans(),
            },
        ),
    ),
    st.tuples(
        st.sampled_from(["backend.remove", "backend.drain"]),
        st.fixed_dictionaries({"farm": FARMS, "address": SERVERS}, optional={"port": st.just(80)}),
    ),
    st.tuples(st.just("vip.add"), st.fixed_dictionaries({"address": st.just("10.0.0.9/24"), "device": st.just("eth0")})),
    st.tuples(st.just("vip.delete"), st.fixed_dictionaries({"address": st.sampled_from(["10.0.0.2", "10.0.0.9"])})),
)
STEPS = st.lists(
    st.tuples(st.lists(COMMANDS, max_size=4), st.frozensets(st.integers(1, 20), max_size=6), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_any_history_gives_the_result_of_planning_from_scratch(
    steps: list[tuple[list[tuple[str, dict[str, object]]], frozenset[int], bool]],
) -> None:
    """One round may combine several changes; some rounds start with a restart that only knows the kernel's maps."""
    plane, state = FakePlane(), PlannerState()
    config = configured(VIP, VIP2, VIP6)
    bound_before: frozenset[int] = frozenset()
    for commands, down, restart in steps:
        for command, arguments in commands:
            try:
                config = change(config, command, arguments)
            except XlbError:
                continue
        if restart:
            state = adopt(plane.vips(), plane.services(), plane.servers())
        state, _ = settle(plane, state, config, down)
        fresh = FakePlane()
        settle(fresh, PlannerState(), config, down)
        assert meaning(plane) == meaning(fresh)
        bound = [backend for farm in config.farms.values() for backend in farm.backends]
        unusable = {number for farm in config.farms.values() for number in unavailable_backends(farm, down)}
        for each in bound:
            assert plane.backend_flags[each.id] == (BackendFlag.UNAVAILABLE if each.id in unusable else 0)
        if not restart:
            assert all(plane.backend_flags[number] for number in bound_before - {each.id for each in bound})
        bound_before = frozenset(each.id for each in bound)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.sampled_from([3, 4]))
def test_any_history_with_too_few_slots(
    steps: list[tuple[list[tuple[str, dict[str, object]]], frozenset[int], bool]], tables: int
) -> None:
    """Rounds are executed one by one, with changes between them; a change without enough space is refused."""
    with patch.object(table_sizes, "choose", lambda farm, used: 509):
        _run_with_too_few_slots(steps, tables * -(-509 // SLOTS_PER_CHUNK))


def _run_with_too_few_slots(steps: list[tuple[list[tuple[str, dict[str, object]]], frozenset[int], bool]], chunks: int) -> None:
    plane, state = FakePlane(), PlannerState(free=((0, chunks),))
    wanted = applied = configured(VIP, VIP2, VIP6)
    down: frozenset[int] = frozenset()
    for commands, down, patient in [*steps, ([], frozenset(), True)]:
        for command, arguments in commands:
            try:
                wanted = change(wanted, command, arguments)
            except XlbError:
                continue
        for _ in range(20 if patient else 1):
            try:
                result = plan(state, wanted, down)
            except XlbError:
                wanted = applied
                break
            check_rest(state, result, chunks)
            plane.apply(result.operations)
            state = result.state
            assert dict(state.services) == plane.services() and dict(state.vips) == plane.vips()
            if result.complete:
                applied = wanted
                break
    if state.config is wanted and all(planned.settled for planned in state.farms.values()):
        fresh = FakePlane()
        settle(fresh, PlannerState(), wanted, state.down)
        assert meaning(plane) == meaning(fresh)


def test_the_order_is_backends_slots_vips_services_removals() -> None:
    plane, config = FakePlane(), configured(VIP, WEB, backend("web", 1))
    state, _ = settle(plane, PlannerState(), config)
    config = configured(("farm.delete", {"name": "web"}), ("vip.delete", {"address": "10.0.0.1"}), config=config)
    config = configured(("vip.add", {"address": "2001:db8::1/64", "device": "eth0"}), config=config)
    config = configured(("farm.add", {"name": "six", "vip": "2001:db8::1", "port": 80, "proto": "udp"}), config=config)
    config = configured(("backend.add", {"farm": "six", "address": "2001:db8::11", "port": 53}), config=config)
    _, operations = settle(plane, state, config)
    first = ["ZeroTraffic", "PutFarm", "PutBackend", "PutSlots", "PutVip", "PutService", "DeleteService"]
    assert kinds(operations) == [*first, "PutBackend", "DeleteVip"]
    assert [each.key.protocol for each in operations if isinstance(each, PutService)] == [17]
    assert [each.address for each in operations if isinstance(each, PutBackend | PutVip)] == [
        "2001:db8::11",
        "2001:db8::1",
        "10.0.1.1",
    ]
