"""How many slots the lookup table of a farm has: chosen when the farm is created, then kept.

Another size moves nearly every client to another backend, so no change of backends, weights or health may lead to one. Decides
the size only; `ctl.dataplane.maglev` fills the table. Pure. Must not know the kernel's slot map beyond its capacity.

* A new farm gets PREFERRED slots, or more if its backends need them: with these, a change of one of 1 to 1,000 backends moves
  at most 1.5 percentage points more than its share (docs/adr/0014-stable-tables.md). The tables of the first farms may take a
  quarter of the kernel's slot map, each a small part of what is left of it. Then new farms get LEAST slots until half of the
  map is in use, and from there what their backends need, so that 4,000 farms fit.
* A farm that an earlier version stored has no size; it follows from its backends. The first change of its backends stores the
  size that the farm had before the change, so that neither an upgrade nor the change moves more than it must.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bpf.constants import MAX_SLOT_CHUNKS, SLOTS_PER_CHUNK
from ctl.config.model import Backend, Farm
from ctl.config.settings import TABLE_SIZES

SLOTS_PER_UNIT = 100
"""Slots for the lightest backend. Counts deviate by about one slot, so its share is exact to about 1 %, the
same ratio of table size to backends that the paper recommends (section 5.3)."""

PREFERRED = 16381
LEAST = 1021
HEADROOM = 4
"""So many times the backends a new farm has."""
MAX_SLOTS = MAX_SLOT_CHUNKS * SLOTS_PER_CHUNK
GENEROUS_SLOTS = MAX_SLOTS // 4
GENEROUS_PART = 32


def needed(backends: Sequence[Backend], times: int = 1) -> int:
    """The size for these backends, for so many times as many: from the sum of weights divided by the lightest weight."""
    weights = [backend.weight for backend in backends if backend.weight > 0]
    if not weights:
        return TABLE_SIZES[0]
    wanted = times * SLOTS_PER_UNIT * math.ceil(sum(weights) / min(weights))
    return next((size for size in TABLE_SIZES if size >= wanted), TABLE_SIZES[-1])


def size_of(farm: Farm) -> int:
    """Slots of the farm's lookup table, of each address family."""
    return farm.table_size or farm.kept_size or needed(farm.backends)


def slots_of(farms: Iterable[Farm]) -> int:
    """Slots of the lookup tables of these farms."""
    return sum(size_of(farm) * len(farm.parts) for farm in farms)


def choose(farm: Farm, used: int) -> int:
    """The size for a new farm, where the tables of others use so many slots."""
    least = max(LEAST if used < MAX_SLOTS // 2 else TABLE_SIZES[0], needed(farm.backends))
    most = min(max(PREFERRED, needed(farm.backends, HEADROOM)), (GENEROUS_SLOTS - used) // GENEROUS_PART // len(farm.parts))
    return max((size for size in TABLE_SIZES if least <= size <= most), default=least)


def settled(farm: Farm, old: Farm | None, used: int) -> Farm:
    """The farm with the size that it keeps. old: before the change; None: it is new. used: as of `choose`."""
    if farm.table_size:
        size = old.kept_size if old is not None else 0
    elif old is not None and (old.table_size or old.kept_size):
        size = old.table_size or old.kept_size
    elif old is not None and old.backends == farm.backends:
        size = 0
    elif old is not None and old.backends:
        size = needed(old.backends)
    else:
        size = choose(farm, used)
    return farm if farm.kept_size == size else replace(farm, kept_size=size)
