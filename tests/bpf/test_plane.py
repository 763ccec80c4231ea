"""Operations of the control plane are written to the kernel's maps, and read from them, in bulk."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bpf import columns, libbpf
from bpf.constants import COUNTERS, LEASE_FOREVER_NS, SLOTS_PER_CHUNK, FlowFlag, VipFlag
from bpf.dataplane import (
    Array,
    DataPlane,
    DeleteService,
    DeleteVip,
    FlowTuple,
    Operation,
    PlaneError,
    PutBackend,
    PutService,
    PutSlots,
    PutVip,
    ServiceKey,
    ServiceValue,
    ZeroTraffic,
)
from bpf.kernel.plane import KernelPlane
from bpf.loading import loader
from bpf.maps import elements
from bpf.maps.layout import Layouts
from bpf.maps.pinned_map import PinnedMap
from tests.bpf.bed import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

MAX_FLOWS = 5000
VIPS = {"v4": "192.0.2.1", "v6": "2001:db8::1"}


class Kernel:
    """The maps of the real program, in a separate directory."""

    def __init__(self, build: loader.Build, layouts: Layouts) -> None:
        self.build, self.layouts = build, layouts
        self.plane = KernelPlane(build.bpf_dir, layouts)

    def pinned_map(self, name: str) -> PinnedMap:
        return PinnedMap(self.build.bpf_dir, name, self.layouts.maps[name])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    pins = Path("/sys/fs/bpf") / f"xlb-test-{secrets.token_hex(4)}"
    build = loader.Build(pins, tmp_path_factory.mktemp("plane"), MAX_FLOWS, {"replication": True})
    try:
        made = Kernel(build, loader.ensure(build).layouts)
        yield made
        made.plane.close()
    finally:
        loader.remove_pins(pins)


@pytest.fixture
def plane(kernel: Kernel) -> Iterator[KernelPlane]:
    """Empty of VIPs, services and flows."""
    yield kernel.plane
    plane = kernel.plane
    plane.apply([DeleteService(key) for key in plane.services()])
    plane.apply([DeleteVip(address) for address in plane.vips()])
    for flow_map, family in itertools.product(("flows", "embryonic"), ("v4", "v6")):
        for keys, _ in plane.flow_batches(flow_map, family, 4096):
            plane.delete_flows(flow_map, family, keys)


def service(farm: int, port: int = 80, address: str = "192.0.2.1") -> ServiceValue:
    return ServiceValue(farm, 16 * farm, 10, 0, 0, port, address)


def test_it_is_a_data_plane(plane: KernelPlane) -> None:
    checked_by_mypy: DataPlane = plane
    assert checked_by_mypy.now_tick() > 0


def test_vips_of_both_families(plane: KernelPlane) -> None:
    plane.apply([PutVip(VIPS["v4"], VipFlag.RANGES), PutVip(VIPS["v6"], VipFlag.OPEN), PutVip("192.0.2.2", 0)])
    assert plane.vips() == {VIPS["v4"]: VipFlag.RANGES, VIPS["v6"]: VipFlag.OPEN, "192.0.2.2": 0}
    plane.apply([DeleteVip("192.0.2.2"), DeleteVip("192.0.2.3"), PutVip(VIPS["v6"], 0)])
    assert plane.vips() == {VIPS["v4"]: VipFlag.RANGES, VIPS["v6"]: 0}


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_services_and_ranges_come_back_whole(plane: KernelPlane, family: str) -> None:
    address = VIPS[family]
    wanted = {
        ServiceKey(address, 80, 80, 6): service(1, 80, address),
        ServiceKey(address, 80, 80, 17): service(2, 80, address),
        ServiceKey(address, 1000, 1999, 6): service(3, 1000, address),
        ServiceKey(address, 2000, 2001, 6): service(4, 2000, address),
        ServiceKey(address, 1, 65535, 17): service(5, 1, address),
    }
    plane.apply([PutService(key, value) for key, value in wanted.items()])
    assert plane.services() == wanted
    gone = ServiceKey(address, 1000, 1999, 6)
    plane.apply([DeleteService(gone), PutService(ServiceKey(address, 80, 80, 6), service(9, 80, address))])
    del wanted[gone]
    wanted[ServiceKey(address, 80, 80, 6)] = service(9, 80, address)
    assert plane.services() == wanted


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_the_kernel_finds_every_port_of_a_range_and_no_other(kernel: Kernel, plane: KernelPlane, family: str) -> None:
    first, last = 1021, 2050
    plane.apply([PutService(ServiceKey(VIPS[family], first, last, 6), service(3, first, VIPS[family]))])
    pinned = kernel.pinned_map(f"ranges_{family}")
    keys = np.zeros(65536, pinned.key)
    keys["prefix_length"] = 8 * (pinned.key.itemsize - 4 - 2)
    keys["protocol"] = 6
    keys["address"] = np.frombuffer(columns.address_bytes(VIPS[family]), f"V{pinned.key['address'].itemsize}")
    keys["port"] = np.arange(65536)
    found = elements.lookup_each(pinned.fd, keys, np.zeros(65536, pinned.value))
    pinned.close()
    assert np.flatnonzero(found).tolist() == list(range(first, last + 1))


def test_backends_and_slots(kernel: Kernel, plane: KernelPlane) -> None:
    turn = np.arange(1, 2 * SLOTS_PER_CHUNK + 4, dtype=np.uint32)
    plane.apply([PutSlots(64, np.full(64, 9, np.uint32))])
    plane.apply(
        [PutBackend(5, "10.0.0.5", 8080), PutBackend(32767, "fd00::7", 443), PutSlots(64, turn), PutSlots(16, turn[:1])]
    )
    backends, slots = kernel.pinned_map("backends"), kernel.pinned_map("slots")
    rows, chunks = backends.all_values(), slots.all_values()["backend"]
    assert (rows[5]["address"].tobytes(), rows[5]["port"]) == (bytes([10, 0, 0, 5]) + bytes(12), 8080)
    assert (rows[32767]["address"].tobytes(), rows[32767]["port"]) == (columns.address_bytes("fd00::7"), 443)
    written = chunks.reshape(-1)
    assert written[64 : 64 + len(turn)].tolist() == turn.tolist()
    assert written[64 + len(turn) : 112].tolist() == [0] * (48 - len(turn))  # the last chunk is padded
    assert written[112:128].tolist() == [9] * 16
    assert written[16:32].tolist() == [1] + [0] * 15
    backends.close()
    slots.close()


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (PutBackend(32768, "10.0.0.1", 80), r"PutBackend 32768 \(10.0.0.1 port 80"),
        (PutSlots(8, np.ones(3, np.uint32)), r"PutSlots 8\.\.10"),
        (PutSlots(262144 * 16, np.ones(3, np.uint32)), "PutSlots 4194304"),
        (ZeroTraffic(farms=(4096,)), "ZeroTraffic"),
    ],
)
def test_what_the_kernel_refuses_is_named_and_what_came_before_is_done(
    plane: KernelPlane, operation: Operation, named: str
) -> None:
    with pytest.raises(PlaneError, match=named):
        plane.apply([PutVip(VIPS["v4"], 0), PutBackend(7, "10.0.0.1", 80), operation, PutVip(VIPS["v6"], 0)])
    assert plane.vips() == {VIPS["v4"]: 0}


def test_a_full_map_names_the_first_operation_that_failed(plane: KernelPlane) -> None:
    vips = [f"10.{n >> 8}.{n & 255}.1" for n in range(4097)]
    with pytest.raises(PlaneError, match=f"PutVip {vips[4096]} failed: the map is full"):
        plane.apply([PutVip(address, 0) for address in vips])
    assert len(plane.vips()) == 4096


def test_a_full_range_map_names_the_listener_and_not_the_prefix(plane: KernelPlane) -> None:
    """1-65534 takes 30 prefixes, so 2184 such listeners fit into 65536 entries."""
    keys = [ServiceKey(f"10.{n >> 8}.{n & 255}.1", 1, 65534, 6) for n in range(2200)]
    with pytest.raises(PlaneError, match=f"PutService {keys[2184].address} port 1-65534 protocol 6 failed"):
        plane.apply([PutService(key, service(1, 1)) for key in keys])


def test_a_thousand_farms_are_applied_at_once(plane: KernelPlane) -> None:
    operations: list[Operation] = [PutVip(f"10.0.{n >> 8}.{n & 255}", 0) for n in range(1, 1001)]
    operations += [PutBackend(10 * n + k, f"10.1.{n & 255}.{k + 1}", 80) for n in range(1, 1001) for k in range(10)]
    for n in range(1, 1001):
        address = f"10.0.{n >> 8}.{n & 255}"
        operations.append(PutSlots(2048 * n, np.full(1021, 10 * n, np.uint32)))
        operations.append(PutService(ServiceKey(address, 80, 80, 6), service(n, 80, address)))
    started = time.process_time()
    plane.apply(operations)
    assert time.process_time() - started < 0.5  # of a processor's time: others may be busy
    assert len(plane.services()) == 1000


def test_lease_seed_and_next_hops_do_not_disturb_each_other(kernel: Kernel, plane: KernelPlane) -> None:
    plane.set_lease(LEASE_FOREVER_NS, 7)
    assert plane.lease() == (LEASE_FOREVER_NS, 7)
    plane.set_hash_seed(0xDEADBEEF)
    generations = []
    for _ in range(3):
        plane.bump_next_hops()
        generations.append(int(next_hop_generation(kernel)[0]))
    assert generations == [generations[0], generations[0] + 1, generations[0] + 2]
    assert plane.hash_seed() == 0xDEADBEEF


def next_hop_generation(kernel: Kernel) -> Array:
    pinned = kernel.pinned_map("globals")
    found: Array = pinned.all_values()["next_hop_generation"]
    pinned.close()
    return found


def test_the_next_hop_generation_skips_zero(kernel: Kernel, plane: KernelPlane) -> None:
    pinned = kernel.pinned_map("globals")
    row = pinned.all_values()
    row["next_hop_generation"] = 0xFFFFFFFF
    pinned.put(np.zeros(1, np.uint32), row)
    pinned.close()
    plane.bump_next_hops()
    assert next_hop_generation(kernel).tolist() == [1]


def test_counters_are_summed_over_cpus(kernel: Kernel, plane: KernelPlane) -> None:
    pinned = kernel.pinned_map("counters")
    values = np.zeros((1, libbpf.possible_cpus()), pinned.value.base)
    values["v"]["packets"] = np.arange(1, libbpf.possible_cpus() + 1)
    values["v"]["bytes"] = 100
    pinned.put(np.array([2], np.uint32), values.view(f"V{pinned.value.itemsize}").reshape(-1))
    pinned.close()
    cpus = libbpf.possible_cpus()
    counters = plane.counters()
    assert list(counters) == [counter.name for counter in COUNTERS]
    assert counters[COUNTERS[2].name] == (cpus * (cpus + 1) // 2, 100 * cpus)


def test_traffic_is_indexed_by_id_and_zeroed_by_id(kernel: Kernel, plane: KernelPlane) -> None:
    pinned = kernel.pinned_map("backend_traffic")
    values = np.zeros((3, libbpf.possible_cpus()), pinned.value.base)
    values["v"]["bytes_out"] = [[10], [20], [30]]
    pinned.put(np.array([1, 2, 32767], np.uint32), values.view(f"V{pinned.value.itemsize}").reshape(-1))
    pinned.close()
    cpus = libbpf.possible_cpus()
    assert plane.backend_traffic()["bytes_out"][[1, 2, 3, 32767]].tolist() == [10 * cpus, 20 * cpus, 0, 30 * cpus]
    plane.apply([ZeroTraffic(farms=(1,), backends=(1, 32767))])
    assert plane.backend_traffic()["bytes_out"][[1, 2, 3, 32767]].tolist() == [0, 20 * cpus, 0, 0]
    assert plane.farm_traffic().dtype.names == ("packets_in", "bytes_in", "packets_out", "bytes_out", "connections", "drops")


# --- flows ---------------------------------------------------------------------------------------------------


def flows(plane: KernelPlane, family: str, count: int) -> tuple[Array, Array]:
    net = "10.0.{}.{}" if family == "v4" else "fd00::{}:{}"
    tuples = [FlowTuple(net.format(n >> 8, n & 255), VIPS[family], 1024 + n, 80, 6) for n in range(count)]
    keys = plane.encode_flow_keys(family, tuples)
    values = np.zeros(count, plane.flow_dtypes(family)[1])
    values["last_seen"] = np.arange(count)
    return keys, values


def seen(slices: Iterator[tuple[Array, Array]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(values["last_seen"].tolist() for _, values in slices))


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("batch_size", [1, 100, 100_000])
def test_slices_show_every_flow_once(plane: KernelPlane, family: str, batch_size: int) -> None:
    """A slice of one is smaller than most buckets that hold something: the kernel's ENOSPC is handled."""
    keys, values = flows(plane, family, 1000)
    assert plane.update_flows(family, keys, values) == 1000
    assert seen(plane.flow_batches("flows", family, batch_size)) == list(range(1000))
    other = "v6" if family == "v4" else "v4"
    assert seen(plane.flow_batches("flows", other, batch_size)) == []
    assert seen(plane.flow_batches("embryonic", family, batch_size)) == []


def test_a_sweep_may_delete_while_it_reads(plane: KernelPlane) -> None:
    keys, values = flows(plane, "v4", 3000)
    plane.update_flows("v4", keys, values)
    for slice_keys, slice_values in plane.flow_batches("flows", "v4", 256):
        old = slice_values["last_seen"] < 1500
        assert plane.delete_flows("flows", "v4", slice_keys[old]) == int(old.sum())
    assert seen(plane.flow_batches("flows", "v4", 256)) == list(range(1500, 3000))


def test_lookup_returns_which_exist(plane: KernelPlane) -> None:
    keys, values = flows(plane, "v6", 10)
    plane.update_flows("v6", keys[::2].copy(), values[::2].copy())
    found, there = plane.lookup_flows("flows", "v6", keys)
    assert found.tolist() == [True, False] * 5
    assert there["last_seen"][found].tolist() == [0, 2, 4, 6, 8]
    found, _ = plane.lookup_flows("flows", "v6", keys[::-1])  # not contiguous
    assert found.tolist() == [False, True] * 5


@pytest.mark.parametrize("present", [[], [0], [999], range(0, 1000, 2), range(500), range(500, 1000), range(1000)])
def test_delete_skips_missing_keys(plane: KernelPlane, present: Sequence[int]) -> None:
    keys, values = flows(plane, "v4", 1000)
    there = np.array(list(present), dtype=np.intp)
    plane.update_flows("v4", keys[there], values[there])
    assert plane.delete_flows("flows", "v4", keys) == len(there)
    assert seen(plane.flow_batches("flows", "v4", 4096)) == []


def test_a_full_flow_map_returns_how_many_were_written(plane: KernelPlane) -> None:
    keys, values = flows(plane, "v4", 2 * MAX_FLOWS + 50)
    assert plane.update_flows("v4", keys, values) == 2 * MAX_FLOWS
    assert plane.update_flows("v4", keys[:10], values[:10]) == 10  # overwriting needs no capacity


def test_flows_are_decoded(plane: KernelPlane) -> None:
    keys, values = flows(plane, "v4", 3)
    values["destination"] = np.frombuffer(bytes([10, 9, 8, 7]), "V4")
    values["destination_port"] = 8080
    values["flags"] = FlowFlag.FORWARD
    plane.update_flows("v4", keys, values)
    entries = [
        entry
        for slice_keys, slice_values in plane.flow_batches("flows", "v4", 10)
        for entry in plane.decode_flows("flows", slice_keys, slice_values)
    ]
    (entry,) = [each for each in entries if each.last_seen_tick == 2]
    assert entry.arrives == FlowTuple("10.0.0.2", VIPS["v4"], 1026, 80, 6)
    assert (entry.leaves.destination, entry.leaves.destination_port, entry.forward) == ("10.9.8.7", 8080, True)


def test_ticks_follow_the_monotonic_clock(plane: KernelPlane) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 26
    assert before <= plane.now_tick() <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 26


# --- the program and the pins --------------------------------------------------------------------------------


def test_the_program_runs_on_a_packet(plane: KernelPlane) -> None:
    before = plane.counters()
    outcome = plane.test_run(bytes(12) + b"\x88\xb5" + bytes(50))
    assert outcome.action == 2 and len(outcome.packet) == 64
    assert plane.counters()["pass_not_ip"][0] == before["pass_not_ip"][0] + 1


def test_events_are_there_with_replication(plane: KernelPlane) -> None:
    events = plane.flow_events("v4")
    assert events is not None
    assert events.read(10).dtype["key"] == plane.flow_dtypes("v4")[0]
    assert events.read(10).dtype["flow"] == plane.flow_dtypes("v4")[1]
    events.close()


def test_layouts_that_are_not_the_pins_are_refused(kernel: Kernel) -> None:
    lying = dict(kernel.layouts.maps)
    lying["lease"] = replace(lying["lease"], value_size=8, value="unsigned long long")
    with pytest.raises(PlaneError, match=r"lease does not match layout\.json"):
        KernelPlane(kernel.build.bpf_dir, replace(kernel.layouts, maps=lying))


def test_a_missing_pin_is_named(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(PlaneError, match=f"map {tmp_path}/.* cannot be opened: No such file"):
        KernelPlane(tmp_path, kernel.layouts)
