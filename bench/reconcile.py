"""What one pass of the reconciler costs with many backends: the time in its thread, and how long it holds the event loop.

    sudo .venv/bin/python -m bench.reconcile [--backends 1000] [--passes 40] [--json]

A daemon's parts in a real namespace with one link, on which every backend is a kept neighbour. A ticker on the loop measures
how late it wakes while passes run, and without them: the difference is what passes take from the loop, waiting for the
interpreter included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ctl.config.model import Backend, Config, Farm, Vip
from ctl.daemon import THREAD_SWITCH_S
from ctl.network.neighbours import NextHopKeeper
from ctl.network.vip_addresses import VipAddresses
from tests.fakes.reconciler import FixedTransaction, reconciler_of
from tests.net.cable import Cable, joined
from tests.rig import why_not
from tests.wait import wait_until_async

TICK_S, TICKS = 0.001, 1000
LIMIT_MS = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in ms. late_*: how late the loop woke at worst (and in 99 of 100 cases) while passes ran, and without them."""

    backends: int
    pass_median: float
    pass_worst: float
    held_worst: float
    late_worst: float
    late_p99: float
    quiet_worst: float

    @property
    def good(self) -> bool:
        return self.held_worst <= LIMIT_MS


class Ticker:
    """Measures from its creation how late the running loop wakes it, until `handle` is cancelled."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._again()

    def _again(self) -> None:
        self._due = time.monotonic() + TICK_S
        self.handle = asyncio.get_running_loop().call_later(TICK_S, self._woken)

    def _woken(self) -> None:
        self.late_ms.append((time.monotonic() - self._due) * 1000)
        self._again()


async def measure(cable: Cable, backends: int, passes: int, directory: Path) -> Outcome:
    """Run the passes in the calling thread's namespace."""
    servers = tuple(Backend(id=n, address=f"10.66.{n // 200 + 1}.{n % 200 + 1}", port=80) for n in range(1, backends + 1))
    farms = {"web": Farm(id=1, name="web", vip="10.66.0.100", port=80, port_last=80, backends=servers)}
    config = Config(vips={"10.66.0.100": Vip("10.66.0.100", 16, "eth0")}, farms=farms)
    keeper = NextHopKeeper(cable.network, lambda: config)
    running = asyncio.ensure_future(keeper.run())
    keeper.wake()
    await wait_until_async(lambda: len(keeper.kept) == backends, "the neighbours to be kept")
    addresses = VipAddresses(cable.network, directory)
    part = reconciler_of(cable.network, FixedTransaction(config, addresses), addresses, keeper)
    await part.compare()
    quiet = Ticker()
    await wait_until_async(lambda: len(quiet.late_ms) >= TICKS, "a quiet time", every_s=0.02)
    quiet.handle.cancel()
    late_by = Ticker()
    took, held = [], []
    for number in range(1, passes + 1):
        await part.compare()
        status = part.status()
        took.append(status["pass_ms"])
        held.append(status["loop_ms"])
        ticks = number * TICKS // passes
        await wait_until_async(partial(lambda least: len(late_by.late_ms) >= least, ticks), "a pause", every_s=0.02)
    late_by.handle.cancel()
    running.cancel()
    took.sort()
    late = sorted(late_by.late_ms)
    return Outcome(
        backends, took[len(took) // 2], took[-1], max(held), late[-1], late[len(late) * 99 // 100], max(quiet.late_ms)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.reconcile")
    parser.add_argument("--backends", type=int, default=1000)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    sys.setswitchinterval(THREAD_SWITCH_S)
    with joined() as cable, tempfile.TemporaryDirectory() as directory:
        cable.here.ip("addr add 10.66.0.1/16 dev eth0")

        def run() -> Outcome:
            return asyncio.run(measure(cable, options.backends, options.passes, Path(directory)))

        outcome = cable.here.call(run)
    if options.json:
        print(json.dumps(asdict(outcome)))
    else:
        of = outcome
        print(f"{of.backends} backends: a pass takes {of.pass_median:.2f} ms (worst {of.pass_worst:.2f}) in its thread")
        print(f"held on the loop: {of.held_worst:.3f} ms at worst (limit {LIMIT_MS:g})")
        print(f"loop late: {of.late_p99:.2f} ms (99 %), {of.late_worst:.2f} worst; without passes {of.quiet_worst:.2f} worst")
    sys.exit(not outcome.good)


if __name__ == "__main__":
    main()
