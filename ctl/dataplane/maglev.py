"""The backend of each slot of a farm: Maglev lookup tables and weighted round-robin turns.

Decides from addresses, ports and weights only, so that both nodes of a pair, also after a restart, compute the same
lookup table. A slot holds a backend id, but ids do not influence the result. Pure. Must not know the kernel.

Source: D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctl.config.model import Backend
from ctl.config.settings import TABLE_SIZES

MAX_TURNS = 4096
"""Longest round-robin turn order; weights that need more are rounded to fit."""

SAMPLES = 1 << 17
"""Hashes by which tables of different sizes are compared."""

_BLOCK = 256


def lookup_table(backends: Sequence[Backend], size: int) -> NDArray[np.uint32]:
    """Backend ids of `size` slots (a prime); weight 0 gets none. At least one backend must carry weight.

    In turns spread evenly by weight each backend takes the next free slot of its own permutation of all slots. Removing a
    backend therefore moves its own slots and few others.
    """
    chosen = sorted(
        (backend for backend in backends if backend.weight > 0), key=lambda backend: (backend.address, backend.port)
    )
    if not chosen:
        raise ValueError("no backend carries weight")
    ids = np.array([backend.id for backend in chosen], np.uint32)
    if len(chosen) == 1:
        return np.repeat(ids, size)
    digests = [_digest(backend.endpoint) for backend in chosen]
    phases = np.array([phase for _, _, phase in digests]) / 2.0**32
    order = _turns(np.array([backend.weight for backend in chosen], np.float64), phases, size)
    owners = _populate(order, [(offset % size, skip % (size - 1) + 1) for offset, skip, _ in digests], size)
    return np.take(ids, owners)


def moved(before: NDArray[np.uint32], after: NDArray[np.uint32]) -> float:
    """The share of clients that another backend gets, 0 to 1; the tables may differ in size."""
    if len(before) == len(after):
        return float(np.mean(before != after))
    hashes = (np.arange(SAMPLES, dtype=np.uint64) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return float(np.mean(before[hashes % np.uint64(len(before))] != after[hashes % np.uint64(len(after))]))


def turn_order(backends: Sequence[Backend]) -> NDArray[np.uint32]:
    """Backend ids in the order of a weighted round-robin, turns of a backend spread evenly; weight 0 gets none.

    As many turns as the weights' sum divided by their greatest common divisor, at most MAX_TURNS (or one per backend).
    """
    chosen = sorted(
        (backend for backend in backends if backend.weight > 0), key=lambda backend: (backend.address, backend.port)
    )
    if not chosen:
        raise ValueError("no backend carries weight")
    weights = _reduced([backend.weight for backend in chosen])
    phases = (np.arange(len(chosen)) + 0.5) / len(chosen)
    order = _turns(np.array(weights, np.float64), phases, sum(weights))
    return np.array([backend.id for backend in chosen], np.uint32)[order]


def _reduced(weights: list[int]) -> list[int]:
    divisor = math.gcd(*weights)
    total = sum(weights) // divisor
    if total <= MAX_TURNS:
        return [weight // divisor for weight in weights]
    scaled = [max(1, round(weight / divisor * MAX_TURNS / total)) for weight in weights]
    divisor = math.gcd(*scaled)
    return [weight // divisor for weight in scaled]


def _digest(endpoint: str) -> tuple[int, int, int]:
    """Offset, skip and phase of a backend: the same on every machine and in every process."""
    digest = hashlib.blake2b(endpoint.encode(), digest_size=20, person=b"xlb maglev").digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"), int.from_bytes(digest[16:], "big")


def _turns(weights: NDArray[np.float64], phases: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The backends of `count` turns. Backend i's k-th turn is at (k + phase i) / weight i; ties go to the lower index.

    A backend's times do not depend on the others', so a change of one changes the order of the others as little as possible.
    """
    shares = np.minimum(np.ceil(count * weights / weights.sum()) + 2, count).astype(np.intp)
    owners = np.repeat(np.arange(len(weights)), shares)
    starts = np.cumsum(shares) - shares
    turn = np.arange(len(owners)) - starts[owners]
    return owners[np.argsort((turn + phases[owners]) / weights[owners], kind="stable")[:count]]


@functools.lru_cache(maxsize=len(TABLE_SIZES))
def _numbers(size: int) -> NDArray[np.int64]:
    return np.arange(size, dtype=np.int64)


def _populate(order: NDArray[np.intp], permutations: list[tuple[int, int]], size: int) -> NDArray[np.intp]:
    """Index of the owner of each slot. A Python loop assigns turns; numpy computes preferences in advance.

    Preferences are computed in blocks that skip taken slots, and blocks grow as free slots get rare, so the loop rarely meets
    a taken slot: numpy visits nearly all of the about size * ln(size) preferences.
    """
    taken = bytearray(size)
    taken_view = np.frombuffer(taken, np.uint8)
    owner = [0] * size
    upcoming = [iter(()) for _ in permutations]
    position = [0] * len(permutations)
    numbers = _numbers(size)
    free = size
    for backend in order.tolist():
        while True:
            for slot in upcoming[backend]:
                if not taken[slot]:
                    break
            else:
                start = position[backend]
                stop = position[backend] = min(size, start + _BLOCK * (size // free))
                offset, skip = permutations[backend]
                block = (numbers[start:stop] * skip + offset) % size
                upcoming[backend] = iter(block[taken_view[block] == 0].tolist())
                continue
            break
        taken[slot] = 1
        owner[slot] = backend
        free -= 1
    return np.array(owner, np.intp)
