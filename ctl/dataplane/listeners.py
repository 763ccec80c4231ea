"""The listeners of farms in the maps: VIPs with their flags, services, and the order in which they are replaced.

Pure. Must not know which slots and backends a service has, nor what the maps hold besides.

A port range is in the maps as prefixes. Deleting a range after a new one is written could delete a prefix that the new one
needs, so that such a range is deleted first; every other service exists until its replacement does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpf import constants
from bpf.constants import VipFlag
from bpf.dataplane import DeleteService, DeleteVip, Operation, PutService, PutVip, ServiceKey, ServiceValue
from ctl.config.model import Config, Farm


def services(part: Farm, offset: int, count: int) -> dict[ServiceKey, ServiceValue]:
    """What the maps hold of the listeners of a farm's part with these slots."""
    protocol = int(constants.Protocol[part.protocol.name])
    keys = (ServiceKey(vip, first, last, protocol) for vip in part.vips for first, last in part.port_ranges)
    return {key: _value(part, key.address, offset, count) for key in keys}


def vip_flags(config: Config) -> dict[str, int]:
    """Every address for the VIP map, with its VipFlag bits."""
    flags = {address: 0 if vip.guard else int(VipFlag.OPEN) for address, vip in config.vips.items()}
    for farm in config.farms.values():
        if farm.enabled and any(first != last for first, last in farm.port_ranges):
            for vip in farm.vips:
                flags[vip] |= VipFlag.RANGES
    return flags


def replacements(
    old: Mapping[str, int], vips: Mapping[str, int], stale: Sequence[ServiceKey], puts: Sequence[PutService]
) -> list[Operation]:
    """Write VIPs and services, and delete the stale ones. old, vips: flags of the addresses before and after."""
    first = [key for key in stale if any(_share_prefixes(key, put.key) for put in puts)]
    flags = {address: each | _ranges(old, address) for address, each in vips.items()}
    operations: list[Operation] = [PutVip(address, each) for address, each in flags.items() if old.get(address) != each]
    operations += [DeleteService(key) for key in first]
    operations += puts
    operations += [DeleteService(key) for key in stale if key not in first]
    return operations


def removals(old: Mapping[str, int], vips: Mapping[str, int]) -> list[Operation]:
    """What nothing needs any more, at the end: the lookup of port ranges, and VIPs."""
    operations: list[Operation] = [PutVip(each, flags) for each, flags in vips.items() if _ranges(old, each) & ~flags]
    operations += [DeleteVip(address) for address in old if address not in vips]
    return operations


def _ranges(old: Mapping[str, int], address: str) -> int:
    """Keep the lookup of a VIP's range listeners until they are deleted, so that their replacements exist first."""
    return old.get(address, 0) & VipFlag.RANGES


def _share_prefixes(one: ServiceKey, other: ServiceKey) -> bool:
    """Whether deleting one port range after writing the other could delete a prefix the other needs."""
    return (
        (one.address, one.protocol) == (other.address, other.protocol)
        and one.port != one.port_last
        and other.port != other.port_last
        and one.port <= other.port_last
        and other.port <= one.port_last
    )


def _value(farm: Farm, vip: str, offset: int, count: int) -> ServiceValue:
    return ServiceValue(
        farm=farm.id,
        slot_offset=offset,
        slot_count=count,
        mode=int(constants.Mode[farm.mode.name]),
        scheduler=int(constants.Scheduler[farm.scheduler.name]),
        port_first=farm.port,
        snat_address=farm.sources(vip)[0],
    )
