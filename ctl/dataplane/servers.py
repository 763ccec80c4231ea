"""The services of backends, by which the program recognizes a reply without a flow (bpf/program/server.family.h).

Pure: farms in; keys, flags and operations out. Several farms may use one server, and their port ranges may overlap, so the
flags of a port are those of all farms that use it. Must not know services, slots or the state of backends: a stopped farm and
a backend that is down still have connections, whose replies are recognized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from bpf import columns, constants
from bpf.constants import ServerFlag
from bpf.dataplane import DeleteServer, Operation, PutServer, ServerKey
from ctl.config.model import Farm, Mode

Host = tuple[str, int]
"""An address and an IP protocol number."""

Uses = Mapping[str, tuple[tuple[int, int, int], ...]]
"""How each farm uses a host: (first port, last port, ServerFlag bits)."""

Servers = Mapping[Host, Uses]

_NONE: Uses = MappingProxyType({})


def server_flags(host: Host, uses: Uses) -> dict[ServerKey, int]:
    """The entries of one host: its prefixes of ports, and port 0 for the host itself."""
    flags: dict[tuple[int, int], int] = {}
    for first, last, flag in (each for of_farm in uses.values() for each in of_farm):
        for prefix in columns.port_prefixes(first, last):
            flags[prefix] = flags.get(prefix, 0) | flag
    found = {ServerKey(*host, port, bits): flag | _covering(flags, port, bits) for (port, bits), flag in flags.items()}
    if found:
        ranges = int(ServerFlag.RANGES) if any(key.port_bits < columns.PORT_BITS for key in found) else 0
        every = 0
        for flag in found.values():
            every |= flag
        found[ServerKey(*host, 0)] = every | ranges
    return found


def follow(old: Servers, farms: Iterable[tuple[str, Farm | None, Farm | None]]) -> tuple[Servers, list[Operation]]:
    """The services after farms changed, and the operations. farms: name, the farm before, the farm now; None: there is none."""
    new = dict(old)
    hosts: set[Host] = set()
    for name, before, now in farms:
        used_before, used_now = _uses(before), _uses(now)
        for host in used_before.keys() | used_now.keys():
            uses = dict(new.get(host, _NONE))
            uses.pop(name, None)
            if host in used_now:
                uses[name] = used_now[host]
            new[host] = uses
            hosts.add(host)
    puts: list[Operation] = []
    deletes: list[Operation] = []
    for host in sorted(hosts):
        before_flags, now_flags = server_flags(host, old.get(host, _NONE)), server_flags(host, new[host])
        puts += [PutServer(key, flags) for key, flags in now_flags.items() if before_flags.get(key) != flags]
        deletes += [DeleteServer(key) for key in before_flags if key not in now_flags]
        if not new[host]:
            del new[host]
    return new, puts + deletes


def _uses(farm: Farm | None) -> dict[Host, tuple[tuple[int, int, int], ...]]:
    """The ports of a farm by the hosts of its backends."""
    found: dict[Host, tuple[tuple[int, int, int], ...]] = {}
    if farm is None:
        return found
    protocol = int(constants.Protocol[farm.protocol.name])
    flag = int(ServerFlag.DNAT if farm.mode is Mode.DNAT else ServerFlag.SNAT)
    most = (1 << columns.PORT_BITS) - 1
    for backend in farm.backends:
        offset = backend.port - farm.port
        ranges = [(first + offset, min(last + offset, most), flag) for first, last in farm.port_ranges]
        host = (backend.address, protocol)
        found[host] = (*found.get(host, ()), *ranges)
    return found


def _covering(flags: Mapping[tuple[int, int], int], port: int, bits: int) -> int:
    """The flags of the shorter prefixes that cover this one: the program reads only the longest."""
    found = 0
    for shorter in range(bits):
        free = columns.PORT_BITS - shorter
        found |= flags.get((port >> free << free, shorter), 0)
    return found
