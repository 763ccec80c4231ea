"""A farm whose connections are counted, on a bed with the feature."""

from __future__ import annotations

import time

from bpf.constants import Mode, Protocol, Scheduler
from bpf.dataplane import PutBackendLimits, PutFarmLimits
from tests.bpf.bed import Bed, Family

FARM, FIRST = 1, 8
"""Its id, and that of its first backend."""


def serve(
    bed: Bed,
    family: Family,
    weights: tuple[int, ...] = (1,),
    limits: tuple[int, ...] = (),
    protocol: int = Protocol.TCP,
    scheduler: int = Scheduler.MAGLEV,
    max_connections: int = 0,
    mode: int = Mode.SNAT,
) -> None:
    """Backends 8, 9, … with these weights and limits."""
    bed.set_clock(time.clock_gettime(time.CLOCK_MONOTONIC))  # that of the sweeper
    backends = [(family.far(11 + n), 8080) for n in range(len(weights))]
    bed.farm(family.vip, *backends, protocol=protocol, scheduler=scheduler, mode=mode)
    choose(bed, weights, limits or (0,) * len(weights), max_connections)


def choose(
    bed: Bed, weights: tuple[int, ...], limits: tuple[int, ...], max_connections: int = 0, usable: tuple[int, ...] = ()
) -> None:
    """usable: of the backends, counted from 0, those that may be selected; none: all."""
    ids = tuple(FIRST + n for n in usable or range(len(weights)))
    bed.plane.apply(
        [
            *(PutBackendLimits(FIRST + n, *each) for n, each in enumerate(zip(weights, limits, strict=True))),
            PutFarmLimits(
                FARM,
                max_connections=max_connections,
                backends_limited=any(limits),
                candidates_v4=ids,
                candidates_v6=ids,
            ),
        ]
    )
