"""`conn show` predicts what the data plane does: it is compared with the model (tests/model), as the program is.

Random histories of configurations, failed checks, time and packets, with every mode, list, limit and kind of persistence. What
`conn show` reads from the maps (loads, persistence, the connection's entry) is read from the model's tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.columns import address_bytes, address_text
from bpf.dataplane import FlowEntry, FlowTuple
from ctl.api.commands.conn import Names, connection_view, is_answered, opposite
from ctl.config.model import Config, Farm, format_endpoint
from ctl.dataplane import planner
from ctl.dataplane.affinity import Remembered
from ctl.dataplane.slow_start import SlowStart
from ctl.explanation.explain import Loads, NextHop, destination, explain, with_next_hop
from tests.model import frames
from tests.model.affinity import client
from tests.model.bits import DSR, FORWARD, IPIP, TOA
from tests.model.copies import Copies
from tests.model.datapath import handle
from tests.model.generate import PORTS, SECOND, Generator
from tests.model.limits import load
from tests.model.packet import ACK, SYN
from tests.model.state import Flow, Key, State
from tests.model.steps import Configure
from tests.model.wiring import routes_of

IN0, OUT0 = 1, 2
SEED = 0x5EED
ALL = ("dsr", "ipip", "lists", "rate", "half_open", "loads", "persistence", "quic", "toa")
FORWARDED = ("forward_tx", "forward_redirect")
NOT_JUDGED = {"drop_rate": "drop_rate above", "drop_half_open": "drop_half_open if"}
"""Verdicts that depend on what conn show does not read; it names them."""


@dataclass(slots=True)
class Node:
    """The model of a node and what its daemon knows."""

    rng: random.Random
    generator: Generator
    state: State
    slow_start: SlowStart = field(default_factory=SlowStart)
    planned: planner.PlannerState = field(default_factory=planner.PlannerState)
    step: Configure = field(default_factory=lambda: Configure(Config()))

    def plan(self) -> None:
        """Bring the configuration into the model's maps by the real planner."""
        shares, complete = self.slow_start.follow(self.step.config, self.step.down, self.state.now_ns / 1e9), False
        while not complete:
            plan = planner.plan(self.planned, self.step.config, self.step.down, shares)
            for operation in plan.operations:
                self.state.apply(operation)
            self.planned, complete = plan.state, plan.complete

    def explained(self, key: Key) -> dict[str, Any]:
        """What conn show answers, as the daemon asks."""
        state, arriving = self.state, tuple_of(key)
        loads = Loads(*({n: load(each, n) for n in each} for each in (state.farm_loads, state.backend_loads)))
        config, down, entry = self.step.config, self.step.down, self.entry(key)
        found = connection_view(entry, Names(config), state.tick) if entry else None
        answered = entry is not None and is_answered(entry, self.entry(key_of(opposite(entry.leaves))), state.tick)
        shares, remembered = self.slow_start.shares, self.remembered(key)
        answer = explain(arriving, found, config, down, SEED, remembered, shares, loads=loads, answered=answered)
        address = destination(answer)
        if not address:
            return answer
        hop = state.routes.lookup(address_bytes(address))
        return with_next_hop(answer, address, NextHop("eth0", address, hop.mac is not None) if hop else None)

    def entry(self, key: Key) -> FlowEntry | None:
        """As the plane decodes it."""
        flow, embryonic = self.flow(key)
        if flow is None:
            return None
        mode = "dsr" if flow.flags & DSR else "ipip" if flow.flags & IPIP else ""
        ends = address_text(flow.source), address_text(flow.destination)
        leaves = FlowTuple(*ends, flow.source_port, flow.destination_port, key.protocol)
        numbers = (bool(flow.flags & FORWARD), flow.farm, flow.backend, flow.state, flow.last_seen)
        return FlowEntry(tuple_of(key), leaves, *numbers, embryonic, mode)

    def flow(self, key: Key) -> tuple[Flow | None, bool]:
        """Its entry, and whether it is embryonic."""
        flow = self.state.flows[len(key.source)].entries.get(key)
        return (flow, False) if flow else (self.state.embryonic[len(key.source)].entries.get(key), True)

    def remembered(self, key: Key) -> Callable[[Farm], Remembered | None]:
        def of(farm: Farm) -> Remembered | None:
            entry = self.state.persistent.get(client(key, self.state.affinity[farm.id]))
            age = (self.state.tick - entry.last_used) & 0xFFFFFFFF if entry else 0
            return Remembered(entry.home, entry.backend, age) if entry else None

        return of


def key_of(arriving: FlowTuple) -> Key:
    return Key(address_bytes(arriving.source), address_bytes(arriving.destination), *astuple(arriving)[2:])


def tuple_of(key: Key) -> FlowTuple:
    return FlowTuple(address_text(key.source), address_text(key.destination), *key[2:])


def node_of(seed: int, features: tuple[str, ...]) -> Node:
    rng = random.Random(seed)
    sources = {4: address_bytes("10.2.0.1"), 16: address_bytes("fd02::1")}
    state = State(routes_of(IN0, OUT0), Copies(), now_ns=1 << 50, seed=SEED, tunnel_sources=sources)
    return Node(rng, Generator(rng, state, features), state)


@pytest.mark.parametrize("features", [("dsr", "ipip"), ALL], ids=["modes", "everything"])
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_conn_show_predicts_verdict_backend_and_source(features: tuple[str, ...], seed: int) -> None:
    node = node_of(seed, features)
    for number in range(24):
        if number % 8 == 0:
            node.step = node.generator.configure()
        if node.rng.random() < 0.2:
            node.state.now_ns += node.rng.choice((SECOND // 10, SECOND, 30 * SECOND))
        node.plan()
        key = next_key(node)
        answer, (known, _) = node.explained(key), node.flow(key)
        outcome = handle(node.state, frame_of(key, ACK if known else SYN), IN0)
        check(node, key, answer, outcome.verdict)


def next_key(node: Node) -> Key:
    """Of a new connection, or of one that is there."""
    key = node.generator.some_key() if node.rng.random() < 0.2 else None
    if key:
        return key
    family, address, port, protocol = node.generator.listener()
    return Key(node.generator.client(family), address, node.rng.choice(PORTS), port, protocol)


def frame_of(key: Key, flags: int) -> bytes:
    """Its payload has no QUIC connection id."""
    data = frames.transport(key.source, key.destination, key.protocol, key[2:4], flags, b"")
    return frames.ethernet(bytes(6), bytes(6), frames.ip(key.source, key.destination, key.protocol, data))


def check(node: Node, key: Key, answer: dict[str, Any], verdict: str) -> None:
    """The answer about a packet with this key, and what happened to it."""
    flow, _ = node.flow(key)
    steps = answer["steps"]
    if verdict in NOT_JUDGED:
        assert any(step.startswith(NOT_JUDGED[verdict]) for step in steps), steps
        return
    if answer["verdict"] == "either":
        assert flow is not None or verdict in ("drop_snat_exhausted", "drop_reverse_conflict")
        return
    assert ("forward" if verdict in FORWARDED else verdict) == answer["verdict"], steps
    if flow is None or verdict not in (*FORWARDED, "pass_unresolved") or not flow.flags & FORWARD:
        return
    assert answer["backend"] == format_endpoint(address_text(flow.destination), flow.destination_port), steps
    if not answer["exists"]:
        assert bool(flow.flags & TOA) == any(step.startswith("toa:") for step in steps)
    if answer["mode"] in ("snat", "dnat"):
        source = format_endpoint(address_text(flow.source), flow.source_port)
        assert answer["rewrite"].endswith(f" becomes {source} -> {answer['backend']}") or flow.source_port != key.source_port
