"""A data plane in memory that refuses every illegal operation, so that a wrong plan fails a unit test.

Stricter than the kernel: it also refuses what is legal but wrong, such as overwriting slots that a listener uses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from bpf import columns, constants
from bpf.dataplane import (
    PERSISTENT,
    Array,
    DeletePrefixes,
    DeleteServer,
    DeleteService,
    DeleteVip,
    FlowTuple,
    KeepPrefixes,
    Operation,
    PlaneError,
    PutAffinity,
    PutBackend,
    PutBackendAffinity,
    PutBackendLimits,
    PutFarm,
    PutFarmLimits,
    PutMembers,
    PutPrefixes,
    PutQuicServers,
    PutServer,
    PutService,
    PutSlots,
    PutVip,
    ServerKey,
    ServiceKey,
    ServiceValue,
    Vlan,
    ZeroTraffic,
)
from tests.fakes.layouts import LAYOUTS


@cache
def key_dtype(family: str) -> np.dtype[Any]:
    """struct flow_key_FAM as numpy sees it."""
    return LAYOUTS.maps[f"flows_{family}"].key_dtype


@cache
def flow_dtype(family: str) -> np.dtype[Any]:
    """struct flow_FAM as numpy sees it."""
    return LAYOUTS.maps[f"flows_{family}"].value_dtype


@cache
def event_dtype(family: str) -> np.dtype[Any]:
    """struct flow_event_FAM as numpy sees it."""
    return LAYOUTS.maps[f"events_{family}"].value_dtype


class FakeRing:
    """A replication ring of `capacity` records; refuses to be read after it was closed."""

    def __init__(self, family: str, capacity: int = 1024) -> None:
        self.records = np.zeros(0, event_dtype(family))
        self.capacity = capacity
        self.lost = 0
        self.closed = False

    def put(self, records: Array) -> None:
        """Append records, as XDP does; those beyond the capacity are lost and counted."""
        free = self.capacity - len(self.records)
        self.lost += max(0, len(records) - free)
        self.records = np.concatenate([self.records, records[:free]]).astype(self.records.dtype)

    def backlog(self) -> int:
        _require(not self.closed, "a closed ring is asked for its backlog")
        return len(self.records)

    def read(self, limit: int) -> Array:
        _require(not self.closed, "a closed ring is read")
        taken, self.records = self.records[:limit], self.records[limit:]
        return taken

    def close(self) -> None:
        self.closed = True


LOAD = np.dtype([("opened", "u8"), ("closed", "u8"), ("promoted", "u8"), ("base", "i8")])
TRAFFIC = LAYOUTS.maps["farm_traffic"].value_dtype


class FakePlane:
    """Implements `bpf.dataplane.DataPlane`. Tests may set `fail_next` to make the next operation of a kind fail, and `tick`."""

    def __init__(self, max_flows: int = 4096, slots: int = constants.MAX_SLOT_CHUNKS * constants.SLOTS_PER_CHUNK) -> None:
        self.vip_flags: dict[str, int] = {}
        self.listeners: dict[ServiceKey, ServiceValue] = {}
        self.backends: dict[int, tuple[str, int]] = {}
        self.backend_flags: dict[int, int] = {}
        self.farm_snat: dict[int, tuple[str, ...]] = {}
        self.members: dict[int, frozenset[str]] = {}
        self.farm_flags: dict[int, int] = {}
        self.server_flags: dict[ServerKey, int] = {}
        self.affinity: dict[int, PutAffinity] = {}
        self.farm_limits: dict[int, PutFarmLimits] = {}
        self.backend_limits: dict[int, PutBackendLimits] = {}
        self.prefixes: dict[int, tuple[bytes, bytes]] = {}
        self.load_values = {
            kind: np.zeros(count, LOAD) for kind, count in (("farm", constants.MAX_FARMS), ("backend", constants.MAX_BACKENDS))
        }
        self.backend_affinity: dict[int, tuple[int, bool]] = {}
        self.quic_servers: dict[int, dict[bytes, int]] = {}
        self.persistent: dict[str, dict[tuple[bytes, int], tuple[int, int, int]]] = {"v4": {}, "v6": {}}
        self.slots = np.zeros(slots, dtype=np.uint32)
        self.farm_counts = np.zeros(constants.MAX_FARMS, dtype=TRAFFIC)
        self.backend_counts = np.zeros(constants.MAX_BACKENDS, dtype=TRAFFIC)
        self.flow_maps: dict[tuple[str, str], dict[bytes, bytes]] = {
            (flow_map, family): {} for flow_map in ("flows", "embryonic") for family in ("v4", "v6")
        }
        self.max_flows = max_flows
        self.rings = {family: FakeRing(family) for family in ("v4", "v6")}
        self.tick = 1_000_000
        self.next_hop_bumps = 0
        self.operations = 0
        self.applied: list[Operation] = []
        self.fail_next: type[Operation] | None = None
        self.closed = False
        self._lease = (0, 0)
        self._seed = 0
        self.tunnel_sources = ("", "")
        self.vlan_maps: tuple[frozenset[Vlan], frozenset[int]] = (frozenset(), frozenset())

    def apply(self, operations: Sequence[Operation]) -> None:
        assert not self.closed, "operation on a closed plane"
        for operation in operations:
            if self.fail_next is not None and isinstance(operation, self.fail_next):
                self.fail_next = None
                raise PlaneError(f"the test makes this fail: {type(operation).__name__}")
            self._execute(operation)
            self.applied.append(operation)
            self.operations += 1

    def _execute(self, operation: Operation) -> None:
        match operation:
            case PutVip(address, flags):
                self._put_vip(address, flags)
            case DeleteVip(address):
                _require(address in self.vip_flags, f"delete of unknown VIP {address}")
                users = [key for key in self.listeners if key.address == address]
                _require(not users, f"delete of VIP {address} while {users[:1]} listens on it")
                del self.vip_flags[address]
            case PutService(key, value):
                self._put_service(key, value)
            case DeleteService(key):
                _require(key in self.listeners, f"delete of unknown listener {key}")
                del self.listeners[key]
            case PutServer(server, flags):
                _canonical(server.address)
                _require(flags > 0, f"server {server} without a use")
                _require(server.port % (1 << 16 - server.port_bits) == 0, f"prefix of {server}")
                self.server_flags[server] = flags
            case DeleteServer(server):
                _require(server in self.server_flags, f"delete of unknown server {server}")
                del self.server_flags[server]
            case PutFarm(number, flags, snat):
                _require(0 < number < constants.MAX_FARMS, f"farm id {number}")
                for six in (False, True):
                    count = sum((":" in address) == six for address in snat)
                    _require(count <= constants.MAX_SNAT_ADDRESSES, f"{count} addresses of farm {number}")
                self.farm_flags[number], self.farm_snat[number] = flags, snat
            case PutMembers(number, addresses):
                _require(0 < number < constants.MAX_FARMS, f"farm id {number}")
                for address in addresses:
                    _canonical(address)
                self.members[number] = addresses
            case PutBackend(number, address, port, flags):
                self._put_backend(number, address, port)
                self.backend_flags[number] = flags
            case PutAffinity(number):
                _require(0 < number < constants.MAX_FARMS, f"farm id {number}")
                self.affinity[number] = operation
            case PutBackendAffinity(number, farm, is_open):
                _require(number in self.backends, f"affinity of backend {number}, which was never put")
                self.backend_affinity[number] = farm, is_open
            case PutQuicServers(farm, names):
                _require(all(0 < len(name) <= constants.MAX_QUIC_ID_BYTES for name, _ in names), f"QUIC ids {names}")
                self.quic_servers[farm] = dict(names)
            case PutSlots(offset, backends):
                self._put_slots(offset, backends)
            case PutFarmLimits(number):
                self._put_farm_limits(operation)
            case PutBackendLimits(number, weight):
                _require(0 < number < constants.MAX_BACKENDS, f"backend id {number}")
                _require(0 < weight < 2**32, f"weight {weight} of backend {number}")
                self.backend_limits[number] = operation
            case PutPrefixes(number, v4, v6):
                _require(0 < number < 2**32, f"list id {number}")
                _require(self.prefixes.get(number, (v4, v6)) == (v4, v6), f"list {number} has other prefixes already")
                self.prefixes[number] = v4, v6
            case DeletePrefixes(number, v4, v6):
                _require(self.prefixes.get(number) == (v4, v6), f"delete of unknown list {number}")
                self._require_unused_list(number)
                del self.prefixes[number]
            case KeepPrefixes(ids):
                for number in self.prefixes.keys() - ids:
                    self._require_unused_list(number)
                    del self.prefixes[number]
            case ZeroTraffic(farms, backends):
                _require(all(number < constants.MAX_FARMS for number in farms), f"farm ids {farms}")
                _require(all(number < constants.MAX_BACKENDS for number in backends), f"backend ids {backends}")
                self.farm_counts[list(farms)] = 0
                self.backend_counts[list(backends)] = 0

    def _put_farm_limits(self, limits: PutFarmLimits) -> None:
        _require(0 < limits.farm < constants.MAX_FARMS, f"farm id {limits.farm}")
        for number in (limits.allow, limits.deny):
            _require(not number or number in self.prefixes, f"farm {limits.farm} uses list {number}, which was never put")
        for candidates in (limits.candidates_v4, limits.candidates_v6):
            _require(len(candidates) <= constants.MAX_CANDIDATES, f"{len(candidates)} candidates")
        for candidate in (*limits.candidates_v4, *limits.candidates_v6):
            _require(candidate in self.backends, f"candidate {candidate}, a backend that was never put")
        self.farm_limits[limits.farm] = limits

    def _require_unused_list(self, number: int) -> None:
        live = {value.farm for value in self.listeners.values()}
        users = [farm for farm, each in self.farm_limits.items() if farm in live and number in (each.allow, each.deny)]
        _require(not users, f"delete of list {number} while farm {users[:1]} uses it")

    def _put_vip(self, address: str, flags: int) -> None:
        _canonical(address)
        family = columns.family_of(address)
        capacity = LAYOUTS.maps[f"vips_{family}"].max_entries
        if address not in self.vip_flags and len(self.vip_flags) >= capacity:
            used = sum(columns.family_of(each) == family for each in self.vip_flags)
            _require(used < capacity, f"VIP {address}: the map is full")
        self.vip_flags[address] = flags

    def _put_service(self, key: ServiceKey, value: ServiceValue) -> None:
        _canonical(key.address)
        _canonical(value.snat_address)
        _require(key.address in self.vip_flags, f"listener {key} before its VIP")
        _require(0 < key.port <= key.port_last < 65536, f"ports of {key}")
        _require(key.protocol in set(constants.Protocol), f"protocol of {key}")
        if key.port != key.port_last:
            _require(bool(self.vip_flags[key.address] & constants.VipFlag.RANGES), f"range {key} on a VIP without RANGES")
        _require(0 < value.farm < constants.MAX_FARMS, f"farm id {value.farm}")
        _require(value.slot_offset % constants.SLOTS_PER_CHUNK == 0, f"slot offset {value.slot_offset}")
        run = self.slots[value.slot_offset : value.slot_offset + value.slot_count]
        _require(len(run) == value.slot_count, f"slots of {key} end after the map")
        for number in np.unique(run):
            _require(int(number) in self.backends, f"slots of {key} name backend {number}, which was never put")
            _require(
                value.mode == constants.Mode.IPIP or (":" in self.backends[int(number)][0]) == (":" in key.address),
                f"backend {number} is of another family than {key}",
            )
        self.listeners[key] = value

    def _put_backend(self, number: int, address: str, port: int) -> None:
        _canonical(address)
        _require(0 < number < constants.MAX_BACKENDS, f"backend id {number}")
        _require(0 < port < 65536, f"port {port} of backend {number}")
        if self.backends.get(number, (address, port)) != (address, port):
            _require(number not in self.live_backends(), f"backend id {number} is in use for {self.backends.get(number)}")
        self.backends[number] = (address, port)

    def _put_slots(self, offset: int, backends: Array) -> None:
        _require(offset % constants.SLOTS_PER_CHUNK == 0, f"slot offset {offset}")
        _require(backends.dtype == np.uint32 and backends.ndim == 1 and len(backends) > 0, "slots are a row of uint32")
        end = offset + -(-len(backends) // constants.SLOTS_PER_CHUNK) * constants.SLOTS_PER_CHUNK
        _require(end <= len(self.slots), f"slots {offset}..{end} end after the map")
        for key, value in self.listeners.items():
            free = value.slot_count == 0 or end <= value.slot_offset or offset >= value.slot_offset + value.slot_count
            _require(free, f"slots {offset}..{end} are in use by {key}")
        self.slots[offset:end] = 0
        self.slots[offset : offset + len(backends)] = backends

    def live_backends(self) -> set[int]:
        """Ids of backends that a listener may select."""
        return {number for key in self.listeners for number in self.turn(key)}

    def turn(self, key: ServiceKey) -> list[int]:
        """The slots of a listener, as XDP would read them."""
        value = self.listeners[key]
        return [int(number) for number in self.slots[value.slot_offset : value.slot_offset + value.slot_count]]

    def vips(self) -> dict[str, int]:
        return dict(self.vip_flags)

    def services(self) -> dict[ServiceKey, ServiceValue]:
        return dict(self.listeners)

    def servers(self) -> dict[ServerKey, int]:
        return dict(self.server_flags)

    def keeps_clients(self) -> bool:
        return True

    def persistent_batches(self, family: str, batch_size: int) -> Iterator[Array]:
        rows = [(client, farm, *value) for (client, farm), value in self.persistent[family].items()]
        for at in range(0, len(rows), batch_size):
            yield np.array(rows[at : at + batch_size], PERSISTENT[family])

    def find_persistent(self, family: str, rows: Array) -> tuple[Array, Array]:
        known, out = self.persistent[family], rows.copy()
        found = np.zeros(len(rows), np.bool_)
        for number, row in enumerate(rows):
            value = known.get((row["client"].tobytes(), int(row["farm"])))
            if value is not None:
                found[number] = True
                out[number] = (row["client"], row["farm"], *value)
        return found, out

    def update_persistent(self, family: str, rows: Array) -> int:
        for row in rows:
            value = int(row["home"]), int(row["backend"]), int(row["last_used"])
            self.persistent[family][row["client"].tobytes(), int(row["farm"])] = value
        return len(rows)

    def set_lease(self, deadline_ns: int, epoch: int) -> None:
        self._lease = (deadline_ns, epoch)

    def lease(self) -> tuple[int, int]:
        return self._lease

    def bump_next_hops(self) -> None:
        self.next_hop_bumps += 1

    def set_tunnel_sources(self, v4: str, v6: str) -> None:
        _require("." in v4 or not v4, f"IPv4 tunnel source {v4}")
        _require(":" in v6 or not v6, f"IPv6 tunnel source {v6}")
        self.tunnel_sources = (v4, v6)
        self.bump_next_hops()

    def set_vlans(self, vlans: Collection[Vlan], untagged: Collection[int]) -> None:
        self.vlan_maps = frozenset(vlans), frozenset(untagged)
        self.bump_next_hops()

    def vlans(self) -> frozenset[Vlan]:
        return self.vlan_maps[0]

    def set_hash_seed(self, seed: int) -> None:
        _require(0 <= seed < 2**32, f"hash seed {seed}")
        self._seed = seed

    def hash_seed(self) -> int:
        return self._seed

    def counters(self) -> dict[str, tuple[int, int]]:
        lost = sum(ring.lost for ring in self.rings.values())
        return {counter.name: (lost if counter.name == "event_ring_full" else 0, 0) for counter in constants.COUNTERS}

    def farm_traffic(self) -> Array:
        return self.farm_counts.copy()

    def backend_traffic(self) -> Array:
        return self.backend_counts.copy()

    def loads(self, kind: str) -> Array | None:
        return self.load_values[kind].copy()

    def loaded_prefixes(self) -> dict[int, tuple[int, int]]:
        return {number: (len(v4) // 5, len(v6) // 17) for number, (v4, v6) in self.prefixes.items()}

    def set_load_bases(self, kind: str, bases: Array) -> None:
        self.load_values[kind]["base"] = bases

    def flow_batches(self, flow_map: str, family: str, batch_size: int) -> Iterator[tuple[Array, Array]]:
        entries = list(self.flow_maps[flow_map, family].items())
        for start in range(0, len(entries), batch_size):
            part = entries[start : start + batch_size]
            yield (
                np.frombuffer(b"".join(key for key, _ in part), dtype=key_dtype(family)).copy(),
                np.frombuffer(b"".join(value for _, value in part), dtype=flow_dtype(family)).copy(),
            )

    def flow_dtypes(self, family: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
        return key_dtype(family), flow_dtype(family)

    def flow_events(self, family: str) -> FakeRing:
        self.rings[family].closed = False  # as the kernel plane, which maps the ring once more
        return self.rings[family]

    def encode_flow_keys(self, family: str, tuples: Sequence[FlowTuple]) -> Array:
        return columns.encode_flow_keys(tuples, key_dtype(family))

    def lookup_flows(self, flow_map: str, family: str, keys: Array) -> tuple[Array, Array]:
        _require(keys.dtype == key_dtype(family), f"keys of {flow_map}_{family}")
        entries = self.flow_maps[flow_map, family]
        found = np.array([key.tobytes() in entries for key in keys], dtype=bool)
        values = np.zeros(len(keys), dtype=flow_dtype(family))
        for index in np.flatnonzero(found):
            values[index] = np.frombuffer(entries[keys[index].tobytes()], dtype=flow_dtype(family))[0]
        return found, values

    def update_flows(self, family: str, keys: Array, values: Array) -> int:
        _require(keys.dtype == key_dtype(family) and values.dtype == flow_dtype(family), f"columns of flows_{family}")
        entries = self.flow_maps["flows", family]
        written = 0
        for key, value in zip(keys, values, strict=True):
            if len(entries) >= 2 * self.max_flows and key.tobytes() not in entries:
                break
            entries[key.tobytes()] = value.tobytes()
            written += 1
        return written

    def delete_flows(self, flow_map: str, family: str, keys: Array) -> int:
        _require(keys.dtype == key_dtype(family), f"keys of {flow_map}_{family}")
        entries = self.flow_maps[flow_map, family]
        return sum(entries.pop(key.tobytes(), None) is not None for key in keys)

    def now_tick(self) -> int:
        return self.tick

    def close(self) -> None:
        self.closed = True


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlaneError(f"fake plane refuses: {message}")


def _canonical(address: str) -> None:
    _require(str(ipaddress.ip_address(address)) == address, f"{address} is not in canonical form")
