"""What every data plane does, as tests: the kernel's maps and the fake plane of the unit tests must agree on it.

A test module derives a class `Test…` from PlaneContract and has a fixture `subject`, which makes an empty plane. All operations
here are legal ones: the fake refuses more than the kernel does, which other tests cover. tests/bpf/test_plane_contract.py
and tests/unit/bpf/test_plane_contract.py run it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from bpf import columns
from bpf.constants import (
    COUNTERS,
    LEASE_FOREVER_NS,
    MAX_BACKENDS,
    MAX_FARMS,
    MAX_SLOT_CHUNKS,
    SLOTS_PER_CHUNK,
    EventType,
    FlowFlag,
    FlowState,
    Mode,
    Protocol,
    Scheduler,
    ServerFlag,
    VipFlag,
)
from bpf.dataplane import (
    Array,
    DeleteServer,
    DeleteService,
    DeleteVip,
    FlowTuple,
    Operation,
    PlaneError,
    PutBackend,
    PutFarm,
    PutServer,
    PutService,
    PutSlots,
    PutVip,
    ServerKey,
    ServiceKey,
    ServiceValue,
    ZeroTraffic,
)
from bpf.kernel.plane import KernelPlane
from ctl.dataplane import planner
from tests.fakes.plane import FakePlane
from tests.model.copies import Copies
from tests.model.generate import Generator
from tests.model.routes import Routes
from tests.model.state import State

VIPS = {"v4": "192.0.2.10", "v6": "2001:db8::10"}
OTHER_VIPS = {"v4": "192.0.2.20", "v6": "2001:db8::20"}
BACKENDS = {"v4": "10.2.0.11", "v6": "fd02::11"}
CLIENTS = {"v4": "198.51.100.7", "v6": "2001:db8:c::7"}
both_families = pytest.mark.parametrize("family", ["v4", "v6"])


@dataclass(frozen=True, slots=True)
class Subject:
    """A plane without VIPs, services and flows, built for `max_flows` connections.

    establish(family, count): connections to VIPS[family] that clients open and XDP reports, on ports from 40000.
    """

    plane: KernelPlane | FakePlane
    max_flows: int
    establish: Callable[[str, int], None]

    def flows(self, family: str, count: int) -> tuple[Array, Array]:
        """Keys and values of different flows; last_seen numbers them."""
        tuples = [FlowTuple(CLIENTS[family], VIPS[family], 1024 + n, 80, Protocol.TCP) for n in range(count)]
        values = np.zeros(count, self.plane.flow_dtypes(family)[1])
        values["last_seen"] = np.arange(count)
        return self.plane.encode_flow_keys(family, tuples), values


def numbers(slices: Iterator[tuple[Array, Array]]) -> list[int]:
    """The last_seen of every flow in the slices."""
    return sorted(number for _, values in slices for number in values["last_seen"].tolist())


def farm(family: str, number: int = 1, port: int = 80) -> tuple[ServiceKey, ServiceValue, list[Operation]]:
    """A listener with one backend, and the operations that make it after its VIP."""
    offset = 64 * SLOTS_PER_CHUNK * number
    key = ServiceKey(VIPS[family], port, port, Protocol.TCP)
    value = ServiceValue(number, offset, 3, Mode.SNAT, Scheduler.MAGLEV, port, VIPS[family])
    slots = np.full(3, 8 * number, np.uint32)
    return key, value, [PutBackend(8 * number, BACKENDS[family], 8080), PutSlots(offset, slots), PutService(key, value)]


REFUSED: Sequence[Operation] = (
    PutBackend(MAX_BACKENDS, "10.0.0.1", 80),
    PutFarm(MAX_FARMS, 0),
    PutSlots(SLOTS_PER_CHUNK // 2, np.ones(3, np.uint32)),
    PutSlots(MAX_SLOT_CHUNKS * SLOTS_PER_CHUNK, np.ones(3, np.uint32)),
    ZeroTraffic(farms=(MAX_FARMS,)),
    ZeroTraffic(backends=(MAX_BACKENDS,)),
)


class PlaneContract:
    """Derive a class `Test…` from it."""

    # --- configuration ---------------------------------------------------------------------------------------

    @both_families
    def test_vips_are_read_back(self, subject: Subject, family: str) -> None:
        plane = subject.plane
        plane.apply([PutVip(VIPS[family], VipFlag.RANGES), PutVip(OTHER_VIPS[family], 0)])
        assert plane.vips() == {VIPS[family]: VipFlag.RANGES, OTHER_VIPS[family]: 0}
        plane.apply([PutVip(OTHER_VIPS[family], VipFlag.OPEN), DeleteVip(VIPS[family])])
        assert plane.vips() == {OTHER_VIPS[family]: VipFlag.OPEN}

    @both_families
    def test_services_are_read_back(self, subject: Subject, family: str) -> None:
        plane = subject.plane
        key, value, operations = farm(family)
        wide = ServiceKey(VIPS[family], 1000, 1999, Protocol.UDP)
        of_wide = ServiceValue(2, value.slot_offset, 3, Mode.DNAT, Scheduler.SOURCE, 1000, VIPS[family])
        plane.apply([PutVip(VIPS[family], VipFlag.RANGES), *operations, PutService(wide, of_wide)])
        assert plane.services() == {key: value, wide: of_wide}
        plane.apply([DeleteService(wide)])
        assert plane.services() == {key: value}

    @pytest.mark.parametrize("seed", range(3))
    def test_the_maps_hold_what_the_model_holds(self, subject: Subject, seed: int) -> None:
        """Random configurations, one after the other, by the real planner; the model of the data plane has the same content."""
        state = State(Routes(), Copies())
        generator, planned = Generator(random.Random(seed), state), planner.PlannerState()
        for _ in range(12):
            step, complete = generator.configure(), False
            while not complete:
                plan = planner.plan(planned, step.config, step.down)
                subject.plane.apply(plan.operations)
                for operation in plan.operations:
                    state.apply(operation)
                planned, complete = plan.state, plan.complete
            assert {columns.address_bytes(address): flags for address, flags in subject.plane.vips().items()} == state.vips
            assert subject.plane.servers() == state.servers
            exact = {(key.address, key.port, key.protocol): each for key, each in subject.plane.services().items()}
            for (address, port, protocol), value in state.listeners.items():
                assert exact[columns.address_text(address), port, protocol] == value
            assert len(exact) == len(state.listeners) + len(state.ranges)

    @both_families
    def test_several_ranges_of_a_farm_are_read_back(self, subject: Subject, family: str) -> None:
        """Their values are equal, so that only a gap tells them apart."""
        plane = subject.plane
        _, value, operations = farm(family)
        wanted = {ServiceKey(VIPS[family], first, last, Protocol.TCP) for first, last in ((80, 81), (83, 99), (8000, 8010))}
        plane.apply([PutVip(VIPS[family], VipFlag.RANGES), *operations, *(PutService(key, value) for key in wanted)])
        assert {key for key in plane.services() if key.port != key.port_last} == wanted
        assert set(plane.services().values()) == {value}
        plane.apply([DeleteService(ServiceKey(VIPS[family], 83, 99, Protocol.TCP))])
        assert {key.port for key in plane.services()} == {80, 8000}

    @both_families
    def test_servers_are_read_back(self, subject: Subject, family: str) -> None:
        plane, address = subject.plane, BACKENDS[family]
        host, one = ServerKey(address, Protocol.TCP, 0), ServerKey(address, Protocol.TCP, 8080)
        some = ServerKey(address, Protocol.UDP, 0x1200, 12)
        flags = {host: ServerFlag.DNAT | ServerFlag.RANGES, one: ServerFlag.SNAT, some: ServerFlag.DNAT}
        plane.apply([PutServer(key, value) for key, value in flags.items()])
        assert plane.servers() == flags
        plane.apply([PutServer(one, ServerFlag.DNAT), DeleteServer(some)])
        assert plane.servers() == {host: flags[host], one: ServerFlag.DNAT}
        plane.apply([DeleteServer(host), DeleteServer(one)])
        assert plane.servers() == {}

    @pytest.mark.parametrize("operation", REFUSED, ids=lambda each: f"{type(each).__name__}")
    def test_a_refused_operation_stops_the_sequence(self, subject: Subject, operation: Operation) -> None:
        plane = subject.plane
        with pytest.raises(PlaneError):
            plane.apply([PutVip(VIPS["v4"], 0), operation, PutVip(VIPS["v6"], 0)])
        assert plane.vips() == {VIPS["v4"]: 0}

    def test_a_full_vip_map_refuses_the_next(self, subject: Subject) -> None:
        plane = subject.plane
        vips = [f"10.{n >> 8}.{n & 255}.1" for n in range(4097)]
        with pytest.raises(PlaneError, match=vips[-1]):
            plane.apply([PutVip(address, 0) for address in vips])
        assert len(plane.vips()) == 4096

    # --- node ------------------------------------------------------------------------------------------------

    def test_lease_and_hash_seed_are_read_back(self, subject: Subject) -> None:
        plane = subject.plane
        plane.set_lease(LEASE_FOREVER_NS, 7)
        plane.set_hash_seed(0xDEADBEEF)
        plane.bump_next_hops()
        assert plane.lease() == (LEASE_FOREVER_NS, 7) and plane.hash_seed() == 0xDEADBEEF
        plane.set_lease(0, 8)
        assert plane.lease() == (0, 8)

    def test_every_counter_has_packets_and_bytes(self, subject: Subject) -> None:
        assert list(subject.plane.counters()) == [counter.name for counter in COUNTERS]
        assert all(packets >= 0 and of_bytes >= 0 for packets, of_bytes in subject.plane.counters().values())

    def test_traffic_is_indexed_by_id_and_can_be_zeroed(self, subject: Subject) -> None:
        plane = subject.plane
        farms, backends = plane.farm_traffic(), plane.backend_traffic()
        assert (len(farms), len(backends)) == (MAX_FARMS, MAX_BACKENDS)
        assert farms.dtype == backends.dtype
        assert farms.dtype.names == ("packets_in", "bytes_in", "packets_out", "bytes_out", "connections", "drops")
        plane.apply([ZeroTraffic(farms=(1, MAX_FARMS - 1), backends=(1, MAX_BACKENDS - 1))])
        assert plane.farm_traffic()[1].tolist() == (0,) * 6

    # --- flows -----------------------------------------------------------------------------------------------

    @both_families
    @pytest.mark.parametrize("batch_size", [1, 7, 1000])
    def test_slices_show_every_flow_once(self, subject: Subject, family: str, batch_size: int) -> None:
        plane = subject.plane
        assert plane.update_flows(family, *subject.flows(family, 50)) == 50
        assert numbers(plane.flow_batches("flows", family, batch_size)) == list(range(50))
        assert numbers(plane.flow_batches("flows", "v6" if family == "v4" else "v4", batch_size)) == []
        assert numbers(plane.flow_batches("embryonic", family, batch_size)) == []

    @both_families
    def test_flows_are_found_overwritten_and_deleted(self, subject: Subject, family: str) -> None:
        plane = subject.plane
        keys, values = subject.flows(family, 10)
        assert plane.update_flows(family, keys[::2], values[::2]) == 5
        found, there = plane.lookup_flows("flows", family, keys)
        assert found.tolist() == [True, False] * 5 and there["last_seen"][found].tolist() == [0, 2, 4, 6, 8]
        values["last_seen"] += 100
        assert plane.update_flows(family, keys[:4], values[:4]) == 4
        assert numbers(plane.flow_batches("flows", family, 100)) == [4, 6, 8, 100, 101, 102, 103]
        assert plane.delete_flows("flows", family, keys[3:]) == 4
        assert numbers(plane.flow_batches("flows", family, 100)) == [100, 101, 102]

    @both_families
    def test_a_full_flow_map_reports_how_many_were_written(self, subject: Subject, family: str) -> None:
        plane, capacity = subject.plane, 2 * subject.max_flows
        keys, values = subject.flows(family, capacity + 10)
        assert plane.update_flows(family, keys, values) == capacity
        assert plane.update_flows(family, keys[:10], values[:10]) == 10  # overwriting needs no space
        assert plane.delete_flows("flows", family, keys[:3]) == 3
        assert plane.update_flows(family, keys[-5:], values[-5:]) == 3

    # --- what XDP writes -------------------------------------------------------------------------------------

    @both_families
    def test_an_established_connection_has_two_flows_and_one_event(self, subject: Subject, family: str) -> None:
        plane = subject.plane
        events = plane.flow_events(family)
        assert events is not None
        events.read(1 << 20)
        subject.establish(family, 3)
        assert sum(len(keys) for keys, _ in plane.flow_batches("flows", family, 100)) == 6
        assert events.backlog() == 3
        parts = [events.read(2), events.read(2), events.read(2)]
        assert [len(part) for part in parts] == [2, 1, 0]
        records = np.concatenate(parts).astype(parts[0].dtype)  # numpy makes network byte order native when it joins arrays
        assert events.backlog() == 0
        events.close()
        assert records["type"].tolist() == [EventType.ESTABLISHED] * 3
        assert (records["flow"]["flags"] & FlowFlag.FORWARD).all()
        key_dtype, flow_dtype = plane.flow_dtypes(family)
        assert (records.dtype["key"], records.dtype["flow"]) == (key_dtype, flow_dtype)
        found, values = plane.lookup_flows("flows", family, records["key"])
        assert found.all() and (values["state"] == FlowState.SEEN).all()
        assert set(records["key"]["destination_port"].tolist()) == {80}
        replies = plane.encode_flow_keys(
            family,
            [FlowTuple(BACKENDS[family], VIPS[family], 8080, int(port), Protocol.TCP) for port in values["source_port"]],
        )
        assert plane.lookup_flows("flows", family, replies)[0].all()
