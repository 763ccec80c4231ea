"""`make demo`: one node balances real HTTP, TCP and UDP between network namespaces while things go wrong around it.

Types the commands a person would type, and counts what really came back. Exits 1 if anything failed that xlb answers
for. What a dying backend takes with it is not that, and is listed on lines of its own: the connections it held, and the new
requests that reached it between its death and the moment the health check noticed. From then on every failure counts.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table

from tests.rig import (
    CLIENT4,
    HTTP_PORT,
    TCP_PORT,
    UDP_PORT,
    VIP4,
    Answer,
    HeldConnections,
    Rig,
    Tally,
    http_get,
    repeat,
    udp_exchange,
    wait_until,
    why_not,
)

REQUESTS = 6000
DATAGRAMS = 600
HELD = 1000
WEIGHTS = {"b1": 1, "b2": 2, "b3": 3}
SHARE_TOLERANCE = 0.03
"""Of a share: with so many requests chance alone exceeds it about once in 100,000 demos."""

PICTURE = f"""\
  client {CLIENT4}           lb1 10.77.0.1             b1 .21   b2 .22   b3 .23
       │                VIP {VIP4}             │        │        │
  ─────┴──────────────────────┴───────────────────────┴────────┴────────┴─────  switch
                  XDP on eth0: in, rewritten, out"""


class Demo:
    """The story; each step prints what it does and adds to what the final table says."""

    def __init__(self, rig: Rig, console: Console) -> None:
        self.rig, self.console = rig, console
        self.began = time.monotonic()
        self.tally = Tally()  # HTTP requests while nothing is wrong with any backend, and around the daemon's crash
        self.death = Tally()  # HTTP requests around the death of a backend
        self.datagrams = Tally()
        self.held = HeldConnections(VIP4, TCP_PORT, HELD)
        self.ended_with_backend = 0
        self.died_at = self.noticed_at = 0.0
        self.faults: list[str] = []

    # --- saying ----------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(Rule(f"[bold]{text}", align="left", style="dim"))

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def xlbctl(self, line: str) -> None:
        """Type a command on the node."""
        self.console.print(f"[dim]lb1 #[/] [bold cyan]xlbctl {escape(line)}[/]", highlight=False, soft_wrap=True)
        self.console.out(self.rig.node.xlbctl(*shlex.split(line)).stdout.rstrip(), highlight=False)

    def check(self, good: bool, text: str) -> None:
        """A line of outcome; a bad one makes the demo fail."""
        self.say(f"  [green]✓[/] {text}" if good else f"  [bold red]✗ {text}[/]")
        if not good:
            self.faults.append(text)

    # --- doing -----------------------------------------------------------------------------------------------

    def requests(self, tally: Tally, count: int | None = None, pause_s: float = 0) -> Any:
        """Begin HTTP requests, each on a connection of its own; `count` None: until the tally is stopped."""
        work = repeat(lambda: http_get(VIP4, 80, timeout_s=3), count, tally, concurrency=8, pause_s=pause_s)
        return self.rig.client.start(work)

    def follow(self, what: str, tally: Tally, total: int, running: Any) -> None:
        """Draw a progress bar until `running` is over."""
        columns = (TextColumn("  {task.description}"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, console=self.console) as progress:
            task, began = progress.add_task(what, total=total, rate=""), time.monotonic()

            def drawn() -> bool:
                rate = f"{tally.done / (time.monotonic() - began + 1e-9):,.0f}/s"
                progress.update(task, completed=tally.done, rate=rate)
                return bool(running.done())

            wait_until(drawn, what, deadline_s=60, every_s=0.05)
        running.result()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.rig.client.run(work)

    def backend_address(self, name: str, port: int) -> str:
        return f"{self.rig.backend(name).address4}:{port}"

    def state(self, name: str) -> str:
        backends = self.rig.node.call("farm.show", name="web")["backends"]
        address = self.rig.backend(name).address4
        return str(next(backend["state"] for backend in backends if backend["address"] == address))

    # --- the steps -------------------------------------------------------------------------------------------

    def start_node(self, rig_s: float) -> None:
        self.title("A network and a node")
        self.say(PICTURE)
        self.say("")
        self.say(f"  network namespaces, cables and three servers ready after {rig_s:.1f} s")
        self.rig.node.start()
        interface = self.rig.node.call("status")["interfaces"][0]
        self.say(
            f"  xlbd compiled, loaded and attached {interface['xdp_mode']} XDP after {self.rig.node.started_in_s:.1f} s more"
        )

    def configure(self) -> None:
        self.title("Three farms, typed as on any node")
        self.xlbctl(f"vip add {VIP4}/24 --dev eth0")
        check = "--check http --check-path /health --check-interval-ms 200 --check-timeout-ms 200 --check-fall 2"
        self.xlbctl(f"farm add web --vip {VIP4} --port 80 {check}")
        for name, weight in WEIGHTS.items():
            self.xlbctl(f"backend add web {self.backend_address(name, HTTP_PORT)} --weight {weight}")
        self.xlbctl(f"farm add echo --vip {VIP4} --port {TCP_PORT}")
        self.xlbctl(f"farm add echo-udp --vip {VIP4} --port {UDP_PORT} --proto udp")
        for farm, port in (("echo", TCP_PORT), ("echo-udp", UDP_PORT)):
            for name in WEIGHTS:
                self.xlbctl(f"backend add {farm} {self.backend_address(name, port)}")

    def balance(self) -> None:
        self.title(f"{REQUESTS:,} HTTP requests and {DATAGRAMS:,} UDP exchanges, each a new connection")
        self.follow("HTTP", self.tally, REQUESTS, self.requests(self.tally, REQUESTS))
        ask = repeat(lambda: udp_exchange(VIP4, UDP_PORT, b"payload" * 50), DATAGRAMS, self.datagrams)
        self.follow("UDP ", self.datagrams, DATAGRAMS, self.rig.client.start(ask))
        self.shares = self.tally.shares()
        for name, share in self.shares.items():
            fair = WEIGHTS[name] / sum(WEIGHTS.values())
            good = abs(share - fair) <= SHARE_TOLERANCE
            self.check(good, f"{name} got {share:.1%} of the requests; its weight says {fair:.1%}")
        self.check(not self.tally.failures, f"{len(self.tally.failures)} requests failed")
        self.check(not self.datagrams.failures, f"{len(self.datagrams.failures)} UDP exchanges failed")

    def hold(self) -> None:
        self.title(f"{HELD:,} TCP connections, held from here on, every byte of theirs checked")
        self.run(self.held.open())
        spread = ", ".join(f"{count} on {name}" for name, count in sorted(self.held.by_backend.items()))
        self.check(self.run(self.held.confirm()) == 0, f"all exchange data: {spread}")

    def drain(self) -> None:
        self.title("Drain b1 under traffic")
        for farm, port in (("web", HTTP_PORT), ("echo", TCP_PORT), ("echo-udp", UDP_PORT)):
            self.xlbctl(f"backend drain {farm} {self.backend_address('b1', port)}")
        kept = len(self.held.on_backend("b1"))
        fresh = self.some_requests(500)
        self.check(fresh["b1"] == 0, "no new request reached b1; b2 and b3 served " + f"{fresh['b2']} and {fresh['b3']}")
        self.check(self.undisturbed(), f"its {kept} held connections continue")

    def add(self) -> None:
        self.title("Add b4 under traffic")
        self.rig.add_backend()
        self.xlbctl(f"backend add web {self.backend_address('b4', HTTP_PORT)} --weight 2")
        self.xlbctl(f"backend add echo {self.backend_address('b4', TCP_PORT)}")
        fresh = self.some_requests(500)
        self.check(fresh["b4"] > 0, f"b4 serves: {fresh['b4']} of 500 new requests")
        self.check(self.undisturbed(), "no held connection moved")

    def some_requests(self, count: int) -> Counter[str]:
        """That many more, counted with all the others; returns who answered them."""
        before = Counter(self.tally.by_backend)
        self.requests(self.tally, count).result(60)
        return self.tally.by_backend - before

    def undisturbed(self) -> bool:
        """Whether every held connection does a round trip now, except those whose backend died."""
        silent = self.run(self.held.confirm())
        return silent == self.ended_with_backend == len(self.held.broken) and self.held.wrong_bytes == 0

    def kill_backend(self) -> None:
        self.title("b2 dies under traffic (kill -9) and comes back")
        on_b2 = len(self.held.on_backend("b2"))
        running = self.requests(self.death, pause_s=0.01)
        wait_until(lambda: self.death.by_backend["b2"] > 20, "traffic on b2")
        self.died_at = time.monotonic()
        self.rig.backend("b2").kill()
        wait_until(lambda: self.state("b2") == "down", "the health check notices", every_s=0.005)
        self.noticed_at = time.monotonic()
        served = self.death.done
        wait_until(lambda: self.death.done > served + 500, "traffic without b2")
        self.rig.backend("b2").start()
        wait_until(lambda: self.state("b2") == "up", "b2 is up again")
        back = self.death.by_backend["b2"]
        wait_until(lambda: self.death.by_backend["b2"] > back, "traffic on b2 again")
        self.death.stop()
        running.result(30)
        self.ended_with_backend = on_b2
        during, after = self.death_failures()
        took_ms = (self.noticed_at - self.died_at) * 1000
        self.say(f"  the health check noticed after {took_ms:.0f} ms; {len(during)} new requests met the dead server meanwhile")
        self.check(not after, f"{len(after)} requests failed before or after that")
        self.check(self.undisturbed(), f"its {on_b2} held connections ended with it, the other {HELD - on_b2} continue")
        self.check(True, "b2 was taken back by itself when it answered again")

    def death_failures(self) -> tuple[list[Answer], list[Answer]]:
        """Failures that overlap the time between b2's death and its removal, and all others."""
        during: list[Answer] = []
        other: list[Answer] = []
        for failure in self.death.failures:
            excused = failure.started <= self.noticed_at and failure.started + failure.took_s >= self.died_at
            (during if excused else other).append(failure)
        return during, other

    def crash_daemon(self) -> None:
        self.title("xlbd is killed (kill -9) under traffic, stays away, and is started again")
        before = len(self.tally.failures)
        self.tally.stopped = False
        running = self.requests(self.tally, pause_s=0.01)
        self.rig.node.kill()
        done = self.tally.done
        wait_until(lambda: self.tally.done > done + 500, "traffic without a daemon")
        self.check(self.undisturbed(), f"without a daemon: {self.tally.done - done} requests served, held connections continue")
        self.rig.node.start()
        done = self.tally.done
        wait_until(lambda: self.tally.done > done + 300, "traffic with the new daemon")
        self.tally.stop()
        running.result(30)
        self.check(self.undisturbed(), f"a new daemon adopted everything in {self.rig.node.started_in_s:.2f} s, nothing moved")
        self.check(len(self.tally.failures) == before, f"{len(self.tally.failures) - before} requests failed")
        self.xlbctl("farm show web")

    # --- the end ---------------------------------------------------------------------------------------------

    def summary(self) -> int:
        self.title("What happened")
        self.console.print(self.share_table())
        self.console.print(self.outcome_table())
        self.run(self.held.close())
        took_s = time.monotonic() - self.began
        if self.faults:
            self.say(f"\n[bold red]{len(self.faults)} checks failed[/] in {took_s:.0f} s:")
            for fault in self.faults:
                self.say(f"  {fault}")
            self.console.out(self.rig.node.tail(), highlight=False)
        else:
            self.say(f"\n[bold green]Everything held[/] ({took_s:.0f} s).")
        return 1 if self.faults else 0

    def share_table(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            title_style="bold",
            title="Farm web: share of the first requests against weight",
            title_justify="left",
        )
        for heading in ("backend", "weight", "share", "by weight", "requests", "held"):
            table.add_column(heading, justify="left" if heading == "backend" else "right")
        everything = self.tally.by_backend + self.death.by_backend
        for backend in self.rig.backends:
            name = backend.name
            weight = WEIGHTS.get(name)
            first = (
                (f"{self.shares.get(name, 0):.1%}", f"{weight / sum(WEIGHTS.values()):.1%}") if weight else ("added later", "")
            )
            table.add_row(name, str(weight or 2), *first, f"{everything[name]:,}", str(self.held.by_backend[name]))
        return table

    def outcome_table(self) -> Table:
        during, after = self.death_failures()
        broken = len(self.held.broken) - self.ended_with_backend
        table = Table(box=box.SIMPLE_HEAD, show_header=False)
        table.add_column("what")
        table.add_column("count", justify="right")
        for what, number in (
            ("HTTP requests", self.tally.done + self.death.done),
            ("  failed", len(self.tally.failures) + len(after)),
            (
                f"  met dead b2 in the {(self.noticed_at - self.died_at) * 1000:.0f} ms until the check noticed",
                len(during),
            ),
            ("UDP exchanges", self.datagrams.done),
            ("  failed", len(self.datagrams.failures)),
            ("TCP connections held", HELD),
            ("  round trips on them", self.held.round_trips),
            ("  ended by the death of their own backend", self.ended_with_backend),
            ("  broken or moved by all else", broken),
            ("  bytes wrong", self.held.wrong_bytes),
        ):
            table.add_row(what, f"{number:,}")
        return table


def main() -> int:
    if reason := why_not():
        print(f"the demo cannot run here: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 110)
    began = time.monotonic()
    try:
        with Rig() as rig:
            demo = Demo(rig, console)
            demo.start_node(time.monotonic() - began)
            for step in (demo.configure, demo.balance, demo.hold, demo.drain, demo.add, demo.kill_backend, demo.crash_daemon):
                step()
            return demo.summary()
    except AssertionError as error:  # a command refused, a condition that never came, a daemon that did not start
        console.print(f"\n[bold red]The demo stopped:[/] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
