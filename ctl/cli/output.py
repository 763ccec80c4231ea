"""Output formats: JSON for programs, coloured tables on a terminal, plain aligned columns in a pipe.

Decides the format only. Must not know where values come from.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from ctl.cli.terminal.tables import LEAST_TEXT, Column, left_out, table_lines, wrap

STATE_STYLES = {
    "up": "green",
    "running": "green",
    "active": "bold green",
    "single": "bold green",
    "ok": "green",
    "drain": "yellow",
    "stopped": "yellow",
    "backup": "cyan",
    "maintenance": "yellow",
    "down": "bold red",
    "fault": "bold red",
    "failed": "bold red",
    "fail": "bold red",
    "warn": "yellow",
    "degraded": "yellow",
    "silent": "bold red",
    "drop": "red",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def print_json(value: Any) -> None:
    """Write one JSON document; None, the answer of a command without a result, becomes {"ok": true}."""
    click.echo(json.dumps({"ok": True} if value is None else value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Write a table; `empty` is the message without rows (a pipe gets the header only). On a terminal it fits the width."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in table_lines(columns, cells):
            click.echo(line)
    elif not cells:
        click.echo(empty)
    else:
        width = shutil.get_terminal_size().columns
        header, *lines = table_lines(columns, cells, width, paint_cell)
        click.echo(click.style(header, bold=True) if header and not colour_refused() else header)
        for line in lines:
            click.echo(line)
        if missing := left_out(columns, cells, width):
            click.echo("\n".join(wrap(f"not shown in {width} columns: {', '.join(missing)}", width)), err=True)


def paint_cell(padded: str, cell: str, column: Column) -> str:
    """Colour a cell of a `state` column by the word in it."""
    if not column.state or colour_refused() or cell not in STATE_STYLES:
        return padded
    style = STATE_STYLES[cell]
    painted = click.style(cell, fg=style.split()[-1], bold=style.startswith("bold") or None)
    return padded.replace(cell, painted, 1)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Write one name and value per line, values aligned; on a terminal long values wrap between words."""
    pairs = [(name, printable(str(value))) for name, value in fields]
    width = max((len(name) for name, _ in pairs), default=0)
    space = shutil.get_terminal_size().columns - width - 2 if sys.stdout.isatty() else None
    for name, value in pairs:
        for number, part in enumerate([value] if space is None else wrap(value, max(LEAST_TEXT, space))):
            click.echo(f"{'' if number else name:<{width}}  {paint(part)}".rstrip())


def print_item(mark: str, text: str) -> None:
    """Write one item of a list; on a terminal a long one wraps between words."""
    space = shutil.get_terminal_size().columns - len(mark) - 1 if sys.stdout.isatty() else None
    for number, part in enumerate([printable(text)] if space is None else wrap(printable(text), max(LEAST_TEXT, space))):
        click.echo(f"{' ' * len(mark) if number else mark} {part}")


def paint(word: str) -> str:
    """Colour a state word on a terminal; leave other words, and output to a pipe, unchanged."""
    style = STATE_STYLES.get(word)
    if style is None or colour_refused() or not sys.stdout.isatty():
        return word
    return click.style(word, fg=style.split()[-1], bold=style.startswith("bold"))


def colour_refused() -> bool:
    """Whether the user disables colour (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def printable(text: str) -> str:
    """Escape control characters: the error string of a backend must not control the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def count(value: float) -> str:
    """Return a number in about four characters: 950, 1.23k, 45.6M."""
    return _scaled(value)


def byte_count(value: float) -> str:
    """Return bytes with a decimal prefix: 950 B, 1.23 kB."""
    scaled = _scaled(value)
    number, prefix = (scaled[:-1], scaled[-1]) if scaled[-1].isalpha() else (scaled, "")
    return f"{number} {prefix}B"


def bit_rate(bytes_per_second: float) -> str:
    """Return a byte rate in bits per second: 1.23 Gbit/s."""
    return byte_count(bytes_per_second * 8).removesuffix("B") + "bit/s"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: 45 s, 3 min 20 s, 2 d 4 h."""
    left = round(seconds)
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def share(part: float, whole: float) -> str:
    """Return part of whole in percent, empty when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def plural(number: int, noun: str) -> str:
    """Return "1 farm", "2 farms"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show(as_json: bool, value: Any, render: Callable[[Any], None]) -> None:
    """Write `value` as JSON, or print it with `render`."""
    if as_json:
        print_json(value)
    else:
        render(value)


def _scaled(value: float) -> str:
    index = 0
    while abs(value) >= (1000 if index == 0 else 999.5) and index < len(_PREFIXES) - 1:
        value /= 1000
        index += 1
    if index:
        return f"{value:.3g}{_PREFIXES[index]}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


IMPACT_COLUMNS = (
    Column("FARM"),
    Column("BACKEND"),
    Column("CONNECTIONS", right=True),
    Column("THEY"),
    Column("SHARE NOW", right=True),
    Column("SHARE THEN", right=True),
)


def has_effect(impact: dict[str, Any]) -> bool:
    """Whether a connection moves or ends, or a new client gets another backend."""
    totals = impact["connections"]
    return bool(totals["move"] or totals["end"] or any(each["clients_moved"] for each in impact["farms"]))


def print_impact(impact: dict[str, Any]) -> None:
    """Print a table of the backends, then the sums."""
    rows = [
        (
            farm["farm"],
            each["backend"],
            count(each["connections"]),
            each["fate"],
            f"{each['share_before']:.1%}",
            f"{each['share_after']:.1%}",
        )
        for farm in impact["farms"]
        for each in farm["backends"]
    ]
    print_table(IMPACT_COLUMNS, rows, "No farm with backends would change.")
    totals = impact["connections"]
    click.echo(f"connections: {totals['stay']} stay, {totals['move']} move, {totals['end']} end")
    for farm in impact["farms"]:
        if farm["clients_moved"] is not None:
            click.echo(f"farm {farm['farm']}: {farm['clients_moved']:.1%} of new clients get another backend")
