"""The maps of limits, lists and loads, in a build that has them: `KernelPlane` passes the operations on to here.

Decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bpf import columns
from bpf.columns import FAMILIES
from bpf.constants import MAX_CANDIDATES
from bpf.dataplane import (
    Array,
    DeletePrefixes,
    KeepPrefixes,
    PlaneError,
    PutBackendLimits,
    PutFarmLimits,
    PutPrefixes,
)
from bpf.maps.mapped_array import MappedArray
from bpf.maps.pinned_map import PinnedMap

BATCH = 4096
_SAME_NAMES = (
    "max_connections",
    "max_half_open",
    "rate_interval_ns",
    "half_open_ticks",
    "allow",
    "deny",
    "backends_limited",
)


class LimitMaps:
    """On the maps of a plane, by name; those of features that the build lacks are missing."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._maps = maps
        self._mapped: dict[str, MappedArray] = {}

    def _map(self, name: str) -> PinnedMap:
        if name not in self._maps:
            raise PlaneError(f"the program has no map {name}: it was compiled without that feature")
        return self._maps[name]

    def put_farms(self, group: list[PutFarmLimits]) -> None:
        if "farm_limits" not in self._maps and all(each == PutFarmLimits(each.farm) for each in group):
            return  # nothing that could limit them
        bpf_map = self._map("farm_limits")
        values = np.zeros(len(group), dtype=bpf_map.value)
        for name in _SAME_NAMES:
            values[name] = [getattr(each, name) for each in group]
        for name, size, bits in (
            ("v4", 4, [p.client_prefix_v4 for p in group]),
            ("v6", 16, [p.client_prefix_v6 for p in group]),
        ):
            values[f"client_mask_{name}"] = np.frombuffer(b"".join(_mask(each, size) for each in bits), f"V{size}")
        for row, each in enumerate(group):
            for number, candidates in enumerate((each.candidates_v4, each.candidates_v6)):
                values["candidate_count"][row, number] = len(candidates)
                first = number * MAX_CANDIDATES
                values["candidate"][row, first : first + len(candidates)] = candidates
        bpf_map.put(np.array([each.farm for each in group], dtype=np.uint32), values)

    def put_backends(self, group: list[PutBackendLimits]) -> None:
        bpf_map = self._map("backend_limits")
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["weight"] = [each.weight for each in group]
        values["max_connections"] = [each.max_connections for each in group]
        bpf_map.put(np.array([each.id for each in group], dtype=np.uint32), values)

    def put_prefixes(self, group: list[PutPrefixes]) -> None:
        for bpf_map, keys in self._keys(group):
            bpf_map.put(keys, np.zeros(len(keys), dtype=bpf_map.value))

    def delete_prefixes(self, group: list[DeletePrefixes]) -> None:
        for bpf_map, keys in self._keys(group):
            bpf_map.remove(keys)

    def _keys(self, group: Sequence[PutPrefixes | DeletePrefixes]) -> Iterator[tuple[PinnedMap, Array]]:
        """In batches, so that no call keeps the map's lock and the processor for long."""
        for each, family in itertools.product(group, FAMILIES):
            bpf_map = self._map(f"prefixes_{family}")
            keys = columns.prefix_keys(each.id, getattr(each, family), bpf_map.key)
            for start in range(0, len(keys), BATCH):
                yield bpf_map, keys[start : start + BATCH]

    def keep_prefixes(self, group: list[KeepPrefixes]) -> None:
        for each, name in itertools.product(group, ("prefixes_v4", "prefixes_v6")):
            if name not in self._maps:
                continue
            stale = [keys[~np.isin(keys["list"], list(each.ids))] for keys, _ in self._maps[name].slices(BATCH)]
            for keys in stale:
                if len(keys):
                    self._maps[name].remove(keys)

    def loaded_prefixes(self) -> dict[int, tuple[int, int]]:
        """IPv4 and IPv6 prefixes of each list, by its id."""
        counts: dict[int, list[int]] = {}
        for family, name in enumerate(("prefixes_v4", "prefixes_v6")):
            for keys, _ in self._maps[name].slices(BATCH) if name in self._maps else ():
                for number, count in zip(*np.unique(keys["list"], return_counts=True), strict=True):
                    counts.setdefault(int(number), [0, 0])[family] += int(count)
        return {number: (v4, v6) for number, (v4, v6) in counts.items()}

    def loads(self, kind: str) -> Array | None:
        """The loads of each "farm" or "backend", by id; None: the program counts none."""
        name = f"{kind}_loads"
        return self._view(name).read() if name in self._maps else None

    def set_bases(self, kind: str, bases: Array) -> None:
        self._map(f"{kind}_loads")
        self._view(f"{kind}_loads").write("base", bases)

    def _view(self, name: str) -> MappedArray:
        if name not in self._mapped:
            self._mapped[name] = MappedArray(self._maps[name])
        return self._mapped[name]


def _mask(bits: int, size: int) -> bytes:
    """The first `bits` of `size` bytes."""
    return ((1 << bits) - 1 << 8 * size - bits).to_bytes(size, "big")
