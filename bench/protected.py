"""Which connections survive a fault, by their age: clients open new ones continuously while the active node fails.

    sudo .venv/bin/python -m bench.protected [--runs 10] [--connections 3000] [--json]

Held connections with checked payload are opened as fast as one client process can; when two thirds are open the active node's
daemon is killed, or its cables are cut at one moment. A connection is protected if it then continues with every byte correct.
Target: 99.9 % of those older than 100 ms. Younger ones and those started during the outage are shown in the same table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from tests.net.faults import FAULTS, Fault
from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS, VIPS
from tests.rig import HeldConnections, Layout, why_not
from tests.wait import wait_until

FAULT_NAMES = ("kill -9", "silent cut")
OLD_S = 0.1
CONCURRENCY = 8
OPEN_S = 10.0
TARGET = 0.999


@dataclass(slots=True)
class Ages:
    """How many connections there were of each age at the fault, and how many of them were lost."""

    old: int = 0
    old_lost: int = 0
    young: int = 0
    young_lost: int = 0
    later: int = 0
    later_lost: int = 0
    wrong_bytes: int = 0
    opened_per_s: float = 0.0

    @property
    def protected(self) -> float:
        return 1 - self.old_lost / self.old

    def add(self, other: Ages) -> None:
        for name in ("old", "old_lost", "young", "young_lost", "later", "later_lost", "wrong_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.opened_per_s = max(self.opened_per_s, other.opened_per_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.protected", description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 1
    sums = {}
    with paired(Layout(nodes=2, backends=2)) as site:
        site.add_farm("tcp")
        for name in FAULT_NAMES:
            total = sums[name] = Ages()
            for run in range(chosen.runs):
                total.add(_run(site, FAULTS[name], chosen.connections))
                print(f"{name} {run + 1}: {total}", file=sys.stderr)
    if chosen.json:
        print(json.dumps({name: asdict(each) | {"protected": each.protected} for name, each in sums.items()}))
    else:
        Console(width=None if sys.stdout.isatty() else 150).print(_table(sums))
    return 0 if all(each.protected >= TARGET and not each.wrong_bytes for each in sums.values()) else 1


def _run(site: PairSite, fault: Fault, count: int) -> Ages:
    site.settle()
    struck, successor, client = site.node, site.other, site.rig.client
    held = HeldConnections(VIPS[4], PORTS["tcp"], count, pause_s=0.5)
    begun_s = time.monotonic()
    opening = client.start(held.open(CONCURRENCY))
    wait_until(lambda: len(held.connections) > count * 2 // 3, "two thirds are open", every_s=0.001)
    opened, struck_s = len(held.connections), time.monotonic()
    fault.strike(site.rig, struck)
    wait_until(lambda: successor.call("cluster.status")["role"] == "active", "the peer to be active")
    with suppress(TimeoutError):  # a new one may never receive the greeting
        opening.result(OPEN_S)
    opening.cancel()
    rounds = {each: each.rounds for each in held.connections}
    client.run(held.confirm())
    ages = Ages(opened_per_s=opened / (struck_s - begun_s), wrong_bytes=held.wrong_bytes)
    for each, before in rounds.items():
        age = "later" if each.born_s > struck_s else "young" if each.born_s > struck_s - OLD_S else "old"
        lost = bool(each.lost) or each.rounds < before + 2
        setattr(ages, age, getattr(ages, age) + 1)
        setattr(ages, f"{age}_lost", getattr(ages, f"{age}_lost") + lost)
    client.run(held.close())
    fault.heal(site.rig, struck)
    return ages


def _table(sums: dict[str, Ages]) -> Table:
    table = Table(title="Connections that survive, by their age at the fault", title_justify="left")
    for heading in (
        "fault",
        "opened per s",
        "over 100 ms",
        "lost",
        "protected",
        "younger",
        "lost",
        "begun later",
        "lost",
        "kept",
    ):
        table.add_column(heading)
    for name, each in sums.items():
        counts = (each.old, each.old_lost, f"{each.protected:.4%}", each.young, each.young_lost, each.later, each.later_lost)
        table.add_row(
            name, f"{each.opened_per_s:,.0f}", *(f"{count}" for count in counts), "yes" if each.protected >= TARGET else "NO"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
