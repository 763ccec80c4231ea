"""Executes operations on the maps of the configuration, in batches.

Decides nothing: the planner decides the entries. Which maps have listeners, limits and clients, and how, is known to modules of
their own (`bpf.kernel.listeners`, `limits`, `affinity`).
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bpf import columns
from bpf.columns import FAMILIES
from bpf.constants import (
    MAX_BACKENDS,
    MAX_FARMS,
    MAX_PREFIXES,
    MAX_SLOT_CHUNKS,
    MAX_SNAT_ADDRESSES,
    SLOTS_PER_CHUNK,
    BackendFlag,
)
from bpf.dataplane import (
    DeletePrefixes,
    DeleteServer,
    DeleteService,
    DeleteVip,
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
    ZeroTraffic,
)
from bpf.kernel.affinity import AffinityMaps
from bpf.kernel.limits import LimitMaps
from bpf.kernel.listeners import ListenerMaps, listener_map, server_map
from bpf.maps import elements
from bpf.maps.pinned_map import PinnedMap


class ConfigurationMaps:
    """maps: every map of the plane, by name."""

    def __init__(self, maps: Mapping[str, PinnedMap], limits: LimitMaps) -> None:
        self._maps, self._limits = maps, limits

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
        affinity, listeners = AffinityMaps(self._maps), ListenerMaps(self._maps)
        return {
            PutAffinity: affinity.put_farms,
            PutBackendAffinity: affinity.put_backends,
            PutQuicServers: affinity.put_quic_servers,
            PutVip: listeners.put_vips,
            DeleteVip: listeners.delete_vips,
            PutService: listeners.put_services,
            DeleteService: listeners.delete_services,
            PutServer: listeners.put_servers,
            DeleteServer: listeners.delete_servers,
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


def _batch_of(operation: Operation) -> tuple[type, Any]:
    """Operations with equal results may be executed in one batch."""
    match operation:
        case PutVip(address) | DeleteVip(address):
            return type(operation), columns.family_of(address)
        case PutService(key) | DeleteService(key):
            return type(operation), listener_map(key)
        case PutServer(key) | DeleteServer(key):
            return type(operation), server_map(key)
        case _:
            return type(operation), None


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
