"""`xlbctl top`: the node at a glance, refreshed in place, with scrolling and a filter."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.farm import farm_state
from ctl.cli.options import listener
from ctl.cli.output import bit_rate, count, paint_cell, printable, share
from ctl.cli.rates import Load, Sample, rates
from ctl.cli.stats import take_sample
from ctl.cli.terminal.interrupt import INTERRUPT, keyboard
from ctl.cli.terminal.tables import Column, fit, table_lines
from ctl.cli.terminal.view import HELP, View
from ctl.config.model import format_endpoint

COLUMNS = (
    Column("FARM / BACKEND"),
    Column("LISTENS / WEIGHT", priority=4),
    Column("STATE", state=True),
    Column("CONNECTIONS", right=True, priority=1),
    Column("NEW/S", right=True, priority=3),
    Column("SHARE", right=True, priority=5),
    Column("PACKETS/S", right=True, priority=2),
    Column("BITS/S", right=True, priority=6),
    Column("ERROR", priority=7),
)

MOST_ERROR = 48  # characters; `farm show` has the rest

LEAST_LINES = 5  # of the table: its header, three rows and the keys


@click.command("top", cls=XlbCommand, examples=["xlbctl top", "xlbctl top --interval 0.5", "xlbctl top --once"])
@click.option("--interval", type=click.FloatRange(0.05, 3600), default=1.0, metavar="SECONDS", help="Time between refreshes.")
@click.option("--once", is_flag=True, help="Measure one interval, print it and exit; the default without a terminal.")
@pass_session
def top(session: Session, interval: float, once: bool) -> None:
    """Watch packets, drops, farms and backends live, busiest first.

    Keys: arrows or j and k scroll by a line, PgUp and PgDn (b and space) by a page, Home and End (g and G) to the ends. A slash
    starts a filter: farms and backends whose name, address or state contains what is typed; Enter keeps it, Esc clears it.
    Press q to quit.
    """
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
    for line in [*screen.header(), "", *table_lines(COLUMNS, screen.rows())]:
        click.echo(line)


def _watch(session: Session, interval: float) -> None:
    view = View()
    with keyboard() as wait, alternate_screen():
        _, _, before = take_sample(session)
        draw(["measuring …"])
        screen, due_s = None, time.monotonic() + interval
        while not view.quit:
            keys = wait(max(0.0, due_s - time.monotonic()))
            if keys == INTERRUPT:
                return
            if keys is not None:
                view.pressed(keys)
            else:
                screen = Screen.take(session, before)
                before, due_s = screen.counts, time.monotonic() + interval
            if screen is not None:
                size = shutil.get_terminal_size()
                draw(screen.render(size.lines, size.columns, view))


@contextlib.contextmanager
def alternate_screen() -> Iterator[None]:
    """Leave what the terminal shows as it was."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def draw(lines: list[str]) -> None:
    """Put the lines where the last ones were, without flicker."""
    sys.stdout.write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
    sys.stdout.flush()


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

    def rows(self, view: View | None = None) -> list[tuple[str, ...]]:
        """Return each farm's line, busiest first, followed by its backends', busiest first.

        view: of a farm that does not match its filter, only the backends that do.
        """
        view, rows = view or View(), []
        for farm in sorted(self.farms, key=lambda farm: (-self.rate.farms[farm["name"]].packets, farm["name"])):
            load = self.rate.farms[farm["name"]]
            listens = f"{listener(farm)} {farm['proto']}"
            named = [(format_endpoint(b["address"], b["port"]), b) for b in farm["backends"]]
            if not view.matches(farm["name"], listens, farm_state(farm)):
                named = [(name, b) for name, b in named if view.matches(name, b["state"])]
                if not named:
                    continue
            rows.append(_row(farm["name"], listens, farm_state(farm), farm["connections"], load, "", ""))
            loads = {name: self.rate.backends[farm["name"], name] for name, _ in named}
            for name, b in sorted(named, key=lambda pair: (-loads[pair[0]].packets, pair[0])):
                part = share(loads[name].new_connections, load.new_connections)
                what, error = f"weight {b['weight']}", b["last_error"] if b["state"] == "down" else ""
                rows.append(_row(f"  {name}", what, b["state"], b["connections"], loads[name], part, error))
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return the frame for programs: rates per second."""
        from dataclasses import asdict

        backends: dict[str, dict[str, Any]] = {name: {} for name in self.rate.farms}
        for (farm, backend), load in self.rate.backends.items():
            backends[farm][backend] = asdict(load)
        farms = {name: asdict(load) | {"backends": backends[name]} for name, load in self.rate.farms.items()}
        return {"node": self.status["node"], "role": self.status["role"], "counters": dict(self.rate.counters), "farms": farms}

    def render(self, height: int, width: int, view: View) -> list[str]:
        """Return the frame for a terminal of this size: header, the rows that `view` shows, and the keys."""
        head = [*(_cut(line, width) for line in self.header()), ""][: max(0, height - LEAST_LINES)]
        rows = [[printable(cell) for cell in row] for row in self.rows(view)]
        window = view.window(len(rows), height - len(head) - 2)
        layout = fit(COLUMNS, rows, width)
        columns = COLUMNS if layout else [column for column in COLUMNS if not column.priority]
        shown = (
            rows
            if layout
            else [[cell for cell, column in zip(row, COLUMNS, strict=True) if not column.priority] for row in rows]
        )
        title, *table = table_lines(columns, shown, width if layout else None, paint_cell)
        below = max(0, len(rows) - (window.stop or 0))
        return [*head, title, *table[window], _cut(_footer(view, window.start, below, len(rows)), width)][:height]


def _footer(view: View, above: int, below: int, rows: int) -> str:
    if view.typing:
        return f"filter: {view.filter}▏"
    lines = ", ".join(f"{number} more {where}" for number, where in ((above, "above"), (below, "below")) if number)
    matching = f"filter {view.filter}: {rows} lines; " if view.filter else ""
    return f"{matching}{f'{lines}; ' if lines else ''}q quits, {HELP.removesuffix(', q quits')}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _row(name: str, what: str, state: str, connections: int, load: Load, part: str, error: str) -> tuple[str, ...]:
    return (
        name,
        what,
        state,
        count(connections),
        count(load.new_connections),
        part,
        count(load.packets),
        bit_rate(load.bytes),
        error if len(error) <= MOST_ERROR else error[: MOST_ERROR - 1] + "…",
    )
