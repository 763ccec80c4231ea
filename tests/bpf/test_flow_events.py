"""Flow events in the ring: established connections only, once per change, complete records."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import numpy as np
import pytest

from bpf import libbpf
from bpf.constants import REFRESH_SHIFT, RING_BYTES, EventType, FlowFlag, FlowState, Protocol
from tests.bpf.bed import Bed, Family
from tests.bpf.connections import establish
from tests.bpf.packets import from_backend, from_client
from tests.bpf.rings import kinds, ring

EVENT_BYTES = {"v4": 72, "v6": 120}


def move_reader(bed: Bed, family: Family, behind: int) -> None:
    """Put the position up to which the ring has been read so many bytes behind its end."""
    fd = libbpf.obj_get(bed.pins / f"events_{family.name}")
    with (
        mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as consumer,
        mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE) as producer,
    ):
        end = int.from_bytes(producer[:8], "little")
        consumer[:8] = ((end - behind) % 2**64).to_bytes(8, "little")
    os.close(fd)


def client(bed: Bed, family: Family, flags: str) -> None:
    assert bed.send(bytes(from_client(family, flags=flags))).verdict == "forward_redirect"


def backend(bed: Bed, family: Family, flags: str) -> None:
    packet = from_backend(family, family.far(11), family.vip, 40000, flags=flags)
    assert bed.send(bytes(packet), "out0").verdict == "forward_redirect"


def test_the_layout_is_whole(paired_bed: Bed, family: Family) -> None:
    with ring(paired_bed, family) as take:
        assert take().dtype.itemsize == EVENT_BYTES[family.name]


@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_established_is_reported_with_the_forward_entry(paired_bed: Bed, family: Family, protocol: Protocol) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    with ring(paired_bed, family) as take:
        paired_bed.send(bytes(from_client(family, protocol)))
        paired_bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000, protocol)), "out0")
        assert len(take()) == 0
        paired_bed.send(bytes(from_client(family, protocol, "A")))
        (record,) = take()
    assert record["type"] == EventType.ESTABLISHED
    assert record["flow"]["flags"] & FlowFlag.FORWARD
    (keys, values), *_ = paired_bed.plane.flow_batches("flows", family.name, 64)
    (at,) = np.flatnonzero(values["flags"] & FlowFlag.FORWARD)
    assert record["key"] == keys[at]
    for field in ("source", "destination", "source_port", "destination_port", "l3_delta", "l4_delta", "farm", "backend"):
        assert record["flow"][field] == values[at][field], field


def test_a_busy_connection_is_reported_again(paired_bed: Bed, family: Family) -> None:
    """Once in 2**REFRESH_SHIFT ticks, by the forward entry only."""
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    with ring(paired_bed, family) as take:
        client(paired_bed, family, "A")
        assert len(take()) == 0
        for keys, values in list(paired_bed.plane.flow_batches("flows", family.name, 64)):
            values["last_seen"] -= 1 << REFRESH_SHIFT
            paired_bed.plane.update_flows(family.name, keys, values)
        backend(paired_bed, family, "A")
        assert len(take()) == 0
        client(paired_bed, family, "A")
        client(paired_bed, family, "A")
        (record,) = take()
    assert record["type"] == EventType.REFRESH
    assert 0 <= paired_bed.plane.now_tick() - int(record["flow"]["last_seen"]) <= 3


def test_busy_connections_are_not_all_reported_at_once(paired_bed: Bed, family: Family) -> None:
    """After a quarter of the time between two reports, a quarter of the connections have been reported."""
    ports = range(40000, 40256, 8)
    paired_bed.farm(family.vip, (family.far(11), 8080))
    for port in ports:
        establish(paired_bed, family, port)
    with ring(paired_bed, family) as take:
        for keys, values in list(paired_bed.plane.flow_batches("flows", family.name, 1024)):
            values["last_seen"] -= 1 << (REFRESH_SHIFT - 2)
            paired_bed.plane.update_flows(family.name, keys, values)
        for port in ports:
            paired_bed.send(bytes(from_client(family, flags="A", source_port=port)))
        assert len(ports) // 8 <= len(take()) <= len(ports) // 2


@pytest.mark.parametrize("last", ["client", "backend"])
def test_closed_is_reported_once_by_either_last_fin(paired_bed: Bed, family: Family, last: str) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    ends = [backend, client] if last == "client" else [client, backend]
    with ring(paired_bed, family) as take:
        ends[0](paired_bed, family, "FA")
        assert len(take()) == 0
        ends[1](paired_bed, family, "FA")
        (record,) = take()
        for end in (*ends, *ends):
            end(paired_bed, family, "FA")
        assert len(take()) == 0
    assert record["type"] == EventType.CLOSED
    assert record["flow"]["flags"] & FlowFlag.FORWARD
    assert record["flow"]["state"] == FlowState.SEEN | FlowState.FIN_HERE | FlowState.FIN_THERE


@pytest.mark.parametrize("sender", [client, backend], ids=["client", "backend"])
def test_a_reset_closes(paired_bed: Bed, family: Family, sender: Callable[[Bed, Family, str], None]) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    with ring(paired_bed, family) as take:
        sender(paired_bed, family, "R")
        assert kinds(take()) == [EventType.CLOSED]
        sender(paired_bed, family, "R")
        assert len(take()) == 0


def test_a_revoked_reset_is_reported_with_the_entry_as_it_is_now(paired_bed: Bed, family: Family) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    with ring(paired_bed, family) as take:
        client(paired_bed, family, "R")
        backend(paired_bed, family, "A")
        closed, revoked = take()
        assert (closed["type"], revoked["type"]) == (EventType.CLOSED, EventType.ESTABLISHED)
        assert (closed["flow"]["state"], revoked["flow"]["state"]) == (FlowState.SEEN | FlowState.RST, FlowState.SEEN)
        assert revoked["flow"]["flags"] & FlowFlag.FORWARD and revoked["key"] == closed["key"]


def test_a_replaced_connection_is_reported_as_removed(paired_bed: Bed, family: Family) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    paired_bed.farm(family.vip, (family.far(12), 8080), first_backend=40)
    client(paired_bed, family, "R")
    with ring(paired_bed, family) as take:
        client(paired_bed, family, "S")
        assert kinds(take()) == [EventType.REMOVED]


def test_half_open_connections_are_never_reported(paired_bed: Bed, family: Family) -> None:
    paired_bed.farm(family.vip, (family.far(11), 8080))
    with ring(paired_bed, family) as take:
        client(paired_bed, family, "S")
        backend(paired_bed, family, "RA")
        client(paired_bed, family, "S")
        assert len(take()) == 0


def test_a_full_ring_counts_and_does_not_hinder(paired_bed: Bed, family: Family) -> None:
    """A reader that is a whole ring behind: the event is lost and counted, the packet is not."""
    paired_bed.farm(family.vip, (family.far(11), 8080))
    establish(paired_bed, family)
    with ring(paired_bed, family) as take:
        move_reader(paired_bed, family, RING_BYTES)
        outcome = paired_bed.send(bytes(from_client(family, flags="R")))
        assert outcome.moved == {"forward_redirect": 1, "event_ring_full": 1}
        move_reader(paired_bed, family, 0)
        establish(paired_bed, family)
        assert kinds(take()) == [EventType.ESTABLISHED]
