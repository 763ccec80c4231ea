"""Which optional features of the program a configuration needs.

A feature is a C macro in lower case (`bpf.loading.loader.Build.features`); without it the program has neither its code nor its
maps. Pure. Must not know when a program is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from ctl.config.model import Config, Farm, Mode, Scheduler

REPLICATION = "replication"
VLANS = "vlans"
WORDS: Mapping[str, str] = MappingProxyType(
    {
        REPLICATION: "a pair",
        VLANS: "VLANs in native mode",
        "dsr": "mode dsr",
        "ipip": "mode ipip",
        "lists": "prefix lists",
        "rate": "max_rate",
        "half_open": "max_half_open",
        "loads": "max_connections and leastconn",
        "persistence": "persistence",
        "toa": "toa",
        "quic": "quic_cid",
    }
)
"""Every feature, in words for messages."""


KEPT = frozenset({"dsr", "ipip"})
"""Features that a program keeps for as long as its maps live: another one would take the entries of these modes for NAT."""


def features_of(config: Config) -> frozenset[str]:
    """What the farms need, also those that are stopped: starting one must not take as long as the compiler does."""
    return frozenset(feature for farm in config.farms.values() for feature in _of_farm(farm))


def _of_farm(farm: Farm) -> Iterator[str]:
    if farm.mode in (Mode.DSR, Mode.IPIP):
        yield farm.mode.value
    if farm.allow or farm.deny:
        yield "lists"
    if farm.max_rate:
        yield "rate"
    if farm.max_half_open:
        yield "half_open"
    if farm.max_connections or farm.scheduler is Scheduler.LEASTCONN or any(each.max_connections for each in farm.backends):
        yield "loads"
    if farm.persistence_s:
        yield "persistence"
    if farm.toa:
        yield "toa"
    if farm.quic_cid:
        yield "quic"


def in_words(features: Iterable[str]) -> str:
    """Features for messages: "mode ipip, toa"."""
    return ", ".join(WORDS[each] for each in sorted(features))
