"""What a change of the configuration does to clients: the shares of the backends, and who gets another backend.

Compares the tables that `ctl.dataplane.planner` writes before and after the change, and, where the connections of each backend
are given, decides what happens to them (`ctl.dataplane.placement`). Pure. Must not know maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctl.config.model import Backend, Config, DrainThen, Farm, OnBackend, Protocol, Scheduler
from ctl.config.table_sizes import size_of
from ctl.dataplane import maglev
from ctl.dataplane.planner import eligible_backends
from ctl.dataplane.slow_start import weighted


@dataclass(frozen=True, slots=True)
class Resized:
    """A farm whose lookup table gets another size, and the share of its clients that get another backend, 0 to 1."""

    farm: str
    before: int
    after: int
    moved: float

    @property
    def message(self) -> str:
        return (
            f"lookup table of farm {self.farm} changed from {self.before} to {self.after} slots: "
            f"{self.moved * 100:.0f} % of its clients get another backend"
        )


def resized(old: Config, new: Config, down: AbstractSet[int]) -> list[Resized]:
    """The farms whose lookup tables in use change their size. down: ids of backends that are down."""
    found = []
    for name, after in new.farms.items():
        before = old.farms.get(name)
        if before is None or before is after or size_of(before) == size_of(after):
            continue
        if (share := moved_share(before, after, down)) is not None:
            found.append(Resized(name, size_of(before), size_of(after), share))
    return found


def moved_share(before: Farm, after: Farm, down: AbstractSet[int]) -> float | None:
    """The share of clients that get another backend, 0 to 1, mean of the address families. None: no hash selects them."""
    shares = []
    for part in after.parts:
        earlier = next((each for each in before.parts if (":" in each.vip) == (":" in part.vip)), None)
        tables = [table_of(each, down) for each in (earlier, part) if each is not None]
        if len(tables) == 2 and all(table is not None for table in tables):
            shares.append(maglev.moved(*tables))  # type: ignore[arg-type]
    return sum(shares) / len(shares) if shares else None


def table_of(part: Farm, down: AbstractSet[int]) -> NDArray[np.uint32] | None:
    """The lookup table of a farm's part; None: it has none."""
    eligible = eligible_backends(part, down)
    if part.scheduler not in (Scheduler.MAGLEV, Scheduler.SOURCE) or not eligible:
        return None
    return maglev.lookup_table(eligible, size_of(part))


@dataclass(frozen=True, slots=True)
class BackendImpact:
    """A backend before and after a change. fate: what happens to its connections, "stay", "move" or "end"."""

    farm: str
    backend: str
    connections: int
    fate: str
    share_before: float  # of new connections, 0 to 1
    share_after: float


@dataclass(frozen=True, slots=True)
class FarmImpact:
    """A farm that a change touches. clients_moved: None without a lookup table before and after."""

    farm: str
    clients_moved: float | None
    backends: tuple[BackendImpact, ...]


def of_change(
    old: Config,
    new: Config,
    down: AbstractSet[int],
    shares: Mapping[int, int],
    connections: Mapping[tuple[int, int], int],
    at_once: bool = False,
) -> list[FarmImpact]:
    """What a change does to each farm that differs.

    down: ids of backends that are down. shares: of `ctl.dataplane.slow_start`. connections: by farm and backend id.
    at_once: connections of removed backends end also where the farm keeps them (`backend.remove` with `now`).
    """
    found = []
    for name in sorted(old.farms.keys() | new.farms.keys()):
        before, after = old.farms.get(name), new.farms.get(name)
        if before is not after:
            found.append(_of_farm(name, before, after, down, shares, connections, at_once))
    return found


def _of_farm(
    name: str,
    before: Farm | None,
    after: Farm | None,
    down: AbstractSet[int],
    shares: Mapping[int, int],
    connections: Mapping[tuple[int, int], int],
    at_once: bool,
) -> FarmImpact:
    earlier, later = (_shares(farm, down, shares) if farm is not None else {} for farm in (before, after))
    known = {each.id: each for farm in (after, before) if farm is not None for each in farm.backends}
    rows = [
        BackendImpact(
            name,
            known[number].endpoint,
            connections.get(((before or after).id, number), 0),  # type: ignore[union-attr]
            _fate(before, after, known[number], down, at_once),
            earlier.get(number, 0.0),
            later.get(number, 0.0),
        )
        for number in sorted(known)
    ]
    moved = moved_share(before, after, down) if before is not None and after is not None else None
    return FarmImpact(name, moved, tuple(rows))


def _shares(farm: Farm, down: AbstractSet[int], shares: Mapping[int, int]) -> dict[int, float]:
    """The share of new connections of each backend, of the tables that the planner writes; mean of the address families."""
    found: dict[int, float] = {}
    parts = farm.parts if farm.enabled else ()
    for part in parts:
        eligible = weighted(eligible_backends(part, down), shares)
        if not eligible:
            continue
        in_turn = part.scheduler is Scheduler.ROUNDROBIN
        table = maglev.turn_order(eligible) if in_turn else maglev.lookup_table(eligible, size_of(farm))
        ids, counts = np.unique(table, return_counts=True)
        for number, count in zip(ids.tolist(), counts.tolist(), strict=True):
            found[number] = found.get(number, 0.0) + count / len(table) / len(parts)
    return found


def _fate(before: Farm | None, after: Farm | None, backend: Backend, down: AbstractSet[int], at_once: bool) -> str:
    """What happens to the connections of a backend, as `ctl.dataplane.placement` decides it."""
    if before is None:
        return "stay"
    leaving = "move" if before.protocol is Protocol.UDP else "end"
    now = next((each for each in after.backends if each.id == backend.id), None) if after is not None else None
    if after is None:
        return "end"
    if now is None:
        return "stay" if after.removed_policy is OnBackend.KEEP and not at_once else leaving
    if now.draining and now.drain_until and now.drain_then is DrainThen.CUT:
        return leaving
    eligible = {each.id for each in eligible_backends(after, down)}
    if before.protocol is Protocol.UDP and eligible and now.id not in eligible | set(down):
        return "move"
    return "stay"
