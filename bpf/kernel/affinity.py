"""The maps of persistence and QUIC connection ids, in a build that has them: `KernelPlane` passes the operations on to here.

Decides nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

import numpy as np

from bpf.constants import MAX_QUIC_ID_BYTES
from bpf.dataplane import PERSISTENT, Array, PlaneError, PutAffinity, PutBackendAffinity, PutQuicServers
from bpf.maps import elements
from bpf.maps.pinned_map import PinnedMap

SLICE = 4096


class AffinityMaps:
    """On the maps of a plane, by name; those of features that the build lacks are missing."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._maps = maps

    def _map(self, name: str) -> PinnedMap:
        if name not in self._maps:
            raise PlaneError(f"the program has no map {name}: it was compiled without that feature")
        return self._maps[name]

    def put_farms(self, group: list[PutAffinity]) -> None:
        bpf_map = self._map("farm_affinity")
        values = np.zeros(len(group), dtype=bpf_map.value)
        for row, each in enumerate(group):
            values["persistence_ticks"][row], values["flags"][row] = each.persistence_ticks, each.flags
            for name, bits, size in (("mask_v4", each.prefix_v4, 4), ("mask_v6", each.prefix_v6, 16)):
                values[name][row] = np.frombuffer(_mask(bits, size), values[name].dtype)
            values["quic_scheme"][row], values["quic_offset"][row], values["quic_length"][row] = each.quic
        bpf_map.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def put_backends(self, group: list[PutBackendAffinity]) -> None:
        bpf_map = self._map("backend_affinity")
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["farm"], values["open"] = [each.farm for each in group], [each.open for each in group]
        bpf_map.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def put_quic_servers(self, group: list[PutQuicServers]) -> None:
        bpf_map = self._map("quic_servers")
        for each in group:
            wanted = {
                each.farm.to_bytes(4, "little") + name.ljust(MAX_QUIC_ID_BYTES, b"\0"): number for name, number in each.servers
            }
            keys = np.frombuffer(b"".join(wanted), bpf_map.key)
            for found, _ in list(bpf_map.slices(SLICE)):
                stale = [key for key in found if key["farm"] == each.farm and key.tobytes() not in wanted]
                if stale:
                    bpf_map.remove(np.array(stale, dtype=bpf_map.key))
            if len(keys):
                bpf_map.put(keys, np.array(list(wanted.values()), dtype=np.uint32))

    # --- entries -----------------------------------------------------------------------------------------------------

    def batches(self, family: str, size: int) -> Iterator[Array]:
        bpf_map = self._maps.get(f"persistent_{family}")
        for keys, values in bpf_map.slices(size) if bpf_map is not None else ():
            yield _rows(family, keys, values)

    def find(self, family: str, rows: Array) -> tuple[Array, Array]:
        bpf_map = self._maps.get(f"persistent_{family}")
        if bpf_map is None:
            return np.zeros(len(rows), np.bool_), rows
        keys, values = _keys(bpf_map, rows), np.zeros(len(rows), dtype=bpf_map.value)
        return elements.lookup_each(bpf_map.fd, keys, values), _rows(family, keys, values)

    def update(self, family: str, rows: Array) -> int:
        bpf_map = self._maps.get(f"persistent_{family}")
        if bpf_map is None:
            return 0
        values = np.zeros(len(rows), dtype=bpf_map.value)
        for name in ("home", "backend", "last_used"):
            values[name] = rows[name]
        bpf_map.put(_keys(bpf_map, rows), values)
        return len(rows)


def _mask(bits: int, size: int) -> bytes:
    make = ipaddress.IPv4Network if size == 4 else ipaddress.IPv6Network
    return make((0, bits)).netmask.packed


def _keys(bpf_map: PinnedMap, rows: Array) -> Array:
    keys = np.zeros(len(rows), dtype=bpf_map.key)
    keys["client"] = np.ascontiguousarray(rows["client"]).view(keys["client"].dtype)
    keys["farm"] = rows["farm"]
    return keys


def _rows(family: str, keys: Array, values: Array) -> Array:
    rows = np.zeros(len(keys), dtype=PERSISTENT[family])
    rows["client"] = np.ascontiguousarray(keys["client"]).view(rows["client"].dtype)
    rows["farm"] = keys["farm"]
    for name in ("home", "backend", "last_used"):
        rows[name] = values[name]
    return rows
