"""The maps of VIPs, of listeners and of the services of backends: exact ports, and port ranges as prefixes.

Decides nothing. Knows how a key is laid out; must not know which listeners there should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bpf import columns
from bpf.columns import FAMILIES
from bpf.dataplane import (
    Array,
    DeleteServer,
    DeleteService,
    DeleteVip,
    PutServer,
    PutService,
    PutVip,
    ServerKey,
    ServiceKey,
    ServiceValue,
)
from bpf.maps import elements
from bpf.maps.pinned_map import PinnedMap


class ListenerMaps:
    """Writes and reads them. maps: every map of the plane, by name."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._maps = maps

    def put_vips(self, group: list[PutVip]) -> None:
        bpf_map = self._maps["vips_" + columns.family_of(group[0].address)]
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["flags"] = [each.flags for each in group]
        bpf_map.put(_vip_keys(bpf_map, group), values)

    def delete_vips(self, group: list[DeleteVip]) -> None:
        bpf_map = self._maps["vips_" + columns.family_of(group[0].address)]
        bpf_map.remove(_vip_keys(bpf_map, group))

    def put_services(self, group: list[PutService]) -> None:
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

    def delete_services(self, group: list[DeleteService]) -> None:
        bpf_map, keys, _ = self._listener_keys([each.key for each in group])
        bpf_map.remove(keys)

    def _listener_keys(self, listeners: list[ServiceKey]) -> tuple[PinnedMap, Array, Array]:
        """The map, its keys, and for each key the index of its listener: a port range has several keys."""
        family, is_range = listener_map(listeners[0])
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

    def put_servers(self, group: list[PutServer]) -> None:
        bpf_map, keys = self._server_keys([each.key for each in group])
        values = np.zeros(len(group), dtype=bpf_map.value)
        values["flags"] = [each.flags for each in group]
        bpf_map.put(keys, values)

    def delete_servers(self, group: list[DeleteServer]) -> None:
        bpf_map, keys = self._server_keys([each.key for each in group])
        bpf_map.remove(keys)

    def _server_keys(self, servers: list[ServerKey]) -> tuple[PinnedMap, Array]:
        family, is_range = server_map(servers[0])
        bpf_map = self._maps[("server_ranges_" if is_range else "servers_") + family]
        keys = np.zeros(len(servers), dtype=bpf_map.key)
        keys["address"] = columns.address_column((each.address for each in servers), columns.ADDRESS_BYTES[family])
        keys["protocol"] = [each.protocol for each in servers]
        keys["port"] = [each.port for each in servers]
        if is_range:
            keys["prefix_length"] = _bits_before_port(bpf_map) + np.array([each.port_bits for each in servers])
        return bpf_map, keys

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


def listener_map(key: ServiceKey) -> tuple[columns.Family, bool]:
    return columns.family_of(key.address), key.port != key.port_last


def server_map(key: ServerKey) -> tuple[columns.Family, bool]:
    return columns.family_of(key.address), key.port_bits != columns.PORT_BITS


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


def _vip_keys(bpf_map: PinnedMap, group: Sequence[PutVip | DeleteVip]) -> Array:
    keys = np.zeros(len(group), dtype=bpf_map.key)
    keys["address"] = columns.address_column((each.address for each in group), bpf_map.key["address"].itemsize)
    return keys
