"""`DataPlane` on the pinned maps: executes operations in batches, reads counters and flows in bulk.

Decides nothing: the planner decides the entries of the maps, the expiry which flows are idle. Knows the names and layouts of
the maps; must not know the compiler nor interfaces. One thread at a time may use a `KernelPlane`, except that flow slices may
be read and deleted in another one: those calls keep no state here and release the GIL.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpf import columns, libbpf, xdp
from bpf.constants import (
    COUNTERS,
    MAX_BACKENDS,
    MAX_FARMS,
    MAX_PREFIXES,
    MAX_SLOT_CHUNKS,
    MAX_SNAT_ADDRESSES,
    SLOTS_PER_CHUNK,
    TICK_SHIFT,
    BackendFlag,
)
from bpf.dataplane import (
    Array,
    DeletePrefixes,
    DeleteServer,
    DeleteService,
    DeleteVip,
    FlowEntry,
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
from bpf.kernel.affinity import AffinityMaps
from bpf.kernel.limits import LimitMaps
from bpf.kernel.vlans import VlanMaps
from bpf.loading.loader import PROGRAM
from bpf.maps import elements
from bpf.maps.event_ring import FlowEvents
from bpf.maps.layout import Layouts
from bpf.maps.pinned_map import PinnedMap, sum_over_cpus

FAMILIES = ("v4", "v6")


class KernelPlane:
    """Implements `bpf.dataplane.DataPlane`."""

    def __init__(self, bpf_dir: Path, layouts: Layouts) -> None:
        """Open the maps of `layouts` under bpf_dir. Raises PlaneError."""
        self._maps: dict[str, PinnedMap] = {}
        self._limits = LimitMaps({})
        self._program = -1
        try:
            for name, layout in layouts.maps.items():
                self._maps[name] = PinnedMap(bpf_dir, name, layout)
            self._limits = LimitMaps(self._maps)
            self._program = libbpf.obj_get(bpf_dir / PROGRAM)
        except OSError as error:
            self.close()
            raise PlaneError(f"the program pinned in {bpf_dir} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise

    def reopen(self, bpf_dir: Path, layouts: Layouts) -> None:
        """After the program was replaced and its maps kept: open new maps, close removed ones. Raises PlaneError."""
        new = {name: PinnedMap(bpf_dir, name, layout) for name, layout in layouts.maps.items() if name not in self._maps}
        old = self._maps
        self._maps = {name: bpf_map for name, bpf_map in (old | new).items() if name in layouts.maps}
        for name in old.keys() - layouts.maps.keys():
            old[name].close()
        self._limits = LimitMaps(self._maps)
        try:
            program, self._program = self._program, libbpf.obj_get(bpf_dir / PROGRAM)
        except OSError as error:
            raise PlaneError(f"the program pinned in {bpf_dir} cannot be opened: {error}") from error
        os.close(program)

    @property
    def _affinity(self) -> AffinityMaps:
        return AffinityMaps(self._maps)

    def close(self) -> None:
        for bpf_map in self._maps.values():
            bpf_map.close()
        self._maps.clear()
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    # --- configuration ---------------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation]) -> None:
        """Execute in order, neighbours of a kind in one batch. Raises PlaneError naming the operation that failed."""
        for (kind, _), group in itertools.groupby(operations, key=_batch_of):
            self._execute(kind, list(group))

    def _execute(self, kind: type, group: list[Any]) -> None:
        execute = self._executors()[kind]
        try:
            execute(group)
        except OSError as error:
            number = error.done if isinstance(error, elements.BatchError) else 0
            reason = os.strerror(error.errno or 0)
            if error.errno in (errno.E2BIG, errno.ENOSPC):
                reason = "the map is full, or the id is out of range"
            raise PlaneError(f"{_describe(group[min(number, len(group) - 1)])} failed: {reason}") from error

    def _executors(self) -> dict[type, Callable[[list[Any]], None]]:
        affinity = self._affinity
        return {
            PutAffinity: affinity.put_farms,
            PutBackendAffinity: affinity.put_backends,
            PutQuicServers: affinity.put_quic_servers,
            PutVip: self._put_vips,
            DeleteVip: self._delete_vips,
            PutService: self._put_services,
            DeleteService: self._delete_services,
            PutServer: self._put_servers,
            DeleteServer: self._delete_servers,
            PutFarm: self._put_farms,
            PutMembers: self._put_members,
            PutBackend: self._put_backends,
            PutSlots: self._put_slots,
            PutFarmLimits: self._limits.put_farms,
            PutBackendLimits: self._limits.put_backends,
            PutPrefixes: self._limits.put_prefixes,
            DeletePrefixes: self._limits.delete_prefixes,
            KeepPrefixes: self._limits.keep_prefixes,
            ZeroTraffic: self._zero_traffic,
        }

    def _put_vips(self, group: list[PutVip]) -> None:
        bpf_map = self._maps["vips_" + columns.family_of(group[0].address)]
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["flags"] = [each.flags for each in group]
        bpf_map.put(_vip_keys(bpf_map, group), values)

    def _delete_vips(self, group: list[DeleteVip]) -> None:
        bpf_map = self._maps["vips_" + columns.family_of(group[0].address)]
        bpf_map.remove(_vip_keys(bpf_map, group))

    def _put_services(self, group: list[PutService]) -> None:
        bpf_map, keys, owners = self._listener_keys([each.key for each in group])
        values = np.zeros(len(group), dtype=bpf_map.value)
        for name in ("farm", "slot_offset", "slot_count", "mode", "scheduler", "port_first"):
            values[name] = [getattr(each.value, name) for each in group]
        values["snat_address"] = columns.address_column((each.value.snat_address for each in group), 16)
        try:
            bpf_map.put(keys, values[owners])
        except elements.BatchError as error:
            error.done = int(owners[error.done])
            raise

    def _delete_services(self, group: list[DeleteService]) -> None:
        bpf_map, keys, _ = self._listener_keys([each.key for each in group])
        bpf_map.remove(keys)

    def _listener_keys(self, listeners: list[ServiceKey]) -> tuple[PinnedMap, Array, Array]:
        """The map, its keys, and for each key the index of its listener: a port range has several keys."""
        family, is_range = _listener_map(listeners[0])
        bpf_map = self._maps[("ranges_" if is_range else "services_") + family]
        rows = [
            (index, port, length)
            for index, each in enumerate(listeners)
            for port, length in (columns.port_prefixes(each.port, each.port_last) if is_range else ((each.port, 0),))
        ]
        owners = np.array([row[0] for row in rows], dtype=np.intp)
        keys = np.zeros(len(rows), dtype=bpf_map.key)
        keys["address"] = columns.address_column((each.address for each in listeners), columns.ADDRESS_BYTES[family])[owners]
        keys["protocol"] = np.array([each.protocol for each in listeners])[owners]
        keys["port"] = [row[1] for row in rows]
        if is_range:
            keys["prefix_length"] = _bits_before_port(bpf_map) + np.array([row[2] for row in rows])
        return bpf_map, keys, owners

    def _put_servers(self, group: list[PutServer]) -> None:
        bpf_map, keys = self._server_keys([each.key for each in group])
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["flags"] = [each.flags for each in group]
        bpf_map.put(keys, values)

    def _delete_servers(self, group: list[DeleteServer]) -> None:
        bpf_map, keys = self._server_keys([each.key for each in group])
        bpf_map.remove(keys)

    def _server_keys(self, servers: list[ServerKey]) -> tuple[PinnedMap, Array]:
        family, is_range = _server_map(servers[0])
        bpf_map = self._maps[("server_ranges_" if is_range else "servers_") + family]
        keys = np.zeros(len(servers), dtype=bpf_map.key)
        keys["address"] = columns.address_column((each.address for each in servers), columns.ADDRESS_BYTES[family])
        keys["protocol"] = [each.protocol for each in servers]
        keys["port"] = [each.port for each in servers]
        if is_range:
            keys["prefix_length"] = _bits_before_port(bpf_map) + np.array([each.port_bits for each in servers])
        return bpf_map, keys

    def _put_farms(self, group: list[PutFarm]) -> None:
        bpf_map = self._maps["farm_settings"]
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["flags"] = [each.flags for each in group]
        for family in FAMILIES:
            of_family = [[address for address in each.snat if columns.family_of(address) == family] for each in group]
            values[f"snat_count_{family}"] = [len(addresses) for addresses in of_family]
            width = columns.ADDRESS_BYTES[family] * MAX_SNAT_ADDRESSES
            for row, addresses in enumerate(of_family):
                packed = b"".join(map(columns.address_bytes, addresses))
                values[f"snat_{family}_address"][row] = np.void(packed.ljust(width, b"\0"))
        bpf_map.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def _put_members(self, group: list[PutMembers]) -> None:
        for each in group:
            for family in FAMILIES:
                bpf_map = self._maps[f"members_{family}"]
                wanted = [address for address in sorted(each.addresses) if columns.family_of(address) == family]
                keys = np.zeros(len(wanted), dtype=bpf_map.key)
                keys["address"] = columns.address_column(wanted, columns.ADDRESS_BYTES[family])
                keys["farm"] = each.farm
                for found, _ in list(bpf_map.slices(4096)):
                    stale = found[(found["farm"] == each.farm) & ~np.isin(found["address"], keys["address"])]
                    if len(stale):
                        bpf_map.remove(stale)
                if len(keys):
                    bpf_map.put(keys, np.zeros(len(keys), dtype=bpf_map.value))

    def _put_backends(self, group: list[PutBackend]) -> None:
        bpf_map = self._maps["backends"]
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["address"] = columns.address_column((each.address for each in group), 16)
        values["port"] = [each.port for each in group]
        values["flags"] = [each.flags | (BackendFlag.V6 if ":" in each.address else 0) for each in group]
        bpf_map.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def _put_slots(self, group: list[PutSlots]) -> None:
        bpf_map = self._maps["slots"]
        chunks = [-(-len(each.backends) // SLOTS_PER_CHUNK) for each in group]
        rows = np.zeros((sum(chunks), SLOTS_PER_CHUNK), dtype=np.uint32)
        keys = np.empty(len(rows), dtype=np.uint32)
        at = 0
        for each, count in zip(group, chunks, strict=True):
            first = each.offset // SLOTS_PER_CHUNK
            if each.offset % SLOTS_PER_CHUNK or first + count > MAX_SLOT_CHUNKS:
                raise PlaneError(f"{_describe(each)} failed: it is not aligned to chunks, or exceeds the map")
            rows[at : at + count].reshape(-1)[: len(each.backends)] = each.backends
            keys[at : at + count] = np.arange(first, first + count)
            at += count
        bpf_map.put(keys, rows.view(bpf_map.value).reshape(-1))

    def _zero_traffic(self, group: list[ZeroTraffic]) -> None:
        for name, ids in (
            ("farm_traffic", [number for each in group for number in each.farms]),
            ("backend_traffic", [number for each in group for number in each.backends]),
        ):
            bpf_map = self._maps[name]
            bpf_map.put(np.array(ids, dtype=np.uint32), np.zeros(len(ids), dtype=f"V{bpf_map.value.itemsize}"))

    def vips(self) -> dict[str, int]:
        """The VIPs in the maps: address to VipFlag bits."""
        found: dict[str, int] = {}
        for family in FAMILIES:
            for keys, values in self._maps[f"vips_{family}"].slices(1024):
                addresses = (columns.address_text(raw.tobytes()) for raw in keys["address"])
                found |= dict(zip(addresses, values["flags"].tolist(), strict=True))
        return found

    def services(self) -> dict[ServiceKey, ServiceValue]:
        """The listeners in the maps, with the prefixes of a port range joined."""
        found: dict[ServiceKey, ServiceValue] = {}
        for family in FAMILIES:
            for keys, values in self._maps[f"services_{family}"].slices(1024):
                for key, value in zip(keys, values, strict=True):
                    address = columns.address_text(key["address"].tobytes())
                    port = int(key["port"])
                    found[ServiceKey(address, port, port, int(key["protocol"]))] = _service_value(value, family)
            found |= self._range_services(family)
        return found

    def servers(self) -> dict[ServerKey, int]:
        """The services of backends in the maps: key to ServerFlag bits."""
        found: dict[ServerKey, int] = {}
        for name in (f"{kind}_{family}" for kind in ("servers", "server_ranges") for family in FAMILIES):
            bpf_map = self._maps[name]
            bits_before = _bits_before_port(bpf_map) if name.startswith("server_ranges") else 0
            for keys, values in bpf_map.slices(4096):
                for key, flags in zip(keys, values["flags"].tolist(), strict=True):
                    bits = int(key["prefix_length"]) - bits_before if bits_before else columns.PORT_BITS
                    address = columns.address_text(key["address"].tobytes())
                    found[ServerKey(address, int(key["protocol"]), int(key["port"]), bits)] = flags
        return found

    def _range_services(self, family: str) -> dict[ServiceKey, ServiceValue]:
        """The prefixes of a farm's ranges on an address have the same protocol and value; those that adjoin are one range."""
        bpf_map = self._maps[f"ranges_{family}"]
        prefixes: dict[tuple[bytes, int, bytes], list[tuple[int, int]]] = {}
        for keys, values in bpf_map.slices(4096):
            free_bits = columns.PORT_BITS + _bits_before_port(bpf_map) - keys["prefix_length"].astype(np.int64)
            firsts, lasts = keys["port"].tolist(), (keys["port"] + (1 << free_bits) - 1).tolist()
            raw_values = values.view(f"V{bpf_map.value.itemsize}")
            listeners = zip(keys["address"].tolist(), keys["protocol"].tolist(), raw_values.tolist(), strict=True)
            for listener, first, last in zip(listeners, firsts, lasts, strict=True):
                prefixes.setdefault(listener, []).append((first, last))
        found: dict[ServiceKey, ServiceValue] = {}
        for (address, protocol, raw), ranges in prefixes.items():
            value = _service_value(np.frombuffer(raw, bpf_map.value)[0], family)
            for first, last in columns.joined(ranges):
                found[ServiceKey(columns.address_text(address), first, last, protocol)] = value
        return found

    # --- the node --------------------------------------------------------------------------------------------

    def set_lease(self, deadline_ns: int, epoch: int) -> None:
        self._write_one("lease", deadline_ns=deadline_ns, epoch=epoch)

    def lease(self) -> tuple[int, int]:
        lease = self._read_one("lease")
        return int(lease["deadline_ns"]), int(lease["epoch"])

    def bump_next_hops(self) -> None:
        """Invalidate the cached next hop of all flows. Skips generation 0, which means "never resolved"."""
        generation = int(self._read_one("globals")["next_hop_generation"])
        self._write_one("globals", next_hop_generation=generation % 0xFFFFFFFF + 1)

    def set_tunnel_sources(self, v4: str, v6: str) -> None:
        """The outer sources of mode ipip. Raises PlaneError unless the program was built with it."""
        bpf_map = self._maps.get("tunnel_sources")
        if bpf_map is None:
            raise PlaneError("the program was built without mode ipip")
        values = np.zeros(len(FAMILIES), dtype=bpf_map.value)
        values["address"] = columns.address_column((v4 or "0.0.0.0", v6 or "::"), 16)
        bpf_map.put(np.arange(len(FAMILIES), dtype=np.uint32), values)
        self.bump_next_hops()

    def set_vlans(self, vlans: Collection[Vlan], untagged: Collection[int]) -> None:
        """Handle the frames of these VLANs. Raises PlaneError if the program was built without them, or the kernel refuses."""
        try:
            VlanMaps(self._maps).write(vlans, untagged)
        except OSError as error:
            raise PlaneError(f"writing {len(vlans)} VLANs failed: {error.strerror}") from error
        self.bump_next_hops()

    def vlans(self) -> frozenset[Vlan]:
        """The VLANs whose frames are handled; none if the program was built without them."""
        return VlanMaps(self._maps).read()

    def set_hash_seed(self, seed: int) -> None:
        self._write_one("globals", hash_seed=seed)

    def hash_seed(self) -> int:
        return int(self._read_one("globals")["hash_seed"])

    def _read_one(self, name: str) -> Any:
        bpf_map = self._maps[name]
        raw = elements.lookup(bpf_map.fd, bytes(4), bpf_map.value.itemsize)
        return np.frombuffer(bytearray(raw or bytes(bpf_map.value.itemsize)), dtype=bpf_map.value)[0]

    def _write_one(self, name: str, **fields: int) -> None:
        row = self._read_one(name)
        for field, value in fields.items():
            row[field] = value
        elements.update(self._maps[name].fd, bytes(4), row.tobytes())

    # --- counts ----------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, tuple[int, int]]:
        sums = sum_over_cpus(self._maps["counters"].all_values())
        return {counter.name: (int(row["packets"]), int(row["bytes"])) for counter, row in zip(COUNTERS, sums, strict=True)}

    def farm_traffic(self) -> Array:
        return sum_over_cpus(self._maps["farm_traffic"].all_values())

    def backend_traffic(self) -> Array:
        return sum_over_cpus(self._maps["backend_traffic"].all_values())

    def loads(self, kind: str) -> Array | None:
        return self._limits.loads(kind)

    def set_load_bases(self, kind: str, bases: Array) -> None:
        self._limits.set_bases(kind, bases)

    # --- flows -----------------------------------------------------------------------------------------------

    def flow_dtypes(self, family: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Types of keys and values of the flow maps."""
        bpf_map = self._maps[f"flows_{family}"]
        return bpf_map.key, bpf_map.value

    def flow_batches(self, flow_map: str, family: str, batch_size: int) -> Iterator[tuple[Array, Array]]:
        yield from self._maps[f"{flow_map}_{family}"].slices(batch_size)

    def lookup_flows(self, flow_map: str, family: str, keys: Array) -> tuple[Array, Array]:
        found_in = self._maps[f"{flow_map}_{family}"]
        values = np.zeros(len(keys), dtype=found_in.value)
        return elements.lookup_each(found_in.fd, _rows(keys, found_in.key), values), values

    def update_flows(self, family: str, keys: Array, values: Array) -> int:
        bpf_map = self._maps[f"flows_{family}"]
        try:
            return elements.update_batch(bpf_map.fd, _rows(keys, bpf_map.key), _rows(values, bpf_map.value))
        except elements.BatchError as error:
            if error.errno in (errno.E2BIG, errno.ENOMEM, errno.ENOSPC):
                return error.done
            raise PlaneError(f"writing {len(keys)} flows to {bpf_map.path} failed: {error}") from error

    def delete_flows(self, flow_map: str, family: str, keys: Array) -> int:
        deleted_from = self._maps[f"{flow_map}_{family}"]
        return elements.delete_batch(deleted_from.fd, _rows(keys, deleted_from.key))

    def encode_flow_keys(self, family: str, tuples: Sequence[FlowTuple]) -> Array:
        """Keys for `lookup_flows` and `delete_flows`."""
        return columns.encode_flow_keys(tuples, self.flow_dtypes(family)[0])

    def decode_flows(self, flow_map: str, keys: Array, values: Array) -> list[FlowEntry]:
        """Rows of a slice as entries. Slow: Python per flow."""
        return columns.decode_flows(flow_map, keys, values)

    def keeps_clients(self) -> bool:
        return "persistent_v4" in self._maps

    def persistent_batches(self, family: str, batch_size: int) -> Iterator[Array]:
        yield from self._affinity.batches(family, batch_size)

    def find_persistent(self, family: str, rows: Array) -> tuple[Array, Array]:
        return self._affinity.find(family, rows)

    def update_persistent(self, family: str, rows: Array) -> int:
        return self._affinity.update(family, rows)

    def now_tick(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT

    # --- the program -----------------------------------------------------------------------------------------

    def test_run(self, packet: bytes, ifindex: int = 0, repeat: int = 1) -> xdp.TestRun:
        """Run the pinned program on a packet; see `xdp.test_run`."""
        return xdp.test_run(self._program, packet, ifindex, repeat)

    def flow_events(self, family: str) -> FlowEvents | None:
        """A reader of the ring of flow events; None if the program was compiled without replication."""
        bpf_map = self._maps.get(f"events_{family}")
        return None if bpf_map is None else FlowEvents(bpf_map.fd, bpf_map.value, bpf_map.max_entries)


def _rows(items: Array, dtype: np.dtype[Any]) -> Array:
    """In the kernel's layout: numpy converts network byte order to native when it joins arrays."""
    return np.ascontiguousarray(items, dtype=dtype)


def _batch_of(operation: Operation) -> tuple[type, Any]:
    """Operations with equal results may be executed in one batch."""
    match operation:
        case PutVip(address) | DeleteVip(address):
            return type(operation), columns.family_of(address)
        case PutService(key) | DeleteService(key):
            return type(operation), _listener_map(key)
        case PutServer(key) | DeleteServer(key):
            return type(operation), _server_map(key)
        case _:
            return type(operation), None


def _listener_map(key: ServiceKey) -> tuple[columns.Family, bool]:
    return columns.family_of(key.address), key.port != key.port_last


def _server_map(key: ServerKey) -> tuple[columns.Family, bool]:
    return columns.family_of(key.address), key.port_bits != columns.PORT_BITS


def _describe(operation: Any) -> str:
    match operation:
        case PutVip(address) | DeleteVip(address):
            return f"{type(operation).__name__} {address}"
        case PutService(key) | DeleteService(key):
            ports = str(key.port) if key.port == key.port_last else f"{key.port}-{key.port_last}"
            return f"{type(operation).__name__} {key.address} port {ports} protocol {key.protocol}"
        case PutBackend(number, address, port):
            return f"PutBackend {number} ({address} port {port}, ids below {MAX_BACKENDS})"
        case PutMembers(number) | PutQuicServers(number):
            return f"{type(operation).__name__} of farm {number}"
        case PutServer(key) | DeleteServer(key):
            return f"{type(operation).__name__} {key.address} port {key.port}/{key.port_bits} protocol {key.protocol}"
        case PutFarmLimits(number):
            return f"PutFarmLimits {number} (ids below {MAX_FARMS})"
        case PutBackendLimits(number):
            return f"PutBackendLimits {number} (ids below {MAX_BACKENDS})"
        case PutPrefixes(number) | DeletePrefixes(number):
            return f"{type(operation).__name__} of list {number:#x} (at most {MAX_PREFIXES} per family)"
        case PutFarm(number):
            return f"PutFarm {number} (ids below {MAX_FARMS})"
        case PutSlots(offset, backends):
            return f"PutSlots {offset}..{offset + len(backends) - 1}"
        case _:
            return f"{type(operation).__name__} (farm ids below {MAX_FARMS}, backend ids below {MAX_BACKENDS})"


def _vip_keys(bpf_map: PinnedMap, group: Sequence[PutVip | DeleteVip]) -> Array:
    keys = np.zeros(len(group), dtype=bpf_map.key)
    keys["address"] = columns.address_column((each.address for each in group), bpf_map.key["address"].itemsize)
    return keys


def _bits_before_port(bpf_map: PinnedMap) -> int:
    """Bits in the key of a port range between the prefix length and the port: always compared."""
    fields: Mapping[str, Any] = bpf_map.key.fields or {}
    return 8 * (int(fields["port"][1]) - 4)


def _service_value(value: Any, family: str) -> ServiceValue:
    snat = value["snat_address"].tobytes()[: columns.ADDRESS_BYTES[family]]
    return ServiceValue(
        farm=int(value["farm"]),
        slot_offset=int(value["slot_offset"]),
        slot_count=int(value["slot_count"]),
        mode=int(value["mode"]),
        scheduler=int(value["scheduler"]),
        port_first=int(value["port_first"]),
        snat_address=columns.address_text(snat),
    )
