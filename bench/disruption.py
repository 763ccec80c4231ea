"""How many clients a change of one backend moves, by the number of backends, for the table size that a new farm gets.

    .venv/bin/python -m bench.disruption [--size 16381] [--most 1000]

For each number of backends: the time to build the table, the error of the shares, and for each kind of change of one backend
the clients that get another backend, with the share of that backend (the larger of before and after) as what is allowed
besides 2 percentage points. Exits 1 if more clients move. Needs no privileges.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np

from ctl.config import table_sizes
from ctl.config.model import Backend
from ctl.dataplane import maglev

NUMBERS = (1, 2, 5, 6, 10, 50, 100, 500, 1000)
ALLOWED = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.disruption", description=__doc__)
    parser.add_argument("--size", type=int, default=table_sizes.PREFERRED)
    parser.add_argument("--most", type=int, default=1000)
    chosen = parser.parse_args()
    print(f"{chosen.size} slots; clients moved / own share, in percent")
    print(f"{'n':>5} {'build':>8} {'error':>7} {'add':>15} {'remove':>15} {'weight x2':>15} {'weight /2':>15} {'weight 0':>15}")
    worst = 0.0
    for number in (each for each in NUMBERS if each <= chosen.most):
        servers = [Backend(each, f"10.{each // 250}.{each % 250}.1", 80, 10) for each in range(1, number + 2)]
        before = servers[:number]
        began = time.monotonic()
        table = maglev.lookup_table(before, chosen.size)
        took_ms = (time.monotonic() - began) * 1000
        counts = np.bincount(table, minlength=number + 1)[1:]
        error = float(np.abs(counts * number / chosen.size - 1).max())
        cells = []
        for after, about in changes_of_one(servers, number):
            if not any(each.weight for each in after):
                cells.append(f"{'-':>15}")
                continue
            share, allowed = moved_and_own(table, maglev.lookup_table(after, chosen.size), about)
            worst = max(worst, share - allowed)
            cells.append(f"{share:7.2%} /{allowed:6.2%}")
        print(f"{number:>5} {took_ms:>5.0f} ms {error:>7.2%} {' '.join(cells)}", flush=True)
    print(f"worst: {worst * 100:+.2f} percentage points over the own share, {ALLOWED:.0%} are allowed")
    return 1 if worst > ALLOWED else 0


def changes_of_one(servers: list[Backend], number: int) -> list[tuple[list[Backend], int]]:
    """The backends after each kind of change, and the id of the one that changes. The last server is there to be added."""
    before, one = servers[:number], number // 2

    def weighted(weight: int) -> list[Backend]:
        return [replace(each, weight=weight) if each is before[one] else each for each in before]

    changed = before[one].id
    without = [each for each in before if each is not before[one]]
    return [
        (servers[: number + 1], servers[number].id),
        (without, changed),
        (weighted(20), changed),
        (weighted(5), changed),
        (weighted(0), changed),
    ]


def moved_and_own(before: np.ndarray, after: np.ndarray, number: int) -> tuple[float, float]:
    """The share of clients that move, and that of the changed backend."""
    return maglev.moved(before, after), float(max(np.mean(before == number), np.mean(after == number)))


if __name__ == "__main__":
    sys.exit(main())
