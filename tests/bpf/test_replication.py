"""The maps of two nodes, connected by two engines: the backup forwards a replicated connection as the active did."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from bpf.constants import RECENT_TICKS, FlowState, Mode, Protocol
from bpf.dataplane import Array
from ctl.cluster.flows.engine import Outlets, ReplicationEngine
from ctl.config.model import Config
from ctl.dataplane import expiry
from tests.bpf.bed import FAMILIES, Bed, Family, Outcome, why_not
from tests.bpf.packets import NAT_MODES, from_backend, from_client
from tests.wait import wait_until

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
MODES = pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())
PORTS = (40000, 40001, 123)  # the last one is changed by SNAT


@pytest.fixture(scope="session")
def _backup_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed({"replication": True}) as bed:
        yield bed


class Joined:
    """Active and backup with their engines; messages pass at once."""

    def __init__(self, active: Bed, backup: Bed) -> None:
        self.active, self.backup = active, backup
        self.flushed: list[int] = []
        self.failures: list[str] = []
        self._messages: tuple[deque[bytes], deque[bytes]] = deque(), deque()
        self.engines = tuple(
            ReplicationEngine(bed.plane, number, lambda: 0, self._outlets(messages))
            for number, bed, messages in zip((1, 2), (active, backup), self._messages, strict=True)
        )

    def _outlets(self, messages: deque[bytes]) -> Outlets:
        return Outlets(messages.append, lambda *_: None, self.flushed.append, self.failures.append)

    def meet(self) -> None:
        self.engines[1].peer_present(True, 1, time.monotonic_ns())
        self.engines[0].serve(1, time.monotonic_ns())
        self.engines[0].peer_present(True, 2, time.monotonic_ns())

    def until(self, condition: Callable[[], object], what: str) -> None:
        def advanced() -> object:
            if value := condition():
                return value
            for engine in self.engines:
                engine.step(time.monotonic_ns())
            for target, messages in zip(self.engines[::-1], self._messages, strict=True):
                while messages:
                    target.message(messages.popleft(), time.monotonic_ns())
            return condition()

        wait_until(advanced, what, every_s=0)
        assert not self.failures

    def settle(self) -> None:
        self.until(lambda: self.engines[0].sender.in_step and self.engines[1].receiver.in_step, "step")
        number = len(self.flushed) + 1
        self.engines[0].flush(number, time.monotonic_ns())
        self.until(lambda: number in self.flushed and self.engines[1].idle, "flush")

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@pytest.fixture
def joined(paired_bed: Bed, _backup_bed: Bed) -> Iterator[Joined]:
    _backup_bed.reset()
    joined = Joined(paired_bed, _backup_bed)
    yield joined
    joined.close()


def serve(bed: Bed, family: Family, mode: Mode, protocol: Protocol, number: int = 11) -> None:
    snat = family.snat if mode is Mode.SNAT else ""
    bed.farm(family.vip, (family.far(number), 8080), mode=mode, protocol=protocol, snat=snat)


def exchange(bed: Bed, family: Family, mode: Mode, protocol: Protocol, port: int) -> bytes:
    """Open a connection; returns the answer's frame as the backend sends it."""
    first = bed.send(bytes(from_client(family, protocol, "S", source_port=port)))
    assert first.verdict == "forward_redirect"
    answer = reply_frame(bed, family, mode, protocol, port)
    assert bed.send(answer, "out0").verdict == "forward_redirect"
    assert bed.send(bytes(from_client(family, protocol, "A", source_port=port))).verdict == "forward_redirect"
    return answer


def reply_frame(bed: Bed, family: Family, mode: Mode, protocol: Protocol, port: int) -> bytes:
    (seen,) = (
        entry.leaves
        for flow_map in ("embryonic", "flows")
        for entry in bed.flows(flow_map, family).values()
        if entry.forward and entry.arrives.source_port == port
    )
    assert seen.source == (family.snat if mode is Mode.SNAT else family.client)
    return bytes(from_backend(family, family.far(11), seen.source, seen.source_port, protocol, "SA"))


def rows(bed: Bed, family: Family) -> dict[bytes, Array]:
    return {
        key.tobytes(): value.copy()
        for keys, values in bed.plane.flow_batches("flows", family.name, 4096)
        for key, value in zip(keys, values, strict=True)
    }


@PROTOCOLS
@MODES
def test_the_backup_forwards_both_directions_as_the_active_did(
    joined: Joined, family: Family, protocol: Protocol, mode: Mode
) -> None:
    """Half of the connections come by the snapshot, half by the ring; the backup's farm would choose another backend."""
    active, backup = joined.active, joined.backup
    serve(active, family, mode, protocol)
    serve(backup, family, mode, protocol, number=12)
    answers = {PORTS[0]: exchange(active, family, mode, protocol, PORTS[0])}
    joined.meet()
    joined.settle()
    answers |= {port: exchange(active, family, mode, protocol, port) for port in PORTS[1:]}
    joined.settle()
    assert len(rows(backup, family)) == 2 * len(PORTS)
    joined.engines[1].serve(2, time.monotonic_ns())
    for port, answer in answers.items():
        question = bytes(from_client(family, protocol, "PA", source_port=port))
        for frame, side in ((question, "in0"), (answer, "out0")):
            outcomes: list[Outcome] = [bed.send(frame, side) for bed in (active, backup)]
            assert outcomes[0].verdict == outcomes[1].verdict == "forward_redirect"
            assert outcomes[0].frame == outcomes[1].frame


@PROTOCOLS
@MODES
def test_replicated_entries_are_those_the_program_made(joined: Joined, family: Family, protocol: Protocol, mode: Mode) -> None:
    """All fields except those of the egress, in both directions, including the derived reply entry."""
    serve(joined.active, family, mode, protocol)
    for port in PORTS:
        exchange(joined.active, family, mode, protocol, port)
    joined.meet()
    joined.settle()
    ours, theirs = rows(joined.active, family), rows(joined.backup, family)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * len(PORTS)
    local = {"destination_mac", "source_mac", "interface", "next_hop_generation", "mtu", "last_seen", "state"}
    for key, entry in ours.items():
        for name in set(entry.dtype.names or ()) - local:
            assert entry[name] == theirs[key][name], name
        assert theirs[key]["state"] == entry["state"] | FlowState.REPLICATED
        assert abs(int(theirs[key]["last_seen"]) - int(entry["last_seen"])) <= 2
        assert theirs[key]["next_hop_generation"] == 0


def test_a_closed_connection_is_closed_on_the_backup_and_may_be_reopened(joined: Joined, family: Family) -> None:
    for bed in (joined.active, joined.backup):
        serve(bed, family, Mode.SNAT, Protocol.TCP)
    answer = exchange(joined.active, family, Mode.SNAT, Protocol.TCP, 40000)
    joined.meet()
    joined.settle()
    joined.active.send(bytes(from_client(family, Protocol.TCP, "R")))
    joined.settle()
    assert {int(row["state"]) & FlowState.RST for row in rows(joined.backup, family).values()} == {FlowState.RST}
    joined.engines[1].serve(2, time.monotonic_ns())
    backup = joined.backup
    assert backup.send(bytes(from_client(family, Protocol.TCP, "S"))).verdict == "forward_redirect"
    assert backup.send(answer, "out0").verdict == "forward_redirect"
    assert {int(row["state"]) & ~FlowState.REPLICATED for row in rows(backup, family).values()} == {FlowState.SEEN}


def test_both_maps_agree_after_a_reset_that_was_ignored(joined: Joined, family: Family) -> None:
    for bed in (joined.active, joined.backup):
        serve(bed, family, Mode.SNAT, Protocol.TCP)
    answer = exchange(joined.active, family, Mode.SNAT, Protocol.TCP, 40000)
    joined.meet()
    joined.settle()
    for flags in ("R", "A", "R"):
        joined.active.send(bytes(from_client(family, Protocol.TCP, flags)))
    joined.active.send(answer, "out0")
    joined.settle()
    both = [
        {int(row["state"]) & ~FlowState.REPLICATED for row in rows(bed, family).values()}
        for bed in (joined.active, joined.backup)
    ]
    assert both == [{FlowState.SEEN}, {FlowState.SEEN}]
    joined.active.send(bytes(from_client(family, Protocol.TCP, "R")))
    joined.settle()
    assert all(
        int(row["state"]) & FlowState.RST for bed in (joined.active, joined.backup) for row in rows(bed, family).values()
    )


def test_a_connection_that_was_replaced_leaves_the_backup_too(joined: Joined, family: Family) -> None:
    """Its backend is removed from the farm and the client reuses the tuple: nothing keeps the old reply entry's port."""
    for bed in (joined.active, joined.backup):
        serve(bed, family, Mode.SNAT, Protocol.TCP)
    exchange(joined.active, family, Mode.SNAT, Protocol.TCP, 40000)
    joined.meet()
    joined.settle()
    assert len(rows(joined.backup, family)) == 2
    joined.active.farm(family.vip, (family.far(12), 8080), first_backend=40)
    for flags in ("R", "S"):
        joined.active.send(bytes(from_client(family, Protocol.TCP, flags)))
    joined.settle()
    assert not rows(joined.active, family) and not rows(joined.backup, family)


def test_the_backup_keeps_what_the_active_keeps_and_no_longer_than_the_slack(joined: Joined, family: Family) -> None:
    """A busy connection is reported every 2**REFRESH_SHIFT ticks; until the next report the backup must not forget it."""
    serve(joined.active, family, Mode.SNAT, Protocol.UDP)
    exchange(joined.active, family, Mode.SNAT, Protocol.UDP, 40000)
    joined.meet()
    joined.settle()
    timeouts = expiry.timeout_ticks(Config())
    (keys, values), *_ = joined.backup.plane.flow_batches("flows", family.name, 64)
    found, pairs = joined.backup.plane.lookup_flows("flows", family.name, expiry.opposite_keys(keys, values))
    assert found.all() and len(keys) == 2
    limit = expiry.to_ticks(expiry.NO_FARM_S) + RECENT_TICKS + (1 << 9)
    seen = int(values["last_seen"].max())
    for late, gone in ((limit - 1, False), (limit, True)):
        assert expiry.expired(keys, values, found, pairs, seen + late, timeouts)[0].all() == gone
        assert expiry.expired(keys, values, found, pairs, seen + late, timeouts)[0].any() == gone


def test_a_snapshot_removes_what_the_active_does_not_have(joined: Joined) -> None:
    """The backup was active before: its entries have a next hop, and no delta names them."""
    for family in FAMILIES:
        for bed in (joined.active, joined.backup):
            serve(bed, family, Mode.SNAT, Protocol.TCP)
        exchange(joined.active, family, Mode.SNAT, Protocol.TCP, 40000)
        for port in (40000, 40001):
            exchange(joined.backup, family, Mode.SNAT, Protocol.TCP, port)
    joined.meet()
    joined.settle()
    for family in FAMILIES:
        assert rows(joined.backup, family).keys() == rows(joined.active, family).keys()
    assert joined.engines[1].maps.counts.swept_entries == 2 * len(FAMILIES)
