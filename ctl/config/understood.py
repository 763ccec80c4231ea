"""Which settings a version of xlb understands in a record, and which ones a configuration needs.

A peer of an earlier version refuses a whole record for one setting that it does not know, and keeps its old configuration. The
nodes therefore send each other what they understand, and a change that the peer would refuse is refused. Pure. Must not know
how the nodes send it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import fields
from enum import StrEnum
from types import MappingProxyType

from ctl.config.model import Backend, Config, Farm, HealthCheck
from ctl.config.record_codec import FIELDS, RELEASED

_PLACES: Mapping[type, str] = MappingProxyType({Farm: "farm", HealthCheck: "farm.health", Backend: "farm.backend"})
_CHOICES_OF_0_1_0: Mapping[str, tuple[str, ...]] = {
    "farm.protocol": ("tcp", "udp"),
    "farm.mode": ("snat", "dnat"),
    "farm.scheduler": ("maglev", "roundrobin", "source"),
    "farm.all_down": ("drop", "all"),
    "farm.health.kind": ("none", "tcp", "http"),
}
_LISTS = "prefixes"
_USERS = "user"
_TOKENS = "token"
CONDITION = "if_version"
"""An argument of changes that are passed on (`ctl.api.condition`), which 0.1.0 refuses."""
_SEVERAL = "farm.snat_address,"
"""More than one source address."""

OF_0_1_0 = frozenset(
    {
        *(f"{place}.{name}" for kind, place in _PLACES.items() for name in RELEASED[kind]),
        *(f"{name}={value}" for name, values in _CHOICES_OF_0_1_0.items() for value in values),
    }
)
"""What 0.1.0 understands, which cannot be asked."""


def names() -> frozenset[str]:
    """What this version understands: "farm.toa", "farm.mode=dsr"."""
    found = {_SEVERAL, _LISTS, _USERS, _TOKENS, CONDITION}
    for kind, place in _PLACES.items():
        for field in fields(kind):
            found.add(f"{place}.{field.name}")
            if isinstance(field.default, StrEnum):
                found |= {f"{place}.{field.name}={value}" for value in type(field.default)}
    return frozenset(found)


def unknown_to(understood: Set[str], config: Config, checked: Mapping[str, Farm] = MappingProxyType({})) -> str:
    """The first setting that a version which understands these names does not know, for messages; empty: it knows all.

    checked: farms, the same objects, that need not be looked at again.
    """
    for kind, named in ((_LISTS, config.prefixes), (_USERS, config.users), (_TOKENS, config.tokens)):
        if named and kind not in understood:
            return f"{kind}.{next(iter(named))}"
    for name, farm in config.farms.items():
        if checked.get(name) is farm:
            continue
        for needed in _needed(farm):
            if needed not in understood:
                setting = needed.removeprefix("farm.").rstrip(",").replace("=", " = ")
                return f"farm.{name}.{setting}"
    return ""


def _needed(farm: Farm) -> Iterator[str]:
    for place, value in (("farm", farm), ("farm.health", farm.health), *(("farm.backend", each) for each in farm.backends)):
        for name, default in FIELDS[type(value)]:
            given = getattr(value, name)
            if given != default:
                yield f"{place}.{name}"
                if isinstance(given, StrEnum):
                    yield f"{place}.{name}={given}"
    if "," in farm.snat_address:
        yield _SEVERAL
