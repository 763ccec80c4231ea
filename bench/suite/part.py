"""What a part of the suite is, and its command line: a process that yields tables and plots, shown or written as JSON.

A part runs as a process of its own: pinning, memory and maps of one do not change the figures of the next, and what fails
ends one part.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table as Shown

from bench.suite import machine, report
from bench.suite.figures import PartResult, Plot, Table, to_json
from tests.rig import why_not


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. match: a part of the names of tables to measure, "" for all. options: the part's own."""

    quick: bool = False
    match: str = ""
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def chosen(self, name: str) -> bool:
        """Whether the table of this name is to be measured."""
        return self.match.lower() in name.lower()

    def progress(self, text: str) -> None:
        """Report to the operator what is being measured."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


Tables = Callable[[Plan], Iterator[Table | Plot]]


def part_main(
    name: str,
    title: str,
    method: str,
    tables: Tables,
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> int:
    """The command `python -m bench.NAME`. 0: measured, whether targets are met or not; 1: it could not measure everything.

    method: one paragraph, Markdown. tables: yields each when it is complete, so that an error loses only what follows.
    add_options: adds options that only this part has; `Plan.options` has their values.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=title)
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    parser.add_argument("--match", default="", metavar="TEXT", help="measure only tables whose name contains this text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON to a file instead of tables to the terminal")
    add_options(parser)
    arguments = parser.parse_args()
    if reason := why_not():
        print(f"cannot measure here: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    result = measured(
        name, title, method, tables, Plan(arguments.quick, arguments.match, arguments), _command(name, sys.argv[1:])
    )
    if arguments.output:
        write_json(arguments.output, to_json(result))
    else:
        show(result)
    return 1 if result.failed else 0


def _command(name: str, argv: Sequence[str]) -> str:
    """The command line that measures the same again: without --output."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output")
    return shlex.join(["sudo", ".venv/bin/python", "-m", f"bench.{name}", *parser.parse_known_args(argv)[1]])


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def measured(name: str, title: str, method: str, tables: Tables, plan: Plan, command: str) -> PartResult:
    """Run the part. What it raises ends it and becomes the text `failed`."""
    before, started, failed = machine.facts(), time.monotonic(), ""
    found: list[Table | Plot] = []
    try:
        for each in tables(plan):
            found.append(each)
            plan.progress(f"{name}: measured {each.title}")
    except KeyboardInterrupt:
        failed = "it was interrupted"
    except Exception as error:  # every fault of a part is a line in the report
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}".splitlines()[0]
    return PartResult(
        name,
        title,
        method,
        command,
        plan.quick,
        time.monotonic() - started,
        before,
        tuple(each for each in found if isinstance(each, Table)),
        tuple(each for each in found if isinstance(each, Plot)),
        failed,
    )


def write_json(path: Path, document: object) -> None:
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_text(text)
    temporary.replace(path)


def show(result: PartResult) -> None:
    """On the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in result.tables:
        subjects = list(dict.fromkeys(subject for line in table.lines for subject in (*line.samples, *line.missing)))
        shown = Shown(title=table.title, title_justify="left")
        shown.add_column("")
        shown.add_column("unit")
        for subject in subjects:
            shown.add_column(subject, justify="right")
        shown.add_column("wanted")
        for line in table.lines:
            targets = "; ".join(
                f"{target.subject} {target.wanted(line.unit)}: {report.met(line, target)}" for target in line.targets
            )
            shown.add_row(line.name, line.unit, *(report.cell(line, subject) for subject in subjects), targets)
        console.print(shown)
    for plot in result.plots:
        console.print(f"{plot.title} ({plot.y} over {plot.x}): {dict(plot.series)}")
