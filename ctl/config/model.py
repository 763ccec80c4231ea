"""The configuration model: virtual addresses, farms, backends, accounts. Immutable values.

Decides the representation; ctl/config/validation.py checks it. Must not know files, sockets, the kernel or the time. A change
makes a new `Config` that shares every unchanged farm object, so that an identity test detects a changed farm.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType


class Protocol(enum.StrEnum):
    """Transport a farm balances."""

    TCP = "tcp"
    UDP = "udp"


class Mode(enum.StrEnum):
    """How packets reach the backend."""

    SNAT = "snat"
    DNAT = "dnat"
    DSR = "dsr"
    IPIP = "ipip"


class Scheduler(enum.StrEnum):
    """How the backend of a new connection is selected."""

    MAGLEV = "maglev"
    ROUNDROBIN = "roundrobin"
    SOURCE = "source"
    LEASTCONN = "leastconn"


class CheckKind(enum.StrEnum):
    """Kind of health check."""

    NONE = "none"
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    ICMP = "icmp"
    UDP = "udp"
    DNS = "dns"
    GRPC = "grpc"
    COMMAND = "command"


class QueryType(enum.StrEnum):
    """What a DNS check asks for (RFC 1035 section 3.2.2, RFC 3596, RFC 2782)."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    NS = "NS"
    PTR = "PTR"
    SOA = "SOA"
    SRV = "SRV"
    TXT = "TXT"


class CheckVia(enum.StrEnum):
    """Where a check connects to."""

    BACKEND = "backend"
    VIP = "vip"  # on the backend, as the farm's mode leads clients there


class ResponseCode(enum.StrEnum):
    """How a DNS check's server answers (RFC 1035 section 4.1.1)."""

    NOERROR = "NOERROR"
    FORMERR = "FORMERR"
    SERVFAIL = "SERVFAIL"
    NXDOMAIN = "NXDOMAIN"
    NOTIMP = "NOTIMP"
    REFUSED = "REFUSED"


class AllDown(enum.StrEnum):
    """What a farm does with new connections when no backend is up: drop them, or try every backend."""

    DROP = "drop"
    ALL = "all"


class OnNoBackend(enum.StrEnum):
    """What the client of a new connection gets that no backend can take: a refusal, or no answer."""

    REJECT = "reject"
    DROP = "drop"


class OnBackend(enum.StrEnum):
    """What happens to the connections of a backend that is down, or removed; the default depends on the protocol."""

    DEFAULT = ""
    KEEP = "keep"
    RESET = "reset"
    MOVE = "move"


class DrainThen(enum.StrEnum):
    """What happens to the connections that are left at the end of a drain."""

    KEEP = "keep"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How a farm's backends are probed."""

    kind: CheckKind = CheckKind.NONE
    interval_ms: int = 2000
    timeout_ms: int = 1000
    rise: int = 2  # successes in a row that bring a backend up
    fall: int = 3  # failures in a row that take it down
    port: int = 0  # 0: the backend's own
    path: str = "/"  # http, https
    status: str = "200-399"  # http, https: one status or an inclusive range
    host: str = ""  # http, https: Host header; empty: the backend's address
    interval_down_ms: int = 0  # of a backend that is down; 0: interval_ms
    address: str = ""  # empty: the backend's own
    text: str = ""  # http, https: what the body contains
    sni: str = ""  # https: server name; empty: that of `host`
    verify: bool = False  # https: check the certificate
    ca_file: str = ""  # https: path on each node; empty: the system's
    payload: str = ""  # udp: a datagram as text or "hex:…"
    answer: str = ""  # udp: what the answer contains, as text or "hex:…"; dns: one of the records
    query: str = ""  # dns: name
    query_type: QueryType = QueryType.A
    rcode: ResponseCode = ResponseCode.NOERROR
    service: str = ""  # grpc; empty: the whole server
    via: CheckVia = CheckVia.BACKEND  # tcp
    command: tuple[str, ...] = ()  # absolute path and arguments


DEFAULT_CHECK = MappingProxyType({Protocol.TCP: HealthCheck(kind=CheckKind.TCP), Protocol.UDP: HealthCheck()})
"""The check of a new farm. UDP has no handshake that every server answers."""


MAX_PORT = 65535
ALL_PORTS = ((1, MAX_PORT),)


def format_ports(ranges: Sequence[tuple[int, int]]) -> str:
    """Port ranges as a string: "80", "80,443,8000-8010", "all"."""
    if tuple(ranges) == ALL_PORTS:
        return "all"
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def format_endpoint(address: str, port: int | str) -> str:
    """ADDR:PORT, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A server of a farm. `id` is its index in the kernel's backend map, unique on the node, and never changes."""

    id: int
    address: str
    port: int
    weight: int = 1  # 0: no new connections
    priority: int = 0  # lower is preferred; a tier is used only if no lower-numbered tier has an eligible backend
    draining: bool = False
    max_connections: int = 0  # 0: no limit
    quic_id: str = ""  # server id in hexadecimal
    drain_until: int = 0  # seconds of CLOCK_REALTIME; 0: a drain has no deadline
    drain_then: DrainThen = DrainThen.KEEP

    @property
    def endpoint(self) -> str:
        """Name of the backend within its farm, for messages and for hashing."""
        return format_endpoint(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Farm:
    """A service. `id` is its index in the kernel's farm map, unique on the node, and never changes."""

    id: int
    name: str
    vip: str
    port: int
    port_last: int  # equals port unless the farm listens on a range; backends keep the offset from the farm's first port
    protocol: Protocol = Protocol.TCP
    mode: Mode = Mode.SNAT
    scheduler: Scheduler = Scheduler.MAGLEV
    snat_address: str = ""  # empty: the VIP that the client uses; or several, of both families, separated by commas
    enabled: bool = True
    all_down: AllDown = AllDown.DROP
    idle_timeout_s: int = 0  # 0: DEFAULT_IDLE_TIMEOUT_S of the protocol
    opening_timeout_s: int = 0  # 0: DEFAULT_OPENING_TIMEOUT_S of the protocol
    closing_timeout_s: int = 0  # 0: DEFAULT_CLOSING_TIMEOUT_S
    health: HealthCheck = HealthCheck()
    on_no_backend: OnNoBackend = OnNoBackend.REJECT
    tier_minimum: int = 1  # usable backends below which a tier is completed by the next
    slow_start_s: int = 0
    table_size: int = 0  # 0: kept_size
    kept_size: int = 0  # chosen by ctl/config/table_sizes.py; 0: of an earlier version, follows from the backends
    on_backend_down: OnBackend = OnBackend.DEFAULT
    on_backend_removed: OnBackend = OnBackend.DEFAULT
    persistence_s: int = 0  # 0: none
    persistence_prefix_v4: int = 32
    persistence_prefix_v6: int = 128
    persistence_return: bool = True
    max_connections: int = 0  # 0: no limit, like the next two
    max_rate: int = 0  # new connections per second and client prefix
    rate_prefix_v4: int = 32
    rate_prefix_v6: int = 64
    max_half_open: int = 0  # per client prefix
    allow: str = ""  # name of a prefix list; empty: none
    deny: str = ""
    toa: bool = False
    quic_cid: str = ""  # "prefix:N" or "server-id:OFFSET:LENGTH"
    more_vips: tuple[str, ...] = ()  # that the farm listens on besides `vip`
    more_ports: tuple[tuple[int, int], ...] = ()  # (first, last) besides `port`, ascending
    backends: tuple[Backend, ...] = ()

    @property
    def vips(self) -> tuple[str, ...]:
        """The addresses that the farm listens on."""
        return (self.vip, *self.more_vips)

    @property
    def port_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first, last) of the ports that the farm listens on, ascending."""
        return ((self.port, self.port_last), *self.more_ports)

    @property
    def ports(self) -> str:
        """The ports as a string: "80", "80,443,8000-8010", "all"."""
        return format_ports(self.port_ranges)

    @property
    def snat_addresses(self) -> tuple[str, ...]:
        """The addresses that backends see in mode snat; those of a family without one see the client's VIP."""
        return tuple(self.snat_address.split(",")) if self.snat_address else ()

    def sources(self, vip: str) -> tuple[str, ...]:
        """The addresses that backends see in mode snat for clients of this VIP."""
        return tuple(each for each in self.snat_addresses if (":" in each) == (":" in vip)) or (vip,)

    def listens(self, address: str, port: int) -> bool:
        """Whether the farm listens there."""
        return address in self.vips and any(first <= port <= last for first, last in self.port_ranges)

    @property
    def parts(self) -> tuple[Farm, ...]:
        """The farm by address family of its VIPs, each with the backends that a connection of this family can have.

        Mode ipip reaches the backends of both families from every VIP, so it has one part.
        """
        six = ":" in self.vip
        if self.mode is Mode.IPIP or all((":" in vip) == six for vip in self.more_vips):
            return (self,)
        return tuple(self._part(of_six) for of_six in (six, not six))

    def _part(self, six: bool) -> Farm:
        vips = [vip for vip in self.vips if (":" in vip) == six]
        return replace(
            self,
            vip=vips[0],
            more_vips=tuple(vips[1:]),
            snat_address=",".join(each for each in self.snat_addresses if (":" in each) == six),
            backends=tuple(each for each in self.backends if (":" in each.address) == six),
        )

    @property
    def removed_policy(self) -> OnBackend:
        """What happens to the connections of a backend that is removed."""
        return self.on_backend_removed or (OnBackend.RESET if self.protocol is Protocol.TCP else OnBackend.MOVE)

    @property
    def idle_timeout(self) -> int:
        """Seconds of silence after which a connection expires."""
        return self.idle_timeout_s or DEFAULT_IDLE_TIMEOUT_S[self.protocol]

    @property
    def opening_timeout(self) -> int:
        """Seconds of silence after which a connection expires that is not established, or not answered."""
        return self.opening_timeout_s or DEFAULT_OPENING_TIMEOUT_S[self.protocol]

    @property
    def closing_timeout(self) -> int:
        """Seconds of silence after which a connection expires that both ends have finished, or one has reset."""
        return self.closing_timeout_s or DEFAULT_CLOSING_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual address."""

    address: str
    prefix_length: int
    device: str
    guard: bool = True  # answer the farms' ports and ICMP only


@dataclass(frozen=True, slots=True)
class PrefixList:
    """A named list of prefixes that farms allow or deny; packed as in ctl/config/prefixes.py."""

    name: str
    v4: bytes = b""
    v6: bytes = b""

    @property
    def count(self) -> int:
        """The number of prefixes."""
        return len(self.v4) // 5 + len(self.v6) // 17


class Role(enum.StrEnum):
    """What an account of xlb-web may do: look, or everything."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class User:
    """An account of xlb-web. password_hash: argon2id in PHC form. created_s: seconds since 1970."""

    name: str
    role: Role
    password_hash: str = field(repr=False)
    created_s: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """An API token of xlb-web. sha256: of the token, in hexadecimal. expires_s: seconds since 1970; 0: never. user: made it."""

    name: str
    role: Role
    sha256: str = field(repr=False)
    created_s: int = 0
    expires_s: int = 0
    user: str = ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a generation comes from: the user, the node where the command was entered, the command, the time and the changes.

    time_s: seconds since 1970. changes: the differences in one line, as in the log.
    """

    user: str
    node: str
    command: str
    time_s: int
    changes: str


@dataclass(frozen=True, slots=True)
class Config:
    """The replicated configuration. Each accepted change increments `generation` by one.

    (epoch, generation) is its version in the pair with the id `pair`: the epoch of the last change and the number of
    changes. `history` has the last version of each earlier epoch. A node that was never in a pair has none of these.
    provenance: of the last change; None where it is not known, as of a change by version 0.1.0. Users and tokens are in no
    farms file: applying one, or an earlier generation, leaves them as they are.
    """

    generation: int = 0
    epoch: int = 0
    history: tuple[tuple[int, int], ...] = ()
    pair: str = ""
    hash_seed: int = 0
    next_id: int = 1  # lower bound of the next farm's or backend's search for a free id
    vips: Mapping[str, Vip] = field(default_factory=lambda: MappingProxyType({}))
    farms: Mapping[str, Farm] = field(default_factory=lambda: MappingProxyType({}))
    prefixes: Mapping[str, PrefixList] = field(default_factory=lambda: MappingProxyType({}))
    users: Mapping[str, User] = field(default_factory=lambda: MappingProxyType({}))
    tokens: Mapping[str, Token] = field(default_factory=lambda: MappingProxyType({}))
    provenance: Provenance | None = field(default=None, compare=False)


DEFAULT_IDLE_TIMEOUT_S = MappingProxyType({Protocol.TCP: 7440, Protocol.UDP: 300})
"""RFC 5382 REQ-5: two hours and four minutes. RFC 4787 REQ-5: at least 2 minutes, 5 are recommended."""
DEFAULT_OPENING_TIMEOUT_S = MappingProxyType({Protocol.TCP: 240, Protocol.UDP: 120})
DEFAULT_CLOSING_TIMEOUT_S = 240
"""RFC 5382 REQ-5: four minutes for partially open and for closing connections."""
