"""The program under test, and its maps entry by entry: as fast as Python allows, because millions of packets are compared."""

from __future__ import annotations

import ctypes as ct
import os
import struct
from collections.abc import Sequence

import numpy as np

from bpf import libbpf, xdp
from bpf.constants import COUNTERS, RING_BYTES
from bpf.dataplane import PutAffinity, PutBackendAffinity, PutBackendLimits, PutFarmLimits, ZeroTraffic
from bpf.maps import elements
from bpf.maps.pinned_map import PinnedMap
from ctl.cluster.flows.source import make_codec
from ctl.dataplane.kernel import flow_maps
from ctl.dataplane.loads import loads_of
from tests.bpf.bed import Bed
from tests.bpf.tagged_bed import TaggedBed
from tests.model.datapath import DROP
from tests.model.encoding import FLOWS, KEYS, decode_key, decode_row, encode_flow, encode_key
from tests.model.state import Client, Flow, Key

FAMILIES = {4: "v4", 16: "v6"}
FARMS, BACKENDS = 16, 256
"""Ids below these are compared."""


class Kernel:
    """One bed. All methods are called by one thread, in its namespace."""

    def __init__(self, bed: Bed, cpus: Sequence[int] = (0,)) -> None:
        """cpus: that packets may arrive on."""
        self.bed, self.plane = bed, bed.plane
        self._allowed = cpus
        self.cpus = libbpf.possible_cpus()
        maps: dict[str, PinnedMap] = bed.plane._maps
        self._fds = {name: each.fd for name, each in maps.items()}
        self._lookup, self._test_run = elements._library().bpf_map_lookup_elem, xdp._library().bpf_prog_test_run_opts
        self._value = ct.create_string_buffer(max(256, 16 * self.cpus))
        self._per_cpu = struct.Struct(f"<{2 * self.cpus}Q")
        self._input, self._output = ct.create_string_buffer(4096), ct.create_string_buffer(4096)
        self._context = xdp._XdpContext()
        self._options = xdp._TestRunOptions(sz=ct.sizeof(xdp._TestRunOptions), repeat=1)
        self._options.data_in, self._options.data_out = ct.addressof(self._input), ct.addressof(self._output)
        self._options.ctx_in, self._options.ctx_size_in = ct.addressof(self._context), ct.sizeof(self._context)
        self._events = {size: bed.plane.flow_events(family) for size, family in FAMILIES.items()}
        self._read_to: dict[int, int] = {}  # of rings that seem to be read by nobody: how far they are
        self._codec = make_codec(bed.plane)
        self._counters = self._array("counters", len(COUNTERS))
        self._farms, self._backends = self._array("farm_traffic", FARMS), self._array("backend_traffic", BACKENDS)

    def _array(self, name: str, count: int) -> tuple[int, np.ndarray, np.ndarray]:
        item = self.plane._maps[name].value.itemsize
        return self._fds[name], np.empty(count, np.uint32), np.empty(count * item // 8, np.uint64)

    def interface(self, name: str) -> int:
        """Its number."""
        if isinstance(self.bed, TaggedBed):
            return self.bed.indexes[name]
        return self.bed.in0 if name == "in0" else self.bed.out0

    def has(self, feature: str) -> bool:
        """Whether the program was built with it."""
        return bool(self.bed.features.get(feature))

    def enter(self) -> None:
        """Move this thread into the bed's namespace."""
        self.bed.namespace.enter()

    def reset(self) -> None:
        """No configuration, no flows; turns and budgets of answers from the start; on the first CPU."""
        self.stall_reader(None)
        self.bed.reset()
        self.plane.apply([ZeroTraffic(tuple(range(1, FARMS)), tuple(range(1, BACKENDS)))])
        for name, count in (("rotation", FARMS), ("error_budget", 2), ("pressures", 2)):
            for number in range(count):
                elements.update(self._fds[name], number.to_bytes(4, "little"), bytes(self.plane._maps[name].value.itemsize))
        self._clear_features()
        if isinstance(self.bed, TaggedBed):
            self.plane.set_vlans([], tuple(self.bed.indexes.values()))
        if self.has("ipip"):
            self.plane.set_tunnel_sources("", "")
        self.events()

    def run(self, frame: bytes, ingress: int) -> tuple[int, bytes]:
        """XDP action and the frame as it leaves: none if it is dropped."""
        options, size = self._options, len(frame)
        ct.memmove(self._input, frame, size)
        options.data_size_in, options.data_size_out = size, 4096
        self._context.data, self._context.data_end, self._context.ingress_ifindex = 0, size, ingress
        code = self._test_run(self.bed.plane._program, ct.byref(options))
        if code < 0:
            raise libbpf.failure(code, f"run the program on {size} bytes")
        return options.retval, b"" if options.retval == DROP else self._output.raw[: options.data_size_out]

    def move_to_cpu(self, number: int) -> int:
        """Which CPU it is."""
        cpu = self._allowed[number % len(self._allowed)]
        os.sched_setaffinity(0, {cpu})
        return cpu

    def stall_reader(self, space: int | None) -> None:
        """Let the rings seem so full that this number of events fits; None: as empty as they are."""
        for size, ring in self._events.items():
            if ring is None:
                continue
            if size in self._read_to:
                ring._consumed[0] = self._read_to.pop(size)
            if space is not None:
                self._read_to[size] = int(ring._consumed[0])
                most = int(ring._produced[0]) + space * ring._slot.itemsize - (RING_BYTES - 1)
                ring._consumed[0] = most & 0xFFFFFFFFFFFFFFFF

    def set_clock(self, now_ns: int) -> None:
        elements.update(self._fds["test_clock"], bytes(4), now_ns.to_bytes(8, "little"))

    def flow(self, table: str, key: Key) -> tuple[object, ...] | None:
        """An entry; None: there is none."""
        if self._lookup(self._fds[table], encode_key(key), self._value) < 0:
            return None
        if table.startswith("direct"):
            return ()
        return decode_row(self._value.raw[: 48 if len(key.source) == 4 else 72])

    def insert(self, table: str, key: Key, flow: Flow) -> None:
        elements.update(self._fds[table], encode_key(key), encode_flow(key, flow))

    def counters(self) -> list[int]:
        """Packets and bytes of each counter in turn."""
        return self._read(self._counters, 2)

    def counter(self, number: int) -> tuple[int, int]:
        """Packets and bytes of one counter."""
        if self._lookup(self._fds["counters"], number.to_bytes(4, "little"), self._value) < 0:
            raise LookupError(f"there is no counter {number}")
        numbers = self._per_cpu.unpack_from(self._value)
        return sum(numbers[::2]), sum(numbers[1::2])

    def traffic(self) -> tuple[list[int], list[int]]:
        """The fields of each farm, and of each backend, in turn."""
        return self._read(self._farms, 6), self._read(self._backends, 6)

    def _read(self, array: tuple[int, np.ndarray, np.ndarray], fields: int) -> list[int]:
        fd, keys, values = array
        elements.lookup_batch(fd, None, keys, values)
        numbers: list[int] = values.reshape(-1, self.cpus, fields).sum(axis=1).reshape(-1).tolist()
        return numbers

    def events(self) -> list[tuple[int, Key, tuple[object, ...]]]:
        """What the program has reported to the peer since the last call."""
        found = []
        for size, ring in self._events.items():
            if ring is None:
                continue
            seen = int(ring._consumed[0])
            if size in self._read_to:
                ring._consumed[0] = self._read_to[size]
            if not ring.backlog():
                ring._consumed[0] = seen
                continue
            key_bytes, flow_bytes = KEYS[size].size, FLOWS[size].size
            for record in ring.read(1 << 16):
                raw = record.tobytes()
                row = decode_row(raw[key_bytes : key_bytes + flow_bytes])
                found.append((raw[key_bytes + flow_bytes], decode_key(raw[:key_bytes]), row))
            if size in self._read_to:
                self._read_to[size] = int(ring._consumed[0])
                ring._consumed[0] = seen
        return found

    def table(self, name: str) -> dict[Key, tuple[object, ...]]:
        """All entries of a flow map."""
        table, family = name.split("_")
        found: dict[Key, tuple[object, ...]] = {}
        for keys, values in self.plane.flow_batches(table, family, 4096):
            for key, value in zip(keys, values, strict=True):
                found[decode_key(key.tobytes())] = () if table == "direct" else decode_row(value.tobytes())
        return found

    def persistent(self) -> dict[tuple[bytes, int], tuple[int, int, int]]:
        """Home, backend and last use by client prefix and farm."""
        return {
            (row["client"].tobytes(), int(row["farm"])): (int(row["home"]), int(row["backend"]), int(row["last_used"]))
            for family in FAMILIES.values()
            for rows in self.plane.persistent_batches(family, 4096)
            for row in rows
        }

    def first_data(self) -> dict[Key, int]:
        """The map of TOA."""
        found: dict[Key, int] = {}
        for family in FAMILIES.values() if self.has("toa") else ():
            for keys, values in self.plane._maps[f"toa_{family}"].slices(4096):
                found |= {decode_key(key.tobytes()): int(value) for key, value in zip(keys, values, strict=True)}
        return found

    def loads(self, kind: str, count: int) -> list[int]:
        """Connections of the first farms or backends, by id."""
        name = f"{kind}_loads"
        keys, values = np.empty(count, np.uint32), np.empty(count, self.plane._maps[name].value)
        elements.lookup_batch(self._fds[name], None, keys, values)
        numbers: list[int] = loads_of(values).tolist()
        return numbers

    def pressure(self) -> dict[int, tuple[int, int, int]]:
        """Opened, window and until, by address length."""
        values = self.plane._maps["pressures"].all_values()
        rows = values[["opened", "window", "until"]].tolist()
        return dict(zip(FAMILIES, rows, strict=True))

    def half_open(self) -> dict[Client, tuple[int, list[int]]]:
        """The present window and the counts of clients."""
        return {
            (int(key["farm"]), key["prefix"].tobytes()): (int(value["window"]), value["opened"].tolist())
            for family in FAMILIES.values()
            if self.has("half_open")
            for keys, values in self.plane._maps[f"half_open_{family}"].slices(4096)
            for key, value in zip(keys, values, strict=True)
        }

    def rates(self) -> dict[Client, int]:
        """When the bucket of each client will be full."""
        return {
            (int(key["farm"]), key["prefix"].tobytes()): int(value)
            for family in FAMILIES.values()
            if self.has("rate")
            for keys, values in self.plane._maps[f"rates_{family}"].slices(4096)
            for key, value in zip(keys, values, strict=True)
        }

    def _clear_features(self) -> None:
        for name, bpf_map in self.plane._maps.items():
            if name in ("farm_loads", "backend_loads"):
                count = FARMS if name == "farm_loads" else BACKENDS
                bpf_map.put(np.arange(count, dtype=np.uint32), np.zeros(count, bpf_map.value))
            if name.startswith(("persistent_", "toa_", "quic_servers", "rates_", "half_open_", "prefixes_")):
                for keys, _ in list(bpf_map.slices(4096)):
                    bpf_map.remove(keys)
        if "farm_limits" in self._fds:
            self.plane.apply([PutFarmLimits(farm) for farm in range(1, FARMS)])
        if self.has("loads"):
            self.plane.apply([PutBackendLimits(number, 0, 0) for number in range(1, BACKENDS)])
        if self.has("persistence") or self.has("quic"):
            self.plane.apply([PutAffinity(farm) for farm in range(1, FARMS)])
            self.plane.apply([PutBackendAffinity(number, 0, False) for number in range(1, BACKENDS)])

    def take_over(self) -> None:
        """Another node with the replicated connections: what the codec carries of `flows`, and nothing else."""
        carried = []
        for family in FAMILIES.values():
            for keys, values in list(self.plane.flow_batches("flows", family, 4096)):
                forward = flow_maps.is_forward(values)
                keys, values = keys[forward], values[forward]
                carried.append((family, len(keys), self._codec.encode(family, keys, values, 0)))
        for family in FAMILIES.values():
            for name in ("flows", "embryonic", "fragments", "direct"):
                for keys, _ in list(self.plane.flow_batches(name, family, 4096)):
                    self.plane.delete_flows(name, family, keys)
        for family, count, payload in carried:
            for _, flows in self._codec.decode(family, count, payload) if count else ():
                two_way = flows.chosen(~flows.one_way)
                for keys, values in ((flows.keys, flows.forward), (two_way.reply_keys, two_way.reply)):
                    assert self.plane.update_flows(family, keys, values) == len(keys)
