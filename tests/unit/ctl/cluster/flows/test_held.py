"""What the program cannot read is held back from its maps, bounded, and written once the program is compiled for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bpf.constants import FlowFlag
from bpf.dataplane import Array
from ctl.cluster.flows.held import HELD_CONNECTIONS, HeldFlows
from ctl.cluster.flows.replica import ReplicaMaps
from ctl.cluster.flows.source import make_codec
from ctl.dataplane.features import OF_FLAGS, WORDS, unreadable_flags
from sync.flows.codec import PRESENT, REMOVED
from tests.fakes.flows import connections
from tests.fakes.plane import FakePlane

FAMILIES = ("v4", "v6")


def one_way(family: str, *numbers: int, flags: FlowFlag = FlowFlag.DSR, last_seen: int = 900_000) -> tuple[Array, Array]:
    keys, forward, _, _ = connections(family, list(numbers), last_seen)
    forward["flags"] |= np.uint8(flags)
    return keys, forward


class Backup:
    """Writes what a peer sends; its program has `features`."""

    def __init__(self) -> None:
        self.plane, self.features = FakePlane(max_flows=1000), frozenset[str]()
        self.codec = make_codec(self.plane)
        self.maps = ReplicaMaps(self.plane, self.codec, lambda: unreadable_flags(self.features))

    def receive(self, family: str, keys: Array, flows: Array, removed: bool = False) -> None:
        payload = self.codec.encode(family, keys, flows, REMOVED if removed else PRESENT)
        self.maps.apply(family, len(keys), payload, 0)

    def table(self, family: str) -> dict[bytes, bytes]:
        return self.plane.flow_maps["flows", family]


def joined(one: Array, other: Array) -> Array:
    """As bytes: numpy would turn joined ports into the host's byte order."""
    return np.frombuffer(one.tobytes() + other.tobytes(), one.dtype)


def test_which_flags_a_program_may_see() -> None:
    everything = unreadable_flags(set(WORDS))
    assert everything == 0xFF & ~int(FlowFlag(0x3F)), "a later version's flags are never read"
    for feature, flags in OF_FLAGS.items():
        assert unreadable_flags({feature}) & flags == 0 and unreadable_flags(set(WORDS) - {feature}) & flags == flags
    assert not unreadable_flags(set()) & (FlowFlag.FORWARD | FlowFlag.DERIVED | FlowFlag.TOA)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", [FlowFlag.DSR, FlowFlag.IPIP, FlowFlag.IPIP | FlowFlag.OTHER_FAMILY])
def test_a_mode_waits_for_its_program_and_others_do_not(family: str, flags: FlowFlag) -> None:
    backup = Backup()
    nat_keys, nat, reply_keys, _ = connections(family, [1, 2])
    keys, flows = one_way(family, 3, 4, 5, flags=flags)
    backup.receive(family, joined(nat_keys, keys), joined(nat, flows))
    assert backup.table(family).keys() == {each.tobytes() for each in (*nat_keys, *reply_keys)}
    assert backup.maps.held.count == 3
    backup.receive(family, keys[:1], flows[:1], removed=True)
    assert backup.maps.release() == [] and len(backup.table(family)) == 4, "nothing that the program cannot read"
    backup.features = frozenset({"dsr"} if flags is FlowFlag.DSR else {"ipip"})
    ((of, released, _),) = backup.maps.release()
    assert (of, sorted(each.tobytes() for each in released)) == (family, sorted(each.tobytes() for each in keys[1:]))
    assert {each.tobytes() for each in keys[1:]} <= backup.table(family).keys() and len(backup.table(family)) == 6
    assert backup.maps.held.count == 0 and backup.maps.release() == []


def test_the_last_entry_counts_and_no_other_of_the_connection_stays_in_the_maps() -> None:
    """Its tuple may have been one of another mode before: the program would go by what the maps still have."""
    backup = Backup()
    before = connections("v4", [7])
    backup.receive("v4", before[0], before[1])
    assert len(backup.table("v4")) == 2
    backup.receive("v4", *one_way("v4", 7, last_seen=5))
    assert not backup.table("v4")
    backup.receive("v4", *one_way("v4", 7, last_seen=6))
    backup.features = frozenset({"dsr"})
    backup.maps.release()
    ((_, values),) = backup.plane.flow_batches("flows", "v4", 10)
    assert len(values) == 1 and values[0]["last_seen"] == 6


def test_what_clients_have_changed_since_is_kept() -> None:
    backup = Backup()
    keys, flows = one_way("v4", 7, 8)
    backup.receive("v4", keys, flows)
    backup.features = frozenset({"dsr"})
    newer = flows[:1].copy()
    newer["backend"] = 9
    backup.plane.update_flows("v4", keys[:1], newer)
    backup.maps.release()
    assert np.frombuffer(backup.table("v4")[keys[0].tobytes()], flows.dtype)[0]["backend"] == 9
    assert len(backup.table("v4")) == 2


def test_a_snapshot_ends_what_it_does_not_name() -> None:
    backup = Backup()
    backup.receive("v4", *one_way("v4", 1, 2))
    backup.maps.begin_mark()
    backup.receive("v4", *one_way("v4", 2, 3))
    for _ in backup.maps.sweep():
        pass
    backup.features = frozenset({"dsr"})
    ((_, keys, _),) = backup.maps.release()
    assert {each.tobytes() for each in keys} == {each.tobytes() for each in one_way("v4", 2, 3)[0]}


def batches(numbers: range, size: int = 64) -> Iterator[tuple[Array, Array]]:
    for at in range(numbers.start, numbers.stop, size):
        yield one_way("v4", *numbers[at - numbers.start : at - numbers.start + size])


def test_it_is_bounded_and_knows_what_is_missing() -> None:
    held = HeldFlows(limit=256)
    for keys, values in batches(range(1, 400)):
        held.put("v4", keys, values)
        held.put("v4", keys, values)
        assert held.count <= 256 + 32
    assert held.lost > 0 and held.count <= 256
    for keys, values in batches(range(1, 400)):
        held.remove("v4", keys, values)
        assert held.count <= 256 + 32
    assert HELD_CONNECTIONS * (16 + 48) < 20_000_000


def test_the_same_connections_again_and_again_lose_nothing() -> None:
    held = HeldFlows(limit=256)
    for _ in range(50):
        for keys, values in batches(range(1, 129)):
            held.put("v4", keys, values)
    assert held.lost == 0
    ((_, keys, _),) = held.take(0)
    assert len(keys) == 128 and held.count == 0
