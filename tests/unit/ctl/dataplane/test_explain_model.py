"""`conn show` predicts what the data plane does: it is compared with the model (tests/model), as the program is.

Random configurations, backends that are down, and first packets of connections.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.columns import address_bytes, address_text
from bpf.dataplane import FlowTuple
from ctl.config.model import Config, format_endpoint
from ctl.dataplane import planner
from ctl.dataplane.explain import NextHop, destination, explain, with_next_hop
from tests.model import frames
from tests.model.datapath import handle
from tests.model.generate import PORTS, Generator
from tests.model.packet import SYN
from tests.model.state import Key, State
from tests.model.wiring import routes_of

IN0, OUT0 = 1, 2
SEED = 0x5EED
FEATURES = ("dsr", "ipip")
FORWARDED = ("forward_tx", "forward_redirect")


def planned(state: State, config: Config, down: frozenset[int]) -> None:
    """Bring the configuration into the model's maps by the real planner."""
    plan = planner.plan(planner.PlannerState(), config, down)
    for operation in plan.operations:
        state.apply(operation)


def with_route(answer: dict[str, Any], state: State) -> dict[str, Any]:
    """The answer with the next hop, as the daemon adds it."""
    address = destination(answer)
    if not address:
        return answer
    hop = state.routes.lookup(address_bytes(address))
    return with_next_hop(answer, address, NextHop("eth0", address, hop.mac is not None) if hop else None)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_conn_show_predicts_verdict_backend_and_source(seed: int) -> None:
    rng = random.Random(seed)
    state = State(routes_of(IN0, OUT0), seed=SEED, tunnel_sources={4: address_bytes("10.2.0.1"), 16: address_bytes("fd02::1")})
    generator = Generator(rng, state, FEATURES)
    step = generator.configure()
    planned(state, step.config, step.down)
    for _ in range(10):
        family, address, port, protocol = generator.listener()
        client = generator.client(family)
        key = Key(client, address, rng.choice(PORTS), port, protocol)
        if (entries := {**state.flows[len(client)].entries, **state.embryonic[len(client)].entries}) and key in entries:
            continue
        arriving = FlowTuple(address_text(client), address_text(address), *key[2:])
        answer = with_route(explain(arriving, None, step.config, step.down, SEED), state)
        frame = _frame(generator, key)
        outcome = handle(state, frame, IN0)
        check(answer, outcome.verdict, state, key)


def _frame(generator: Generator, key: Key) -> bytes:
    data = frames.transport(key.source, key.destination, key.protocol, key[2:4], SYN, b"")
    return frames.ethernet(bytes(6), bytes(6), frames.ip(key.source, key.destination, key.protocol, data))


def check(answer: dict[str, Any], verdict: str, state: State, key: Key) -> None:
    """The answer about the first packet with this key, and what happened to it."""
    flow = state.embryonic[len(key.source)].entries.get(key)
    if answer["verdict"] == "either":
        assert flow is not None or verdict in ("drop_snat_exhausted", "drop_reverse_conflict")
        return
    assert ("forward" if verdict in FORWARDED else verdict) == answer["verdict"], answer["steps"]
    if flow is None:
        return
    assert answer["backend"] == format_endpoint(address_text(flow.destination), flow.destination_port)
    if answer["mode"] in ("snat", "dnat"):
        source = format_endpoint(address_text(flow.source), flow.source_port)
        assert answer["rewrite"].endswith(f" becomes {source} -> {answer['backend']}") or flow.source_port != key.source_port
