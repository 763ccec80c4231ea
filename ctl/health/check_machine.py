"""Health checks as a state machine: when to probe a backend, and when it is up or down.

Events and `now_ms` (any monotonic clock) in; probes and transitions out. Opens no connection, reads no clock.

A new backend starts as up, so that a new farm works immediately, but on probation: its first failed probe marks it down (a
restarted daemon must not send connections to a dead server for three intervals). After that, `fall` failures in a row mark
it down and `rise` successes in a row mark it up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ctl.config.model import Backend, CheckKind, Config, Farm, HealthCheck

MAX_ERROR = 200
"""Maximum length of a stored error, in characters."""

_GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 spread consecutive ids evenly over an interval (Weyl sequence)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One check to run now. Pass it to `finish` with the result; `serial` identifies results of outdated probes."""

    backend_id: int
    serial: int
    address: str
    port: int  # the port to connect to
    check: HealthCheck


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

    up: bool
    last_error: str  # of the most recent failed check; empty: none failed yet
    last_error_ms: int | None
    changed_ms: int | None  # when it last went up or down; None: never
    checked_ms: int | None  # when the last check ended


@dataclass(slots=True)
class _Checked:
    farm: str
    backend: Backend
    check: HealthCheck
    serial: int
    due_ms: int
    in_flight: bool = False
    up: bool = True
    probation: bool = True
    streak: int = 0  # results in a row against the present state
    last_error: str = ""
    last_error_ms: int | None = None
    changed_ms: int | None = None
    checked_ms: int | None = None


class HealthChecks:
    """All checks of a node. `initially_down`: ids of backends that were down when the last daemon stopped."""

    def __init__(self, initially_down: AbstractSet[int] = frozenset()) -> None:
        self._initially_down = set(initially_down)
        self._checked: dict[int, _Checked] = {}
        self._farms: dict[str, Farm] = {}
        self._heap: list[tuple[int, int, int]] = []  # (due_ms, backend id, serial); outdated ones are skipped
        self._down: set[int] = set()
        self._serial = 0

    def configure(self, config: Config, now_ms: int) -> None:
        """Apply a configuration: probe the backends of enabled farms with a check; forget others, which are then not down."""
        for _ in self.configure_in_steps(config, now_ms):
            pass

    def configure_in_steps(self, config: Config, now_ms: int) -> Iterator[None]:
        """Like `configure`, one farm per step, so that the caller can yield. Other calls may come in between; exhaust it."""
        wanted = {name: farm for name, farm in config.farms.items() if farm.enabled and farm.health.kind is not CheckKind.NONE}
        for name, farm in self._farms.items():
            if wanted.get(name) is not farm:
                kept = {backend.id for backend in wanted[name].backends} if name in wanted else set()
                for backend in farm.backends:
                    if backend.id not in kept:
                        self._forget(backend.id)
                yield
        for name, farm in wanted.items():
            if self._farms.get(name) is not farm:
                for backend in farm.backends:
                    self._update(farm, backend, now_ms)
                yield
        self._farms = wanted

    def due(self, now_ms: int, limit: int) -> tuple[Probe, ...]:
        """At most `limit` probes to start now, oldest first; each is in flight until `finish`."""
        probes: list[Probe] = []
        while self._heap and len(probes) < limit and self._heap[0][0] <= now_ms:
            _, backend_id, serial = heapq.heappop(self._heap)
            entry = self._checked.get(backend_id)
            if entry is None or entry.serial != serial:
                continue
            entry.in_flight = True
            port = entry.check.port or entry.backend.port
            probes.append(Probe(backend_id, serial, entry.backend.address, port, entry.check))
        return tuple(probes)

    def finish(self, probe: Probe, ok: bool, error: str, now_ms: int) -> Transition | None:
        """Record the result of a probe. `error`: why it failed. A probe that a change made outdated has no effect."""
        entry = self._checked.get(probe.backend_id)
        if entry is None or entry.serial != probe.serial or not entry.in_flight:
            return None
        entry.in_flight = False
        entry.checked_ms = now_ms
        self._schedule(entry, now_ms)
        if not ok:
            entry.last_error, entry.last_error_ms = error[:MAX_ERROR], now_ms
        if ok == entry.up:
            entry.streak = 0
            entry.probation = entry.probation and not ok
            return None
        entry.streak += 1
        needed = entry.check.rise if ok else 1 if entry.probation else entry.check.fall
        return self._turn(entry, ok, now_ms) if entry.streak >= needed else None

    def next_due_ms(self) -> int | None:
        """When `due` next returns a probe; None: nothing is scheduled. The time may belong to an outdated probe."""
        return self._heap[0][0] if self._heap else None

    @property
    def down(self) -> frozenset[int]:
        """Ids of the backends that are down."""
        return frozenset(self._down)

    def status(self, backend_id: int) -> BackendHealth | None:
        """None: not checked."""
        entry = self._checked.get(backend_id)
        if entry is None:
            return None
        return BackendHealth(entry.up, entry.last_error, entry.last_error_ms, entry.changed_ms, entry.checked_ms)

    def _turn(self, entry: _Checked, up: bool, now_ms: int) -> Transition:
        streak, entry.up, entry.streak, entry.probation, entry.changed_ms = entry.streak, up, 0, False, now_ms
        (self._down.discard if up else self._down.add)(entry.backend.id)
        reason = f"{streak} successes in a row" if up else entry.last_error
        return Transition(entry.backend.id, entry.farm, entry.backend.address, entry.backend.port, up, reason)

    def _update(self, farm: Farm, backend: Backend, now_ms: int) -> None:
        entry = self._checked.get(backend.id)
        if entry is None or not _same_check(entry, backend, farm.health):
            self._forget(backend.id)
            self._serial += 1
            first_ms = now_ms + int(backend.id * _GOLDEN % 1.0 * farm.health.interval_ms)
            entry = self._checked[backend.id] = _Checked(farm.name, backend, farm.health, self._serial, first_ms)
            heapq.heappush(self._heap, (first_ms, backend.id, entry.serial))
            if backend.id in self._initially_down:
                self._initially_down.remove(backend.id)
                self._down.add(backend.id)
                entry.up, entry.probation, entry.last_error = False, False, "down before xlbd restarted"
            return
        sooner = farm.health.interval_ms < entry.check.interval_ms
        entry.farm, entry.backend, entry.check = farm.name, backend, farm.health
        if sooner and not entry.in_flight and entry.due_ms > now_ms + farm.health.interval_ms:
            self._serial += 1
            entry.serial = self._serial
            self._schedule(entry, now_ms)

    def _schedule(self, entry: _Checked, now_ms: int) -> None:
        """Schedule the next point of the entry's own grid after now, so that a delay neither bunches nor shifts checks."""
        interval = entry.check.interval_ms
        phase = int(entry.backend.id * _GOLDEN % 1.0 * interval)
        entry.due_ms = now_ms + interval - (now_ms - phase) % interval
        heapq.heappush(self._heap, (entry.due_ms, entry.backend.id, entry.serial))

    def _forget(self, backend_id: int) -> None:
        self._checked.pop(backend_id, None)
        self._down.discard(backend_id)
        if len(self._heap) > 4 * len(self._checked) + 1024:
            self._heap = [each for each in self._heap if each[1] in self._checked and self._checked[each[1]].serial == each[2]]
            heapq.heapify(self._heap)


def _same_check(entry: _Checked, backend: Backend, check: HealthCheck) -> bool:
    """Whether earlier results remain valid: only timing and thresholds may differ."""
    old = entry.check
    return (entry.backend.address, entry.backend.port, old.kind, old.port, old.path, old.status, old.host) == (
        *(backend.address, backend.port),
        *(check.kind, check.port, check.path, check.status, check.host),
    )
