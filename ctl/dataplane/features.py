"""Which optional features of the program a configuration needs.

A feature is a C macro in lower case (`bpf.loading.loader.Build.features`); without it the program has neither its code nor its
maps. Pure. Must not know when a program is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MappingProxyType

from bpf.constants import FlowFlag
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


OF_FLAGS: Mapping[str, FlowFlag] = MappingProxyType({"dsr": FlowFlag.DSR, "ipip": FlowFlag.IPIP | FlowFlag.OTHER_FAMILY})
"""Flags of flow entries that a program without the feature takes for those of mode snat or dnat.

Not FlowFlag.TOA: such an entry is forwarded rightly without it, and the option may be missing at any time. The other features
have no state that a program without them could misread: their maps come with them.
"""

KEPT = frozenset(OF_FLAGS)
"""Features that a program keeps for as long as its maps live."""


def unreadable_flags(features: AbstractSet[str]) -> int:
    """Flags of flow entries that must not be in the maps of a program with these features; also those of later versions."""
    known = FlowFlag.FORWARD | FlowFlag.DERIVED | FlowFlag.TOA
    for feature, flags in OF_FLAGS.items():
        if feature in features:
            known |= flags
    return 0xFF & ~int(known)


def runnable(config: Config, missing: AbstractSet[str]) -> Config:
    """The configuration as a program without the features `missing` can run it, until it is compiled.

    A farm of a mode that is missing stays: the program answers nobody on its ports (`drop_not_compiled`), so that clients
    repeat. A farm whose lists are missing stops: who may come in is not known. Other settings are left out.
    """
    if not missing:
        return config
    farms = {name: _runnable(farm, missing) for name, farm in config.farms.items()}
    return replace(config, farms=MappingProxyType(farms))


def _runnable(farm: Farm, missing: AbstractSet[str]) -> Farm:
    lacks = missing & set(_of_farm(farm))
    if not lacks:
        return farm
    farm = replace(farm, enabled=farm.enabled and ("lists" not in lacks or farm.mode.value in lacks))
    for feature in lacks - KEPT:
        farm = _WITHOUT[feature](farm)
    return farm


def _without_loads(farm: Farm) -> Farm:
    scheduler = Scheduler.ROUNDROBIN if farm.scheduler is Scheduler.LEASTCONN else farm.scheduler
    backends = tuple(replace(each, max_connections=0) for each in farm.backends)
    return replace(farm, max_connections=0, scheduler=scheduler, backends=backends)


_WITHOUT: Mapping[str, Callable[[Farm], Farm]] = MappingProxyType(
    {
        "lists": lambda farm: replace(farm, allow="", deny=""),
        "rate": lambda farm: replace(farm, max_rate=0),
        "half_open": lambda farm: replace(farm, max_half_open=0),
        "loads": _without_loads,
        "persistence": lambda farm: replace(farm, persistence_s=0),
        "toa": lambda farm: replace(farm, toa=False),
        "quic": lambda farm: replace(farm, quic_cid=""),
    }
)


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
