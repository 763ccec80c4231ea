"""The interface of the control plane to the data plane: operations as values, counters and flows as arrays.

`DataPlane` has two implementations: `bpf.kernel.plane.KernelPlane` on pinned maps, and the strict fake of the tests. Decides
nothing; must not know ctypes nor file descriptors. Addresses are canonical strings, ports and ids are integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bpf.constants import CAPTURE_SNAP_BYTES

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A listener: one port, or the range port..port_last, of a VIP. `protocol` is the IP protocol number."""

    address: str
    port: int
    port_last: int
    protocol: int


@dataclass(frozen=True, slots=True)
class ServiceValue:
    """How a listener forwards; see `struct service`. slot_offset is a multiple of SLOTS_PER_CHUNK."""

    farm: int
    slot_offset: int
    slot_count: int
    mode: int
    scheduler: int
    port_first: int
    snat_address: str


@dataclass(frozen=True, slots=True)
class PutVip:
    """Make `address` a VIP; flags are VipFlag bits."""

    address: str
    flags: int


@dataclass(frozen=True, slots=True)
class DeleteVip:
    address: str


@dataclass(frozen=True, slots=True)
class PutService:
    key: ServiceKey
    value: ServiceValue


@dataclass(frozen=True, slots=True)
class DeleteService:
    key: ServiceKey


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A service of backends: a port (`port_bits` 16), the ports that begin with `port_bits` bits of `port`, or with port 0 and
    `port_bits` 16 the host itself. `protocol` is the IP protocol number."""

    address: str
    protocol: int
    port: int
    port_bits: int = 16


@dataclass(frozen=True, slots=True)
class PutServer:
    """Packets from there without a flow are replies whose connection is gone; flags are ServerFlag bits."""

    key: ServerKey
    flags: int


@dataclass(frozen=True, slots=True)
class DeleteServer:
    key: ServerKey


@dataclass(frozen=True, slots=True)
class PutFarm:
    """Settings of farm `id` (1 … MAX_FARMS-1); flags are FarmFlag bits.

    snat: the addresses that backends see, at most MAX_SNAT_ADDRESSES of each family; none: that of the service alone.
    """

    id: int
    flags: int
    snat: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PutMembers:
    """Exactly these addresses are members of farm `id`: as its clients they are hidden from its backends in mode dnat."""

    farm: int
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class PutBackend:
    """Set address and port of backend `id` (1 … MAX_BACKENDS-1; 0 means none). `flags` are BackendFlag bits."""

    id: int
    address: str
    port: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class PutAffinity:
    """How farm `id` recognises its clients; with the defaults, not at all. Needs a build with persistence or QUIC.

    persistence_ticks: time to live since the last use. prefix_*: bits of the client's address. flags are AffinityFlag bits.
    quic: the scheme (a number of Quic), the first byte of the connection id that is compared, and how many.
    """

    id: int
    persistence_ticks: int = 0
    prefix_v4: int = 32
    prefix_v6: int = 128
    flags: int = 0
    quic: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class PutBackendAffinity:
    """Backend `id` is of `farm` (0: of none any more); `open`: it may take new connections. Needs a build as PutAffinity."""

    id: int
    farm: int
    open: bool


@dataclass(frozen=True, slots=True)
class PutQuicServers:
    """Exactly these bytes of a connection id name backends of the farm. Needs a build with QUIC."""

    farm: int
    servers: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class PutSlots:
    """Write backend ids (uint32, shape (n,)) at `offset`, a multiple of SLOTS_PER_CHUNK. The last chunk is padded with 0."""

    offset: int
    backends: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PutFarmLimits:
    """What limits new connections of farm `farm`; 0: no limit, no list. All zero can be written without the maps of limits.

    rate_interval_ns: between two connections of a client in the long run. half_open_ticks: a HALF_OPEN_WINDOWS-th of the time
    for which a connection may be half-open. allow, deny: ids of lists. client_prefix: the address bits that make a client.
    backends_limited: some backend has max_connections. candidates: the backends to choose from on a VIP of the
    family, each once, at most MAX_CANDIDATES; none: those of the slots.
    """

    farm: int
    max_connections: int = 0
    max_half_open: int = 0
    rate_interval_ns: int = 0
    half_open_ticks: int = 0
    allow: int = 0
    deny: int = 0
    client_prefix_v4: int = 0
    client_prefix_v6: int = 0
    backends_limited: bool = False
    candidates_v4: tuple[int, ...] = ()
    candidates_v6: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PutBackendLimits:
    """The weight of backend `id` for leastconn, from 1, and its connections at most; 0: no limit."""

    id: int
    weight: int
    max_connections: int


@dataclass(frozen=True, slots=True, eq=False)
class PutPrefixes:
    """Add list `id` (from 1). v4, v6: its prefixes, each the bytes of the address and one with the length, joined."""

    id: int
    v4: bytes
    v6: bytes


@dataclass(frozen=True, slots=True, eq=False)
class DeletePrefixes:
    """Remove list `id`, whose prefixes are these."""

    id: int
    v4: bytes
    v6: bytes


@dataclass(frozen=True, slots=True)
class KeepPrefixes:
    """Remove all lists but these."""

    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class ZeroTraffic:
    """Reset the counters of farm ids and backend ids before they are reused."""

    farms: tuple[int, ...] = ()
    backends: tuple[int, ...] = ()


Operation = (
    PutVip
    | DeleteVip
    | PutService
    | DeleteService
    | PutServer
    | DeleteServer
    | PutFarm
    | PutMembers
    | PutBackend
    | PutAffinity
    | PutBackendAffinity
    | PutQuicServers
    | PutSlots
    | PutFarmLimits
    | PutBackendLimits
    | PutPrefixes
    | DeletePrefixes
    | KeepPrefixes
    | ZeroTraffic
)

PERSISTENT = {
    family: np.dtype([("client", f"V{size}"), *((name, "<u4") for name in ("farm", "home", "backend", "last_used"))])
    for family, size in (("v4", 4), ("v6", 16))
}
"""The backend of a client prefix in a farm, per family: see `struct persistent`. The prefix is in network byte order."""


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """One direction of a connection, as its packets arrive: canonical addresses, ports, IP protocol number."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class FlowEntry:
    """One flow entry: the tuple of arriving packets, the tuple they are rewritten to, farm, backend and state."""

    arrives: FlowTuple
    leaves: FlowTuple
    forward: bool
    farm: int
    backend: int
    state: int
    last_seen_tick: int
    embryonic: bool
    mode: str = ""  # "dsr" or "ipip": the backend gets the packet unchanged, and there is no entry of the other direction


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN device whose frames the program handles on the interface below it. interface, lower: indexes.

    protocol: EtherType of its tag, 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    """

    interface: int
    lower: int
    number: int
    protocol: int = 0x8100


class DataPlane(Protocol):
    """The kernel part of a node. `flow_map` is "flows" or "embryonic", `family` is "v4" or "v6".

    Columns are numpy structured arrays with the layouts of bpf/program/abi*.h.
    """

    def apply(self, operations: Sequence[Operation]) -> None:
        """Execute in order, neighbours of a kind in one batch. Raises PlaneError naming the operation that failed."""

    def vips(self) -> dict[str, int]:
        """The VIPs in the maps, with their flags; read when pins are adopted."""

    def services(self) -> dict[ServiceKey, ServiceValue]:
        """The listeners in the maps, with the prefixes of a port range joined; read when pins are adopted."""

    def servers(self) -> dict[ServerKey, int]:
        """The services of backends in the maps, with their flags; read when pins are adopted."""

    def set_lease(self, deadline_ns: int, epoch: int) -> None: ...
    def lease(self) -> tuple[int, int]: ...
    def bump_next_hops(self) -> None:
        """Invalidate the cached next hop of all flows."""

    def set_tunnel_sources(self, v4: str, v6: str) -> None:
        """The addresses of this node that are the source of mode ipip's outer headers; empty: none. Invalidates next hops.

        Raises PlaneError unless the program was built with that mode.
        """

    def set_vlans(self, vlans: Collection[Vlan], untagged: Collection[int]) -> None:
        """Handle the frames of these VLANs and no others. untagged: interfaces whose untagged frames are handled too.

        Those of any other interface that was ever below a VLAN stay the kernel's. Raises PlaneError unless the program was
        built for VLANs.
        """

    def vlans(self) -> frozenset[Vlan]:
        """The VLANs whose frames are handled; none if the program was built without them."""

    def set_hash_seed(self, seed: int) -> None: ...
    def hash_seed(self) -> int: ...
    def counters(self) -> dict[str, tuple[int, int]]:
        """Counter name to (packets, bytes), summed over CPUs."""

    def farm_traffic(self) -> Array:
        """Structured array indexed by farm id, summed over CPUs.

        Fields: packets_in, bytes_in, packets_out, bytes_out, connections, drops.
        """

    def backend_traffic(self) -> Array: ...
    def loads(self, kind: str) -> Array | None:
        """Counted changes of the connections of each "farm" or "backend", indexed by id; None: the program counts none.

        Fields: opened, closed, promoted, base. The load is base + opened - closed.
        """

    def loaded_prefixes(self) -> dict[int, tuple[int, int]]:
        """IPv4 and IPv6 prefixes of each list in the maps, by the list's id; none if the program has no lists. Blocks."""

    def set_load_bases(self, kind: str, bases: Array) -> None:
        """Correct the bases of all ids (int64); only one thread may call this."""

    def flow_batches(self, flow_map: str, family: str, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """(keys, values) of a flow map, about batch_size entries each.

        Entries that are added or deleted meanwhile may be missed or returned twice.
        """

    def encode_flow_keys(self, family: str, tuples: Sequence[FlowTuple]) -> Array:
        """Keys for `lookup_flows` and `delete_flows`."""

    def lookup_flows(self, flow_map: str, family: str, keys: Array) -> tuple[Array, Array]:
        """(found: bool array, values) for each key."""

    def update_flows(self, family: str, keys: Array, values: Array) -> int:
        """Insert or overwrite established flows in one batch; returns how many were written, fewer if the map is full."""

    def delete_flows(self, flow_map: str, family: str, keys: Array) -> int:
        """Delete the flows that still exist; returns their number."""

    def keeps_clients(self) -> bool:
        """Whether the build has persistence."""

    def persistent_batches(self, family: str, batch_size: int) -> Iterator[Array]:
        """Rows of PERSISTENT, about batch_size each; none if the build has no persistence."""

    def find_persistent(self, family: str, rows: Array) -> tuple[Array, Array]:
        """(found: bool array, rows) for the client and farm of each row."""

    def update_persistent(self, family: str, rows: Array) -> int:
        """Insert or overwrite; returns how many were written, 0 if the build has no persistence."""

    def now_tick(self) -> int:
        """The current time in flow ticks (CLOCK_MONOTONIC >> TICK_SHIFT)."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CaptureFilter:
    """Which packets a capture records: those that satisfy all of it. What is empty or 0 excludes none.

    verdicts: numbers of counters; client: network of clients; farm: its id; backends: their ids, None: all; snap_bytes: kept of
    each packet.
    """

    verdicts: frozenset[int] = frozenset()
    client: IPv4Network | IPv6Network | None = None
    farm: int = 0
    backends: frozenset[int] | None = None
    snap_bytes: int = CAPTURE_SNAP_BYTES


class PlaneError(Exception):
    """The kernel refused an operation on the data plane; the message names it, and the remedy if one is known.

    `log` is the full output of the compiler or the verifier, empty for other errors.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
