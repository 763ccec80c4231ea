"""What a change of the configuration does to clients: the shares of the backends, and who gets another backend.

Compares the tables that `ctl.dataplane.planner` writes before and after the change, and, where the connections of each backend
are given, tells what happens to them (`ctl.dataplane.placement`). Pure. Must not know maps or who asks.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctl.config.model import Config, Farm, Scheduler
from ctl.config.table_sizes import size_of
from ctl.dataplane import maglev
from ctl.dataplane.planner import eligible_backends


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
            f"{self.moved:.0%} of its clients get another backend"
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
    if part.scheduler is Scheduler.ROUNDROBIN or not eligible:
        return None
    return maglev.lookup_table(eligible, size_of(part))
