"""What the maps hold of a farm's persistence and QUIC connection ids, and which backend an entry leads to.

Pure. Equal to bpf/program/affinity.h and affinity.family.h. Must not know how maps are written, nor how a client came by its
entry. Nothing is planned for farms without these settings, so that a program without the maps gets no operation on them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from bpf.constants import PERSISTENCE_SLACK_SHIFT, TICK_SHIFT, AffinityFlag, Quic
from bpf.dataplane import Operation, PutAffinity, PutBackendAffinity, PutQuicServers
from ctl.config.model import Backend, Config, Farm
from ctl.dataplane.expiry import to_ticks


def uses(farm: Farm | None) -> bool:
    """Whether the farm has one of the settings."""
    return farm is not None and bool(farm.persistence_s or farm.quic_cid)


def quic_scheme(farm: Farm) -> tuple[int, int, int]:
    """The scheme, the first byte of the connection id that is compared, and how many are."""
    if not farm.quic_cid:
        return int(Quic.NONE), 0, 0
    scheme, *numbers = farm.quic_cid.split(":")
    if scheme == "prefix":
        return int(Quic.PREFIX), 0, int(numbers[0])
    return int(Quic.SERVER_ID), int(numbers[0]), int(numbers[1])


def operations(
    old: Farm | None, new: Farm | None, choosable: Collection[int], config: Config, again: bool = False
) -> list[Operation]:
    """Operations for a farm that changed, or whose backends did. choosable: ids of those that may take new connections.

    None: the farm did not exist, or does not any more. again: the farm's id is new, or the content of the maps unknown.
    """
    found: list[Operation] = []
    farm = new or old
    assert farm is not None, "one of them exists"
    known = old.backends if old is not None and uses(old) else ()
    kept = {backend.id for backend in new.backends} if new is not None and uses(new) else set()
    # Else a client that is remembered would get a removed backend, once the farm's id has persistence again.
    closed = [PutBackendAffinity(each.id, 0, False) for each in known if each.id not in kept]
    if not uses(new):
        if uses(old) or (again and new is not None and any(uses(each) for each in config.farms.values())):
            found.append(PutAffinity(farm.id))
        if old is not None and old.quic_cid:
            found.append(PutQuicServers(farm.id, ()))
        return found + closed
    assert new is not None
    flags = int(AffinityFlag.RETURN) if new.persistence_return else 0
    ticks = to_ticks(new.persistence_s)
    prefixes = new.persistence_prefix_v4, new.persistence_prefix_v6
    found.append(PutAffinity(new.id, ticks, *prefixes, flags, quic_scheme(new)))
    found += [PutBackendAffinity(each.id, new.id, each.id in choosable) for each in new.backends]
    found += closed
    if new.quic_cid or (old is not None and old.quic_cid):
        named = [(bytes.fromhex(backend.quic_id), backend.id) for backend in new.backends if backend.quic_id]
        found.append(PutQuicServers(new.id, tuple(named)))
    return found


@dataclass(frozen=True, slots=True)
class Remembered:
    """The entry of a client. home, backend: ids. age_ticks: since the last use."""

    home: int
    backend: int
    age_ticks: int


def client_prefix(farm: Farm, client: str) -> str:
    """The prefix that stands for a client: "198.51.100.0/24"."""
    address = ipaddress.ip_address(client)
    bits = farm.persistence_prefix_v4 if address.version == 4 else farm.persistence_prefix_v6
    return str(ipaddress.ip_network((address, bits), strict=False))


def is_live(farm: Farm, entry: Remembered) -> bool:
    """Whether the entry's time has not passed."""
    ticks = to_ticks(farm.persistence_s)
    return entry.age_ticks <= ticks + (ticks >> PERSISTENCE_SLACK_SHIFT)


def left_s(farm: Farm, entry: Remembered) -> int:
    """Seconds until the entry expires without a further use."""
    return max(0, farm.persistence_s - round((entry.age_ticks << TICK_SHIFT) / 1e9))


def kept_backend(farm: Farm, entry: Remembered, eligible: Collection[Backend]) -> Backend | None:
    """The backend that the entry leads to; None: the scheduler chooses."""
    if not farm.persistence_s or not is_live(farm, entry):
        return None
    by_id = {backend.id: backend for backend in eligible}
    return by_id.get(entry.home) or by_id.get(entry.backend)
