"""The desired content of the kernel's maps, and the operations that reach it without affecting a packet.

Pure: configuration, health and the previous state in; operations and the next state out. Knows the meaning of the maps
(`bpf.dataplane`, `bpf.constants`). Must not know how they are written.

Invariants, at every instant between two operations:
* a service points at slots that are written, and every slot of it at a backend that is bound;
* slots and backend ids that a service still points at are neither rewritten nor rebound: a change writes a new slot range,
  replaces the service, and the old range (or id) becomes usable one round later;
* a backend that is down or removed is marked once no service points at it any more.

A stopped farm has no service: the VIP's guard drops its new connections, existing flows continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from bpf.columns import family_of
from bpf.constants import MAX_SLOT_CHUNKS, BackendFlag, FarmFlag
from bpf.dataplane import (
    DeleteServer,
    Operation,
    PutBackend,
    PutFarm,
    PutMembers,
    PutService,
    PutSlots,
    ServerKey,
    ServiceKey,
    ServiceValue,
    ZeroTraffic,
)
from ctl.config import table_sizes
from ctl.config.model import AllDown, Backend, Config, Farm, Mode, OnNoBackend, Scheduler
from ctl.dataplane import affinity, limits, listeners, maglev, servers
from ctl.dataplane.slot_allocator import Run, SlotSpace, run_of
from ctl.dataplane.slow_start import weighted
from ctl.errors import Code, XlbError

_Content = tuple[bool, int, tuple[Backend, ...]]
"""The content of a slot range: whether it is round-robin, the lookup table's size, and its backends."""


_WHOLE: Mapping[int, int] = MappingProxyType({})
"""Every backend has its full weight."""


@dataclass(frozen=True, slots=True)
class PlannedFarm:
    """A farm as the maps have it."""

    farm: Farm
    settled: bool  # False: the maps do not contain all of it yet, plan it again
    services: Mapping[ServiceKey, ServiceValue] = field(default_factory=dict)
    slots: Mapping[str, tuple[_Content, int, int]] = field(default_factory=dict)
    """Of each part of the farm, by its first VIP's family: content, offset and count."""


@dataclass(frozen=True, slots=True)
class PlannerState:
    """The content of the maps after the operations so far. Opaque to callers; start with adopt() or PlannerState()."""

    vips: Mapping[str, int] = field(default_factory=dict)
    services: Mapping[ServiceKey, ServiceValue] = field(default_factory=dict)
    farms: Mapping[str, PlannedFarm] = field(default_factory=dict)
    bound: Mapping[int, Backend] = field(default_factory=dict)  # by id; with the address and port in the maps
    marked: frozenset[int] = frozenset()  # the bound ones with BackendFlag.UNAVAILABLE
    servers: servers.Servers = field(default_factory=dict)
    limits: limits.State = field(default_factory=limits.State)
    strays: frozenset[ServerKey] = frozenset()  # services of backends in the maps that may be of no farm
    down: frozenset[int] = frozenset()
    shares: Mapping[int, int] = field(default_factory=dict)
    free: tuple[Run, ...] = ((0, MAX_SLOT_CHUNKS),)
    resting: tuple[Run, ...] = ()  # freed by the last round, free in the next
    adopted: bool = False  # maps of an earlier process: an unknown object is not necessarily new
    config: Config | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations to execute in order, and the state that holds once all succeeded.

    `complete` False: some farms wait for slots or ids that this round frees; execute, then plan again at once.
    """

    operations: tuple[Operation, ...]
    state: PlannerState
    complete: bool


def adopt(
    vips: Mapping[str, int], services: Mapping[ServiceKey, ServiceValue], strays: Iterable[ServerKey] = ()
) -> PlannerState:
    """State of existing maps in the kernel: after a restart, or after a failed operation.

    A service with invalid slots (outside the map, or overlapping another's) is replaced like all others, but its slots are not
    reused until the next restart. strays: the services of backends in the maps.
    """
    space = SlotSpace()
    owned: dict[ServiceKey, ServiceValue] = {}
    runs: set[Run | None] = {None}
    for key, value in services.items():
        run = run_of(value.slot_offset, value.slot_count)
        owned[key] = value if run in runs or (run and space.is_free(run)) else replace(value, slot_count=0)
        if run is not None:
            space.reserve(run)
            runs.add(run)
    return PlannerState(vips=dict(vips), services=owned, strays=frozenset(strays), free=space.free, adopted=True)


def plan(state: PlannerState, config: Config, down: AbstractSet[int], shares: Mapping[int, int] = _WHOLE) -> Plan:
    """One planning round. `down`: ids of backends whose health check failed. shares: of `ctl.dataplane.slow_start`.

    Keep the returned state only when all operations succeeded. Raises XlbError if the slot map is full; nothing is
    planned then.
    """
    same = config is state.config and down == state.down and shares == state.shares
    if same and all(planned.settled for planned in state.farms.values()):
        return Plan((), state, True)
    return _Round(state, config, frozenset(down), shares).run()


def replan_everything(
    config: Config,
    down: AbstractSet[int],
    vips: Mapping[str, int],
    services: Mapping[ServiceKey, ServiceValue],
    strays: Iterable[ServerKey] = (),
    shares: Mapping[int, int] = _WHOLE,
) -> Plan:
    """Plan from the maps in the kernel (`DataPlane.vips()`, `.services()`, `.servers()`).

    Writes everything again, removes stale entries, and overwrites no slots in use; counters are kept.
    """
    return plan(adopt(vips, services, strays), config, down, shares)


def eligible_backends(farm: Farm, down: AbstractSet[int]) -> tuple[Backend, ...]:
    """Backends that may take new connections: weight above 0, not draining, up, of the lowest-numbered tiers that together have
    `tier_minimum` of them.

    With none up and all_down "all": every backend that is not draining and carries weight, of every tier. Each part of the farm
    (`Farm.parts`) by itself.
    """
    return tuple(backend for part in farm.parts for backend in _eligible_of_part(part, down))


def _eligible_of_part(farm: Farm, down: AbstractSet[int]) -> tuple[Backend, ...]:
    willing = [backend for backend in farm.backends if backend.weight > 0 and not backend.draining]
    able = [backend for backend in willing if backend.id not in down]
    if not able:
        return tuple(willing) if farm.all_down is AllDown.ALL else ()
    tiers = sorted(backend.priority for backend in able)
    last = tiers[min(farm.tier_minimum, len(tiers)) - 1]
    return tuple(backend for backend in able if backend.priority <= last)


def unavailable_backends(farm: Farm, down: AbstractSet[int]) -> frozenset[int]:
    """Ids of the backends that not even the first packets of an existing connection may use any more.

    A draining backend, or one of a reserve tier, still serves its connections. With none up and all_down "all", none is.
    """
    return frozenset(backend.id for backend in farm.backends if backend.id in down) - {
        backend.id for backend in eligible_backends(farm, down)
    }


def farm_flags(farm: Farm) -> int:
    """The FarmFlag bits of a farm."""
    silent = FarmFlag.SILENT if farm.on_no_backend is OnNoBackend.DROP else FarmFlag(0)
    return int(silent | (FarmFlag.TOA if farm.toa else FarmFlag(0)))


class _Round:
    """The working copy of a state while one round is planned."""

    def __init__(self, state: PlannerState, config: Config, down: frozenset[int], shares: Mapping[int, int]) -> None:
        self.old = state
        self.config = config
        self.down = down
        self.shares = shares
        self.space = SlotSpace(state.free)
        for run in state.resting:
            self.space.release(run)
        self.farms = dict(state.farms)
        self.services = dict(state.services)
        self.bound = dict(state.bound)
        self.marked = set(state.marked)
        self.backend_puts: list[PutBackend] = []
        self.farm_puts: list[PutFarm] = []
        self.member_puts: list[PutMembers] = []
        self.affinity_operations: list[Operation] = []
        self.limits = limits.Round(state.limits, config, state.adopted)
        self.slot_puts: list[PutSlots] = []
        self.service_puts: list[PutService] = []
        self.new_farms: list[int] = []
        self.replaced: list[ServiceValue] = []  # values no longer in the maps after this round
        self.starved: list[str] = []  # farms without free slots

    def run(self) -> Plan:
        changed = self._changed_farms()
        for farm in changed:
            self._unbind(farm.name)
        gone_farms = [name for name in self.old.farms if name not in self.config.farms]
        for name in gone_farms:
            self._unbind(name)
            self.affinity_operations += affinity.operations(self.old.farms[name].farm, None, (), self.config)
            self.limits.forget(self.old.farms[name].farm)
            del self.farms[name]
        for farm in changed:
            self._plan_farm(farm)
        self.limits.follow_lists()
        touched = [*gone_farms, *(farm.name for farm in changed)]
        stale = self._stale_services(touched)
        for key in stale:
            self.replaced.append(self.services.pop(key))
        released = self._released(touched)
        if self.starved and not released:
            self._raise_full()
        vips = dict(self.old.vips) if self.config is self.old.config else listeners.vip_flags(self.config)
        followed, server_operations = self._follow_servers(touched)
        state = PlannerState(
            vips=vips,
            servers=followed,
            limits=self.limits.state,
            strays=self.old.strays if self.starved else frozenset(),
            services=self.services,
            farms=self.farms,
            bound=self.bound,
            marked=frozenset(self.marked),
            down=self.down,
            shares=self.shares,
            free=self.space.free,
            resting=released,
            adopted=self.old.adopted and bool(self.starved),
            config=self.config,
        )
        return Plan(
            self._operations(stale, vips, server_operations), state, all(planned.settled for planned in self.farms.values())
        )

    def _changed_farms(self) -> list[Farm]:
        flipped = (self.old.down ^ self.down) | {number for number, _ in self.old.shares.items() ^ self.shares.items()}
        changed = []
        for name, farm in self.config.farms.items():
            planned = self.farms.get(name)
            same = planned is not None and planned.farm is farm and planned.settled
            if not same or (flipped and not flipped.isdisjoint([backend.id for backend in farm.backends])):
                changed.append(farm)
        return changed

    def _unbind(self, name: str) -> None:
        """Release a farm's backend ids; `_bind` binds the remaining ones again."""
        planned = self.old.farms.get(name)
        for backend in planned.farm.backends if planned else ():
            if _same_server(self.bound.get(backend.id), backend):
                del self.bound[backend.id]
                self.marked.discard(backend.id)

    def _bind(self, farm: Farm) -> frozenset[int]:
        """Returns the ids that must wait one round, because services in the maps still use them for another server."""
        waiting = set()
        unavailable = unavailable_backends(farm, self.down)
        for backend in farm.backends:
            before = self.old.bound.get(backend.id)
            if before is not None and not _same_server(before, backend):
                waiting.add(backend.id)
                continue
            self.bound[backend.id] = backend
            self.marked |= unavailable & {backend.id}
            if before is None:
                self.backend_puts.append(_put_backend(backend, backend.id in unavailable))
        return frozenset(waiting)

    def _plan_farm(self, farm: Farm) -> None:
        old = self.old.farms.get(farm.name)
        if old is None or old.farm.id != farm.id:
            self.new_farms.append(farm.id)
        is_new = farm.id in self.new_farms
        settings = _farm_settings(farm)
        if old is None or is_new or _farm_settings(old.farm) != settings:
            self.farm_puts.append(settings)
        members = _members(farm)
        if members != (frozenset() if old is None or is_new else _members(old.farm)):
            self.member_puts.append(PutMembers(farm.id, members))
        waiting = self._bind(farm)
        choosable = {backend.id for backend in eligible_backends(farm, self.down)} - waiting
        known = old.farm if old is not None and not is_new else None
        self.affinity_operations += affinity.operations(known, farm, choosable, self.config, again=known is None)
        self.limits.plan(farm, self._choosable(farm, waiting) if limits.uses(farm) else {}, is_new or self.old.adopted)
        if not farm.enabled:
            self.farms[farm.name] = PlannedFarm(farm, not waiting)
            return
        planned = self._plan_slots(farm, old, waiting)
        if planned is None:
            self.starved.append(farm.name)
            self._keep_as_is(farm, old)
            return
        services: dict[ServiceKey, ServiceValue] = {}
        for part in farm.parts:
            _, offset, count = planned[family_of(part.vip)]
            services |= listeners.services(part, offset, count)
        for key, value in services.items():
            before = self.services.get(key)
            if self.old.adopted or before != value:
                self.service_puts.append(PutService(key, value))
                self.services[key] = value
                if before is not None:
                    self.replaced.append(before)
        self.farms[farm.name] = PlannedFarm(farm, not waiting, services, planned)

    def _choosable(self, farm: Farm, waiting: frozenset[int]) -> dict[str, list[Backend]]:
        """By family of the VIP, the backends that may take new connections, with the weights in force at this moment."""
        return {
            family: list(weighted([each for each in eligible_backends(part, self.down) if each.id not in waiting], self.shares))
            for part in farm.parts
            for family in {family_of(vip) for vip in part.vips}
        }

    def _plan_slots(
        self, farm: Farm, old: PlannedFarm | None, waiting: frozenset[int]
    ) -> dict[str, tuple[_Content, int, int]] | None:
        """The slots of each part of a farm. None: there are no free ones for all of it, and none of it is written."""
        planned: dict[str, tuple[_Content, int, int]] = {}
        first_put = len(self.slot_puts)
        choosable = self._choosable(farm, waiting)
        for part in farm.parts:
            family = family_of(part.vip)
            eligible = choosable[family]
            content = _content(part, eligible)
            place: tuple[int, int] | None = (0, 0)
            if eligible:
                place = self._reusable(old, family, content) or self._write_slots(eligible, content)
            if place is None:
                for put in self.slot_puts[first_put:]:
                    run = run_of(put.offset, len(put.backends))
                    assert run is not None
                    self.space.release(run)
                del self.slot_puts[first_put:]
                return None
            planned[family] = (content, *place)
        return planned

    def _reusable(self, old: PlannedFarm | None, family: str, content: _Content) -> tuple[int, int] | None:
        """(offset, count) of the present slots of a farm's part if their content is equal and they still belong to it."""
        if old is None or family not in old.slots or old.slots[family][0] != content:
            return None
        _, offset, count = old.slots[family]
        owned = (self.old.services.get(key) == value for key, value in old.services.items() if value.slot_offset == offset)
        return (offset, count) if count and any(owned) else None

    def _write_slots(self, eligible: list[Backend], content: _Content) -> tuple[int, int] | None:
        turns = maglev.turn_order(eligible) if content[0] else None
        count = len(turns) if turns is not None else content[1]
        offset = self.space.allocate(count)
        if offset is None:
            return None
        self.slot_puts.append(PutSlots(offset, turns if turns is not None else maglev.lookup_table(eligible, count)))
        return offset, count

    def _keep_as_is(self, farm: Farm, old: PlannedFarm | None) -> None:
        """Without free slots this round, the maps keep the farm's old service, with its old backends bound."""
        if old is None:
            self.farms[farm.name] = PlannedFarm(farm, False)
            return
        for backend in farm.backends:
            if backend.id not in self.old.bound:
                self.bound.pop(backend.id, None)
        for backend in old.farm.backends:
            if backend.id in self.old.bound:
                self.bound[backend.id] = self.old.bound[backend.id]
        self.farms[farm.name] = replace(old, settled=False)

    def _stale_services(self, names: list[str]) -> list[ServiceKey]:
        """Keys whose farm is deleted, stopped or moved to another listener."""
        if self.old.adopted:
            wanted = {key for planned in self.farms.values() for key in planned.services}
            waiting = {self.config.farms[name].id for name in self.starved}
            return [key for key, value in self.services.items() if key not in wanted and value.farm not in waiting]
        wanted = {key for name in names if (planned := self.farms.get(name)) for key in planned.services}
        stale = []
        for name in names:
            old = self.old.farms.get(name)
            for key in old.services if old else ():
                holder = self.services.get(key)
                if key not in wanted and old is not None and holder is not None and holder.farm == old.farm.id:
                    stale.append(key)
        return stale

    def _marks(self) -> list[PutBackend]:
        """Backends that became available or unavailable. A removed one stays in the map for the connections it has."""
        puts = [_put_backend(backend, True) for number, backend in self.old.bound.items() if number not in self.bound]
        changed = (self.marked ^ self.old.marked) & self.bound.keys() & self.old.bound.keys()
        return puts + [_put_backend(self.bound[number], number in self.marked) for number in sorted(changed)]

    def _follow_servers(self, names: list[str]) -> tuple[servers.Servers, list[Operation]]:
        """The services of the backends of changed farms. A farm without free slots keeps those of its old backends."""
        before = {name: planned.farm for name in names if (planned := self.old.farms.get(name))}
        changed = [
            (name, before.get(name), now)
            for name in names
            if name not in self.starved and before.get(name) is not (now := self.config.farms.get(name))
        ]
        followed, operations = servers.follow(self.old.servers, changed)
        if self.old.strays and not self.starved:
            wanted = {key for host, uses in followed.items() for key in servers.server_flags(host, uses)}
            operations += [DeleteServer(key) for key in self.old.strays - wanted]
        return followed, operations

    def _released(self, touched: list[str]) -> tuple[Run, ...]:
        """Slot ranges of replaced values that no service uses; those of farms that are not touched are not replaced."""
        values: Iterable[ServiceValue] = self.services.values()
        if not self.old.adopted:
            planned = [self.farms[name].services for name in touched if name in self.farms]
            values = [value for services in planned for key, value in services.items() if self.services.get(key) == value]
        kept = {run_of(value.slot_offset, value.slot_count) for value in values}
        runs = {run_of(value.slot_offset, value.slot_count) for value in self.replaced}
        return tuple(sorted(run for run in runs - kept if run is not None))

    def _raise_full(self) -> None:
        names = ", ".join(self.starved[:3]) + (" and others" if len(self.starved) > 3 else "")
        free = sum(length for _, length in self.space.free)
        raise XlbError(
            f"the slot map is full: no slots for farm {names} ({free} of {MAX_SLOT_CHUNKS} chunks free, fragmented); "
            "remove farms, or make lookup tables smaller (xlbctl farm set NAME --table-size N, which moves clients)",
            Code.LIMIT_EXCEEDED,
        )

    def _operations(self, stale: list[ServiceKey], vips: dict[str, int], of_servers: list[Operation]) -> tuple[Operation, ...]:
        operations: list[Operation] = []
        new_backends = tuple(put.id for put in self.backend_puts)
        if not self.old.adopted and (self.new_farms or new_backends):
            operations.append(ZeroTraffic(tuple(self.new_farms), new_backends))
        operations += self.farm_puts
        operations += self.member_puts
        operations += self.backend_puts
        operations += self.affinity_operations
        operations += self.limits.before
        operations += self.slot_puts
        operations += [each for each in of_servers if not isinstance(each, DeleteServer)]
        operations += listeners.replacements(self.old.vips, vips, stale, self.service_puts)
        operations += self._marks()
        operations += [each for each in of_servers if isinstance(each, DeleteServer)]
        operations += listeners.removals(self.old.vips, vips)
        operations += self.limits.after
        return tuple(operations)


def _farm_settings(farm: Farm) -> PutFarm:
    return PutFarm(farm.id, farm_flags(farm), farm.snat_addresses if farm.mode is Mode.SNAT else ())


def _members(farm: Farm) -> frozenset[str]:
    """Addresses of the backends that may be clients of their own farm; in mode snat every client is hidden anyway."""
    return frozenset(backend.address for backend in farm.backends) if farm.mode is Mode.DNAT else frozenset()


def _put_backend(backend: Backend, unavailable: bool) -> PutBackend:
    flags = int(BackendFlag.UNAVAILABLE) if unavailable else 0
    return PutBackend(backend.id, backend.address, backend.port, flags)


def _same_server(one: Backend | None, other: Backend) -> bool:
    return one is not None and (one.address, one.port) == (other.address, other.port)


def _content(farm: Farm, eligible: list[Backend]) -> _Content:
    in_turn = farm.scheduler in (Scheduler.ROUNDROBIN, Scheduler.LEASTCONN)
    size = 0 if in_turn else table_sizes.size_of(farm)
    return in_turn, size, tuple(eligible)
