"""Health checks as a state machine: which backend to probe when, and when it counts as up or down.

Events and `now_ms` (any monotonic clock) in; probes and transitions out. Opens no connection, reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctl.model import Config, HealthCheck


@dataclass(frozen=True, slots=True)
class Probe:
    """One check to run now. Hand it back to `finish`; `serial` makes answers to outdated probes harmless."""

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
    """What `farm show` tells about a backend's check."""

    up: bool
    last_error: str  # of the most recent failed check; empty: none failed yet
    last_error_ms: int | None
    changed_ms: int | None  # when it last went up or down; None: never
    checked_ms: int | None  # when the last check ended


class HealthChecks:
    """All checks of a node."""

    def configure(self, config: Config, now_ms: int) -> None:
        """Follow the configuration: backends of enabled farms with a check are probed, others forgotten (and no longer down)."""
        ...

    def due(self, now_ms: int, limit: int) -> tuple[Probe, ...]:
        """At most `limit` probes to start now, oldest first; each is in flight until `finish`."""
        ...

    def finish(self, probe: Probe, ok: bool, error: str, now_ms: int) -> Transition | None:
        """Take a probe's result."""
        ...

    def next_due_ms(self) -> int | None:
        """When `due` will next have something; None: nothing waits."""
        ...

    @property
    def down(self) -> frozenset[int]:
        """Ids of the backends that are down."""
        ...

    def status(self, backend_id: int) -> BackendHealth | None:
        """None: not checked."""
        ...


def parse_status(text: str) -> tuple[int, int]:
    """ "200" or "200-399" to inclusive bounds within 100–599. Raises InvalidInput."""
    ...
