"""The settings of farms and backends that are one value each: name, type, range, meaning.

One table from which follow reading (ctl/config/fields.py), range checks (ctl/config/validation.py), the options of xlbctl
(ctl/cli/options.py) and the documents (docs/make_tables.py). Types and defaults are those of ctl/config/model.py. Decides what
a single value may be; ctl/config/validation.py decides combinations. Must not know where values come from.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ctl.config.model import Backend, Farm, HealthCheck

MAX_WEIGHT = 65535
MAX_TIER = 255
MAX_IDLE_TIMEOUT_S = 7 * 24 * 3600
MAX_SLOW_START_S = 3600
MAX_PERSISTENCE_S = 30 * 24 * 3600
MAX_COUNT = 2**31 - 1
MAX_CONNECTION_ID = 20  # bytes; RFC 9000 section 17.2
MAX_SERVER_ID = 15  # bytes
MAX_INTERVAL_MS = 3_600_000
MAX_BYTES = 1024  # of a payload, of an expected answer
MAX_DRAIN_UNTIL = 2**32 - 1  # seconds since 1970

TABLE_SIZES = (509, 1021, 2039, 4093, 8191, 16381, 32749, 65537)
"""Primes, because a backend's skip must visit every slot. A factor of two apart: a change of size moves every hash to another
slot, so it should be rare, but thousands of farms with lookup tables four times too long would fill the kernel's slot map."""

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting with one value. The type of `default` is that of the value."""

    of: str  # "farm" | "backend" | "farm.health"
    name: str  # the field of the model, the key in files and messages, and with dashes the option
    default: object
    meaning: str
    low: int = 0  # of an integer
    high: int = 0
    among: tuple[int, ...] = ()  # the only values of an integer, besides its default
    pattern: str = ""  # of a string that is not empty
    form: str = ""  # such a string in words
    shown_default: str = ""  # what the default stands for
    unit: str = "N"
    has_option: bool = True

    @property
    def allowed(self) -> tuple[str, ...]:
        """The values of a choice."""
        kind = type(self.default)
        return tuple(each.value for each in kind) if issubclass(kind, enum.StrEnum) else ()

    @property
    def expected(self) -> str:
        """What the value must be, for messages."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, enum.StrEnum):
            return " or ".join(each or '""' for each in self.allowed)
        if self.among:
            return " or ".join(str(each) for each in (self.default, *self.among))
        return f"{self.low} to {self.high}" if isinstance(self.default, int) else f'"" or {self.form}'

    def problem(self, value: object) -> str:
        """What is wrong with a value of the right type, as a message; empty: nothing."""
        if isinstance(value, int) and not isinstance(value, bool):
            ok = value in (self.default, *self.among) if self.among else self.low <= value <= self.high
        elif isinstance(value, enum.StrEnum):
            ok = value in self.allowed
        else:
            ok = not self.pattern or value == "" or re.fullmatch(self.pattern, str(value)) is not None
        return "" if ok else f"expected {self.expected}, got {shown(value)}"


def shown(value: object) -> str:
    """A value as files and messages have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value[:64]}"' if isinstance(value, str) else str(value)


def _farm(name: str, meaning: str, **more: object) -> Setting:
    return Setting("farm", name, Farm.__dataclass_fields__[name].default, meaning, **more)  # type: ignore[arg-type]


def _backend(name: str, meaning: str, **more: object) -> Setting:
    return Setting("backend", name, Backend.__dataclass_fields__[name].default, meaning, **more)  # type: ignore[arg-type]


def _check(name: str, meaning: str, **more: object) -> Setting:
    return Setting("farm.health", name, HealthCheck.__dataclass_fields__[name].default, meaning, **more)  # type: ignore[arg-type]


_TIMEOUT: Mapping[str, object] = {"high": MAX_IDLE_TIMEOUT_S, "unit": "SECONDS"}
_COUNT: Mapping[str, object] = {"high": MAX_COUNT, "shown_default": "no limit"}
_LIST: Mapping[str, object] = {
    "pattern": NAME,
    "form": 'the name of a prefix list: letters, digits, ".", "_" and "-"',
    "unit": "NAME",
    "shown_default": "none",
}
_ON_BACKEND = "`keep` its connections, `reset` them, or `move` them to another backend (udp only)."

FARM_SETTINGS = (
    _farm(
        "scheduler",
        "`maglev`: hash of the connection. `source`: hash of the client address. `roundrobin`: in turn. `leastconn`: the "
        "backend with the fewest connections for its weight.",
    ),
    _farm("enabled", "`false`: the farm takes no new connections.", has_option=False),
    _farm("all_down", "No backend is up. `drop`: none takes new connections. `all`: they are distributed over all backends."),
    _farm(
        "on_no_backend", "No backend can take a connection. `reject`: TCP reset or ICMP port unreachable. `drop`: no answer."
    ),
    _farm(
        "idle_timeout_s",
        "Seconds without a packet after which a connection is removed; no other timeout is longer.",
        shown_default="7440 (tcp), 300 (udp)",
        **_TIMEOUT,
    ),
    _farm("opening_timeout_s", "The same until both ends have answered.", shown_default="240 (tcp), 120 (udp)", **_TIMEOUT),
    _farm(
        "closing_timeout_s",
        "The same after a FIN of both ends, or a RST that no later packet has revoked (tcp).",
        shown_default="240",
        **_TIMEOUT,
    ),
    _farm(
        "tier_minimum",
        "With fewer usable backends than this of a priority, those of the next number take connections as well.",
        low=1,
        high=1000,
    ),
    _farm(
        "slow_start_s",
        "Seconds in which the share of a backend that comes up grows to its weight.",
        high=MAX_SLOW_START_S,
        unit="SECONDS",
        shown_default="0: at once",
    ),
    _farm(
        "table_size",
        "Slots of the lookup table of a hash scheduler; more are exact for more backends and more unequal weights.",
        among=TABLE_SIZES,
        shown_default="0: chosen when the farm is created, then kept",
    ),
    _farm("on_backend_down", f"A backend is down: {_ON_BACKEND}", shown_default="`keep` (tcp), `move` (udp)"),
    _farm("on_backend_removed", f"A backend is removed: {_ON_BACKEND}", shown_default="`reset` (tcp), `move` (udp)"),
    _farm(
        "persistence_s",
        "Seconds for which the connections of a client prefix go to the same backend, after the last use by one of them.",
        high=MAX_PERSISTENCE_S,
        unit="SECONDS",
        shown_default="0: off",
    ),
    _farm("persistence_prefix_v4", "Length of that prefix for IPv4 clients.", low=8, high=32, unit="BITS"),
    _farm("persistence_prefix_v6", "Length of that prefix for IPv6 clients.", low=16, high=128, unit="BITS"),
    _farm(
        "persistence_return",
        "The backend of a prefix took no connections for a time and does again. `true`: the prefix goes back to it. "
        "`false`: it stays with the other.",
    ),
    _farm("max_connections", "Most connections of the farm; more are refused.", **_COUNT),
    _farm("max_rate", "Most new connections per second of one client prefix; more are dropped.", **_COUNT),
    _farm(
        "rate_prefix_v4", "Length of the client prefix of `max_rate` and `max_half_open`, IPv4.", low=8, high=32, unit="BITS"
    ),
    _farm("rate_prefix_v6", "The same for IPv6.", low=16, high=128, unit="BITS"),
    _farm("max_half_open", "Most connections of one client prefix that are not established yet.", **_COUNT),
    _farm("allow", "Prefix list of the only clients that the farm serves; see `xlbctl prefixes`.", **_LIST),
    _farm("deny", "Prefix list of the clients that the farm does not serve.", **_LIST),
    _farm("toa", "Mode `snat`, tcp. `true`: a TCP option on the first segment with data has the client's address and port."),
    _farm(
        "quic_cid",
        "Udp. The backend follows from the connection id of QUIC: from its first bytes, or from a server id in it.",
        pattern=r"prefix:([1-9]|1[0-9]|20)|server-id:(0|[1-9]|1[0-9]):([1-9]|1[0-5])",
        form=f'"prefix:N" with N from 1 to {MAX_CONNECTION_ID} or "server-id:OFFSET:LENGTH" with OFFSET from 0 to '
        f"{MAX_CONNECTION_ID - 1} and LENGTH from 1 to {MAX_SERVER_ID}",
        unit="SCHEME",
        shown_default="none",
    ),
)

BACKEND_SETTINGS = (
    _backend("weight", "Share of new connections; `0`: none.", high=MAX_WEIGHT),
    _backend(
        "priority",
        "Lowest number first: others get connections only when no lower number has a usable backend.",
        high=MAX_TIER,
    ),
    _backend("draining", "`true`: no new connections; existing ones continue.", has_option=False),
    _backend("max_connections", "Most connections of the backend; more go to others.", **_COUNT),
    _backend(
        "quic_id",
        "Server id in the connection ids of this backend, in hexadecimal; see `farm.quic_cid`.",
        pattern=f"([0-9a-f]{{2}}){{1,{MAX_SERVER_ID}}}",
        form=f'1 to {MAX_SERVER_ID} bytes as pairs of the digits 0-9 and a-f, like "c0ffee"',
        unit="HEX",
        shown_default="none",
    ),
    _backend(
        "drain_until",
        "End of a drain, in seconds since 1970.",
        high=MAX_DRAIN_UNTIL,
        unit="SECONDS",
        shown_default="0: when the last connection ends",
    ),
    _backend("drain_then", "What happens at that end to the connections that are left. `keep`: nothing. `cut`: they end."),
)

_TEXT = r"[^\x00-\x1f\x7f\ud800-\udfff]"
_DATA: Mapping[str, object] = {
    "pattern": rf"hex:([0-9a-fA-F]{{2}}){{1,{MAX_BYTES}}}|(?!hex:){_TEXT}{{1,{MAX_BYTES}}}",
    "form": f'a text, or "hex:" with pairs of hexadecimal digits, of at most {MAX_BYTES} bytes',
    "unit": "TEXT|hex:DIGITS",
    "shown_default": "none",
}

CHECK_SETTINGS = (
    _check(
        "interval_down_ms",
        "From one check to the next while the backend is down; at least `interval_ms`.",
        high=MAX_INTERVAL_MS,
        unit="MS",
        shown_default="`interval_ms`",
    ),
    _check(
        "text",
        "`http`, `https`: text in the first 64 KiB of the answer's body.",
        pattern=f"{_TEXT}{{1,{MAX_BYTES}}}",
        form=f"a text of at most {MAX_BYTES} characters without control characters",
        unit="TEXT",
        shown_default="any",
    ),
    _check(
        "sni",
        "`https`: server name that the TLS handshake asks for (SNI), and that the certificate must have.",
        pattern=r"(?=.{1,253}\Z)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?",
        form="a host name",
        unit="NAME",
        shown_default="the name in `host`",
    ),
    _check("verify", "`https`. `true`: the certificate must be valid and name the server."),
    _check(
        "ca_file",
        "`https`: file (PEM) on each node with the authorities that `verify` trusts.",
        pattern=r"/[\x20-\x7e]{1,1023}",
        form="an absolute path",
        unit="FILE",
        shown_default="those of the system",
    ),
    _check("via", "`tcp`, modes `dsr` and `ipip`. `vip`: connect to the VIP on the backend, through the farm's mode."),
    _check("payload", "`udp`: content of the datagram.", **_DATA),
    _check(
        "answer",
        "`udp`: what the answer contains; without it, only ICMP port unreachable is a failure. `dns`: one of the records.",
        **{**_DATA, "shown_default": "any"},
    ),
    _check(
        "query",
        "`dns`: name that is asked for.",
        pattern=r"(?=.{1,253}\.?\Z)([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\.",
        form="a domain name",
        unit="NAME",
        shown_default="none; `dns` needs one",
    ),
    _check("query_type", "`dns`: type of the record."),
    _check("rcode", "`dns`: expected response code."),
    _check(
        "service",
        "`grpc`: service whose state is asked for (grpc.health.v1).",
        pattern=r"[\x21-\x7e]{1,255}",
        form="the name of a service",
        unit="NAME",
        shown_default="the whole server",
    ),
)
