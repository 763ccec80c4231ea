"""Whether heavy work in both daemons delays a heartbeat so much that an unnecessary takeover follows.

    sudo .venv/bin/python -m bench.heartbeats [--minutes 10] [--flows 1000000] [--farms 1000] [--web 3] [--json]

A pair with heartbeats every 20 ms (lease 60, takeover 70). Three jobs run repeatedly at the same time: the backup's daemon is
killed and started, and receives a snapshot of every flow; every connection on the active is listed (as many as an answer
holds, all of them counted); 1,000 farms are applied and removed, without health checks as in 0.1.0. The active never fails, so
it must be active at the end, no takeover may have happened and no lease may have expired. Each daemon has its own processor,
as on its own machine: real-time threads of two daemons would wait for each other. With --web, each node's xlb-web has so many
pages open, which ask as those in a browser, and a scrape of its metrics each second. Prints how often each job ran and the
worst delay of the active's loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.node import farms_document
from bench.pages import Pages
from ctl.api.client import Client
from ctl.api.commands.conn import MAX_LIMIT
from ctl.errors import XlbError
from tests.net.many_flows import put_connections
from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS, VIPS
from tests.rig import HeldConnections, Layout, Node, why_not
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 20, "lease_ms": 60, "takeover_ms": 70}
TIMEOUT_MS = 120_000
SIGNS = ("lease expired", "silent on every heartbeat path")
"""What a node logs when it loses the VIPs or takes them."""


@dataclass(slots=True)
class Outcome:
    """What was done, and its results."""

    seconds: float
    done: dict[str, int]
    resync_worst_s: float
    false_takeovers: int
    leases_lost: int
    loop_late_worst_ms: float
    errors: list[str]
    web_mb: float = 0.0
    web_unanswered: int = 0

    @property
    def good(self) -> bool:
        return self.false_takeovers == self.leases_lost == 0 and not self.errors and all(self.done.values())


class Load:
    """Three jobs in threads, each repeated until `stop`."""

    def __init__(self, site: PairSite, farms: int) -> None:
        self.active, self.backup = site.node, site.other
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.resync_worst_s = 0.0
        self._stopped = threading.Event()
        base = self.active.call("config.export")
        many = farms_document(farms, 10)
        for farm in many["farm"]:
            farm["health"] = {"kind": "none"}
        self._documents = ({**base, "farm": base["farm"] + many["farm"]}, base)

    def run(self, seconds: float) -> None:
        jobs = {"resyncs": self._resync, "lists": self._list, "applies": self._apply}
        with ThreadPoolExecutor(len(jobs)) as threads:
            for name, job in jobs.items():
                threads.submit(self._again, name, job)
            self._stopped.wait(seconds)
            self._stopped.set()

    def _again(self, name: str, job: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                job()
                self.done[name] += 1
            except (XlbError, AssertionError) as error:
                self.errors.append(f"{name}: {error}")
                self._stopped.wait(1)

    def _resync(self) -> None:
        self.backup.kill()
        self.backup.start()
        began = time.monotonic()
        wait_until(self._in_step, "the backup in step", 60, every_s=0.05)
        self.resync_worst_s = max(self.resync_worst_s, time.monotonic() - began)

    def _in_step(self) -> bool:
        return all(node.call("cluster.status")["sync"]["in_step"] for node in (self.active, self.backup))

    def _list(self) -> None:
        _ask(self.active, "conn.list", limit=MAX_LIMIT)

    def _apply(self) -> None:
        for document in self._documents:
            _ask(self.active, "config.apply", document=document)


def _ask(node: Node, command: str, **arguments: Any) -> Any:
    with Client(node.run_dir / "control.sock", timeout_ms=TIMEOUT_MS) as client:
        return client.call(command, arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flows", type=int, default=1_000_000, help="connections in the flow map; each has two entries")
    parser.add_argument("--farms", type=int, default=1000)
    parser.add_argument("--web", type=int, default=0, metavar="PAGES", help="pages open on each node; 0: no xlb-web runs")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 1
    outcome = measure(chosen.minutes * 60, chosen.flows, chosen.farms, chosen.web)
    if chosen.json:
        print(json.dumps(asdict(outcome)))
    else:
        _print(outcome)
    return 0 if outcome.good else 1


def measure(seconds: float, flows: int, farms: int, pages_each: int = 0) -> Outcome:
    with paired(Layout(nodes=2, backends=1, max_flows=flows + 65536), TIMES, apart=True) as site:
        site.add_farm("tcp", idle_timeout_s=86400)
        held = HeldConnections(VIPS[4], PORTS["tcp"], 10)
        site.rig.client.run(held.open())
        put_connections(site.node, flows)
        logged = {node.name: len(node.log.read_text()) for node in site.rig.nodes}
        began = time.monotonic()
        load, pages = Load(site, farms), Pages(site.rig.nodes, pages_each)
        with pages.open(site.node) if pages_each else contextlib.nullcontext():
            load.run(seconds)
        took_s = time.monotonic() - began
        logs = "".join(node.log.read_text()[logged[node.name] :] for node in site.rig.nodes)
        lost, taken = (logs.count(sign) for sign in SIGNS)
        if site.status(load.active)["role"] != "active":
            load.errors.append(f"{load.active.name} does not serve any more")
        if lost or taken:
            print(*(line for line in logs.splitlines() if any(sign in line for sign in SIGNS)), sep="\n", file=sys.stderr)
        if held.broken or held.wrong_bytes:
            load.errors.append(f"{len(held.broken)} held connections broken, {held.wrong_bytes} bytes wrong")
        late_ms = float(load.active.call("stats")["loop_lag"]["worst"])
        done, unanswered = {**load.done, **pages.done}, sum(pages.failed.values())
        return Outcome(took_s, done, load.resync_worst_s, taken, lost, late_ms, load.errors, pages.most_mb, unanswered)


def _print(outcome: Outcome) -> None:
    table = Table("in", *(f"{outcome.seconds:.0f} s",), title="Heartbeats of 20 ms under full load", title_justify="left")
    for name, count in outcome.done.items():
        table.add_row(name, f"{count}")
    table.add_row("slowest resync", f"{outcome.resync_worst_s:.1f} s")
    table.add_row("false takeovers", f"{outcome.false_takeovers}")
    table.add_row("leases that ran out", f"{outcome.leases_lost}")
    table.add_row("active's event loop late, worst", f"{outcome.loop_late_worst_ms:.1f} ms")
    if outcome.web_mb:
        table.add_row("xlb-web resident, most", f"{outcome.web_mb:.0f} MB")
        table.add_row("not answered by xlb-web", f"{outcome.web_unanswered} (its xlbd was down, or busy)")
    for error in outcome.errors[:10]:
        table.add_row("error", error)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
