"""The maps of VLANs, in a build that has them: `KernelPlane` passes on to here.

Decides nothing. Must not know which interfaces there are.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping

import numpy as np

from bpf.constants import MAX_VLAN_BLOCKS, VLAN_NUMBERS, InterfaceFlag
from bpf.dataplane import Array, PlaneError, Vlan
from bpf.maps.pinned_map import PinnedMap

Q = 0x8100


class VlanMaps:
    """On the maps of a plane, by name."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._maps = maps

    def write(self, vlans: Collection[Vlan], untagged: Collection[int]) -> None:
        """What is new first, so that no frame of a VLAN that stays is missed. Raises PlaneError, or OSError of the kernel."""
        if "vlans" not in self._maps:
            raise PlaneError("the program was built without VLANs")
        tags, numbers = self._maps["interface_tags"], self._maps["vlans"]
        before, numbers_before = tags.all_values(), numbers.all_values()
        lowers = sorted({each.lower for each in vlans})
        if len(lowers) > MAX_VLAN_BLOCKS:
            raise PlaneError(f"{len(lowers)} interfaces are below VLAN devices, {MAX_VLAN_BLOCKS} at most are supported")
        wanted, numbers_wanted = np.zeros_like(before), np.zeros_like(numbers_before)
        only_tagged = before["flags"] & InterfaceFlag.TAGGED_ONLY
        only_tagged[lowers] = InterfaceFlag.TAGGED_ONLY
        only_tagged[[each for each in untagged if each < len(before)]] = 0
        wanted["flags"] = only_tagged
        taken = {lower: int(before["block"][lower]) for lower in lowers if before["block"][lower]}
        free = iter(sorted(set(range(1, MAX_VLAN_BLOCKS + 1)) - set(taken.values())))
        for lower in lowers:
            wanted["block"][lower] = taken.get(lower) or next(free)
        for each in vlans:
            wanted["lower"][each.interface] = each.lower
            wanted["tag"][each.interface] = socket.htonl(each.protocol << 16 | each.number)
            row = (int(wanted["block"][each.lower]) - 1) * VLAN_NUMBERS + each.number
            numbers_wanted["q" if each.protocol == Q else "ad"][row] = each.interface
        changed = np.flatnonzero(wanted != before).astype(np.uint32)
        devices = changed[wanted["lower"][changed] != 0]
        _put(tags, devices, wanted)
        _put(numbers, np.flatnonzero(numbers_wanted != numbers_before).astype(np.uint32), numbers_wanted)
        _put(tags, np.setdiff1d(changed, devices).astype(np.uint32), wanted)

    def read(self) -> frozenset[Vlan]:
        """The VLANs in the maps."""
        if "vlans" not in self._maps:
            return frozenset()
        rows = self._maps["interface_tags"].all_values()
        found = set()
        for interface in np.flatnonzero(rows["lower"]).tolist():
            tag = socket.ntohl(int(rows["tag"][interface]))
            found.add(Vlan(interface, int(rows["lower"][interface]), tag & 0xFFFF, tag >> 16))
        return frozenset(found)


def _put(bpf_map: PinnedMap, indexes: Array, rows: Array) -> None:
    if len(indexes):
        bpf_map.put(indexes, rows[indexes])
