"""The truth of the loads: what a sweep counted corrects what XDP has counted since.

Pure: columns in, columns out. XDP counts each connection that begins and ends; it misses those whose entry the kernel evicts,
that the daemon removes, and that the peer replicates. A sweep counts the connections themselves, but takes a while, in which
others begin, end, and move from one flow map to the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpf.dataplane import Array


def corrected_bases(before: Array, after: Array, counted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bases from here on, by id. before, after: `DataPlane.loads` when the sweep began and ended; counted: by the sweep.

    At the begin of the sweep there were at least `counted` less the connections that began since, and at most `counted` plus
    those that ended or moved. A base within these bounds stays, another one goes to the nearest bound: a load that did not
    change meanwhile is exact, and with changes it is never wrong by more than them.
    """

    def during(field: str) -> NDArray[np.int64]:
        return np.asarray(after[field] - before[field], np.int64)

    change = before["opened"].astype(np.int64) - before["closed"].astype(np.int64)
    lowest = counted - during("opened") - change
    highest = counted + during("closed") + during("promoted") - change
    return np.asarray(np.clip(before["base"], lowest, highest), np.int64)


def loads_of(values: Array) -> NDArray[np.int64]:
    """The connections by id, at the moment of `DataPlane.loads`."""
    found = values["base"] + values["opened"].astype(np.int64) - values["closed"].astype(np.int64)
    return np.asarray(np.maximum(found, 0), np.int64)
