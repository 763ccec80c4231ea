"""What the maps hold of limits and prefix lists: of farms, of backends whose connections are counted, and of lists in use.

Pure. Must not know how maps are written. Nothing is planned for farms without these settings, so that a program without the
maps gets no operation on them.

A list is in the maps under an id that follows from its content: a changed list is loaded next to the old one, farms change over
in one map update each, and the old one is removed last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from bpf.constants import HALF_OPEN_WINDOWS, MAX_CANDIDATES
from bpf.dataplane import DeletePrefixes, KeepPrefixes, Operation, PutBackendLimits, PutFarmLimits, PutPrefixes
from ctl.config.model import Backend, Config, Farm, PrefixList, Scheduler
from ctl.dataplane.expiry import to_ticks

Choosable = Mapping[str, Sequence[Backend]]
"""By family of the VIP, the backends that may take new connections, with the weights in force at this moment."""


@dataclass(frozen=True, slots=True)
class LoadedList:
    """A prefix list in the maps."""

    prefixes: PrefixList
    id: int


@dataclass(frozen=True, slots=True)
class State:
    """What the maps hold: lists by name, limits by farm id of those that have any, and by backend id."""

    lists: Mapping[str, LoadedList] = field(default_factory=lambda: MappingProxyType({}))
    farms: Mapping[int, PutFarmLimits] = field(default_factory=lambda: MappingProxyType({}))
    backends: Mapping[int, PutBackendLimits] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ListPlan:
    """The lists that farms use from here on, by name, and the operations before and after the farms change over."""

    lists: Mapping[str, LoadedList]
    before: tuple[Operation, ...]
    after: tuple[Operation, ...]
    moved: frozenset[str]  # names with another id than before


def counts(farm: Farm) -> bool:
    """Whether the connections of its backends, or its own, must be counted."""
    return farm.scheduler is Scheduler.LEASTCONN or bool(farm.max_connections) or limits_backends(farm)


def limits_backends(farm: Farm) -> bool:
    """Whether a backend has max_connections."""
    return any(backend.max_connections for backend in farm.backends)


def uses(farm: Farm) -> bool:
    """Whether the farm has one of the settings."""
    return bool(farm.max_rate or farm.max_half_open or farm.allow or farm.deny) or counts(farm)


def lists_in_use(config: Config) -> Mapping[str, LoadedList]:
    """The lists that farms use, by name, with the ids that they have in the maps of every node."""
    return plan_lists({}, config, adopted=False).lists


def plan_lists(old: Mapping[str, LoadedList], config: Config, adopted: bool) -> ListPlan:
    """Load the lists that a farm of `config` uses, and remove the others. adopted: the content of the maps is unknown."""
    used = sorted({name for farm in config.farms.values() for name in (farm.allow, farm.deny) if name})
    lists: dict[str, LoadedList] = {}
    contents = {each.id: each.prefixes for each in old.values()}  # an id that is in use keeps its meaning
    for name in used:
        prefixes = config.prefixes[name]
        known = old.get(name)
        number = known.id if known and known.prefixes is prefixes else _free_id(prefixes, contents)
        contents[number] = prefixes
        lists[name] = LoadedList(prefixes, number)
    before_ids, after_ids = {each.id for each in old.values()}, {each.id: each.prefixes for each in lists.values()}
    puts = [PutPrefixes(number, of.v4, of.v6) for number, of in after_ids.items() if adopted or number not in before_ids]
    gone = {each.id: each.prefixes for each in old.values() if each.id not in after_ids}
    deletes: list[Operation] = [DeletePrefixes(number, of.v4, of.v6) for number, of in gone.items()]
    if adopted and lists:
        deletes.append(KeepPrefixes(frozenset(after_ids)))
    moved = {name for name, each in lists.items() if name in old and old[name].id != each.id}
    return ListPlan(lists, tuple(puts), tuple(deletes), frozenset(moved))


def _free_id(prefixes: PrefixList, taken: Mapping[int, PrefixList]) -> int:
    """An id for this content: the same on every node and after a restart, unless another list has it."""
    digest = hashlib.sha256(len(prefixes.v4).to_bytes(4, "big") + prefixes.v4)
    digest.update(prefixes.v6)
    number = int.from_bytes(digest.digest()[:4], "big") or 1
    while number in taken and (taken[number].v4, taken[number].v6) != (prefixes.v4, prefixes.v6):
        number = number % 0xFFFFFFFF + 1
    return number


def farm_limits(farm: Farm, choosable: Choosable, lists: Mapping[str, LoadedList]) -> PutFarmLimits:
    """The limits of a farm."""
    if not uses(farm):
        return PutFarmLimits(farm.id)
    of_family = {family: tuple(backend.id for backend in backends) for family, backends in choosable.items()}
    candidates = {family: ids for family, ids in of_family.items() if counts(farm) and len(ids) <= MAX_CANDIDATES}
    half_open_s = min(farm.opening_timeout, farm.idle_timeout)
    limits = PutFarmLimits(
        farm.id,
        max_connections=farm.max_connections,
        max_half_open=farm.max_half_open,
        rate_interval_ns=max(1, round(1e9 / farm.max_rate)) if farm.max_rate else 0,
        half_open_ticks=-(-to_ticks(half_open_s) // HALF_OPEN_WINDOWS) if farm.max_half_open else 0,
        client_prefix_v4=farm.rate_prefix_v4,
        client_prefix_v6=farm.rate_prefix_v6,
        backends_limited=limits_backends(farm),
        candidates_v4=candidates.get("v4", ()),
        candidates_v6=candidates.get("v6", ()),
    )
    return with_lists(limits, farm, lists)


def with_lists(limits: PutFarmLimits, farm: Farm, lists: Mapping[str, LoadedList]) -> PutFarmLimits:
    """The same limits with the present ids of the farm's lists."""
    allow, deny = (lists[name].id if name else 0 for name in (farm.allow, farm.deny))
    return replace(limits, allow=allow, deny=deny)


def backend_limits(farm: Farm, choosable: Choosable) -> list[PutBackendLimits]:
    """Of all backends of a farm that counts connections."""
    if not counts(farm):
        return []
    weights = {backend.id: backend.weight for backends in choosable.values() for backend in backends}
    return [
        PutBackendLimits(backend.id, max(1, weights.get(backend.id, backend.weight)), backend.max_connections)
        for backend in farm.backends
    ]


class Round:
    """The working copy of a state while one round of `ctl.dataplane.planner` is planned. `before`, `after`: operations for
    before and after the services are replaced."""

    def __init__(self, old: State, config: Config, adopted: bool) -> None:
        """adopted: the content of the maps is unknown."""
        self._config = config
        self._lists = plan_lists(old.lists, config, adopted)
        self._farms, self._backends = dict(old.farms), dict(old.backends)
        self._any = adopted and any(uses(farm) for farm in config.farms.values())
        self._puts: list[Operation] = []

    @property
    def state(self) -> State:
        """After all operations."""
        return State(self._lists.lists, self._farms, self._backends)

    @property
    def before(self) -> tuple[Operation, ...]:
        return (*self._lists.before, *self._puts)

    @property
    def after(self) -> tuple[Operation, ...]:
        return self._lists.after

    def plan(self, farm: Farm, choosable: Choosable, unknown: bool) -> None:
        """A farm has changed. unknown: the maps may hold limits of another farm of this id."""
        for put in backend_limits(farm, choosable):
            if self._backends.get(put.id) != put:
                self._backends[put.id] = put
                self._puts.append(put)
        self._put(farm_limits(farm, choosable, self._lists.lists), unknown)

    def forget(self, farm: Farm) -> None:
        """A farm is gone, and another one may get its id."""
        self._put(PutFarmLimits(farm.id))
        for backend in farm.backends:
            self._backends.pop(backend.id, None)

    def follow_lists(self) -> None:
        """Give farms whose prefix list has other prefixes now its new id."""
        for farm in self._config.farms.values() if self._lists.moved else ():
            if not self._lists.moved.isdisjoint((farm.allow, farm.deny)) and farm.id in self._farms:
                self._put(with_lists(self._farms[farm.id], farm, self._lists.lists))

    def _put(self, put: PutFarmLimits, unknown: bool = False) -> None:
        none = PutFarmLimits(put.farm)
        if (unknown and (put != none or self._any)) or self._farms.get(put.farm, none) != put:
            self._puts.append(put)
        if put == none:
            self._farms.pop(put.farm, None)
        else:
            self._farms[put.farm] = put
