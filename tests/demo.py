"""`make demo`: two nodes become a pair, balance real traffic between network namespaces, and fail in turn.

Types the commands a person would type, and counts what really came back. Exits 1 if xlb failed: a held
connection that ends, a byte that is wrong, both nodes answering at once, or an outage longer than a second.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tests.net.faults import FAULTS, Cost, Fault, Observer, ProbeFarm
from tests.rig import (
    CLIENT4,
    HTTP_PORT,
    TCP_PORT,
    UDP_PORT,
    VIP4,
    HeldConnections,
    Layout,
    Node,
    Rig,
    Tally,
    http_get,
    repeat,
    udp_exchange,
    why_not,
)
from tests.wait import processor_share, wait_until

REQUESTS = 4000
DATAGRAMS = 400
HELD = 1000
WEIGHTS = {"b1": 1, "b2": 2, "b3": 3}
SHARE_TOLERANCE = 0.04
"""Tolerance of a share: with this many requests, chance alone exceeds it about once in a million demos."""
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
"""Faster than the default, slower than the fastest: a laptop with other work to do must not make the demo fail."""
SLOW_TIMES = {"heartbeat_ms": 100, "lease_ms": 500, "takeover_ms": 550}
"""For a machine that gives a process less than FAST_SHARE of a processor: its stalls would be takeovers."""
FAST_SHARE = 0.7
OUTAGE_MS = 1000

PICTURE = f"""\
  client {CLIENT4}     lb1 10.77.0.1      lb2 10.77.0.2        b1 .21   b2 .22   b3 .23
       │              ┌─────┴─────┐      ┌─────┴─────┐            │        │        │
  ─────┴──────────────┤ VIP .100  ├──────┤           ├────────────┴────────┴────────┴──  switch
                      └─────┬─────┘      └─────┬─────┘
                  ──────────┴──────────────────┴──────────  cluster link 10.99.0.0/24"""

ACTS = (
    ("cut", "Both cables of {node} are pulled, and put back", "cables pulled"),
    ("kill -9", "xlbd on {node} is killed (kill -9), and started again", "daemon killed"),
    ("SIGSTOP", "xlbd on {node} is stopped (SIGSTOP), and wakes up later", "daemon stopped"),
    ("switchover", "{node} hands over on request", "switchover"),
)


class Demo:
    """The demo; each step prints what it does and adds to the final table."""

    def __init__(self, rig: Rig, console: Console) -> None:
        self.rig, self.console = rig, console
        self.began = time.monotonic()
        self.one, self.two = rig.nodes
        self.tally, self.datagrams = Tally(), Tally()
        self.held = HeldConnections(VIP4, TCP_PORT, HELD, pause_s=0.5)
        self.costs: list[tuple[str, Node, Cost]] = []
        self.faults: list[str] = []

    # --- output ----------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(Rule(f"[bold]{text}", align="left", style="dim"))

    def print(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def xlbctl(self, line: str, node: Node | None = None, shown: str = "") -> str:
        """Type a command on a node; `shown` replaces what is too long to print."""
        node = node or self.one
        self.console.print(
            f"[dim]{node.name} #[/] [bold cyan]xlbctl {escape(shown or line)}[/]", highlight=False, soft_wrap=True
        )
        answer = node.xlbctl(*shlex.split(line)).stdout.rstrip()
        if answer:
            self.console.out(answer, highlight=False)
        return answer

    def check(self, good: bool, text: str) -> None:
        """A line of outcome; a bad one makes the demo fail."""
        self.print(f"  [green]✓[/] {text}" if good else f"  [bold red]✗ {text}[/]")
        if not good:
            self.faults.append(text)

    # --- progress -----------------------------------------------------------------------------------------------

    def follow(self, what: str, tally: Tally, total: int, running: Any) -> None:
        """Draw a progress bar until `running` is over."""
        columns = (TextColumn("  {task.description}"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, console=self.console) as progress:
            task, began = progress.add_task(what, total=total, rate=""), time.monotonic()

            def drawn() -> bool:
                rate = f"{tally.done / (time.monotonic() - began + 1e-9):,.0f}/s"
                progress.update(task, completed=tally.done, rate=rate)
                return bool(running.done())

            wait_until(drawn, what, timeout_s=60, every_s=0.05)
        running.result()

    def backend_address(self, name: str, port: int) -> str:
        return f"{self.rig.backend(name).address4}:{port}"

    def settle(self) -> Node:
        """Wait until one node is active and its backup could take over with every connection; returns the active one."""

        def serving() -> Node | None:
            found = {node.name: node.call("cluster.status") for node in self.rig.nodes}
            roles = {status["role"]: status for status in found.values()}
            in_step = set(roles) == {"active", "backup"} and all(status["sync"]["in_step"] for status in roles.values())
            return next(node for node in self.rig.nodes if found[node.name]["role"] == "active") if in_step else None

        node = wait_until(serving, "one active, one backup in step", timeout_s=15)
        assert node is not None
        return node

    # --- the steps -------------------------------------------------------------------------------------------

    def start_nodes(self, rig_s: float) -> None:
        self.title("A network and two nodes")
        self.print(PICTURE)
        self.print("")
        self.print(f"  network namespaces, cables and three servers ready after {rig_s:.1f} s")
        times = SLOW_TIMES if processor_share() < FAST_SHARE else TIMES
        for node in self.rig.nodes:
            interfaces = ("eth0",)
            lines = "".join(f"{key} = {value}\n" for key, value in times.items())
            node.configure(interfaces, self.rig.layout.xdp_mode, self.rig.layout.max_flows, f"[cluster]\n{lines}")
            node.start()
            mode = node.call("status")["interfaces"][0]["xdp_mode"]
            self.print(f"  {node.name}: xlbd compiled, loaded and attached {mode} XDP after {node.started_in_s:.1f} s")

    def configure(self) -> None:
        self.title("Three farms on lb1, which is alone")
        self.xlbctl(f"vip add {VIP4}/24 --dev eth0")
        self.xlbctl(f"farm add web --vip {VIP4} --port 80 --check http --check-path /health")
        self.xlbctl(f"farm add echo --vip {VIP4} --port {TCP_PORT}")
        self.xlbctl(f"farm add echo-udp --vip {VIP4} --port {UDP_PORT} --proto udp")
        for name, weight in WEIGHTS.items():
            self.xlbctl(f"backend add web {self.backend_address(name, HTTP_PORT)} --weight {weight}")
        self.print("  [dim]and so on for the other two farms[/]")
        for farm, port in (("echo", TCP_PORT), ("echo-udp", UDP_PORT)):
            for name in WEIGHTS:
                self.one.call("backend.add", farm=farm, address=self.rig.backend(name).address4, port=port)

    def balance(self) -> None:
        self.title(f"{REQUESTS:,} HTTP requests and {DATAGRAMS:,} UDP exchanges, each a new connection")
        ask = repeat(lambda: http_get(VIP4, 80, timeout_s=3), REQUESTS, self.tally, concurrency=8)
        self.follow("HTTP", self.tally, REQUESTS, self.rig.client.start(ask))
        ask = repeat(lambda: udp_exchange(VIP4, UDP_PORT, b"payload" * 50), DATAGRAMS, self.datagrams)
        self.follow("UDP ", self.datagrams, DATAGRAMS, self.rig.client.start(ask))
        for name, share in self.tally.shares().items():
            fair = WEIGHTS[name] / sum(WEIGHTS.values())
            good = abs(share - fair) <= SHARE_TOLERANCE
            self.check(good, f"{name} got {share:.1%} of the requests; its share by weight is {fair:.1%}")
        self.check(not self.tally.failures, f"{len(self.tally.failures)} requests failed")
        self.check(not self.datagrams.failures, f"{len(self.datagrams.failures)} UDP exchanges failed")

    def hold(self) -> None:
        self.title(f"{HELD:,} TCP connections, held from here on, every byte of theirs checked")
        self.rig.client.run(self.held.open())
        spread = ", ".join(f"{count} on {name}" for name, count in sorted(self.held.by_backend.items()))
        self.check(self.rig.client.run(self.held.confirm()) == 0, f"all exchange data: {spread}")

    def pair(self) -> None:
        self.title("lb1 and lb2 become a pair, under traffic")
        answer = self.xlbctl("cluster create --local 10.99.0.1 --peer 10.99.0.2 --token-only")
        token, began = max(answer.split(), key=len), time.monotonic()
        self.xlbctl(
            f"cluster join --local 10.99.0.2 {token}",
            self.two,
            f"cluster join --local 10.99.0.2 {token[:12]}…",
        )
        self.settle()
        self.print(f"\n  lb2 has every connection; joining, checking and that took {time.monotonic() - began:.1f} s")
        self.xlbctl("cluster status", self.two)
        self.check(self.undisturbed(), "the held connections did not notice")

    def undisturbed(self) -> bool:
        """Whether every held connection completes a round trip now."""
        silent = self.rig.client.run(self.held.confirm())
        return silent == 0 and not self.held.broken and self.held.wrong_bytes == 0

    def act(self, name: str, title: str, short: str) -> None:
        """One fault of the active node: apply, watch, heal, judge."""
        fault, struck = FAULTS[name], self.settle()
        self.title(title.format(node=struck.name))
        with self.watching() as tick, Observer(self.rig, self.held, interval_ms=2, tick=tick) as observer:
            observer.strike(fault, struck)
            if not fault.splits:
                self.heal(fault, struck)
                observer.good(100)
            cost = observer.cost()
        if fault.splits:
            self.heal(fault, struck)
        self.costs.append((short, struck, cost))
        self.check(cost.outage_ms <= OUTAGE_MS, f"new connections: none for {cost.outage_ms:.0f} ms, then as before")
        self.check(cost.broken + cost.silent == 0, f"{cost.broken + cost.silent} of {HELD:,} held connections broken")
        self.check(cost.wrong_bytes == 0, f"{cost.wrong_bytes} bytes wrong")
        self.check(cost.both_ms == 0, f"both nodes answered for {cost.both_ms:g} ms")

    def heal(self, fault: Fault, struck: Node) -> None:
        fault.heal(self.rig, struck)
        wait_until(lambda: struck.call("cluster.status")["role"] == "backup", f"{struck.name} steps back", timeout_s=15)

    @contextmanager
    def watching(self) -> Iterator[Callable[[Observer], None]]:
        """A live line while a fault is watched; nothing where the output is not a terminal."""
        if not self.console.is_terminal:
            yield lambda observer: None
            return
        with Live(Text(), console=self.console, transient=True, refresh_per_second=20) as live:
            yield lambda observer: live.update(self.glance(observer))

    def glance(self, observer: Observer) -> Text:
        speaker, silent_ms = observer.speaker or "no node yet", observer.silent_ms
        colour = "green" if silent_ms < 20 else "red"
        alive = HELD - len(self.held.broken)
        return Text.from_markup(
            f"  [bold]{speaker}[/] answers   [bold]{alive:,}[/] connections alive   "
            f"no new connection for [bold {colour}]{silent_ms:4.0f} ms[/]   longest so far {observer.outage_ms:4.0f} ms"
        )

    # --- the end ---------------------------------------------------------------------------------------------

    def summary(self) -> int:
        self.title("What happened")
        self.console.print(self.cost_table())
        self.print(
            f"  {self.tally.done + self.datagrams.done:,} requests and exchanges, "
            f"{len(self.tally.failures) + len(self.datagrams.failures)} failed; "
            f"{self.held.round_trips:,} round trips on {HELD:,} held connections, {len(self.held.broken)} broken"
        )
        self.rig.client.run(self.held.close())
        took_s = time.monotonic() - self.began
        if self.faults:
            self.print(f"\n[bold red]{len(self.faults)} checks failed[/] in {took_s:.0f} s:")
            for fault in self.faults:
                self.print(f"  {fault}")
            for node in self.rig.nodes:
                self.console.out(f"{node.name}:\n{node.tail()}", highlight=False)
        else:
            self.print(f"\n[bold green]Everything held[/] ({took_s:.0f} s).")
        return 1 if self.faults else 0

    def cost_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("fault")
        table.add_column("of")
        for heading in ("outage of new connections", "held connections broken", "wrong bytes", "both nodes answered"):
            table.add_column(heading, justify="right")
        for short, struck, cost in self.costs:
            broken = cost.broken + cost.silent
            table.add_row(
                short,
                struck.name,
                f"{cost.outage_ms:.0f} ms",
                f"{broken} of {HELD:,}",
                str(cost.wrong_bytes),
                f"{cost.both_ms:g} ms",
            )
        return table


def main() -> int:
    if reason := why_not():
        print(f"the demo cannot run here: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 110)
    began = time.monotonic()
    try:
        with Rig(Layout(nodes=2)) as rig:
            demo = Demo(rig, console)
            demo.start_nodes(time.monotonic() - began)
            for step in (demo.configure, demo.balance, demo.hold, demo.pair):
                step()
            with ProbeFarm(rig, demo.one):
                for act in ACTS:
                    demo.act(*act)
            return demo.summary()
    except AssertionError as error:  # a command refused, a condition that never came, a daemon that did not start
        console.print(f"\n[bold red]The demo stopped:[/] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
