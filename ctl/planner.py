"""What the kernel's tables should hold, and the operations that get them there without harming a packet.

Pure: configuration, health and what was planned before go in; operations and the next state come out. Knows the tables' meaning
(`bpf.tables`, `bpf.constants`), not how they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from bpf.tables import Operation, ServiceKey, ServiceValue
from ctl.model import Backend, Config, Farm


@dataclass(frozen=True, slots=True)
class PlannerState:
    """What the tables hold after the operations so far. Opaque to callers; start with adopt() or PlannerState()."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations to execute in order, and the state that holds once all succeeded.

    `complete` False: some farms wait for table space that this round frees; execute, then plan again at once.
    """

    operations: tuple[Operation, ...]
    state: PlannerState
    complete: bool


def adopt(vips: Mapping[str, int], services: Mapping[ServiceKey, ServiceValue]) -> PlannerState:
    """State of tables found in the kernel: after a restart, or after an operation failed halfway."""
    ...


def plan(state: PlannerState, config: Config, down: AbstractSet[int]) -> Plan:
    """One planning round. `down`: ids of backends whose health check failed. Keep the returned state only when all operations succeeded."""
    ...


def replan_everything(config: Config, down: AbstractSet[int], vips: Mapping[str, int], services: Mapping[ServiceKey, ServiceValue]) -> Plan:
    """Plan onto tables read from the kernel (`DataPlane.vips()`, `.services()`): rewrites all, removes what is stale, overwrites no slots in use."""
    return plan(adopt(vips, services), config, down)


def eligible_backends(farm: Farm, down: AbstractSet[int]) -> tuple[Backend, ...]:
    """Those that may take new connections: weight above 0, not draining, up, of the lowest-numbered tier that has one."""
    ...
