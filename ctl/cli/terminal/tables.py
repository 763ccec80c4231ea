"""Tables that fit a width. An address never wraps, and no header is cut: lesser columns are left out first.

Decides which columns are shown and how wide; pure. Where even the essential columns do not fit, every row becomes a block with
one line per column. Without a width (a pipe) every column is shown, and an empty cell is "-", so that awk sees all of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

GAP = 2
LEAST_TEXT = 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    state: cells are coloured by the word in them. priority: 0 is always shown; the highest number is left out first.
    text: cells are sentences, which may wrap between words.
    """

    title: str
    right: bool = False
    state: bool = False
    priority: int = 0
    text: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns that are shown, by index, and their widths."""

    shown: tuple[int, ...]
    widths: tuple[int, ...]


Cells = Sequence[Sequence[str]]
Paint = Callable[[str, str, Column], str]
"""(padded cell, bare cell, its column) → what is written."""


def unpainted(padded: str, _cell: str, _column: Column) -> str:
    """No colours."""
    return padded


def fit(columns: Sequence[Column], cells: Cells, width: int | None) -> Layout | None:
    """The layout for `width` characters; None: the essential columns do not fit."""
    every = range(len(columns))
    natural = [max(map(len, (columns[index].title, *(row[index] for row in cells)))) for index in every]
    if width is None:
        return Layout(tuple(every), tuple(natural))
    least = [_least(columns[index], [row[index] for row in cells], natural[index]) for index in every]
    shown = list(every)
    while _total([least[index] for index in shown]) > width:
        lesser = [index for index in shown if columns[index].priority]
        if not lesser:
            return None
        shown.remove(max(lesser, key=lambda index: (not any(row[index] for row in cells), columns[index].priority, index)))
    spare = width - _total([least[index] for index in shown])
    widths = {index: least[index] for index in shown}
    short = sorted((index for index in shown if natural[index] > least[index]), key=lambda index: natural[index] - least[index])
    for number, index in enumerate(short):
        more = min(natural[index] - least[index], spare // (len(short) - number))
        widths[index] += more
        spare -= more
    return Layout(tuple(shown), tuple(widths[index] for index in shown))


def _least(column: Column, cells: Sequence[str], natural: int) -> int:
    """The width below which a column is not shown: a sentence needs its longest word."""
    if not column.text:
        return natural
    longest = max((len(word) for cell in cells for word in cell.split()), default=0)
    return min(natural, max(len(column.title), longest, LEAST_TEXT))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(0, len(widths) - 1)


def table_lines(columns: Sequence[Column], cells: Cells, width: int | None = None, paint: Paint = unpainted) -> list[str]:
    """Header and rows; without a width every column, and "-" for an empty cell."""
    if width is None:
        cells = [[cell or "-" for cell in row] for row in cells]
    layout = fit(columns, cells, width)
    if layout is None:
        return _blocks(columns, cells, width or 0, paint)
    lines = _row_lines(columns, layout, [column.title for column in columns], unpainted)
    for row in cells:
        lines += _row_lines(columns, layout, row, paint)
    return lines


def left_out(columns: Sequence[Column], cells: Cells, width: int) -> list[str]:
    """Titles of the columns that have something to show and no place in `width`."""
    layout = fit(columns, cells, width)
    missing = set(range(len(columns))) - set(layout.shown) if layout else set()
    return [columns[index].title for index in sorted(missing) if any(row[index] for row in cells)]


def _row_lines(columns: Sequence[Column], layout: Layout, row: Sequence[str], paint: Paint) -> list[str]:
    wrapped = [
        wrap(row[index], width) if columns[index].text else [row[index]]
        for index, width in zip(layout.shown, layout.widths, strict=True)
    ]
    lines = []
    for parts in zip_longest(*wrapped, fillvalue=""):
        pieces = []
        for index, width, part in zip(layout.shown, layout.widths, parts, strict=True):
            column = columns[index]
            pieces.append(paint(f"{part:>{width}}" if column.right else f"{part:<{width}}", part, column))
        lines.append((" " * GAP).join(pieces).rstrip())
    return lines


def _blocks(columns: Sequence[Column], cells: Cells, width: int, paint: Paint) -> list[str]:
    """Each row as lines of title and cell, with an empty line between rows; empty cells are left out."""
    indent = max(len(column.title) for column in columns) + GAP
    lines: list[str] = []
    for row in cells:
        lines += [""] if lines else []
        for column, cell in zip(columns, row, strict=True):
            parts = wrap(cell, max(LEAST_TEXT, width - indent)) if column.text else [cell]
            for number, part in enumerate(parts if cell else ()):
                lines.append(f"{'' if number else column.title:<{indent}}{paint(part, part, column)}".rstrip())
    return lines


def wrap(cell: str, width: int) -> list[str]:
    """Between words only: neither an address nor an option is cut."""
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]
