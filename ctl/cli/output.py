"""Output formats: JSON for programs, coloured tables on a terminal, plain aligned columns in a pipe.

Decides the format only. Must not know where values come from. Imports rich on demand, because that takes 60 ms.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

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


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Cells of a `state` column are coloured by the word in them."""

    title: str
    right: bool = False
    state: bool = False


def print_json(value: Any) -> None:
    """Write one JSON document; None, the answer of a command without a result, becomes {"ok": true}."""
    click.echo(json.dumps({"ok": True} if value is None else value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Write a table; `empty` is the message without rows (a pipe gets the header only)."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in plain_lines(columns, cells):
            click.echo(line)
    elif not cells:
        click.echo(empty)
    else:
        from rich.console import Console

        Console(highlight=False, no_color=colour_refused()).print(rich_table(columns, cells))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Write one name and value per line, values aligned."""
    pairs = [(name, printable(str(value))) for name, value in fields]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {paint(value)}".rstrip())


def plain_lines(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return header and rows as lines, columns two spaces apart; an empty cell is '-', so that awk sees every column."""
    table = [[column.title for column in columns], *[[cell or "-" for cell in row] for row in cells]]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (
            f"{cell:>{width}}" if column.right else f"{cell:<{width}}"
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(row) for row in table]


def rich_table(columns: Sequence[Column], cells: Iterable[Sequence[str]]) -> Table:
    """Return the table as rich draws it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(styled(cell, column) for cell, column in zip(row, columns, strict=True)))
    return table


def styled(cell: str, column: Column) -> Text:
    """Return a cell as text that rich does not interpret, coloured if its column holds states."""
    from rich.text import Text

    return Text(cell, style=STATE_STYLES.get(cell, "") if column.state else "")


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
