"""`DataPlane` on the pinned maps: the lease, counters and flows; `bpf.kernel.configuration` executes operations.

Decides nothing: the planner decides the entries of the maps, the expiry which flows are idle. Knows the names and layouts of
the maps; must not know the compiler nor interfaces. One thread at a time may use a `KernelPlane`, except that flow slices may
be read and deleted in another one: those calls keep no state here and release the GIL.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpf import columns, libbpf, xdp
from bpf.columns import FAMILIES
from bpf.constants import COUNTERS, TICK_SHIFT
from bpf.dataplane import (
    Array,
    FlowEntry,
    FlowTuple,
    Operation,
    PlaneError,
    ServerKey,
    ServiceKey,
    ServiceValue,
    Vlan,
)
from bpf.kernel.affinity import AffinityMaps
from bpf.kernel.configuration import ConfigurationMaps
from bpf.kernel.limits import LimitMaps
from bpf.kernel.listeners import ListenerMaps
from bpf.kernel.recent import Copies
from bpf.kernel.vlans import VlanMaps
from bpf.loading.loader import PROGRAM
from bpf.maps import elements
from bpf.maps.event_ring import FlowEvents
from bpf.maps.layout import Layouts
from bpf.maps.pinned_map import PinnedMap, sum_over_cpus


class KernelPlane:
    """Implements `bpf.dataplane.DataPlane`."""

    def __init__(self, bpf_dir: Path, layouts: Layouts) -> None:
        """Open the maps of `layouts` under bpf_dir. Raises PlaneError."""
        self._maps: dict[str, PinnedMap] = {}
        self._limits = LimitMaps({})
        self._copies: Copies | None = None
        self._program = -1
        try:
            for name, layout in layouts.maps.items():
                self._maps[name] = PinnedMap(bpf_dir, name, layout)
            self._limits = LimitMaps(self._maps)
            self._copies = self._open_copies()
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
        self._copies = self._open_copies()
        try:
            program, self._program = self._program, libbpf.obj_get(bpf_dir / PROGRAM)
        except OSError as error:
            raise PlaneError(f"the program pinned in {bpf_dir} cannot be opened: {error}") from error
        os.close(program)

    def _open_copies(self) -> Copies | None:
        return Copies(self._maps["changes"]) if "changes" in self._maps else None

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
        ConfigurationMaps(self._maps, self._limits).apply(operations)

    def vips(self) -> dict[str, int]:
        return ListenerMaps(self._maps).vips()

    def services(self) -> dict[ServiceKey, ServiceValue]:
        return ListenerMaps(self._maps).services()

    def servers(self) -> dict[ServerKey, int]:
        return ListenerMaps(self._maps).servers()

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

    def loaded_prefixes(self) -> dict[int, tuple[int, int]]:
        return self._limits.loaded_prefixes()

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
        keys = _rows(keys, bpf_map.key)
        try:
            return elements.update_batch(bpf_map.fd, keys, _rows(values, bpf_map.value))
        except elements.BatchError as error:
            if error.errno in (errno.E2BIG, errno.ENOMEM, errno.ENOSPC):
                return error.done
            raise PlaneError(f"writing {len(keys)} flows to {bpf_map.path} failed: {error}") from error
        finally:
            self.end_copies(keys)

    def delete_flows(self, flow_map: str, family: str, keys: Array) -> int:
        deleted_from = self._maps[f"{flow_map}_{family}"]
        keys = _rows(keys, deleted_from.key)
        try:
            return elements.delete_batch(deleted_from.fd, keys)
        finally:
            if flow_map == "flows":
                self.end_copies(keys)

    def end_copies(self, keys: Array) -> None:
        """The program must read the flows with these keys again."""
        if self._copies and len(keys):
            self._copies.end(keys)

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
