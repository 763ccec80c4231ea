"""The numbers that the C data plane and the Python control plane share: defined here, passed to the compiler by the loader.

Decides names and values only. Must not know how they are compiled, pinned or counted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ABI_VERSION = 1
"""Version of the meaning of the pinned maps. A changed struct layout is detected without it, because layouts are compared;
increment it when the same bytes get another meaning."""

MAX_FARMS = 4096
MAX_BACKENDS = 32768
MAX_VIPS = 4096
MAX_SERVICES = 65536
MAX_PORT_RANGES = 65536
SLOTS_PER_CHUNK = 16
MAX_SLOT_CHUNKS = 262144
MAX_SNAT_CANDIDATES = 256
"""Sources tried for a new connection: with 63,000 of the 64,512 ports in use, 0.2 % of connections find none."""
FIXED_SNAT_CANDIDATES = 8
"""The first of them depend on the connection only; the others also on the time, so that a retransmission tries others."""
OTHER_PARITY_ATTEMPT = MAX_SNAT_CANDIDATES // 2
"""From here on ports of the other parity: with few free ports the chance to find one is that of a search without parity."""
HIGH_PORTS_ATTEMPT = 240
"""From here on also a privileged client gets a port that is not privileged."""
MAX_SNAT_ADDRESSES = 8
FIRST_SNAT_PORT = 1024
"""Ports below it are privileged: a backend may trust them, so only a client that has one gets one (RFC 4787 REQ-3a)."""
PRIVILEGED_SNAT_PORTS = 512
"""How many ports below FIRST_SNAT_PORT replace a taken privileged port of a client: those that rresvport() gives."""
MAX_IPV6_EXTENSIONS = 4
MAX_PRIORITY_TAGS = 2
"""VLAN-0 tags that are removed from a frame: one each of IEEE 802.1ad and 802.1Q."""
VLAN_NUMBERS = 4096
MAX_VLAN_BLOCKS = 32
"""Interfaces that may be below VLAN devices whose frames the program handles there; 32 kB each."""
MAX_INTERFACES = 65536
"""A VLAN device and the interface below it have smaller indexes than this; it is the size of an array, 1 MB."""

TICK_SHIFT = 26
"""last_seen counts ticks of 2**26 ns (67 ms) of CLOCK_MONOTONIC; 32 bits overflow after nine years of uptime."""

RECENT_TICKS = 15
"""How long packets use the copy of a flow (1 s): last_seen of an established flow may be so much older than its last packet."""
CHANGE_NUMBERS = 1 << 14
"""Numbers that a change of a flow increments: a few thousand changes per second leave the copies of most flows alone."""

PORT_REST_TICKS = 895
"""60 s: the source port of a connection that both ends have closed is not given to another client before, unless no other is
free. Its server may be in TIME-WAIT until then."""
EMBRYONIC_REST_TICKS = 75
"""5 s: the silence after which an embryonic connection loses its port if no other is free."""

MAX_ERRORS_PER_TICK = 64
"""ICMP errors that a CPU originates per tick: 950 per second (RFC 1812 4.3.2.8 and RFC 4443 2.4f require a limit).
The same number of TCP resets."""

MAX_SERVERS = 4 * MAX_BACKENDS
"""Services and hosts of backends per family, and as many prefixes of port ranges. Allocated as needed."""
MAX_DIRECT = 16384
"""Connections to dnat backends that do not use a VIP and that are remembered; the least recently used are forgotten."""
MAX_FRAGMENTED = 8192
"""Fragmented datagrams per family that are in flight at a time."""
FRAGMENT_TICKS = 447
"""How long the fragments of a datagram follow the first: 30 s (RFC 791 3.2; Linux waits as long)."""

MAX_PERSISTENT = 131072
"""Clients per family whose backend is remembered; the least recently used are forgotten. 12 MB (IPv4), 14 MB (IPv6)."""
PERSISTENCE_SLACK_SHIFT = 4
"""The last use of an entry is written again once 1/16 of the time to live has passed, which is added to that time."""
PERSISTENCE_USE_SHIFT = 4
"""A living connection uses the entry of its client every 2**4 ticks (1.1 s)."""
MAX_TOA = 16384
"""Connections per family whose first data is not acknowledged yet. Of one that is forgotten another segment is the first."""
TOA_KIND = 254
"""The TCP option's kind (RFC 4727 3.3: for experiments), by convention of the kernel modules that read the option."""
MAX_QUIC_ID_BYTES = 20
"""The longest connection id of QUIC version 1 (RFC 9000 17.2)."""
MAX_CANDIDATES = 32
"""Backends that are compared for a new connection: leastconn, and where the selected one is full."""
MAX_PREFIXES = 1 << 20
"""Prefixes of all lists in the kernel, per family, while a list is replaced by another. Allocated as needed."""
MAX_CLIENTS = 65536
"""Client prefixes per family whose rate, or half-open connections, are remembered; the least recently used are forgotten."""
RATE_BURST_NS = 1_000_000_000
"""The time whose connections a client may open at once: as many as `max_rate` permits in a second."""
HALF_OPEN_WINDOWS = 4

FIB_SKIP_NEIGHBOUR = 1 << 2
FIB_SOURCE = 1 << 4
"""Flags of bpf_fib_lookup that linux-libc-dev of Debian 12 does not know: since Linux 6.3 and 6.7."""

REFRESH_SHIFT = 9
"""A busy flow is reported to the peer again every 2**9 ticks (34 s), at an offset that depends on the client's port."""

CAPTURE_SNAP_BYTES = 9216
"""The longest packet that a capture keeps as a whole: an Ethernet jumbo frame."""
CAPTURE_RING_BYTES = 8 * 1024 * 1024
"""How much a capture may wait for its client before packets are lost: about 40,000 short ones."""

RING_BYTES = 8 * 1024 * 1024
"""Size of each replication ring, a power of two: 100,000 IPv4 or 62,000 IPv6 flow events."""

LEASE_HANDED_OVER_NS = 1
"""Deadline of a node that has just handed over: packets for its VIPs go to the kernel, which forwards them to the peer.
The VIPs must be removed from the node's interfaces before, or the kernel would answer."""

LEASE_FOREVER_NS = 2**64 - 1
"""Deadline of a node without a peer: its lease never expires."""


class Handler(enum.IntEnum):
    """Programs that the entry program calls, by their index in the map `handlers`; the program's name is xlb_ and this name."""

    V4 = 0
    V6 = 1
    OPEN_V4 = 2
    OPEN_V6 = 3
    CHOOSE = 4
    TAGGED = 5
    ENTER = 6
    CAPTURED = 7


OPTIONAL_HANDLERS: Mapping[Handler, str] = MappingProxyType(
    {Handler.CHOOSE: "loads", Handler.TAGGED: "vlans", Handler.ENTER: "capture", Handler.CAPTURED: "capture"}
)
"""The programs that only a build with a feature has."""


class Protocol(enum.IntEnum):
    """IP protocol numbers a farm can balance (IANA protocol numbers registry)."""

    TCP = 6
    UDP = 17


class Mode(enum.IntEnum):
    """How packets reach the backend: snat hides the client behind the floating address, dnat keeps it; dsr changes the MAC
    addresses alone, ipip wraps the packet, and the backend answers past the node."""

    SNAT = 0
    DNAT = 1
    DSR = 2
    IPIP = 3


class Scheduler(enum.IntEnum):
    """How the slot of a new connection is selected: by hash of the 5-tuple, in turn, by hash of the client address, or the
    backend with the fewest connections for its weight."""

    MAGLEV = 0
    ROUNDROBIN = 1
    SOURCE = 2
    LEASTCONN = 3


class FlowFlag(enum.IntFlag):
    """Properties of a flow entry; set when it is created and never changed."""

    FORWARD = 1  # client to backend; without it: backend to client
    DERIVED = 2  # created for a mid-stream packet, not for a SYN
    DSR = 4  # mode dsr: no rewrite, and no entry of the other direction
    IPIP = 8  # mode ipip: the same
    OTHER_FAMILY = 16  # ipip: the backend's address is of the other family (bpf/program/tunnel.h)
    TOA = 32  # the client's address goes into a TCP option


class FlowState(enum.IntFlag):
    """Packets seen in a direction. The FIN and RST bits are written to both entries of a connection, and cleared in both by a
    packet that shows that an endpoint ignored them (bpf/program/flow.h)."""

    SEEN = 1  # a packet was forwarded in this direction
    FIN_HERE = 2  # this direction sent FIN
    FIN_THERE = 4  # the other direction sent FIN
    RST = 8  # either side reset the connection
    REPLICATED = 16  # the entry was received from the peer
    COUNTED = 32  # of a forward entry: its client's half-open connections include it
    TOA_DONE = 64  # the segment with the client's address is acknowledged


class VipFlag(enum.IntFlag):
    """Properties of a virtual address."""

    RANGES = 1  # a farm on it has a port range: look up `ranges` after `services`
    OPEN = 2  # no guard: packets that no farm serves go to the kernel


class BackendFlag(enum.IntFlag):
    """Properties of a backend in the map."""

    UNAVAILABLE = 1  # down or removed: a SYN for its connections, and UDP that it has not answered twice, get another one
    V6 = 2  # its address is IPv6; written with the address


class ServerFlag(enum.IntFlag):
    """What a service of a backend, or a host with such services, is used for."""

    DNAT = 1  # a farm in mode dnat: replies come from its own address
    SNAT = 2  # a farm in mode snat
    RANGES = 4  # of a host: some service is a port range


class FarmFlag(enum.IntFlag):
    """Settings of a farm that its services do not hold."""

    SILENT = 1  # a new connection that cannot be served is dropped without an answer
    TOA = 2  # the client's address goes into a TCP option


class InterfaceFlag(enum.IntFlag):
    """What of an interface's frames the program handles."""

    TAGGED_ONLY = 1  # those of VLANs; the others go to the kernel


class AffinityFlag(enum.IntFlag):
    """How a farm's persistence behaves."""

    RETURN = 1  # a client returns to its first backend once that takes new connections again


class Quic(enum.IntEnum):
    """What the connection id of a QUIC packet says about its backend."""

    NONE = 0
    PREFIX = 1  # its first bytes are hashed
    SERVER_ID = 2  # some of its bytes are a backend's id


class EventType(enum.IntEnum):
    """Why a flow event was written to the ring buffer for the peer."""

    ESTABLISHED = 1
    REFRESH = 2
    CLOSED = 3
    REMOVED = 255  # deleted; the number that sync.flows.codec gives it


class Kind(enum.Enum):
    """What happened to the packets that a counter counts."""

    PASS = "pass"
    FORWARD = "forward"
    DROP = "drop"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class Counter:
    """One line of `xlbctl stats`: the verdict on a packet, and the reason for it."""

    name: str
    kind: Kind
    reason: str


COUNTERS: tuple[Counter, ...] = (
    Counter(
        "pass_not_ip",
        Kind.PASS,
        "Neither IPv4, IPv6 nor a neighbour message about a VIP, or of a VLAN or interface that is not balanced: left to the "
        "kernel.",
    ),
    Counter("pass_not_ours", Kind.PASS, "No flow and no VIP matches: left to the kernel."),
    Counter(
        "pass_neighbour",
        Kind.PASS,
        "ARP or neighbour solicitation for a VIP while the lease is open: the kernel answers. After the lease expired: "
        "gratuitous ARP about a VIP, turned into a reply, from which the kernel learns without answering.",
    ),
    Counter("pass_vip_icmp", Kind.PASS, "Echo request or other ICMP to a VIP that belongs to no flow: the kernel answers."),
    Counter("pass_vip_open", Kind.PASS, "No farm serves the port and the VIP's guard is off: left to the kernel."),
    Counter(
        "pass_handed_over",
        Kind.PASS,
        "For a VIP that has just been handed over: the kernel forwards it to the peer.",
    ),
    Counter("pass_unresolved", Kind.PASS, "Rewritten, but the next hop's MAC is unknown: the kernel resolves it and forwards."),
    Counter(
        "pass_too_big",
        Kind.PASS,
        "Rewritten, longer than the egress MTU, and its sender allows fragments: the kernel fragments it.",
    ),
    Counter("forward_tx", Kind.FORWARD, "Rewritten and sent through its ingress interface."),
    Counter("forward_redirect", Kind.FORWARD, "Rewritten and sent through another interface."),
    Counter("forward_icmp_error", Kind.FORWARD, "ICMP error about a flow, translated and forwarded (RFC 5508)."),
    Counter("forward_too_big", Kind.FORWARD, "Longer than the egress MTU: its sender got an ICMP error (RFC 1191, RFC 4443)."),
    Counter("drop_fenced", Kind.DROP, "The lease has expired: the peer may be active for this VIP."),
    Counter("drop_fenced_neighbour", Kind.DROP, "ARP or neighbour solicitation for a VIP after the lease expired: no answer."),
    Counter("drop_vip_guard", Kind.DROP, "No farm serves this port of the VIP, and the guard keeps other listeners private."),
    Counter("drop_no_backend", Kind.DROP, "The farm has no backend that may take new connections."),
    Counter(
        "drop_no_flow",
        Kind.DROP,
        "Packet without a flow: mid-stream where the scheduler cannot derive the backend, or the reply of a backend.",
    ),
    Counter("drop_snat_exhausted", Kind.DROP, "Every candidate source port towards this backend is taken."),
    Counter("drop_reverse_conflict", Kind.DROP, "Another connection already owns the reply key of this one."),
    Counter("drop_ttl_expired", Kind.DROP, "TTL or hop limit would reach zero here."),
    Counter(
        "drop_martian",
        Kind.DROP,
        "First packet to a VIP from a source that no client has (RFC 1812 5.3.7): no host, a VIP, a UDP service of a farm; "
        "an ICMP error from there or about such a client.",
    ),
    Counter(
        "drop_fragment",
        Kind.DROP,
        "Fragment without ports, for a VIP or from a dnat backend, whose first fragment has not passed: it belongs to no flow.",
    ),
    Counter("drop_malformed", Kind.DROP, "Headers of a packet for a VIP are truncated or inconsistent."),
    Counter("drop_ipv6_extension", Kind.DROP, "IPv6 extension headers of a packet for a VIP are too many or not understood."),
    Counter("drop_protocol", Kind.DROP, "Neither TCP, UDP nor ICMP to a guarded VIP."),
    Counter("drop_no_route", Kind.DROP, "The kernel has no route to the next hop, or forbids it."),
    Counter(
        "drop_too_big",
        Kind.DROP,
        "Longer than the egress MTU, and no ICMP error could be sent, or their rate limit was reached.",
    ),
    Counter(
        "drop_unresolved",
        Kind.DROP,
        "Mode dsr or ipip: the next hop's MAC is unknown, and the kernel cannot forward in the program's place.",
    ),
    Counter(
        "drop_no_tunnel_source",
        Kind.DROP,
        "Mode ipip: this node has no address of the backend's family to send from; see tunnel_source in xlbd(8).",
    ),
    Counter(
        "drop_not_compiled",
        Kind.DROP,
        "The farm's mode is not in the program yet, which xlbd compiles: no answer, so that the client repeats.",
    ),
    Counter("drop_denied", Kind.DROP, "A list of the farm denies the client, or its list of allowed clients does not have it."),
    Counter("drop_rate", Kind.DROP, "The client opens connections faster than the farm's max_rate."),
    Counter("drop_half_open", Kind.DROP, "The client has max_half_open connections of the farm that are not established."),
    Counter("drop_farm_full", Kind.DROP, "The farm has max_connections."),
    Counter("drop_backend_full", Kind.DROP, "Every backend that may take new connections has its max_connections."),
    Counter(
        "drop_no_headroom", Kind.DROP, "The driver leaves no space in front of the frame for an outer header or a VLAN tag."
    ),
    Counter("drop_internal", Kind.DROP, "A map entry that must exist is missing: a bug, please report it."),
    Counter(
        "event_reset_sent",
        Kind.EVENT,
        "A dropped TCP segment was answered with a reset: its end of the connection does not wait (RFC 9293 3.5.2).",
    ),
    Counter(
        "event_unreachable_sent",
        Kind.EVENT,
        "A dropped packet was answered with ICMP destination unreachable (port, host or no route).",
    ),
    Counter("event_time_exceeded_sent", Kind.EVENT, "A packet whose TTL expired here was answered with ICMP time exceeded."),
    Counter("event_promoted", Kind.EVENT, "A connection was established and moved to the map of established flows."),
    Counter(
        "event_flow_table_full",
        Kind.EVENT,
        "The map of established flows is full; the connection stays in the embryonic map, which evicts.",
    ),
    Counter("event_toa_inserted", Kind.EVENT, "The client's address was put into a TCP option (farm setting toa)."),
    Counter(
        "event_toa_skipped",
        Kind.EVENT,
        "First segment with data without the client's address: no space for the option, or in the egress MTU.",
    ),
    Counter(
        "event_ring_full", Kind.EVENT, "A flow event was lost because the replication ring was full: the peer resynchronizes."
    ),
)

FIRST_FORWARD = next(number for number, counter in enumerate(COUNTERS) if counter.kind is Kind.FORWARD)
FIRST_DROP = next(number for number, counter in enumerate(COUNTERS) if counter.kind is Kind.DROP)
FIRST_EVENT = next(number for number, counter in enumerate(COUNTERS) if counter.kind is Kind.EVENT)
"""COUNTERS is ordered by kind, so that the number of a verdict decides the XDP action (bpf/program/verdict.h)."""
