"""Health checks as a state machine: when to probe a backend, and when it is up or down.

Events and `now_ms` (any monotonic clock) in; probes and transitions out. Opens no connection, reads no clock.

`fall` failures in a row mark a backend down, `rise` successes in a row mark it up. Where no result of the present check exists,
the first one decides:

* A new backend is probed at once. Where other backends of its farm take connections, it waits for the first success; without
  any, it takes connections meanwhile, so that a new farm works immediately.
* A backend whose check changed, or whose farm was started again, keeps its state until then, and is probed at once.
* A backend that was up before a restart of the daemon stays up until its first failure.

What is known of a backend is kept while its farm is stopped or has no check. A backend that a change brings in while another
farm, or the same one under an earlier name, knows its address and port to be down starts as down.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from ctl.config.model import Backend, CheckKind, CheckVia, Config, Farm, HealthCheck, Mode
from ctl.health.probe_queue import Place, ProbeQueue
from ctl.health.results import MAX_ERROR, Result, State

MAX_PROBES = 1024
"""Probes in flight at once, of all farms; one farm alone has half of them at most."""
MAX_COMMANDS = 64
"""The same for commands, each of which is a process."""

_GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 spread consecutive ids evenly over an interval (Weyl sequence)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One check to run now. Pass it to `finish` with the result; `serial` identifies results of outdated probes."""

    backend_id: int
    serial: int
    farm: str
    address: str
    port: int  # the port to connect to
    check: HealthCheck
    vip: str = ""  # to connect to through the farm's mode; empty: connect to `address`
    is_tunnel: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """A backend went up or down."""

    backend_id: int
    farm: str
    address: str
    port: int
    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """The state of a backend's check, as in `farm show`. Times are on the clock of `now_ms`."""

    up: bool  # takes connections, as far as its check decides
    last_error: str  # of the most recent failed check, or why it waits; empty: none failed yet
    last_error_ms: int | None
    changed_ms: int | None  # when it last went up or down; None: never
    checked_ms: int | None  # when the last check ended


@dataclass(frozen=True, slots=True)
class Adopted:
    """What the peer's results have changed: whether any backend's state is another one, and which went up or down."""

    changed: bool
    transitions: tuple[Transition, ...]


MAX_ADOPTED = 65536
SKIPPED_PER_PROBE = 16
"""A backup skips so many probes in the time in which it would start one."""
WAITING = "waits for its first successful check"


@dataclass(slots=True)
class _Checked:
    """probation: the next result decides alone. active: it is probed; otherwise its farm is stopped or has no check."""

    farm: Farm
    backend: Backend
    state: State
    serial: int = 0
    due_ms: int = 0
    active: bool = False
    in_flight: bool = False
    probation: bool = True
    streak: int = 0  # results in a row against the present state
    last_error: str = ""
    last_error_ms: int | None = None
    changed_ms: int | None = None
    checked_ms: int | None = None
    checks: int = 0
    failures: int = 0

    @property
    def check(self) -> HealthCheck:
        return self.farm.health


class HealthChecks:
    """All checks of a node. `initially_down`: ids of backends that were down when the last daemon stopped.

    The first configuration is the one the daemon starts with: its backends are not new. `unusable` may be called in any thread.
    While `follows` is set, the peer checks: `due` gives no probe, and results come from `adopt`. The schedule continues, so
    that afterwards every backend is probed within its interval, and not all at once.
    """

    def __init__(
        self, initially_down: AbstractSet[int] = frozenset(), max_probes: int = MAX_PROBES, max_commands: int = MAX_COMMANDS
    ) -> None:
        self._initially_down = initially_down
        self._started = False
        self._checked: dict[int, _Checked] = {}
        self._farms: Mapping[str, Farm] = {}
        self._queue, self._commands = ProbeQueue(max_probes), ProbeQueue(max_commands)
        self._down: set[int] = set()  # DOWN and active
        self._remembered: set[int] = set()  # DOWN, active or in a stopped farm
        self._waiting: dict[str, frozenset[int]] = {}  # by farm: NEW while other backends take connections
        self._serial = 0
        self.follows = False
        self._adopted: dict[int, Result] = {}  # also of backends that no configuration here has yet
        self._arrived: list[Transition] = []  # of backends whose result came before their configuration
        self._news: dict[int, None] = {}  # ids of backends whose result changed, the oldest change first

    def configure(self, config: Config, now_ms: int) -> None:
        """Apply a configuration: probe the backends of enabled farms with a check; forget those that are gone."""
        for _ in self.configure_in_steps(config, now_ms):
            pass

    def configure_in_steps(self, config: Config, now_ms: int) -> Iterator[None]:
        """Like `configure`, one farm per step, so that the caller can yield. Other calls may come in between; exhaust it."""
        known_down = self._known_down()
        for name, farm in config.farms.items():
            if self._farms.get(name) is not farm:
                for backend in farm.backends:
                    self._update(farm, backend, known_down, now_ms)
                self._settle(farm)
                yield
        for name, old in self._farms.items():
            new = config.farms.get(name)
            if new is not old:
                kept = {backend.id for backend in new.backends} if new else frozenset()
                for backend in old.backends:
                    if backend.id not in kept:
                        self._forget(name, backend.id)
                if new is None:
                    self._waiting.pop(name, None)
                yield
        self._farms, self._started = config.farms, True
        for queue in (self._queue, self._commands):
            if len(queue) > 4 * len(self._checked) + 1024:
                queue.forget_unwanted(self._is_wanted)

    def due(self, now_ms: int, limit: int) -> tuple[Probe, ...]:
        """At most `limit` probes to start now, the farms in turn; each is in flight until `finish`."""
        probes: list[Probe] = []
        if self.follows:
            for queue in (self._commands, self._queue):
                self._skip(queue, now_ms, limit)
            return ()
        places = self._commands.take(now_ms, limit, self._is_wanted)
        for place in places + self._queue.take(now_ms, limit - len(places), self._is_wanted):
            entry = self._checked[place.backend_id]
            entry.in_flight = True
            port = entry.check.port or entry.backend.port
            address = entry.check.address or entry.backend.address
            vip = _vip_of(entry.farm, address) if entry.check.via is CheckVia.VIP else ""
            is_tunnel = entry.farm.mode is Mode.IPIP
            probes.append(Probe(place.backend_id, place.serial, place.farm, address, port, entry.check, vip, is_tunnel))
        return tuple(probes)

    def _skip(self, queue: ProbeQueue, now_ms: int, limit: int) -> None:
        for place in queue.take(now_ms, SKIPPED_PER_PROBE * limit, self._is_wanted):
            queue.ended(place.farm, now_ms)
            self._schedule(self._checked[place.backend_id], now_ms)

    def finish(self, probe: Probe, ok: bool, error: str, now_ms: int) -> Transition | None:
        """Record the result of a probe, once. `error`: why it failed. A probe that a change made outdated has no effect."""
        self._queue_of(probe.check).ended(probe.farm, now_ms)
        entry = self._checked.get(probe.backend_id)
        if entry is None or entry.serial != probe.serial or not entry.in_flight:
            return None
        entry.in_flight = False
        if self.follows:  # since it began
            self._schedule(entry, now_ms)
            return None
        entry.checked_ms = now_ms
        entry.checks += 1
        entry.failures += not ok
        if not ok:
            self._news[probe.backend_id] = None
            entry.last_error, entry.last_error_ms = error[:MAX_ERROR], now_ms
        transition = self._count(entry, ok, now_ms)
        self._schedule(entry, now_ms)
        return transition

    def _count(self, entry: _Checked, ok: bool, now_ms: int) -> Transition | None:
        decides, entry.probation = entry.probation, False
        if entry.state is (State.UP if ok else State.DOWN):
            entry.streak = 0
            return None
        entry.streak += 1
        needed = 1 if decides or entry.state is State.NEW else entry.check.rise if ok else entry.check.fall
        return self._turn(entry, ok, now_ms) if entry.streak >= needed else None

    def next_due_ms(self) -> int | None:
        """When `due` next returns a probe; None: not before a change, or the end of a probe. It may be an outdated one's."""
        times = (self._queue.next_due_ms(), self._commands.next_due_ms())
        return min((time for time in times if time is not None), default=None)

    @property
    def down(self) -> frozenset[int]:
        """Ids of the backends of running farms that failed their check."""
        return frozenset(self._down)

    @property
    def to_remember(self) -> frozenset[int]:
        """Ids of the backends that must get no connections after a restart, before a check succeeds."""
        return frozenset(self._remembered).union(*list(self._waiting.values()))

    def unusable(self, config: Config) -> frozenset[int]:
        """Ids of the backends that must get no connections under `config`, which may be one that is not configured yet."""
        found = set(self._down).union(*list(self._waiting.values()))
        if config.farms is self._farms:
            return frozenset(found)
        for name, old in self._farms.items():
            if config.farms.get(name) is not old:
                found.difference_update(backend.id for backend in old.backends)
        known_down: Mapping[tuple[str, int], str] | None = None
        for name, farm in config.farms.items():
            if self._farms.get(name) is farm:
                continue
            if known_down is None:
                known_down = self._known_down()
            states = {backend.id: self._state_of(farm, backend, known_down) for backend in farm.backends}
            found.difference_update(states)
            if _is_checked(farm):
                found.update(number for number, state in states.items() if state is State.DOWN)
                found |= _waiting(farm, states)
        return frozenset(found)

    def status(self, backend_id: int) -> BackendHealth | None:
        """None: not checked."""
        entry = self._checked.get(backend_id)
        if entry is None or entry.check.kind is CheckKind.NONE:
            return None
        waits = backend_id in self._waiting.get(entry.farm.name, ())
        up = entry.state is not State.DOWN and not waits
        return BackendHealth(
            up, WAITING if waits else entry.last_error, entry.last_error_ms, entry.changed_ms, entry.checked_ms
        )

    def counted(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Checks that ended here and how many of them failed, of each of these backends. May be called in any thread."""
        entries = [self._checked.get(number) for number in ids]
        return [each.checks if each else 0 for each in entries], [each.failures if each else 0 for each in entries]

    # --- replication -----------------------------------------------------------------------------------------------

    @property
    def known(self) -> list[int]:
        """Ids of the backends that have a check."""
        return [number for number, entry in self._checked.items() if entry.check.kind is not CheckKind.NONE]

    @property
    def has_news(self) -> bool:
        """Whether `take_news` has any."""
        return bool(self._news)

    def take_news(self, limit: int | None) -> list[int]:
        """Ids of backends whose result has changed since they were taken last, at most `limit`; None: all."""
        taken = list(itertools.islice(self._news, limit))
        for number in taken:
            del self._news[number]
        return taken

    def results(self, ids: Iterable[int]) -> list[Result]:
        """What is known of these backends; those that are gone are left out."""
        return [
            Result(
                number,
                entry.backend.address,
                entry.backend.port,
                entry.state,
                entry.changed_ms,
                entry.last_error,
                entry.last_error_ms,
            )
            for number in ids
            if (entry := self._checked.get(number)) and entry.check.kind is not CheckKind.NONE
        ]

    def adopt(self, results: Iterable[Result], now_ms: int) -> Adopted:
        """Take over what the peer's checks have found."""
        changed: dict[str, Farm] = {}
        transitions: list[Transition] = []
        for result in results:
            if len(self._adopted) < MAX_ADOPTED or result.backend_id in self._adopted:
                self._adopted[result.backend_id] = result
            entry = self._checked.get(result.backend_id)
            if entry is None or not _is_of(result, entry.backend):
                continue
            if entry.state is not result.state:
                changed[entry.farm.name] = entry.farm
                if entry.active and State.DOWN in (entry.state, result.state):  # a first success is nothing new to people
                    transitions.append(_adopted_transition(entry, result))
            self._apply(entry, result)
        for farm in changed.values():
            self._settle(farm)
        return Adopted(bool(changed), tuple(transitions))

    def take_arrived(self) -> tuple[Transition, ...]:
        """Backends that the peer had found down before the configuration with them came, since the last call."""
        taken, self._arrived = tuple(self._arrived), []
        return taken

    def _apply(self, entry: _Checked, result: Result) -> None:
        entry.state, entry.changed_ms = result.state, result.changed_ms
        entry.last_error, entry.last_error_ms, entry.checked_ms = result.last_error, result.last_error_ms, None
        entry.streak, entry.probation = 0, False
        self._classify(entry)

    def _adopted_for(self, backend: Backend) -> Result | None:
        """What the peer has found of a backend that is new here."""
        result = self._adopted.get(backend.id) if self.follows else None
        return result if result is not None and _is_of(result, backend) else None

    # --- changes of the configuration ------------------------------------------------------------------------------

    def _update(self, farm: Farm, backend: Backend, known_down: Mapping[tuple[str, int], str], now_ms: int) -> None:
        entry = self._entry(backend)
        if entry is None:
            state = self._state_of(farm, backend, known_down)
            entry = self._checked[backend.id] = _Checked(farm, backend, state)
            if state is State.DOWN and self._started:
                entry.last_error = known_down.get((backend.address, backend.port), "")
            elif state is State.DOWN:
                entry.last_error, entry.probation = "down before xlbd restarted", False
            if adopted := self._adopted_for(backend):
                self._apply(entry, adopted)
                if adopted.state is State.DOWN and _is_checked(farm):
                    self._arrived.append(_adopted_transition(entry, adopted))
        before, was_active = entry.check, entry.active
        entry.farm, entry.backend, entry.active = farm, backend, _is_checked(farm)
        if entry.state is State.NEW and farm.health.kind is CheckKind.NONE:
            entry.state = State.UP  # it takes connections unchecked
        if not entry.active:
            self._serial += 1
            entry.serial, entry.in_flight, entry.streak, entry.probation = self._serial, False, 0, True
        elif not was_active:
            self._probe_first(entry, now_ms)
        elif not _same_check(before, farm.health):
            entry.probation = True
            self._probe_first(entry, now_ms)
        elif not entry.in_flight and entry.due_ms > now_ms + _interval_ms(entry):
            self._serial += 1
            entry.serial = self._serial
            self._schedule(entry, now_ms)
        self._classify(entry)
        self._news[backend.id] = None

    def _probe_first(self, entry: _Checked, now_ms: int) -> None:
        """Probe at once; at the start of the daemon, when all are due together, spread over the interval."""
        self._serial += 1
        entry.serial, entry.in_flight, entry.streak = self._serial, False, 0
        entry.due_ms = now_ms
        if not self._started:
            entry.due_ms += int(entry.backend.id * _GOLDEN % 1.0 * entry.check.interval_ms)
        self._put(entry)

    def _entry(self, backend: Backend) -> _Checked | None:
        """What is known of this server. An id that another server had before is a new one's."""
        entry = self._checked.get(backend.id)
        if entry is None or (entry.backend.address, entry.backend.port) != (backend.address, backend.port):
            return None
        return entry

    def _state_of(self, farm: Farm, backend: Backend, known_down: Mapping[tuple[str, int], str]) -> State:
        """The state of a backend when its farm's configuration comes into force."""
        entry = self._entry(backend)
        if entry is not None:
            return State.UP if entry.state is State.NEW and entry.check.kind is CheckKind.NONE else entry.state
        if adopted := self._adopted_for(backend):
            return adopted.state
        if not self._started:
            return State.DOWN if backend.id in self._initially_down else State.UP
        return State.DOWN if (backend.address, backend.port) in known_down else State.NEW

    def _known_down(self) -> dict[tuple[str, int], str]:
        """The last error of each address and port that is down."""
        entries = [entry for number in frozenset(self._remembered) if (entry := self._checked.get(number))]
        return {(entry.backend.address, entry.backend.port): entry.last_error for entry in entries}

    def _forget(self, farm: str, backend_id: int) -> None:
        entry = self._checked.get(backend_id)
        if entry is not None and entry.farm.name == farm:  # otherwise the id is another farm's by now
            del self._checked[backend_id]
            self._adopted.pop(backend_id, None)
            self._news.pop(backend_id, None)
            self._down.discard(backend_id)
            self._remembered.discard(backend_id)

    # --- states ----------------------------------------------------------------------------------------------------

    def _turn(self, entry: _Checked, up: bool, now_ms: int) -> Transition:
        first, streak = entry.state is State.NEW, entry.streak
        entry.state, entry.streak, entry.changed_ms = State.UP if up else State.DOWN, 0, now_ms
        self._news[entry.backend.id] = None
        self._classify(entry)
        self._settle(entry.farm)
        reason = entry.last_error if not up else "its first check succeeded" if first else _in_a_row(streak)
        return Transition(entry.backend.id, entry.farm.name, entry.backend.address, entry.backend.port, up, reason)

    def _classify(self, entry: _Checked) -> None:
        number, down = entry.backend.id, entry.state is State.DOWN
        (self._down.add if down and entry.active else self._down.discard)(number)
        (self._remembered.add if down and entry.check.kind is not CheckKind.NONE else self._remembered.discard)(number)

    def _settle(self, farm: Farm) -> None:
        """Find the backends of a farm that wait for their first success."""
        states = {each.id: entry.state for each in farm.backends if (entry := self._entry(each)) and entry.active}
        waiting = _waiting(farm, states)
        if waiting:
            self._waiting[farm.name] = waiting
        else:
            self._waiting.pop(farm.name, None)

    # --- the schedule ----------------------------------------------------------------------------------------------

    def _schedule(self, entry: _Checked, now_ms: int) -> None:
        """Schedule the next point of the entry's own grid after now, so that a delay neither bunches nor shifts checks."""
        interval = _interval_ms(entry)
        phase = int(entry.backend.id * _GOLDEN % 1.0 * interval)
        entry.due_ms = now_ms + interval - (now_ms - phase) % interval
        self._put(entry)

    def _put(self, entry: _Checked) -> None:
        self._queue_of(entry.check).put(Place(entry.farm.name, entry.backend.id, entry.serial), entry.due_ms)

    def _queue_of(self, check: HealthCheck) -> ProbeQueue:
        """Commands have fewer places than other probes, and must not wait for each other's."""
        return self._commands if check.kind is CheckKind.COMMAND else self._queue

    def _is_wanted(self, backend_id: int, serial: int) -> bool:
        entry = self._checked.get(backend_id)
        return entry is not None and entry.serial == serial


def _vip_of(farm: Farm, address: str) -> str:
    """The farm's VIP to check on a backend: of the same family, if it has one."""
    return next((vip for vip in farm.vips if (":" in vip) == (":" in address)), farm.vips[0])


def _is_of(result: Result, backend: Backend) -> bool:
    return (result.address, result.port) == (backend.address, backend.port)


def _interval_ms(entry: _Checked) -> int:
    """The slow interval ends with the first success."""
    is_dead = entry.state is State.DOWN and not entry.streak
    return (is_dead and entry.check.interval_down_ms) or entry.check.interval_ms


def _is_checked(farm: Farm) -> bool:
    return farm.enabled and farm.health.kind is not CheckKind.NONE


def _waiting(farm: Farm, states: Mapping[int, State]) -> frozenset[int]:
    """The new backends, if others of the farm take connections."""
    new = frozenset(number for number, state in states.items() if state is State.NEW)
    if not new:
        return new
    served = any(states.get(each.id) is State.UP and each.weight > 0 and not each.draining for each in farm.backends)
    return new if served else frozenset()


def _same_check(old: HealthCheck, new: HealthCheck) -> bool:
    """Whether earlier results remain valid: only timing and thresholds may differ."""
    same = {name: getattr(old, name) for name in ("interval_ms", "interval_down_ms", "timeout_ms", "rise", "fall")}
    return replace(new, **same) == old


def _adopted_transition(entry: _Checked, result: Result) -> Transition:
    up, backend = result.state is State.UP, entry.backend
    reason = "its check succeeded on the active node" if up else result.last_error
    return Transition(backend.id, entry.farm.name, backend.address, backend.port, up, reason)


def _in_a_row(streak: int) -> str:
    return f"{streak} successes in a row" if streak > 1 else "its check succeeded"
