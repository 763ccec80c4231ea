"""What a node costs: compile and attach, restart, memory with 1,000 farms of 10 backends, apply, one change.

    sudo .venv/bin/python -m bench.node [--json] [--farms 1000] [--backends 10] [--runs 5]

Runs the real daemon in a private network namespace; quotes the median and the worst of `--runs`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctl.api.client import Client
from ctl.errors import XlbError
from ctl.runtime.memory import Tidier
from tests.rig import VIP4, Layout, Node, Rig
from tests.wait import wait_until

DEADLINE_S = 60.0
FIRST_ADDRESS, ADDRESSES = 101, 120


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table: values in `unit`, and the limit of the median."""

    name: str
    unit: str
    values: tuple[float, ...]
    limit: float

    def view(self) -> dict[str, Any]:
        median, worst = statistics.median(self.values), max(self.values)
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(median, 3),
            "worst": round(worst, 3),
            "limit": self.limit,
            "ok": median <= self.limit,
        }


def main() -> None:
    options = _options()
    with Rig(Layout(backends=1)) as rig:
        measures = measure(rig.node, options.farms, options.backends, options.runs)
    rows = [each.view() for each in measures]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


def measure(node: Node, farms: int, backends: int, runs: int) -> list[Measure]:
    """Run everything, in an order in which each run prepares the next."""
    cold, load = [], []
    for _ in range(runs):
        node.start(deadline_s=DEADLINE_S)
        cold.append(node.started_in_s)
        load.append(node.call("status")["pins"]["took_ms"] / 1000)
        _forget(node)
    node.start(deadline_s=DEADLINE_S)
    document = farms_document(farms, backends)
    empty = {"vip": document["vip"]}
    applying, emptying = [], []
    for _ in range(runs):
        emptying.append(_timed(lambda: node.call("config.apply", document=empty)))
        applying.append(_timed(lambda: node.call("config.apply", document=document)))
    change = _changes(node, 4 * runs)
    lag = float(node.call("stats")["loop_lag"]["worst"])
    time.sleep(2 * Tidier.DELAY_S)  # resident at rest, not while answering
    resident = _resident(node)
    answering, ready, after = [], [], []
    for number in range(2 * runs):
        (node.stop if number % 2 else node.kill)()
        answering.append(_restart(node))
        ready.append(node.started_in_s)
        after.append(_resident(node))
    size = f"{farms} x {backends}"
    return [
        Measure("compile and load, nothing pinned", "s", tuple(load), 1.5),
        Measure("start to ready, nothing pinned", "s", tuple(cold), 1.5),
        Measure(f"restart to an answering socket, {size} stored", "s", tuple(answering), 0.5),
        Measure(f"restart to ready, {size} stored", "s", tuple(ready), 3.0),
        Measure(f"apply {size} from empty", "s", tuple(applying), 3.0),
        Measure(f"back to empty from {size}", "s", tuple(emptying[1:] or emptying), 3.0),
        Measure(f"change one backend's weight in {size}", "ms", tuple(change), 50.0),
        Measure(f"resident after applying {size}", "MB", (resident,), 60.0),
        Measure(f"resident after a restart with {size}", "MB", tuple(after), 60.0),
        Measure("event loop late while applying, worst", "ms", (lag,), 20.0),
    ]


def farms_document(farms: int, backends: int) -> dict[str, Any]:
    """A farms file as `config.apply` takes it."""
    return {
        "vip": [{"address": f"{VIP4}/24", "device": "eth0"}],
        "farm": [
            {
                "name": f"farm{number}",
                "vip": VIP4,
                "port": 1000 + number,
                "backend": [
                    {
                        "address": f"10.77.0.{FIRST_ADDRESS + (number + index) % ADDRESSES}",
                        "port": 8000 + index,
                        "weight": 1 + index % 3,
                    }
                    for index in range(backends)
                ],
            }
            for number in range(farms)
        ],
    }


def _resident(node: Node) -> float:
    return float(node.call("status")["memory_bytes"]) / 1e6


def _changes(node: Node, count: int) -> list[float]:
    backend = node.call("farm.show", name="farm7")["backends"][0]
    where = {"farm": "farm7", "address": backend["address"], "port": backend["port"]}
    with Client(node.run_dir / "control.sock") as client:

        def change(weight: int) -> float:
            return 1000 * _timed(lambda: client.call("backend.set", {**where, "weight": weight}))

        return [change(2 + number % 5) for number in range(count)]


def _restart(node: Node) -> float:
    """Seconds from the start of the process to the first answer; the node is ready when this returns."""
    socket_path = node.run_dir / "control.sock"
    socket_path.unlink(missing_ok=True)
    answered: list[float] = []
    started = time.monotonic()

    def ask() -> None:
        wait_until(lambda: _answers(socket_path), "the first answer", DEADLINE_S, every_s=0.002)  # bounds the error
        answered.append(time.monotonic() - started)

    asking = threading.Thread(target=ask)
    asking.start()
    node.start(deadline_s=DEADLINE_S)
    asking.join(DEADLINE_S)
    return answered[0]


def _answers(socket_path: Path) -> bool:
    if not socket_path.exists():
        return False
    try:
        with Client(socket_path) as client:
            return bool(client.call("status"))
    except XlbError:
        return False


def _forget(node: Node) -> None:
    """Stop and remove the pins, so that the next start compiles and loads everything."""
    node.stop()
    for path in node.bpf_dir.iterdir():
        path.unlink()
    node.bpf_dir.rmdir()
    (node.run_dir / "layout.json").unlink()
    node.namespace.ip("link set dev eth0 xdp off")


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "median", "worst", "limit", "")
    for row in rows:
        values = (f"{row[key]:g} {row['unit']}" for key in ("median", "worst", "limit"))
        table.add_row(row["name"], *values, "[green]ok[/]" if row["ok"] else "[red]missed[/]")
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--farms", type=int, default=1000)
    parser.add_argument("--backends", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
