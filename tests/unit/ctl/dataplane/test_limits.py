"""Limits and prefix lists in the maps: what is written when, and that a list in use is replaced without a gap."""

from __future__ import annotations

from collections.abc import Mapping

from bpf.dataplane import DeletePrefixes, FlowTuple, Operation, PutBackendLimits, PutFarmLimits, PutPrefixes
from ctl.config import prefixes
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane import limits
from ctl.dataplane.planner import PlannerState, plan, replan_everything
from ctl.explanation import explain
from tests.fakes.plane import FakePlane

Command = tuple[str, Mapping[str, object]]
VIP: Command = ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"})


def made(*commands: Command, config: Config | None = None) -> Config:
    config = config or Config()
    for command, arguments in commands:
        config = change(config, command, arguments)
    return config


def prefix_list(name: str, *lines: str) -> Command:
    return "prefixes.set", {"name": name, **prefixes.packed(prefixes.parse_texts(name, lines, name))}


def farm(name: str = "web", port: int = 80, **settings: object) -> Command:
    return "farm.add", {"name": name, "vip": "10.0.0.1", "port": port} | settings


def backend(last: int, name: str = "web", **settings: object) -> Command:
    return "backend.add", {"farm": name, "address": f"10.0.1.{last}", "port": 80, **settings}


class Node:
    """A plane that follows configurations."""

    def __init__(self) -> None:
        self.plane, self.state, self.config = FakePlane(), PlannerState(), Config()

    def follow(self, config: Config, down: frozenset[int] = frozenset()) -> list[Operation]:
        done: list[Operation] = []
        complete = False
        while not complete:
            result = plan(self.state, config, down)
            self.plane.apply(result.operations)
            done += result.operations
            self.state, complete, self.config = result.state, result.complete, config
        return done

    def change(self, *commands: Command) -> list[Operation]:
        return self.follow(made(*commands, config=self.config))

    def limits(self, name: str = "web") -> PutFarmLimits:
        return self.plane.farm_limits[self.config.farms[name].id]


def test_a_farm_without_limits_writes_none() -> None:
    node = Node()
    done = node.change(VIP, farm(), backend(1), backend(2, weight=3))
    assert not [each for each in done if isinstance(each, PutFarmLimits | PutBackendLimits | PutPrefixes)]


def test_the_limits_of_a_farm() -> None:
    node = Node()
    node.change(VIP, farm(max_connections=5, max_rate=3, max_half_open=9, rate_prefix_v4=24, rate_prefix_v6=56))
    number = node.config.farms["web"].id
    assert node.limits() == PutFarmLimits(
        number, 5, 9, 333333333, 895, client_prefix_v4=24, client_prefix_v6=56
    )  # 895 ticks of 67 ms are a quarter of 240 s
    node.change(("farm.set", {"name": "web", "max_connections": 0, "max_rate": 0, "max_half_open": 0}))
    assert node.limits() == PutFarmLimits(number)


def test_the_limits_of_a_deleted_farm_are_not_inherited() -> None:
    node = Node()
    node.change(VIP, farm(max_connections=5))
    number = node.config.farms["web"].id
    node.change(("farm.delete", {"name": "web"}))
    assert node.plane.farm_limits[number] == PutFarmLimits(number)


def test_backends_that_are_counted() -> None:
    node = Node()
    node.change(VIP, farm(scheduler="leastconn"), backend(1, weight=2), backend(2, max_connections=7))
    first, second = node.config.farms["web"].backends
    assert node.plane.backend_limits[first.id] == PutBackendLimits(first.id, 2, 0)
    assert node.plane.backend_limits[second.id] == PutBackendLimits(second.id, 1, 7)
    assert node.limits().candidates_v4 == (first.id, second.id)
    assert node.limits().backends_limited
    node.follow(node.config, frozenset({first.id}))
    assert node.limits().candidates_v4 == (second.id,), "a backend that is down is no candidate"


def test_the_candidates_of_a_farm_on_vips_of_both_families() -> None:
    """Mode ipip reaches the backends of both from either; the other modes those of the client's family."""
    second: Command = ("vip.add", {"address": "fd00::1/64", "device": "eth0"})
    backends = [backend(1), backend(2), ("backend.add", {"farm": "web", "address": "fd01::3", "port": 80})]
    for mode, expected in (("ipip", ((1, 2, 3), (1, 2, 3))), ("snat", ((1, 2), (3,)))):
        node = Node()
        node.follow(made(VIP, second, farm(vip="10.0.0.1,fd00::1", mode=mode, scheduler="leastconn"), *backends))
        first = node.config.farms["web"].backends[0].id - 1
        candidates = node.limits().candidates_v4, node.limits().candidates_v6
        assert tuple(tuple(each - first for each in ids) for ids in candidates) == expected


def test_many_backends_are_chosen_from_the_slots() -> None:
    node = Node()
    node.change(VIP, farm(scheduler="leastconn"), *(backend(number) for number in range(1, 34)))
    assert node.limits().candidates_v4 == ()
    (value,) = node.plane.listeners.values()
    assert value.slot_count == 33


def test_a_list_is_loaded_while_a_farm_uses_it() -> None:
    node = Node()
    node.change(VIP, prefix_list("office", "10.0.0.0/8"), farm())
    assert not node.plane.prefixes
    node.change(("farm.set", {"name": "web", "allow": "office"}))
    assert list(node.plane.prefixes.values()) == [(bytes([10, 0, 0, 0, 8]), b"")]
    assert node.limits().allow in node.plane.prefixes and not node.limits().deny
    node.change(("farm.set", {"name": "web", "allow": ""}))
    assert not node.plane.prefixes


def test_a_list_is_replaced_by_another_id_before_it_is_removed() -> None:
    node = Node()
    node.change(VIP, prefix_list("bad", "192.0.2.0/24"), farm(deny="bad"), farm("other", 81, deny="bad"), farm("free", 82))
    before = node.limits().deny
    done = node.change(prefix_list("bad", "198.51.100.0/24"))
    assert [type(each) for each in done] == [PutPrefixes, PutFarmLimits, PutFarmLimits, DeletePrefixes]
    assert node.limits().deny == node.limits("other").deny != before
    assert list(node.plane.prefixes) == [node.limits().deny]


def test_two_names_with_the_same_prefixes_share_them() -> None:
    node = Node()
    node.change(VIP, prefix_list("a", "10.0.0.0/8"), prefix_list("b", "10.0.0.0/8"), farm(allow="a", deny="b"))
    assert len(node.plane.prefixes) == 1
    node.change(("farm.set", {"name": "web", "allow": ""}))
    assert len(node.plane.prefixes) == 1 and node.limits().deny in node.plane.prefixes


def test_lists_of_equal_ids_are_told_apart() -> None:
    """Two contents with the same digest: one of them gets another id."""
    one, other = (prefixes.parse_texts("x", [text], "x") for text in ("10.0.0.0/8", "11.0.0.0/8"))
    taken = limits._free_id(one, {})
    assert limits._free_id(one, {taken: other}) != taken == limits._free_id(one, {taken: one})


def test_a_restart_keeps_the_lists_in_force() -> None:
    """The maps are of an earlier process: lists keep their ids, what nobody uses any more goes."""
    node = Node()
    node.change(VIP, prefix_list("bad", "192.0.2.0/24"), farm(deny="bad"))
    number = node.limits().deny
    node.plane.prefixes[12345] = (bytes(5), b"")  # left by a crash
    plane = node.plane
    result = replan_everything(node.config, frozenset(), plane.vips(), plane.services(), plane.servers())
    plane.apply(result.operations)
    assert list(plane.prefixes) == [number] and node.limits().deny == number


# --- conn show ----------------------------------------------------------------------------------------------

ARRIVING = FlowTuple("192.0.2.7", "10.0.0.1", 40000, 80, 6)


def explained(config: Config, loads: explain.Loads | None = None) -> dict[str, object]:
    return explain.explain(ARRIVING, None, config, frozenset(), 1, loads=loads)


def test_conn_show_names_the_list_that_refuses() -> None:
    denied = made(VIP, prefix_list("bad", "192.0.2.0/24"), farm(deny="bad"), backend(1))
    answer = explained(denied)
    assert (answer["verdict"], answer["why"]) == ("drop_denied", "prefix list bad denies 192.0.2.0/24")
    allowed = made(VIP, prefix_list("office", "10.0.0.0/8"), farm(allow="office"), backend(1))
    assert explained(allowed)["verdict"] == "drop_denied"
    assert "office" in str(explained(allowed)["why"])


def test_conn_show_names_the_limit_that_refuses() -> None:
    config = made(VIP, farm(max_connections=3, max_rate=7, max_half_open=9), backend(1, max_connections=2))
    number, server = config.farms["web"].id, config.farms["web"].backends[0].id
    answer = explained(config)
    steps = " ".join(answer["steps"])  # type: ignore[arg-type]
    assert answer["verdict"] == "forward"
    assert "max_connections is 3" in steps and "drop_rate above 7" in steps and "drop_half_open if 9" in steps
    assert explained(config, explain.Loads({number: 3}))["verdict"] == "drop_farm_full"
    assert explained(config, explain.Loads({number: 2}, {server: 2}))["verdict"] == "drop_backend_full"


def test_conn_show_finds_the_least_loaded() -> None:
    config = made(VIP, farm(scheduler="leastconn"), backend(1), backend(2, weight=4), backend(3, max_connections=1))
    first, second, third = (each.id for each in config.farms["web"].backends)
    for loads, expected in (
        ({first: 1, second: 9}, "10.0.1.3:80"),
        ({first: 1, second: 2, third: 1}, "10.0.1.2:80"),
        ({first: 0, second: 9, third: 1}, "10.0.1.1:80"),
    ):
        assert explained(config, explain.Loads({}, loads))["backend"] == expected


def test_conn_show_of_roundrobin_follows_what_is_full() -> None:
    """The only backend that is not full is certain; without one the connection is refused."""
    config = made(VIP, farm(scheduler="roundrobin"), *(backend(last, max_connections=1) for last in (1, 2, 3)))
    arriving = FlowTuple("198.51.100.7", "10.0.0.1", 40000, 80, 6)
    for full, verdict in (((), "either"), ((1,), "either"), ((1, 3), "forward"), ((1, 2, 3), "drop_backend_full")):
        ids = [each.id for each in config.farms["web"].backends]
        loads = explain.Loads(backends={ids[number - 1]: 1 for number in full})
        answer = explain.explain(arriving, None, config, frozenset(), 7, loads=loads)
        assert answer["verdict"] == verdict, answer["steps"]
        assert answer["backend"] == ("10.0.1.2:80" if verdict == "forward" else None)
