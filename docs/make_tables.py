"""Writes the tables of the documents from the code, so that neither can drift from the other.

A document has blocks `<!-- generated: NAME -->` … `<!-- end -->`; NAME is a key of TABLES. Names, values and defaults come from
the code; what a setting means is written here or in docs/man/xlbd.8. A setting without a meaning is an error.

Usage: python -m docs.make_tables [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from bpf import constants
from ctl.config import fields, settings, validation
from ctl.config.model import CheckKind, Mode, Protocol
from ctl.diagnosis import redundancy
from ctl.errors import Code
from ctl.events import catalogue, thresholds
from ctl.importing import haproxy, haproxy_servers, ipvsadm, keepalived, keepalived_checks, nftlb
from ctl.metrics import families
from ctl.state import cluster_file
from sync.failover.transitions import TRANSITIONS

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MANUAL_SETTING = re.compile(r"^    (\[\w+\]|(\w+) = (.+?))(?: +# (.*))?$", re.MULTILINE)


def table(*rows: Sequence[str]) -> Iterator[str]:
    """Return the lines of a Markdown table; the first row is its head."""
    yield f"| {' | '.join(rows[0])} |"
    yield f"|{' --- |' * len(rows[0])}"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows[1:])


# --- counters, limits, ports, codes ------------------------------------------------------------------------------------------


def counters() -> Iterator[str]:
    """Every counter of the data plane: bpf/constants.py."""
    return table(
        ("Counter", "Kind", "What it counts"),
        *((f"`{each.name}`", each.kind.value, each.reason) for each in constants.COUNTERS),
    )


def limits() -> Iterator[str]:
    """What a configuration must not exceed: ctl/config/validation.py."""
    return table(
        ("Limit", "At most"),
        ("VIPs", f"{constants.MAX_VIPS:,}"),
        ("farms", f"{constants.MAX_FARMS - 1:,}"),
        ("backends of one farm", f"{validation.MAX_BACKENDS_PER_FARM:,}"),
        ("backends of all farms", f"{constants.MAX_BACKENDS - 1:,}"),
        ("prefixes that all port ranges together need", f"{constants.MAX_PORT_RANGES:,}"),
    )


def ports() -> Iterator[str]:
    """What a firewall must let pass between the nodes: ctl/state/cluster_file.py."""
    between = "the two cluster addresses"
    return table(
        ("Traffic", "Between", "Carries"),
        (f"TCP {cluster_file.CONTROL_PORT}", between, "heartbeats"),
        (f"TCP {cluster_file.BULK_PORT}", between, "replicated connections"),
        (f"TCP {cluster_file.CONFIG_PORT}", between, "configuration, forwarded commands"),
        (f"TCP {cluster_file.PAIRING_PORT}, SSH", between, "pairing; only while a pair is created"),
        ("IP protocol 112 (VRRP)", "the nodes' addresses on the first data interface", "advertisements of the active node"),
        ("ICMP echo", "each node and the `gateway`, if one is set", "the vote of the gateway"),
        ("TCP", "each node and the backends", "health checks"),
    )


def error_codes() -> Iterator[str]:
    """Every code of an error: ctl/errors.py."""
    return table(("Code", "Meaning"), *((f"`{each.value}`", each.meaning) for each in Code))


def check_codes() -> Iterator[str]:
    """Exit codes of `cluster status --check`: ctl/diagnosis/redundancy.py."""
    rows = ((f"`{each.exit_code}`", each.word, each.meaning) for each in redundancy.VERDICTS)
    return table(("Exit code", "First word", "Meaning"), *rows)


def transitions() -> Iterator[str]:
    """Every transition of the failover machine: sync/failover/transitions.py. States with the same transition share a row."""
    states: dict[tuple[str, str, str, str], list[str]] = {}
    for row in TRANSITIONS:
        then = "unchanged" if row.next is row.state else row.next.value
        key = (row.cause.value, then, f"`{row.message}`", row.attention.value)
        states.setdefault(key, []).append(row.state.value)
    return table(
        ("State", "Cause", "Next state", "Message", "Level"),
        *((", ".join(names), *rest) for rest, names in states.items()),
    )


# --- events -------------------------------------------------------------------------------------------------------------------


def events() -> Iterator[str]:
    """Every type of event: ctl/events/catalogue.py."""
    rows = ((f"`{each.name}`", each.severity.value, each.meaning, _fields_of(each)) for each in catalogue.TYPES.values())
    return table(("Event", "Severity", "Meaning", "Fields"), *rows)


def _fields_of(kind: catalogue.EventType) -> str:
    units = (f" ({each.unit})" if each.unit else "" for each in kind.fields)
    return (
        "; ".join(f"`{each.name}`{unit}: {each.meaning}" for each, unit in zip(kind.fields, units, strict=True))
        or "\N{EN DASH}"
    )


def limits_watched() -> Iterator[str]:
    """Every value that is watched: ctl/events/thresholds.py."""
    rows = (
        (f"`{each.value}`", each.meaning, f"{each.limit:g} {each.unit}", f"{each.ended:g} {each.unit}", each.remedy)
        for each in thresholds.THRESHOLDS
    )
    return table(("Value", "Meaning", "Exceeded from", "Ended below", "Remedy"), *rows)


# --- metrics ------------------------------------------------------------------------------------------------------------------

_HISTOGRAM: Mapping[str, object] = {"bounds": [], "counts": [0], "sum": 0}
_ANSWER: Mapping[str, object] = {
    **dict.fromkeys(("uptime_s", "memory_bytes", "loop_lag_ms", "snat_ports"), 0),
    "version": "",
    "cluster": {
        **dict.fromkeys(("epoch", "generation", "lease_ms_left"), 0),
        "role": "active",
        "faults": [],
        "paths": {"cluster": True},
        "peer": {"alive": True, "generation": 0},
        "sync": {"in_step": True, "protected": 1, "lag_ms": 0},
    },
    "counts": dict.fromkeys(("role_changes", "leases_lost", "extensions_discarded", "resyncs", "expired"), 0),
    "events": {"role.changed": 1},
    "takeover_ms": _HISTOGRAM,
    "lateness_ms": _HISTOGRAM,
    "reconcile": {"by_kind": {"xdp": 1}, "overruns": 0},
    "counters": [{"name": "", "kind": "", "packets": 0, "bytes": 0}],
    "flows": {"max": 1, "flows_v4": 0},
    "interfaces": {"eth0": "native"},
}
"""What a node of a pair answers: every metric follows from it."""


def metrics() -> Iterator[str]:
    """Every metric: ctl/metrics/families.py."""
    rows = [("Metric", "Type", "Labels", "Meaning")]
    for family in families.NodeCollector(_ANSWER).collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        rows.append((f"`{family.name}{suffix}`", family.type, _codes(list(labels)) or "\N{EN DASH}", family.documentation))
    for table_of, labels_of in ((families.FARM_COLUMNS, "`farm`"), (families.BACKEND_COLUMNS, "`farm`, `backend`")):
        for each in table_of:
            kind = "counter" if each.counter else "gauge"
            rows.append((f"`{each.name}{'_total' if each.counter else ''}`", kind, labels_of, each.meaning))
    return table(*rows)


# --- settings ---------------------------------------------------------------------------------------------------------


def node_settings() -> Iterator[str]:
    """Every key of the node file, from the manual page, which a test compares with ctl/state/node_file.py."""
    page = (DOCS / "man" / "xlbd.8").read_text().replace("\\-", "-")
    section, rows = "", []
    for whole, key, value, meaning in MANUAL_SETTING.findall(page[page.index(".EX") : page.index(".EE")]):
        if key:
            rows.append((f"`{section}.{key}`", f"`{value}`", meaning))
        else:
            section = whole.strip("[]")
    return table(("Key", "Value", "Meaning"), *rows)


MEANINGS = {
    "vip.address": "Floating address with the prefix length of its network.",
    "vip.device": "Interface that the active node adds the address to.",
    "vip.guard": "`true`: only the ports of farms and ICMP are answered. `false`: listeners of the node are reachable too.",
    "farm.name": 'Letters, digits, ".", "_" and "-"; the first is a letter or a digit.',
    "farm.vip": "VIPs that clients connect to: one, or several as a list or separated by commas, also of both families.",
    "farm.port": 'Ports; several as a string: `"80,443,8000-8010"`, or `"all"`. Backends keep the offset from the first.',
    "farm.proto": "Transport that the farm balances.",
    "farm.mode": "`snat`: backends see a floating address. `dnat`: they see the client and route back through the node. "
    "`dsr`, `ipip`: they get the client's packet and answer it directly; see [ONE-WAY.md](ONE-WAY.md).",
    "farm.snat_address": "Mode `snat`: the VIP that backends see; for more source ports up to 8 per family, with commas.",
    "farm.health.kind": "What is checked; see [Health checks](#health-checks).",
    "farm.health.interval_ms": "From one check to the next.",
    "farm.health.timeout_ms": "After which a check has failed; at most `interval_ms`.",
    "farm.health.rise": "Successes in a row that bring a backend up.",
    "farm.health.fall": "Failures in a row that take a backend down; one that was never up goes down at the first.",
    "farm.health.port": "Port that is checked; `0`: the port of the backend.",
    "farm.health.path": "`http`, `https`: path of the request.",
    "farm.health.status": "`http`, `https`: expected status, or a range of them.",
    "farm.health.host": "`http`, `https`: Host header.",
    "farm.health.address": "Address that is checked.",
    "farm.health.command": "`command`: absolute path of a program, and its arguments.",
    "farm.backend.address": "Address of the server, of the family of a VIP.",
    "farm.backend.port": "Port of the server for the first port of the farm.",
}
DEFAULTS_ELSEWHERE = {
    "farm.snat_address": "the VIP of the client",
    "farm.backend.port": "the first port of the farm",
    "farm.health.host": "the backend's address",
    "farm.health.address": "the backend's address",
    "farm.health.command": "none",
    "farm.health.kind": "`tcp` (tcp), `none` (udp)",
    "farm.health.timeout_ms": "1000, or `interval_ms` if that is less",
}


def _choices(kind: type[StrEnum]) -> str:
    return _codes(list(kind))


def _codes(values: Sequence[str]) -> str:
    return ", ".join(f"`{each}`" for each in values if each)


def _values_of(setting: settings.Setting) -> str:
    if setting.allowed:
        return _codes(setting.allowed)
    if setting.among:
        return ", ".join(map(str, setting.among))
    if isinstance(setting.default, int):
        return f"{max(setting.low, 1) if setting.shown_default else setting.low} to {setting.high}"
    return setting.form


VALUES = {
    "vip.address": "address/length",
    "vip.device": "interface",
    "farm.name": "1 to 64 characters",
    "farm.vip": "address, or several",
    "farm.port": "1 to 65535, ranges, a list, or `all`",
    "farm.proto": _choices(Protocol),
    "farm.mode": _codes(list(Mode)),
    "farm.snat_address": "address, or several",
    "farm.health.kind": _choices(CheckKind),
    "farm.health.interval_ms": f"10 to {settings.MAX_INTERVAL_MS}",
    "farm.health.timeout_ms": f"1 to {settings.MAX_INTERVAL_MS}",
    "farm.health.rise": f"1 to {validation.MAX_CHECKS_IN_A_ROW}",
    "farm.health.fall": f"1 to {validation.MAX_CHECKS_IN_A_ROW}",
    "farm.health.port": "0 to 65535",
    "farm.health.path": "printable ASCII",
    "farm.health.status": "100 to 599, or a range",
    "farm.health.host": "printable ASCII",
    "farm.health.address": "address",
    "farm.health.command": f"list of at most {validation.MAX_ARGUMENTS} strings",
    "farm.backend.address": "address",
    "farm.backend.port": "1 to 65535",
}
GROUPS = (
    (settings.FARM_SETTINGS, "farm"),
    (settings.CHECK_SETTINGS, "farm.health"),
    (settings.BACKEND_SETTINGS, "farm.backend"),
)
for _of, _prefix in GROUPS:
    for _setting in _of:
        MEANINGS[f"{_prefix}.{_setting.name}"] = _setting.meaning
        VALUES[f"{_prefix}.{_setting.name}"] = _values_of(_setting)
        if _setting.shown_default:
            DEFAULTS_ELSEWHERE[f"{_prefix}.{_setting.name}"] = _setting.shown_default
VIP: Mapping[str, object] = {"address": "192.0.2.1/24", "device": "eth0"}
FARM: Mapping[str, object] = {"name": "a", "vip": "192.0.2.1", "port": 80}
BACKEND: Mapping[str, object] = {"address": "192.0.2.2", "port": 80}


def farm_settings() -> Iterator[str]:
    """Every setting of VIPs, farms, checks and backends: ctl/config/fields.py, with the defaults that the reader gives."""
    read = fields.read_farm(fields.Fields(FARM, "", fields.FARM_FIELDS))
    farm = fields.farm_fields(read)
    vip = fields.vip_fields(fields.read_vip(fields.Fields(VIP, "", fields.VIP_FIELDS)))
    backend = fields.backend_fields(fields.read_backend(fields.Fields(BACKEND, "", fields.BACKEND_FIELDS), read))
    health = farm.pop("health")
    assert isinstance(health, Mapping)
    rows = [
        *_settings("vip", vip, VIP),
        *_settings("farm", farm, FARM),
        *_settings("farm.health", health, {}),
        *_settings("farm.backend", backend, {"address": ""}),
    ]
    return table(("Setting", "Values", "Default", "Meaning"), *rows)


def _settings(place: str, defaults: Mapping[str, object], given: Mapping[str, object]) -> Iterator[Sequence[str]]:
    for name, default in defaults.items():
        key = f"{place}.{name}"
        values = "`true`, `false`" if isinstance(default, bool) else VALUES[key]
        shown = "" if name in given else DEFAULTS_ELSEWHERE.get(key) or f"`{default}`"
        yield f"`{key}`", values, shown.replace("`True`", "`true`").replace("`False`", "`false`"), MEANINGS[key]


# --- documents --------------------------------------------------------------------------------------------------------


def import_ignored() -> Iterator[str]:
    """Statements of other load balancers that mean nothing for a farms file: ctl/importing."""
    keepalived_checks_and_servers = sorted({*keepalived.VIRTUAL_IGNORED, *keepalived_checks.IGNORED})
    rows = (
        ("keepalived: servers and checks", keepalived_checks_and_servers),
        ("keepalived: `global_defs`", [*keepalived.GLOBAL_IGNORED, *(f"{each}…" for each in keepalived.GLOBAL_PREFIXES)]),
        ("ipvsadm", [*ipvsadm.IGNORED, *ipvsadm.IGNORED_ACTIONS]),
        ("HAProxy: sections", ["global"]),
        ("HAProxy: statements", haproxy.IGNORED),
        ("HAProxy: `option`", haproxy.IGNORED_OPTIONS),
        ("HAProxy: parameters of servers", [*haproxy_servers.IGNORED, *haproxy_servers.TLS]),
        ("nftlb, Zevenet: farms", nftlb.FARM_IGNORED),
        ("nftlb, Zevenet: backends", nftlb.BACKEND_IGNORED),
    )
    return table(("Where", "What"), *((where, ", ".join(f"`{word}`" for word in sorted(set(words)))) for where, words in rows))


TABLES: Mapping[str, Callable[[], Iterable[str]]] = {
    "check-codes": check_codes,
    "counters": counters,
    "error-codes": error_codes,
    "events": events,
    "farm-settings": farm_settings,
    "import-ignored": import_ignored,
    "limits": limits,
    "limits-watched": limits_watched,
    "metrics": metrics,
    "node-settings": node_settings,
    "ports": ports,
    "transitions": transitions,
}


def documents() -> list[Path]:
    """Every document that may have generated blocks."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def updated(text: str) -> str:
    """Return a document with its generated blocks as the code has them now. Raises KeyError for an unknown table."""
    return BLOCK.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)


def main() -> int:
    """Rewrite the documents, or with --check only name those that differ."""
    changed = [path for path in documents() if updated(path.read_text()) != path.read_text()]
    for path in changed:
        print(path.relative_to(DOCS.parent))
        if "--check" not in sys.argv:
            path.write_text(updated(path.read_text()))
    return 1 if changed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
