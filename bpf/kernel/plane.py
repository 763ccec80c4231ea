"""`DataPlane` on the pinned tables: executes operations in batches, reads counts and flows in bulk.

Decides nothing: what should be in the tables is the planner's business, which flows are idle the expiry's. Knows the tables'
names and layouts, no compiler and no interfaces. One thread at a time may use a `KernelPlane`, except that flow slices
may be read and deleted in another one: those calls keep no state here and release the GIL.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpf import columns, libbpf, xdp
from bpf.constants import COUNTERS, MAX_BACKENDS, MAX_FARMS, MAX_SLOT_CHUNKS, SLOTS_PER_CHUNK, TICK_SHIFT
from bpf.dataplane import (
    Array,
    DeleteService,
    DeleteVip,
    FlowEntry,
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
from bpf.loading.loader import PROGRAM
from bpf.maps import elements
from bpf.maps.event_ring import FlowEvents
from bpf.maps.layout import Layouts
from bpf.maps.pinned_map import Table, sum_over_cpus

FAMILIES = ("v4", "v6")


class KernelPlane:
    """Implements `bpf.dataplane.DataPlane`."""

    def __init__(self, bpf_dir: Path, layouts: Layouts) -> None:
        """Open every table `layouts` names under bpf_dir. Raises PlaneError."""
        self._tables: dict[str, Table] = {}
        self._program = -1
        try:
            for name, layout in layouts.tables.items():
                self._tables[name] = Table(bpf_dir, name, layout)
            self._program = libbpf.obj_get(bpf_dir / PROGRAM)
        except OSError as error:
            self.close()
            raise PlaneError(f"the program pinned in {bpf_dir} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise

    def reopen(self, bpf_dir: Path, layouts: Layouts) -> None:
        """The program was replaced and its tables kept: open the new ones, close those that are gone. Raises PlaneError."""
        new = {name: Table(bpf_dir, name, layout) for name, layout in layouts.tables.items() if name not in self._tables}
        old = self._tables
        self._tables = {name: table for name, table in (old | new).items() if name in layouts.tables}
        for name in old.keys() - layouts.tables.keys():
            old[name].close()
        try:
            program, self._program = self._program, libbpf.obj_get(bpf_dir / PROGRAM)
        except OSError as error:
            raise PlaneError(f"the program pinned in {bpf_dir} cannot be opened: {error}") from error
        os.close(program)

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        self._tables.clear()
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
                reason = "its table cannot hold it"
            raise PlaneError(f"{_describe(group[min(number, len(group) - 1)])} failed: {reason}") from error

    def _executors(self) -> dict[type, Callable[[list[Any]], None]]:
        return {
            PutVip: self._put_vips,
            DeleteVip: self._delete_vips,
            PutService: self._put_services,
            DeleteService: self._delete_services,
            PutBackend: self._put_backends,
            PutSlots: self._put_slots,
            ZeroTraffic: self._zero_traffic,
        }

    def _put_vips(self, group: list[PutVip]) -> None:
        table = self._tables["vips_" + columns.family_of(group[0].address)]
        values = np.zeros(len(group), dtype=table.value)
        values["flags"] = [each.flags for each in group]
        table.put(_vip_keys(table, group), values)

    def _delete_vips(self, group: list[DeleteVip]) -> None:
        table = self._tables["vips_" + columns.family_of(group[0].address)]
        table.remove(_vip_keys(table, group))

    def _put_services(self, group: list[PutService]) -> None:
        table, keys, owners = self._listener_keys([each.key for each in group])
        values = np.zeros(len(group), dtype=table.value)
        for name in ("farm", "slot_offset", "slot_count", "mode", "scheduler", "port_first"):
            values[name] = [getattr(each.value, name) for each in group]
        values["snat_address"] = columns.address_column((each.value.snat_address for each in group), 16)
        try:
            table.put(keys, values[owners])
        except elements.BatchError as error:
            error.done = int(owners[error.done])
            raise

    def _delete_services(self, group: list[DeleteService]) -> None:
        table, keys, _ = self._listener_keys([each.key for each in group])
        table.remove(keys)

    def _listener_keys(self, listeners: list[ServiceKey]) -> tuple[Table, Array, Array]:
        """The table, its keys, and for each key the index of its listener: a range takes several."""
        family, is_range = _listener_table(listeners[0])
        table = self._tables[("ranges_" if is_range else "services_") + family]
        rows = [
            (index, port, length)
            for index, each in enumerate(listeners)
            for port, length in (columns.port_prefixes(each.port, each.port_last) if is_range else ((each.port, 0),))
        ]
        owners = np.array([row[0] for row in rows], dtype=np.intp)
        keys = np.zeros(len(rows), dtype=table.key)
        keys["address"] = columns.address_column((each.address for each in listeners), columns.ADDRESS_BYTES[family])[owners]
        keys["protocol"] = np.array([each.protocol for each in listeners])[owners]
        keys["port"] = [row[1] for row in rows]
        if is_range:
            keys["prefix_length"] = _bits_before_port(table) + np.array([row[2] for row in rows])
        return table, keys, owners

    def _put_backends(self, group: list[PutBackend]) -> None:
        table = self._tables["backends"]
        values = np.zeros(len(group), dtype=table.value)
        values["address"] = columns.address_column((each.address for each in group), 16)
        values["port"] = [each.port for each in group]
        table.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def _put_slots(self, group: list[PutSlots]) -> None:
        table = self._tables["slots"]
        chunks = [-(-len(each.backends) // SLOTS_PER_CHUNK) for each in group]
        rows = np.zeros((sum(chunks), SLOTS_PER_CHUNK), dtype=np.uint32)
        keys = np.empty(len(rows), dtype=np.uint32)
        at = 0
        for each, count in zip(group, chunks, strict=True):
            first = each.offset // SLOTS_PER_CHUNK
            if each.offset % SLOTS_PER_CHUNK or first + count > MAX_SLOT_CHUNKS:
                raise PlaneError(f"{_describe(each)} failed: it does not lie on whole chunks inside the table")
            rows[at : at + count].reshape(-1)[: len(each.backends)] = each.backends
            keys[at : at + count] = np.arange(first, first + count)
            at += count
        table.put(keys, rows.view(table.value).reshape(-1))

    def _zero_traffic(self, group: list[ZeroTraffic]) -> None:
        for name, ids in (
            ("farm_traffic", [number for each in group for number in each.farms]),
            ("backend_traffic", [number for each in group for number in each.backends]),
        ):
            table = self._tables[name]
            table.put(np.array(ids, dtype=np.uint32), np.zeros(len(ids), dtype=f"V{table.value.itemsize}"))

    def vips(self) -> dict[str, int]:
        """What the tables hold: address to VipFlag bits."""
        found: dict[str, int] = {}
        for family in FAMILIES:
            for keys, values in self._tables[f"vips_{family}"].slices(1024):
                texts = (columns.address_text(raw.tobytes()) for raw in keys["address"])
                found |= dict(zip(texts, values["flags"].tolist(), strict=True))
        return found

    def services(self) -> dict[ServiceKey, ServiceValue]:
        """What the tables hold, port ranges put together again."""
        found: dict[ServiceKey, ServiceValue] = {}
        for family in FAMILIES:
            for keys, values in self._tables[f"services_{family}"].slices(1024):
                for key, value in zip(keys, values, strict=True):
                    address = columns.address_text(key["address"].tobytes())
                    port = int(key["port"])
                    found[ServiceKey(address, port, port, int(key["protocol"]))] = _service_value(value, family)
            found |= self._range_services(family)
        return found

    def _range_services(self, family: str) -> dict[ServiceKey, ServiceValue]:
        """Prefixes of one listener are those with the same address, protocol and value: that holds its first port."""
        table = self._tables[f"ranges_{family}"]
        last_ports: dict[tuple[bytes, int, bytes], int] = {}
        for keys, values in table.slices(4096):
            free_bits = columns.PORT_BITS + _bits_before_port(table) - keys["prefix_length"].astype(np.int64)
            lasts = (keys["port"] + (1 << free_bits) - 1).tolist()
            raw_values = values.view(f"V{table.value.itemsize}")
            listeners = zip(keys["address"].tolist(), keys["protocol"].tolist(), raw_values.tolist(), strict=True)
            for listener, last in zip(listeners, lasts, strict=True):
                last_ports[listener] = max(last, last_ports.get(listener, 0))
        found: dict[ServiceKey, ServiceValue] = {}
        for (address, protocol, raw), last in last_ports.items():
            value = _service_value(np.frombuffer(raw, table.value)[0], family)
            found[ServiceKey(columns.address_text(address), value.port_first, last, protocol)] = value
        return found

    # --- the node --------------------------------------------------------------------------------------------

    def set_lease(self, deadline_ns: int, epoch: int) -> None:
        self._write_one("lease", deadline_ns=deadline_ns, epoch=epoch)

    def lease(self) -> tuple[int, int]:
        lease = self._read_one("lease")
        return int(lease["deadline_ns"]), int(lease["epoch"])

    def bump_next_hops(self) -> None:
        """Make every flow ask for its next hop again. Generation 0 means "never resolved" and is skipped."""
        generation = int(self._read_one("globals")["next_hop_generation"])
        self._write_one("globals", next_hop_generation=generation % 0xFFFFFFFF + 1)

    def set_hash_seed(self, seed: int) -> None:
        self._write_one("globals", hash_seed=seed)

    def hash_seed(self) -> int:
        return int(self._read_one("globals")["hash_seed"])

    def _read_one(self, name: str) -> Any:
        table = self._tables[name]
        raw = elements.lookup(table.fd, bytes(4), table.value.itemsize)
        return np.frombuffer(bytearray(raw or bytes(table.value.itemsize)), dtype=table.value)[0]

    def _write_one(self, name: str, **fields: int) -> None:
        row = self._read_one(name)
        for field, value in fields.items():
            row[field] = value
        elements.update(self._tables[name].fd, bytes(4), row.tobytes())

    # --- counts ----------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, tuple[int, int]]:
        sums = sum_over_cpus(self._tables["counters"].all_values())
        return {counter.name: (int(row["packets"]), int(row["bytes"])) for counter, row in zip(COUNTERS, sums, strict=True)}

    def farm_traffic(self) -> Array:
        return sum_over_cpus(self._tables["farm_traffic"].all_values())

    def backend_traffic(self) -> Array:
        return sum_over_cpus(self._tables["backend_traffic"].all_values())

    # --- flows -----------------------------------------------------------------------------------------------

    def flow_dtypes(self, family: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Types of keys and values of the flow tables."""
        table = self._tables[f"flows_{family}"]
        return table.key, table.value

    def flow_slices(self, table: str, family: str, slice_size: int) -> Iterator[tuple[Array, Array]]:
        yield from self._tables[f"{table}_{family}"].slices(slice_size)

    def lookup_flows(self, table: str, family: str, keys: Array) -> tuple[Array, Array]:
        found_in = self._tables[f"{table}_{family}"]
        values = np.zeros(len(keys), dtype=found_in.value)
        return elements.lookup_each(found_in.fd, _rows(keys, found_in.key), values), values

    def update_flows(self, family: str, keys: Array, values: Array) -> int:
        table = self._tables[f"flows_{family}"]
        try:
            return elements.update_batch(table.fd, _rows(keys, table.key), _rows(values, table.value))
        except elements.BatchError as error:
            if error.errno in (errno.E2BIG, errno.ENOMEM, errno.ENOSPC):
                return error.done
            raise PlaneError(f"writing {len(keys)} flows to {table.path} failed: {error}") from error

    def delete_flows(self, table: str, family: str, keys: Array) -> int:
        deleted_from = self._tables[f"{table}_{family}"]
        return elements.delete_batch(deleted_from.fd, _rows(keys, deleted_from.key))

    def encode_flow_keys(self, family: str, tuples: Sequence[FlowTuple]) -> Array:
        """Keys for `lookup_flows` and `delete_flows`."""
        return columns.encode_flow_keys(tuples, self.flow_dtypes(family)[0])

    def decode_flows(self, table: str, keys: Array, values: Array) -> list[FlowEntry]:
        """Rows of a slice as people see them; costs Python per flow."""
        return columns.decode_flows(table, keys, values)

    def now_tick(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT

    # --- the program -----------------------------------------------------------------------------------------

    def test_run(self, packet: bytes, ifindex: int = 0, repeat: int = 1) -> xdp.TestRun:
        """Run the pinned program on a packet; see `xdp.test_run`."""
        return xdp.test_run(self._program, packet, ifindex, repeat)

    def flow_events(self, family: str) -> FlowEvents | None:
        """A reader of the ring that replication drains; None if the program was compiled without it."""
        table = self._tables.get(f"events_{family}")
        return None if table is None else FlowEvents(table.fd, table.value, table.max_entries)


def _rows(items: Array, dtype: np.dtype[Any]) -> Array:
    """As the kernel has them: numpy makes network byte order native whenever it joins arrays."""
    return np.ascontiguousarray(items, dtype=dtype)


def _batch_of(operation: Operation) -> tuple[type, Any]:
    """Operations that are equal in this may go to the kernel together."""
    match operation:
        case PutVip(address) | DeleteVip(address):
            return type(operation), columns.family_of(address)
        case PutService(key) | DeleteService(key):
            return type(operation), _listener_table(key)
        case _:
            return type(operation), None


def _listener_table(key: ServiceKey) -> tuple[columns.Family, bool]:
    return columns.family_of(key.address), key.port != key.port_last


def _describe(operation: Any) -> str:
    match operation:
        case PutVip(address) | DeleteVip(address):
            return f"{type(operation).__name__} {address}"
        case PutService(key) | DeleteService(key):
            ports = str(key.port) if key.port == key.port_last else f"{key.port}-{key.port_last}"
            return f"{type(operation).__name__} {key.address} port {ports} protocol {key.protocol}"
        case PutBackend(number, address, port):
            return f"PutBackend {number} ({address} port {port}, ids below {MAX_BACKENDS})"
        case PutSlots(offset, backends):
            return f"PutSlots {offset}..{offset + len(backends) - 1}"
        case _:
            return f"{type(operation).__name__} (farm ids below {MAX_FARMS}, backend ids below {MAX_BACKENDS})"


def _vip_keys(table: Table, group: Sequence[PutVip | DeleteVip]) -> Array:
    keys = np.zeros(len(group), dtype=table.key)
    keys["address"] = columns.address_column((each.address for each in group), table.key["address"].itemsize)
    return keys


def _bits_before_port(table: Table) -> int:
    """Bits of a range's key between the prefix length and the port: they always count."""
    fields: Mapping[str, Any] = table.key.fields or {}
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
