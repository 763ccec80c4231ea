"""The steps of a history: packets, changes of the configuration, of the lease, of time, sweeps and takeovers. Plain values, so
that a history can be cut down and played again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctl.config.model import Config
from tests.bpf.tagged_bed import Port
from tests.model.state import Flow, Key


@dataclass(frozen=True, slots=True)
class Send:
    """A frame arrives on `side` of the node: in0 or out0, or with VLANs an interface below."""

    frame: bytes
    side: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes."""

    ns: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease's deadline, relative to the time of the step if it is not one of the two special ones."""

    deadline_ns: int
    relative: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """The configuration and the ids of the backends that are down."""

    config: Config
    down: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ChangeNextHops:
    """A neighbour, route or link has changed."""


@dataclass(frozen=True, slots=True)
class TunnelSources:
    """The node's addresses in outer headers; empty: none."""

    v4: str
    v6: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """The daemon removes what is idle; serving: also what has a backend that it must leave."""

    serving: bool = True


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The peer goes on with what was replicated."""


@dataclass(frozen=True, slots=True)
class Plug:
    """in0 and out0 become VLAN devices, or interfaces without a VLAN."""

    in0: Port
    out0: Port


@dataclass(frozen=True, slots=True)
class MoveToCpu:
    """The packets that follow arrive on another CPU, the n-th of those that the process may use."""

    number: int


@dataclass(frozen=True, slots=True)
class StallReader:
    """The daemon does not read its rings: only so many events of each family fit. None: it reads."""

    space: int | None


@dataclass(frozen=True, slots=True)
class Insert:
    """Entries of other connections appear in `flows` or `embryonic`, as far as their keys are free."""

    table: str
    entries: tuple[tuple[Key, Flow], ...]


Step = (
    Send
    | Wait
    | Lease
    | Configure
    | ChangeNextHops
    | Sweep
    | TakeOver
    | Insert
    | TunnelSources
    | MoveToCpu
    | StallReader
    | Plug
)
