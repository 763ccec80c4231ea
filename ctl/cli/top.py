"""`xlbctl top`: the node at a glance, refreshed in place."""

from __future__ import annotations

import contextlib
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.farm import farm_state
from ctl.cli.interrupt import interruptible
from ctl.cli.output import Column, bit_rate, colour_refused, count, plain_lines, printable, rich_table, share
from ctl.cli.rates import Load, Sample, rates
from ctl.cli.stats import take_sample
from ctl.config.model import format_endpoint

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    Column("FARM / BACKEND"),
    Column("LISTENS / WEIGHT"),
    Column("STATE", state=True),
    Column("CONNECTIONS", right=True),
    Column("NEW/S", right=True),
    Column("SHARE", right=True),
    Column("PACKETS/S", right=True),
    Column("BITS/S", right=True),
)
QUIT_KEYS = (b"q", b"Q", b"")  # an empty read: the terminal is closed
HEADER_LINES = 5


@click.command("top", cls=XlbCommand, examples=["xlbctl top", "xlbctl top --interval 0.5", "xlbctl top --once"])
@click.option("--interval", type=click.FloatRange(0.05, 3600), default=1.0, metavar="SECONDS", help="Time between refreshes.")
@click.option("--once", is_flag=True, help="Measure one interval, print it and exit; the default without a terminal.")
@pass_session
def top(session: Session, interval: float, once: bool) -> None:
    """Watch packets, drops, farms and backends live, busiest first. Press q to quit."""
    if once or session.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print_once(session, interval)
    else:
        _watch(session, interval)


def _print_once(session: Session, interval: float) -> None:
    _, _, before = take_sample(session)
    time.sleep(interval)
    screen = Screen.take(session, before)
    if session.json:
        from ctl.cli.output import print_json

        print_json(screen.as_json())
        return
    for line in [*screen.header(), "", *plain_lines(COLUMNS, screen.rows())]:
        click.echo(line)


def _watch(session: Session, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, no_color=colour_refused())
    with (
        keyboard() as quit_within,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        _, _, before = take_sample(session)
        live.update("measuring …", refresh=True)
        while not quit_within(interval):
            screen = Screen.take(session, before)
            live.update(screen.render(console.height), refresh=True)
            before = screen.counts


class Screen:
    """One frame: the daemon's answers and the rates since the previous sample."""

    def __init__(
        self, status: dict[str, Any], answer: dict[str, Any], farms: list[dict[str, Any]], counts: Sample, rate: Sample
    ):
        self.status = status
        self.answer = answer
        self.farms = farms
        self.counts = counts
        self.rate = rate

    @classmethod
    def take(cls, session: Session, before: Sample) -> Screen:
        """Ask the daemon for a frame."""
        status = session.call("status")
        answer, farms, counts = take_sample(session)
        return cls(status, answer, farms, counts, rates(before, counts))

    def header(self) -> list[str]:
        """Return the lines above the table: node, load and drops."""
        total = self.rate.total
        modes = ", ".join(f"{i['name']} {i.get('xdp_mode') or 'off'}" for i in self.status.get("interfaces", []))
        kinds = {counter["name"]: counter["kind"] for counter in self.answer["counters"]}
        drops = {name: rate for name, rate in self.rate.counters.items() if kinds[name] == "drop" and rate}
        worst = sorted(drops.items(), key=lambda item: -item[1])[:4]
        reasons = ", ".join(f"{name} {count(rate)}/s" for name, rate in worst)
        return [
            printable(f"{self.status['node']}  {self.status['role']}  epoch {self.status['epoch']}  {modes}"),
            f"loop lag {self.answer.get('loop_lag_ms', 0):.1f} ms",
            f"{count(total.packets)} packets/s  {bit_rate(total.bytes)}  {count(total.new_connections)} new connections/s",
            f"drops {count(sum(drops.values()))}/s" + (f": {reasons}" if reasons else ""),
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """Return each farm's line, busiest first, followed by its backends', busiest first."""
        rows = []
        for farm in sorted(self.farms, key=lambda farm: (-self.rate.farms[farm["name"]].packets, farm["name"])):
            load = self.rate.farms[farm["name"]]
            listens = f"{format_endpoint(farm['vip'], farm['port'])} {farm['proto']}"
            rows.append(_row(farm["name"], listens, farm_state(farm), farm["connections"], load, ""))
            named = [(format_endpoint(b["address"], b["port"]), b) for b in farm["backends"]]
            loads = {name: self.rate.backends[farm["name"], name] for name, _ in named}
            for name, b in sorted(named, key=lambda pair: (-loads[pair[0]].packets, pair[0])):
                part = share(loads[name].new_connections, load.new_connections)
                rows.append(_row(f"  {name}", f"weight {b['weight']}", b["state"], b["connections"], loads[name], part))
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return the frame for programs: rates per second."""
        from dataclasses import asdict

        backends: dict[str, dict[str, Any]] = {name: {} for name in self.rate.farms}
        for (farm, backend), load in self.rate.backends.items():
            backends[farm][backend] = asdict(load)
        farms = {name: asdict(load) | {"backends": backends[name]} for name, load in self.rate.farms.items()}
        return {"node": self.status["node"], "role": self.status["role"], "counters": dict(self.rate.counters), "farms": farms}

    def render(self, height: int) -> RenderableType:
        """Return the frame for a terminal of `height` lines; rows that do not fit are counted, not scrolled."""
        from rich.console import Group
        from rich.text import Text

        rows = self.rows()
        visible = max(1, height - HEADER_LINES - 3)
        table = rich_table(COLUMNS, [[printable(cell) for cell in row] for row in rows[:visible]])
        hidden = f"{len(rows) - visible} more lines; " if len(rows) > visible else ""
        header = Text("\n".join(self.header()) + "\n")
        return Group(header, table, Text(f"\n{hidden}q quits", style="dim"))


def _row(name: str, what: str, state: str, connections: int, load: Load, part: str) -> tuple[str, ...]:
    return (
        name,
        what,
        state,
        count(connections),
        count(load.new_connections),
        part,
        count(load.packets),
        bit_rate(load.bytes),
    )


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """Read single keys; yields a function that waits some seconds and returns True if a quit key or Ctrl-C was pressed."""
    descriptor = sys.stdin.fileno()
    settings = termios.tcgetattr(descriptor)

    tty.setcbreak(descriptor)
    try:
        with interruptible(descriptor, QUIT_KEYS) as stopped_within:
            yield stopped_within
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
