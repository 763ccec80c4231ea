"""The maps of VLANs, in a build that has them: `KernelPlane` passes on to here.

Decides nothing. Must not know which interfaces there are.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping

import numpy as np

from bpf.constants import InterfaceFlag
from bpf.dataplane import Array, PlaneError, Vlan
from bpf.maps.pinned_map import PinnedMap


class VlanMaps:
    """On the maps of a plane, by name."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._maps = maps

    def write(self, vlans: Collection[Vlan], untagged: Collection[int]) -> None:
        """What is new first, so that no frame of a VLAN that stays is missed. Raises PlaneError, or OSError of the kernel."""
        if "vlans" not in self._maps:
            raise PlaneError("the program was built without VLANs")
        tags = self._maps["interface_tags"]
        before = tags.all_values()
        wanted = np.zeros(len(before), dtype=tags.value)
        only_tagged = before["flags"] & InterfaceFlag.TAGGED_ONLY
        only_tagged[[each.lower for each in vlans]] = InterfaceFlag.TAGGED_ONLY
        only_tagged[[each for each in untagged if each < len(before)]] = 0
        wanted["flags"] = only_tagged
        for each in vlans:
            wanted["lower"][each.interface] = each.lower
            wanted["protocol"][each.interface] = socket.htons(each.protocol)
            wanted["number"][each.interface] = socket.htons(each.number)
        changed = np.flatnonzero(wanted != before).astype(np.uint32)
        gained = changed[wanted["lower"][changed] != 0]
        self._put(tags, gained, wanted)
        keys, values = self._keys(vlans)
        stale = [key for found, _ in self._maps["vlans"].slices(1024) for key in found if key not in keys]
        if len(keys):
            self._maps["vlans"].put(keys, values)
        if stale:
            self._maps["vlans"].remove(np.array(stale, dtype=self._maps["vlans"].key))
        self._put(tags, np.setdiff1d(changed, gained).astype(np.uint32), wanted)

    def read(self) -> frozenset[Vlan]:
        """The VLANs in the maps."""
        if "vlans" not in self._maps:
            return frozenset()
        return frozenset(
            Vlan(int(interface), int(key["interface"]), socket.ntohs(key["number"]), socket.ntohs(key["protocol"]))
            for keys, values in self._maps["vlans"].slices(1024)
            for key, interface in zip(keys, values, strict=True)
        )

    def _put(self, tags: PinnedMap, indexes: Array, rows: Array) -> None:
        if len(indexes):
            tags.put(indexes, rows[indexes])

    def _keys(self, vlans: Collection[Vlan]) -> tuple[Array, Array]:
        bpf_map = self._maps["vlans"]
        keys, values = np.zeros(len(vlans), dtype=bpf_map.key), np.zeros(len(vlans), dtype=bpf_map.value)
        keys["interface"] = [each.lower for each in vlans]
        keys["number"] = [socket.htons(each.number) for each in vlans]
        keys["protocol"] = [socket.htons(each.protocol) for each in vlans]
        values[:] = [each.interface for each in vlans]
        return keys, values
