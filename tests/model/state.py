"""What the data plane knows: configuration, lease, time, connections and counts, as plain dictionaries.

Addresses are bytes in network order, ports and ids are numbers. A `Table` notes every key that is used, so that a comparison
with the kernel's maps need not read them whole after each packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from bpf.columns import address_bytes
from bpf.constants import LEASE_FOREVER_NS, TICK_SHIFT, Mode
from bpf.dataplane import (
    DeletePrefixes,
    DeleteServer,
    DeleteService,
    DeleteVip,
    Operation,
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
    ServerKey,
    ServiceKey,
    ServiceValue,
    ZeroTraffic,
)
from tests.model.routes import Routes

if TYPE_CHECKING:
    from tests.model.copies import Copies, Copy
    from tests.model.vlans import Vlans


class Key(NamedTuple):
    """One direction of a connection, as its packets arrive."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    protocol: int


@dataclass(slots=True)
class Flow:
    """How packets of one direction leave, and what is known of it. Of a one-way connection `destination` is the backend's
    address, which may be of the other family."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    destination_mac: bytes = bytes(6)
    source_mac: bytes = bytes(6)
    interface: int = 0
    generation: int = 0
    last_seen: int = 0
    farm: int = 0
    flags: int = 0
    state: int = 0
    backend: int = 0
    mtu: int = 0

    def opposite(self, protocol: int) -> Key:
        """The key of the answers."""
        return Key(self.destination, self.source, self.destination_port, self.source_port, protocol)

    def answers(self, key: Key) -> bool:
        """Is this the entry of the answers to packets with `key`?"""
        return (self.destination, self.source, self.destination_port, self.source_port) == key[:4]

    def copy(self) -> Flow:
        return Flow(*_fields(self))


_fields = attrgetter(*(each.name for each in fields(Flow)))


class Table:
    """A map from keys to flows, with a capacity.

    missing: of a map that evicts, which of the entries the kernel does not have after the step. Which one makes space for a new
    one is the kernel's decision, so the model takes it from there; everything else that happens to entries is its own. When in
    the step the kernel evicted what is gone cannot be known: `doubt` is set if an entry that is gone was looked up after the
    first time that it may have been evicted. Then the model cannot predict the step.
    """

    def __init__(self, name: str, capacity: int, touched: set[tuple[str, Key]]) -> None:
        self.name, self.capacity, self.entries = name, capacity, dict[Key, Flow]()
        self._touched = touched
        self.missing: Callable[[dict[Key, Flow], Key | None], set[Key]] | None = None
        self.gone, self.doubt = set[Key](), False
        self.changed: Callable[[Key], None] = lambda key: None

    def get(self, key: Key) -> Flow | None:
        self._touched.add((self.name, key))
        self.doubt = self.doubt or key in self.gone
        return self.entries.get(key)

    def put(self, key: Key, flow: Flow) -> bool:
        """False: the table is full."""
        self._touched.add((self.name, key))
        self.evict()
        if key not in self.entries and len(self.entries) >= self.capacity:
            return False
        self.entries[key] = flow.copy()
        self.gone.discard(key)
        return True

    def evict(self, written: Key | None = None) -> None:
        """Remove what the kernel has evicted. It may do so with each attempt to write an entry, be it there already or not.

        written: the key of the attempt. Its own entry may be what makes space; then it is made again.
        """
        if self.missing and (gone := self.missing(self.entries, written)):
            self.gone |= gone - {written}
            for key in gone:
                self.delete(key)

    def begin(self) -> None:
        """A step begins."""
        self.gone, self.doubt = set(), False

    def delete(self, key: Key) -> None:
        self._touched.add((self.name, key))
        self.entries.pop(key, None)
        self.changed(key)


class Backend(NamedTuple):
    address: bytes
    port: int
    flags: int


@dataclass(slots=True)
class Persistent:
    """The backend that a client had first, the one that it used last, and when (ticks)."""

    home: int
    backend: int
    last_used: int


@dataclass(slots=True)
class HalfOpen:
    """Half-open connections of a client, by the window of time in which they were opened; the present window's number."""

    window: int
    opened: list[int]


@dataclass(slots=True)
class Pressure:
    """Connections that were opened and not established in a window of time, and the tick until which they are too many."""

    opened: int = 0
    window: int = 0
    until: int = 0


Client = tuple[int, bytes]
"""A farm and an address prefix."""


class Traffic(NamedTuple):
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    connections: int = 0
    drops: int = 0


@dataclass(slots=True)
class State:
    """One node. The tables are by address length: 4 for IPv4, 16 for IPv6."""

    routes: Routes
    copies: Copies
    max_entries: int = 1 << 20  # of `flows`, per family
    now_ns: int = 1
    deadline_ns: int = LEASE_FOREVER_NS
    seed: int = 0
    generation: int = 1  # of next hops
    max_embryonic: int = 1024  # connections per family
    modes: frozenset[int] = frozenset(Mode)  # that the program was built with
    vlans: Vlans | None = None  # of a build that knows VLANs
    tunnel_sources: dict[int, bytes] = field(default_factory=dict)  # of outer headers, by address length
    vips: dict[bytes, int] = field(default_factory=dict)
    listeners: dict[tuple[bytes, int, int], ServiceValue] = field(default_factory=dict)  # address, port, protocol
    ranges: dict[ServiceKey, ServiceValue] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    backends: dict[int, Backend] = field(default_factory=dict)
    farms: dict[int, PutFarm] = field(default_factory=dict)
    members: dict[int, frozenset[bytes]] = field(default_factory=dict)
    servers: dict[ServerKey, int] = field(default_factory=dict)
    affinity: dict[int, PutAffinity] = field(default_factory=dict)  # by farm
    backend_affinity: dict[int, tuple[int, bool]] = field(default_factory=dict)  # farm, and whether it takes new connections
    quic_servers: dict[tuple[int, bytes], int] = field(default_factory=dict)  # by farm and server id
    persistent: dict[tuple[bytes, int], Persistent] = field(default_factory=dict)  # by client prefix and farm
    toa: dict[Key, int] = field(default_factory=dict)  # the sequence number of a client's first data
    farm_limits: dict[int, PutFarmLimits] = field(default_factory=dict)
    backend_limits: dict[int, tuple[int, int]] = field(default_factory=dict)  # weight, and connections at most
    prefixes: dict[int, dict[int, list[bytes]]] = field(default_factory=dict)  # by list and address length; with their length
    farm_loads: dict[int, int] = field(default_factory=dict)  # connections that have not ended
    backend_loads: dict[int, int] = field(default_factory=dict)
    rates: dict[Client, int] = field(default_factory=dict)
    half_open: dict[Client, HalfOpen] = field(default_factory=dict)
    pressure: dict[int, Pressure] = field(default_factory=lambda: {4: Pressure(), 16: Pressure()})  # by address length
    turns: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    cpu: int = 0  # that handles packets
    sent: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)  # answers: tick and number by CPU and kind
    counters: dict[str, tuple[int, int]] = field(default_factory=lambda: defaultdict(lambda: (0, 0)))
    farm_traffic: dict[int, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    backend_traffic: dict[int, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    events: list[tuple[int, Key, Flow]] = field(default_factory=list)
    ring_space: dict[int, int] = field(default_factory=dict)  # events until a ring is full, by address length; without: enough
    touched: set[tuple[str, Key]] = field(default_factory=set)
    flows: dict[int, Table] = field(init=False)
    embryonic: dict[int, Table] = field(init=False)
    fragments: dict[int, Table] = field(init=False)
    direct: dict[int, Table] = field(init=False)

    def __post_init__(self) -> None:
        self.flows = self._tables("flows", self.max_entries)
        for table in self.flows.values():
            table.changed = self.copies.changed
        self.embryonic, self.fragments, self.direct = (self._tables(n, 1 << 20) for n in ("embryonic", "fragments", "direct"))

    def _tables(self, name: str, capacity: int) -> dict[int, Table]:
        return {4: Table(f"{name}_v4", capacity, self.touched), 16: Table(f"{name}_v6", capacity, self.touched)}

    @property
    def tick(self) -> int:
        return self.now_ns >> TICK_SHIFT & 0xFFFFFFFF

    @property
    def is_open(self) -> bool:
        """Has this node the lease?"""
        return self.deadline_ns == LEASE_FOREVER_NS or self.now_ns < self.deadline_ns

    def age(self, flow: Flow | Copy) -> int:
        """Ticks since the last packet."""
        return self.tick - flow.last_seen & 0xFFFFFFFF

    def unavailable(self, number: int) -> bool:
        """May no new connection use this backend?"""
        return number not in self.backends or bool(self.backends[number].flags & 1)

    def count(self, name: str, size: int) -> None:
        packets, size_before = self.counters[name]
        self.counters[name] = packets + 1, size_before + size

    def apply(self, operation: Operation) -> None:
        """A change of the configuration, as the planner makes them."""
        match operation:
            case PutVip(address, flags):
                self.vips[address_bytes(address)] = flags
            case DeleteVip(address):
                del self.vips[address_bytes(address)]
            case PutService(key, value) if key.port == key.port_last:
                self.listeners[address_bytes(key.address), key.port, key.protocol] = value
            case DeleteService(key) if key.port == key.port_last:
                self.listeners.pop((address_bytes(key.address), key.port, key.protocol), None)
            case PutService(key, value):
                self.ranges[key] = value
            case DeleteService(key):
                self.ranges.pop(key, None)
            case PutServer(server, flags):
                self.servers[server] = flags
            case DeleteServer(server):
                self.servers.pop(server, None)
            case PutFarm(number):
                self.farms[number] = operation
            case PutMembers(number, addresses):
                self.members[number] = frozenset(map(address_bytes, addresses))
            case PutBackend(number, address, port, flags):
                self.backends[number] = Backend(address_bytes(address), port, flags)
            case PutAffinity(number):
                self.affinity[number] = operation
            case PutBackendAffinity(number, farm, is_open):
                self.backend_affinity[number] = farm, is_open
            case PutQuicServers(farm, servers):
                self.quic_servers = {key: each for key, each in self.quic_servers.items() if key[0] != farm}
                self.quic_servers |= {(farm, name): number for name, number in servers}
            case PutFarmLimits(number):
                self.farm_limits[number] = operation
            case PutBackendLimits(number, weight, limit):
                self.backend_limits[number] = weight, limit
            case PutPrefixes(number, v4, v6):
                self.prefixes[number] = {
                    size: [packed[at : at + size + 1] for at in range(0, len(packed), size + 1)]
                    for size, packed in ((4, v4), (16, v6))
                }
            case DeletePrefixes(number):
                self.prefixes.pop(number, None)
            case PutSlots(offset, backends):
                self.slots |= {offset + n: int(number) for n, number in enumerate(backends)}
            case ZeroTraffic(farms, backends):
                self.farm_traffic.update((number, Traffic()) for number in farms)
                self.backend_traffic.update((number, Traffic()) for number in backends)
