"""Two replication engines on fake planes over a link that loses, duplicates and reorders: the flow maps converge."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.constants import TICK_SHIFT, EventType, FlowFlag, FlowState
from bpf.dataplane import Array
from ctl.cluster.flows.engine import Outlets, ReplicationEngine
from ctl.cluster.flows.source import FAMILIES, make_codec
from sync.flows import message_codec
from sync.flows.stream import Acknowledgement, Block, Kind
from tests.fakes.flows import connections, fill, put, report_established
from tests.fakes.plane import FakePlane, flow_dtype

MS = 1_000_000
PATIENCE_MS = 20_000
CLOCK_LEAD_NS = 5_000 << TICK_SHIFT  # node B's clock is ahead by this
LOCAL = ("destination_mac", "source_mac", "interface", "next_hop_generation", "mtu")


class Side:
    """One node: plane, engine, and the engine's messages."""

    def __init__(self, boot: int, lead_ns: int, offset_ns: int | None) -> None:
        self.boot, self.lead_ns = boot, lead_ns
        self.plane = FakePlane(max_flows=20_000)
        self.sent: deque[bytes] = deque()
        self.step_changes: list[tuple[bool, str]] = []
        self.flushed: list[int] = []
        self.failures: list[str] = []
        outlets = Outlets(
            self.sent.append, lambda *what: self.step_changes.append(what), self.flushed.append, self.failures.append
        )
        self.engine = ReplicationEngine(self.plane, boot, lambda: offset_ns, outlets)

    def establish(self, family: str, *numbers: int, report: bool = True) -> None:
        (report_established if report else fill)(self.plane, family, numbers)

    def put(self, family: str, event: EventType | None, rows: tuple[Array, Array, Array, Array]) -> None:
        put(self.plane, family, event, rows)

    def remove(self, family: str, *numbers: int) -> None:
        keys, _, reply_keys, _ = connections(family, list(numbers))
        for each in (keys, reply_keys):
            self.plane.delete_flows("flows", family, each)

    def table(self, family: str) -> dict[bytes, Any]:
        return {
            key: np.frombuffer(value, flow_dtype(family))[0] for key, value in self.plane.flow_maps["flows", family].items()
        }


class World:
    """A is active, B is backup. `lose`: share of messages lost; as many are duplicated and delayed past the next one."""

    def __init__(self, seed: int = 0, lose: float = 0.0, offset_known: bool = True) -> None:
        self.a = Side(11, 0, -CLOCK_LEAD_NS if offset_known else None)
        self.b = Side(22, CLOCK_LEAD_NS, CLOCK_LEAD_NS if offset_known else None)
        self.now_ns = 1_000_000 * MS
        self.random, self.lose = random.Random(seed), lose
        self.cut, self.steps = False, 100

    def meet(self) -> None:
        self.b.engine.peer_present(True, self.a.boot, self.clock(self.b))
        self.a.engine.peer_present(True, self.b.boot, self.clock(self.a))

    def part(self) -> None:
        for side in (self.a, self.b):
            side.engine.peer_present(False, 0, self.clock(side))
            side.sent.clear()

    def clock(self, side: Side) -> int:
        return self.now_ns + side.lead_ns

    def carry(self, source: Side, target: Side) -> None:
        for _ in range(len(source.sent)):
            message = source.sent.popleft()
            luck = self.random.random()
            if self.cut or luck < self.lose:
                continue
            if luck < 2 * self.lose:
                source.sent.append(message)
            if luck < 3 * self.lose and source.sent:
                source.sent.insert(1, message)
                continue
            target.engine.message(message, self.clock(target))

    def round(self) -> None:
        self.now_ns += MS
        for side in (self.a, self.b):
            for _ in range(self.steps):
                if side.engine.step(self.clock(side)):
                    break
        self.carry(self.a, self.b)
        self.carry(self.b, self.a)

    def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(PATIENCE_MS):
            if condition():
                return
            self.round()
        pytest.fail(f"no {what} within {PATIENCE_MS} ms of simulated time")

    def settle(self) -> None:
        """Run until B has applied every flow that A has now."""
        self.until(lambda: self.a.engine.sender.in_step and self.b.engine.receiver.in_step, "step")
        number = len(self.a.flushed) + 1
        self.a.engine.flush(number, self.clock(self.a))
        self.until(lambda: number in self.a.flushed, "flush")
        self.until(lambda: self.b.engine.idle, "end of the sweep")

    def check_equal(self) -> None:
        """B has every entry of A, translated for B, and no other entry."""
        for family in FAMILIES:
            ours, theirs = self.a.table(family), self.b.table(family)
            assert ours.keys() == theirs.keys()
            for key, entry in ours.items():
                replica = theirs[key]
                for name in ("source", "destination", "source_port", "destination_port", "farm", "backend", "flags"):
                    assert replica[name] == entry[name], name
                assert replica["state"] == entry["state"] | FlowState.REPLICATED
                assert replica["next_hop_generation"] == 0 and not replica["destination_mac"].any()


def connected(seed: int = 0, lose: float = 0.0, offset_known: bool = True) -> World:
    world = World(seed, lose, offset_known)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    return world


def test_a_joining_peer_gets_every_flow_and_loses_its_own() -> None:
    world = World()
    for family in FAMILIES:
        world.a.establish(family, *range(5000), report=False)
        world.b.establish(family, 3, 6001, 6002, report=False)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    world.settle()
    world.check_equal()
    assert world.b.engine.maps.counts.swept_entries == 2 * 2 * 2
    assert [in_step for in_step, _ in world.a.step_changes] == [True] and [in_step for in_step, _ in world.b.step_changes] == [
        True
    ]


def test_events_older_than_the_stream_are_ignored() -> None:
    world = World()
    world.a.establish("v4", 1, 2)
    world.a.remove("v4", 1)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    world.settle()
    world.check_equal()


def test_deltas_follow_the_snapshot() -> None:
    world = connected()
    world.settle()
    for family in FAMILIES:
        world.a.establish(family, 1, 2, 3)
        ended = connections(family, [2], state=int(FlowState.SEEN | FlowState.RST))
        world.a.put(family, EventType.CLOSED, ended)
    world.settle()
    world.check_equal()
    assert world.a.engine.sender.resyncs == 0


def test_a_closed_connection_is_closed_in_both_directions() -> None:
    world = connected()
    rows = connections("v4", [1], state=int(FlowState.SEEN | FlowState.FIN_HERE))
    rows[3]["state"] = FlowState.SEEN | FlowState.FIN_THERE
    world.a.put("v4", EventType.CLOSED, rows)
    world.settle()
    world.check_equal()


def test_deltas_override_the_snapshot_they_overlap() -> None:
    world = World()
    world.a.establish("v4", *range(5000), report=False)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    for number in range(40):
        world.a.put("v4", EventType.REFRESH, connections("v4", [number * 100], last_seen=900_100 + number))
        world.a.establish("v4", 10_000 + number)
        world.round()
    world.settle()
    world.check_equal()
    shift = CLOCK_LEAD_NS >> TICK_SHIFT
    ours, theirs = world.a.table("v4"), world.b.table("v4")
    forward = {key: entry for key, entry in ours.items() if entry["flags"] & FlowFlag.FORWARD}
    assert all(theirs[key]["last_seen"] == entry["last_seen"] + shift for key, entry in forward.items())


@pytest.mark.parametrize("known", [True, False])
def test_last_seen_is_translated_to_the_backups_clock(known: bool) -> None:
    """Without a measured offset the block counts as read at its arrival: here the link takes 1 ms at most."""
    world = connected(offset_known=known)
    world.a.establish("v6", 1)
    world.settle()
    for entry in world.b.table("v6").values():
        assert abs(int(entry["last_seen"]) - 900_000 - (CLOCK_LEAD_NS >> TICK_SHIFT)) <= 1


def test_an_explicit_removal_reaches_the_peer_and_a_reopened_flow_wins() -> None:
    world = connected()
    world.a.establish("v4", 1, 2, 3)
    world.settle()
    keys, *_ = connections("v4", [1, 2])
    world.a.remove("v4", 1, 2)
    world.a.establish("v4", 2)
    world.a.engine.removed("v4", keys, world.clock(world.a))
    world.settle()
    world.check_equal()
    assert len(world.b.table("v4")) == 4


def test_a_full_event_ring_starts_a_new_snapshot() -> None:
    world = connected()
    world.settle()
    world.a.establish("v4", *range(3000))  # three times the ring's capacity
    assert world.a.plane.rings["v4"].lost
    world.until(lambda: world.a.engine.sender.resyncs, "resync")
    world.settle()
    world.check_equal()
    assert world.a.engine.counts.lost_events == 3000 - 1024


def test_a_returning_peer_is_synchronised_again() -> None:
    world = connected()
    world.a.establish("v4", *range(100))
    world.settle()
    world.part()
    world.a.establish("v4", *range(100, 200))
    world.a.remove("v4", *range(50))
    world.round()
    world.meet()
    world.until(lambda: not world.b.engine.receiver.in_step, "new snapshot")
    world.settle()
    world.check_equal()


def test_replication_continues_after_only_one_node_gave_its_peer_up() -> None:
    world = connected()
    world.settle()
    world.b.engine.peer_present(False, 0, world.clock(world.b))
    world.a.establish("v4", 1)
    world.round()
    world.b.engine.peer_present(True, world.a.boot, world.clock(world.b))
    world.settle()
    world.check_equal()
    assert world.a.engine.sender.session == 1


def test_a_new_incarnation_of_the_peer_gets_a_new_snapshot_even_without_a_timeout() -> None:
    world = connected()
    world.a.establish("v4", 1)
    world.settle()
    world.b = Side(33, CLOCK_LEAD_NS, CLOCK_LEAD_NS)
    world.meet()
    world.settle()
    world.check_equal()
    assert world.a.engine.sender.session == 2


def test_lost_messages_are_sent_again_without_a_reconnect() -> None:
    world = connected()
    world.settle()
    world.cut = True
    world.a.establish("v4", *range(100))
    for _ in range(50):
        world.round()
    world.cut = False
    world.settle()
    world.check_equal()
    assert world.a.engine.sender.resyncs == 0


def test_flush_waits_until_the_peers_map_is_updated() -> None:
    world = connected()
    world.settle()
    world.a.establish("v4", 1)
    world.cut = True
    world.a.engine.flush(7, world.clock(world.a))
    for _ in range(20):
        world.round()
    assert 7 not in world.a.flushed
    world.cut = False
    world.until(lambda: 7 in world.a.flushed, "flush")
    world.check_equal()


def test_a_takeover_waits_for_received_flows_and_not_for_the_sweep() -> None:
    world = World()
    world.b.establish("v4", *range(10_000, 15_000), report=False)
    world.a.establish("v4", 1, 2, report=False)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    world.steps = 1
    world.until(lambda: world.b.engine.maps.counts.swept_entries, "sweep")
    world.a.establish("v4", 3)
    world.a.engine.step(world.clock(world.a) + 10 * MS)
    world.carry(world.a, world.b)
    done: list[int] = []
    world.b.engine.after_pending(lambda: done.append(len(world.b.table("v4"))))
    while not done:
        assert world.b.engine.step(world.clock(world.b)) == 0
    assert done[0] >= 6, "three connections of the peer, and what was not swept yet"
    assert {key for key, entry in world.a.table("v4").items()} <= world.b.table("v4").keys()
    assert done[0] > 6, "the sweep was given up, not finished"


def test_what_is_queued_at_a_takeover_only_adds() -> None:
    """The lease is open, clients change flows, and older records of them still wait for the map."""
    world = connected()
    world.a.establish("v4", 1)
    world.settle()
    world.a.put("v4", EventType.CLOSED, connections("v4", [1], state=int(FlowState.RST)))
    world.a.engine.step(world.clock(world.a) + 10 * MS)
    b = world.b
    world.carry(world.a, b)  # received, and not applied
    b.engine.serve(2, world.clock(b))
    for _ in range(10):
        b.engine.step(world.clock(b))
    assert {int(entry["state"]) for entry in b.table("v4").values()} == {int(FlowState.SEEN | FlowState.REPLICATED)}


def test_late_deltas_for_an_active_node_are_added_and_forwarded() -> None:
    world = connected()
    world.a.establish("v4", 1)
    world.settle()
    world.a.put("v4", EventType.CLOSED, connections("v4", [1], state=int(FlowState.RST)))
    world.a.establish("v4", 2)
    world.a.engine.step(world.clock(world.a) + 10 * MS)
    b = world.b
    b.engine.serve(2, world.clock(b))
    world.carry(world.a, b)
    for _ in range(10):
        b.engine.step(world.clock(b))
    states = {int(entry["state"]) for entry in b.table("v4").values()}
    assert len(b.table("v4")) == 4 and states == {int(FlowState.SEEN | FlowState.REPLICATED)}
    live = [
        message for message in map(message_codec.decode, b.sent) if isinstance(message, Block) and message.kind is Kind.DELTA
    ]
    # The peer was present, so B's own stream runs: the added connection is queued until the peer acknowledges BEGIN.
    assert b.engine.counts.sent_records == 1 and not live


def test_a_full_map_is_counted_and_holds_both_directions_or_none() -> None:
    world = World()
    world.b.plane.max_flows = 50
    world.a.establish("v4", *range(100), report=False)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    world.settle()
    table = world.b.table("v4")
    forward = sum(bool(entry["flags"] & FlowFlag.FORWARD) for entry in table.values())
    assert forward * 2 == len(table) and world.b.engine.maps.counts.unwritten_records == 100 - forward


def test_another_layout_is_refused_with_the_remedy() -> None:
    world = connected()
    world.b.engine.receiver.layout ^= 1
    world.until(lambda: world.a.step_changes, "refusal")
    assert "install the same version on both nodes" in world.a.step_changes[0][1] and not world.a.engine.sender.running


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), lose=st.sampled_from([0.0, 0.02, 0.1]))
def test_the_maps_converge_after_any_faults(seed: int, lose: float) -> None:
    world = World(seed, lose)
    luck = random.Random(seed)
    world.a.establish("v4", *range(0, 300, 2), report=False)
    world.b.establish("v4", *range(200, 400), report=False)
    world.a.engine.serve(1, world.clock(world.a))
    world.meet()
    for _ in range(60):
        family, number = luck.choice(FAMILIES), luck.randrange(400)
        match luck.randrange(8):
            case 0 | 1 | 2:
                world.a.establish(family, *range(number, number + luck.randrange(1, 30)))
            case 3:
                world.a.put(family, EventType.CLOSED, connections(family, [number], state=int(FlowState.RST)))
            case 4 | 5:
                keys, *_ = connections(family, [number])
                world.a.remove(family, number)
                world.a.engine.removed(family, keys, world.clock(world.a))
            case 6:
                if luck.random() < 0.2:
                    world.part()
                    world.round()
                    world.meet()
            case 7:
                if luck.random() < 0.1:
                    world.a.establish(family, *range(1100))  # exceeds the ring's capacity
        for _ in range(luck.randrange(4)):
            world.round()
    world.lose = 0.0
    world.settle()
    world.check_equal()


LISTENER = Side(1, 0, 0)


def is_dropped(raw: bytes) -> bool:
    before = LISTENER.engine.counts.bad_messages
    LISTENER.engine.message(raw, 1)
    return LISTENER.engine.counts.bad_messages == before + 1 and not LISTENER.sent and LISTENER.engine.idle


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_invalid_messages_change_nothing(raw: bytes) -> None:
    assert is_dropped(raw)


_numbers = st.integers(0, 2**63 - 1)
_blocks = st.builds(
    Block,
    *[_numbers] * 4,
    st.sampled_from(Kind),
    _numbers,
    _numbers,
    st.sampled_from([4, 6]),
    st.integers(1, 4096),
    st.binary(),
)
_acknowledgements = st.builds(Acknowledgement, *[_numbers] * 4, *[st.booleans()] * 3, st.text(max_size=200))


@settings(deadline=None)
@given(_blocks | _acknowledgements)
def test_messages_survive_encoding(message: Block | Acknowledgement) -> None:
    assert message_codec.decode(message_codec.encode(message)) == message


@settings(deadline=None)
@given(st.integers(0), st.integers(0, 7))
def test_a_block_with_a_changed_bit_changes_nothing(where: int, bit: int) -> None:
    layout = make_codec(LISTENER.plane).layout
    raw = bytearray(message_codec.encode(Block(1, 1, 1, 1, Kind.DELTA, layout, 0, 4, 1, bytes(40))))
    raw[where % len(raw)] ^= 1 << bit
    assert is_dropped(bytes(raw))


def test_a_block_whose_payload_is_too_short_is_dropped() -> None:
    layout = make_codec(LISTENER.plane).layout
    assert is_dropped(message_codec.encode(Block(1, 1, 1, 1, Kind.DELTA, layout, 0, 4, 2, b"short")))


def test_flows_that_were_too_many_to_hold_back_are_sent_again() -> None:
    world = connected()
    world.settle()
    engine = world.b.engine
    engine.maps._unreadable = lambda: int(FlowFlag.DSR)
    engine.maps.held._limit = 8
    for at in range(1, 41, 5):
        rows = connections("v4", list(range(at, at + 5)))
        rows[1]["flags"] |= np.uint8(FlowFlag.DSR)
        world.a.put("v4", EventType.ESTABLISHED, rows)
        world.settle()
    assert engine.maps.held.lost and not world.b.table("v4")
    snapshots = world.a.engine.sender.resyncs
    engine.maps._unreadable = lambda: 0
    engine.release(world.clock(world.b))
    world.until(lambda: len(world.b.table("v4")) == 40, "every flow")
    world.settle()
    assert engine.receiver.in_step and world.a.engine.sender.resyncs == snapshots + 1
