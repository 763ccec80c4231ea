"""Persistence and QUIC ids in the plan, and what `conn show` says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpf.constants import AffinityFlag, Protocol, Quic
from bpf.dataplane import FlowTuple, Operation, PutAffinity, PutBackendAffinity, PutQuicServers
from ctl.config.changes import change
from ctl.config.model import Config, Farm
from ctl.dataplane.affinity import Remembered, client_prefix, quic_scheme
from ctl.dataplane.expiry import to_ticks
from ctl.dataplane.planner import PlannerState, plan
from ctl.explanation.explain import explain
from tests.fakes.plane import FakePlane

AFFINITY = (PutAffinity, PutBackendAffinity, PutQuicServers)
TTL_S = 600


def configured(*farms: str) -> Config:
    config = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    for number, name in enumerate(farms):
        config = change(config, "farm.add", {"name": name, "vip": "10.0.0.1", "port": str(80 + number), "proto": "udp"})
        for server in (1, 2, 3):
            config = change(config, "backend.add", {"farm": name, "address": f"10.0.1.{server}", "port": 80 + number})
    return config


def having(config: Config, name: str, ids: tuple[str, ...] = (), **settings: Any) -> Config:
    """The settings in force, whatever this version's checks say."""
    farm = replace(config.farms[name], **settings)
    if ids:
        farm = replace(farm, backends=tuple(replace(b, quic_id=q) for b, q in zip(farm.backends, ids, strict=True)))
    return replace(config, farms={**config.farms, name: farm})


class Node:
    """A planner and the maps it wrote."""

    def __init__(self) -> None:
        self.plane, self.state = FakePlane(), PlannerState()

    def follow(self, config: Config, *down: int) -> list[Operation]:
        """Returns the operations of affinity."""
        found: list[Operation] = []
        for _ in range(3):
            planned = plan(self.state, config, frozenset(down))
            self.plane.apply(planned.operations)
            self.state = planned.state
            found += [each for each in planned.operations if isinstance(each, AFFINITY)]
            if planned.complete:
                break
        return found


def test_a_farm_without_these_settings_plans_nothing() -> None:
    node = Node()
    assert node.follow(configured("a", "b")) == []


def test_persistence_is_planned_and_taken_back() -> None:
    node, config = Node(), configured("a", "b")
    kept = having(config, "a", persistence_s=TTL_S, persistence_prefix_v4=24, persistence_return=False)
    node.follow(kept)
    farm = kept.farms["a"]
    assert node.plane.affinity[farm.id] == PutAffinity(farm.id, to_ticks(TTL_S), 24, 128, 0)
    assert node.plane.affinity[kept.farms["b"].id] == PutAffinity(kept.farms["b"].id)  # its id may have had another meaning
    assert {b.id: node.plane.backend_affinity[b.id] for b in farm.backends} == {b.id: (farm.id, True) for b in farm.backends}
    node.follow(having(kept, "a", persistence_return=True))
    assert node.plane.affinity[farm.id].flags == AffinityFlag.RETURN
    node.follow(config)
    assert node.plane.affinity[farm.id] == PutAffinity(farm.id)


@pytest.mark.parametrize("end", ["persistence off", "farm deleted"])
def test_a_backend_that_is_removed_without_persistence_is_closed_when_it_returns(end: str) -> None:
    """The farm's id may have persistence again before the clients that are remembered expire."""
    node, config = Node(), configured("a", "b")
    kept = having(config, "a", persistence_s=TTL_S)
    node.follow(kept)
    farm = kept.farms["a"]
    removed, *others = farm.backends
    if end == "farm deleted":
        node.follow(change(kept, "farm.delete", {"name": "a"}))
    else:
        node.follow(config)
    fewer = having(config, "a", backends=tuple(others))
    node.follow(fewer)
    node.follow(having(fewer, "a", persistence_s=TTL_S))
    assert node.plane.backend_affinity[removed.id] == (0, False)
    assert all(node.plane.backend_affinity[each.id] == (farm.id, True) for each in others)


@pytest.mark.parametrize("how", ["down", "draining", "weight 0", "reserve"])
def test_a_backend_that_may_not_be_chosen_is_closed(how: str) -> None:
    node, config = Node(), having(configured("a"), "a", persistence_s=TTL_S)
    node.follow(config)
    farm = config.farms["a"]
    first = farm.backends[0]
    changes: dict[str, dict[str, Any]] = {"draining": {"draining": True}, "weight 0": {"weight": 0}, "reserve": {"priority": 9}}
    changed = replace(farm, backends=(replace(first, **changes.get(how, {})), *farm.backends[1:]))
    now = replace(config, farms={"a": changed})
    node.follow(now, *([first.id] if how == "down" else []))
    assert node.plane.backend_affinity[first.id] == (farm.id, False)
    assert node.plane.backend_affinity[farm.backends[1].id] == (farm.id, True)
    node.follow(config)
    assert node.plane.backend_affinity[first.id] == (farm.id, True)


def test_a_removed_backend_is_no_farms() -> None:
    node, config = Node(), having(configured("a"), "a", persistence_s=TTL_S)
    node.follow(config)
    farm = config.farms["a"]
    node.follow(replace(config, farms={"a": replace(farm, backends=farm.backends[1:])}))
    assert node.plane.backend_affinity[farm.backends[0].id] == (0, False)
    node.follow(replace(config, farms={}))
    assert node.plane.affinity[farm.id] == PutAffinity(farm.id)


def test_quic_ids_are_planned() -> None:
    node = Node()
    config = having(configured("a"), "a", ("0a0b", "", "0c0d"), quic_cid="server-id:1:2")
    node.follow(config)
    farm = config.farms["a"]
    assert node.plane.affinity[farm.id].quic == (Quic.SERVER_ID, 1, 2)
    assert node.plane.quic_servers[farm.id] == {b"\x0a\x0b": farm.backends[0].id, b"\x0c\x0d": farm.backends[2].id}
    node.follow(having(config, "a", ("", "", ""), quic_cid=""))
    assert node.plane.quic_servers[farm.id] == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (0, 0, 0)), ("prefix:8", (1, 0, 8)), ("server-id:1:4", (2, 1, 4)), ("server-id:0:15", (2, 0, 15))],
)
def test_schemes(text: str, expected: tuple[int, int, int]) -> None:
    assert quic_scheme(Farm(1, "a", "10.0.0.1", 80, 80, quic_cid=text)) == expected


# --- conn show -----------------------------------------------------------------------------------------------


def shown(config: Config, entry: Remembered | None, *down: int) -> tuple[str, str, str]:
    """verdict, backend, and what is said of persistence."""
    arriving = FlowTuple("192.0.2.77", "10.0.0.1", 40000, 80, Protocol.UDP)
    answer = explain(arriving, None, config, frozenset(down), 7, lambda farm: entry)
    said = [step for step in answer["steps"] if step.startswith("persistence")]
    assert len(said) == 1
    return answer["verdict"], answer["backend"], said[0]


@pytest.mark.parametrize("scheduler", ["maglev", "roundrobin"])
def test_the_explanation_names_the_backend_that_a_client_keeps(scheduler: str) -> None:
    config = change(configured("a"), "farm.set", {"name": "a", "scheduler": scheduler})
    config = having(config, "a", persistence_s=TTL_S, persistence_prefix_v4=24)
    first, second, third = config.farms["a"].backends
    fresh = to_ticks(60)
    for home in (first, third):
        verdict, backend, said = shown(config, Remembered(home.id, home.id, fresh))
        assert (verdict, backend) == ("forward", home.endpoint)
        assert said == f"persistence: 192.0.2.0/24 keeps {home.endpoint} (540 s left)"
    verdict, backend, said = shown(config, Remembered(first.id, third.id, fresh), first.id)
    assert (verdict, backend) == ("forward", third.endpoint) and "then it returns" in said
    verdict, backend, said = shown(config, Remembered(first.id, first.id, fresh), first.id)
    assert verdict == ("either" if scheduler == "roundrobin" else "forward") and backend != first.endpoint
    for entry in (None, Remembered(second.id, second.id, to_ticks(2 * TTL_S))):
        assert "no backend yet" in shown(config, entry)[2]


def test_prefixes() -> None:
    farm = Farm(1, "a", "10.0.0.1", 80, 80, persistence_prefix_v4=20, persistence_prefix_v6=56)
    assert client_prefix(farm, "198.51.100.7") == "198.51.96.0/20"
    assert client_prefix(farm, "2001:db8:c:ffff::7") == "2001:db8:c:ff00::/56"


def test_the_explanation_names_quic_and_toa() -> None:
    arriving = FlowTuple("192.0.2.77", "10.0.0.1", 40000, 80, Protocol.UDP)
    config = having(configured("a"), "a", quic_cid="prefix:4")
    assert any("prefix:4" in step for step in explain(arriving, None, config, frozenset(), 7)["steps"])
    config = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    config = change(config, "farm.add", {"name": "a", "vip": "10.0.0.1", "port": "80", "toa": True})
    config = change(config, "backend.add", {"farm": "a", "address": "10.0.1.1", "port": 80})
    steps = explain(replace(arriving, protocol=Protocol.TCP), None, config, frozenset(), 7)["steps"]
    assert steps[-1].startswith("toa: ")
