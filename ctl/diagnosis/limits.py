"""Whether limits and prefix lists keep clients out at this moment: full farms, lists that leave nobody in, or that differ.

Pure. Must not know how connections and prefixes are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ctl.config.model import Config, Farm
from ctl.diagnosis.finding import Finding, Severity, ok

NEAR = 0.9
SHOWN = 5
_BITS = {"v4": 32, "v6": 128}
_FAMILIES = {"v4": "IPv4", "v6": "IPv6"}
_SETTINGS = {
    "drop_rate": ("max_rate", "--max-rate"),
    "drop_half_open": ("max_half_open", "--max-half-open"),
    "drop_farm_full": ("max_connections", "--max-connections"),
}

Counts = Mapping[int, int]
Loaded = Mapping[int, tuple[int, int]]
"""Prefixes of each list in a kernel, by the list's id: IPv4 and IPv6."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Prefix lists in the kernels. expected: id and counts of each list that a farm uses, by name. there: None if the peer is
    silent, of an earlier version, or has another configuration at this moment."""

    expected: Mapping[str, tuple[int, tuple[int, int]]]
    here: Loaded
    peer: str = ""
    there: Loaded | None = None


def examine(config: Config, farms: Counts, backends: Counts, choosable: Mapping[str, Collection[int]]) -> Iterator[Finding]:
    """Of a node that serves. farms, backends: connections by id. choosable: ids of a farm's backends that take new ones."""
    found = [each for farm in config.farms.values() if farm.enabled for each in _full(farm, farms, backends, choosable)]
    yield from found[:SHOWN]
    if not found and any(
        farm.max_connections or any(each.max_connections for each in farm.backends) for farm in config.farms.values()
    ):
        yield ok("connection limits", f"no farm and no backend has {NEAR:.0%} of its max_connections")


def _full(farm: Farm, farms: Counts, backends: Counts, choosable: Mapping[str, Collection[int]]) -> Iterator[Finding]:
    now, most = farms.get(farm.id, 0), farm.max_connections
    remedy = f"xlbctl farm set {farm.name} --max-connections N (0: no limit); who has them: xlbctl conn list --farm {farm.name}"
    if most and now >= NEAR * most:
        text = "new ones are refused" if now >= most else "near its limit"
        grave = Severity.FAIL if now >= most else Severity.WARN
        yield Finding(f"farm {farm.name} limit", grave, f"{now} of max_connections = {most}: {text}", remedy)
    able = [each for each in farm.backends if each.id in choosable.get(farm.name, ())]
    full = [each for each in able if each.max_connections and backends.get(each.id, 0) >= each.max_connections]
    if not full:
        return
    shown = ", ".join(f"{each.endpoint} {backends.get(each.id, 0)} of {each.max_connections}" for each in full[:SHOWN])
    text = "every backend that may take new connections is full" if len(full) == len(able) else "backends are full"
    grave = Severity.FAIL if len(full) == len(able) else Severity.WARN
    remedy = f"xlbctl backend set {farm.name} {full[0].endpoint} --max-connections N, or add backends"
    yield Finding(f"farm {farm.name} backends", grave, f"{text}: {shown}", remedy)


def examine_drops(config: Config, seconds: float, dropped: Mapping[str, int]) -> Iterator[Finding]:
    """What limits have kept out in the last `seconds`."""
    for name, (setting, option) in _SETTINGS.items():
        farms = [farm.name for farm in config.farms.values() if farm.enabled and getattr(farm, setting)]
        if dropped.get(name, 0) and farms:
            message = f"{dropped[name]} connections refused in the last {seconds:.0f} s; set for: {', '.join(farms[:SHOWN])}"
            remedy = f"if the clients are wanted: xlbctl farm set {farms[0]} {option} N; does it continue? xlbctl stats --watch"
            yield Finding(setting, Severity.WARN, message, remedy)
    if dropped.get("drop_backend_full", 0):
        message = f"{dropped['drop_backend_full']} connections refused in the last {seconds:.0f} s: every backend was full"
        yield Finding(
            "backends full", Severity.WARN, message, "add backends, or raise their max_connections: xlbctl backend set"
        )


# --- lists -----------------------------------------------------------------------------------------------------------


def examine_lists(config: Config, lists: Lists) -> Iterator[Finding]:
    """Whether lists leave somebody in, and are in the kernels as configured."""
    found = [each for farm in config.farms.values() if farm.enabled for each in _closed(config, farm)]
    found += _unloaded(lists)
    yield from found[:SHOWN]
    if lists.expected and not found:
        where = f"this node and {lists.peer}" if lists.there is not None else "this node"
        yield ok("prefix lists", f"{len(lists.expected)} in use, in the kernel of {where} as configured")


def _unloaded(lists: Lists) -> Iterator[Finding]:
    for name, (number, counts) in lists.expected.items():
        here = lists.here.get(number, (0, 0))
        if here != counts:
            message = f"{sum(here)} of {sum(counts)} prefixes are in the kernel"
            remedy = "restart xlbd, which writes them again; its journal has the cause if the program lacks lists"
            yield Finding(f"prefix list {name}", Severity.FAIL, message, remedy)
        there = lists.there.get(number, (0, 0)) if lists.there is not None else counts
        if there != counts:
            message = f"is not the same on {lists.peer}, which has {sum(there)} of {sum(counts)} prefixes in its kernel"
            remedy = f"xlbctl doctor on {lists.peer} has the cause; a restart of its xlbd writes them again"
            yield Finding(f"prefix list {name}", Severity.WARN, message, remedy)


def _closed(config: Config, farm: Farm) -> Iterator[Finding]:
    """Families of the farm's clients of which the lists let nobody in."""
    for family in sorted({"v6" if ":" in vip else "v4" for vip in farm.vips}):
        denied = list(_ranges(config, farm.deny, family))
        allowed = list(_ranges(config, farm.allow, family)) if farm.allow else [(0, 1 << _BITS[family])]
        if (farm.allow or farm.deny) and _covered(allowed, denied):
            why = (
                f"list {farm.allow} allows no {_FAMILIES[family]} client"
                if not allowed
                else f"list {farm.deny} denies all of them"
            )
            message = f"takes no {_FAMILIES[family]} connection: {why}"
            name = farm.deny if allowed else farm.allow
            remedy = f"xlbctl prefixes show {name}; other lists: xlbctl farm set {farm.name} --allow or --deny"
            yield Finding(f"farm {farm.name} lists", Severity.FAIL, message, remedy)


def _ranges(config: Config, name: str, family: str) -> Iterator[tuple[int, int]]:
    """The addresses of a list, ascending: from each first one to that after the last; joined where they meet."""
    rows = getattr(config.prefixes[name], family) if name in config.prefixes else b""
    bits = _BITS[family]
    size, begin, end = bits // 8 + 1, 0, 0
    for at in range(0, len(rows), size):
        first = int.from_bytes(rows[at : at + size - 1], "big")
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, first + (1 << bits - rows[at + size - 1]))
    if end > begin:
        yield begin, end


def _covered(inner: list[tuple[int, int]], outer: list[tuple[int, int]]) -> bool:
    """Whether each of the ascending ranges `inner` lies in one of `outer`."""
    at = 0
    for begin, end in inner:
        while at < len(outer) and outer[at][1] < end:
            at += 1
        if at == len(outer) or outer[at][0] > begin:
            return False
    return True
