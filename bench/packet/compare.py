"""This program and that of another checkout, in turns: `python -m bench.packet --against CHECKOUT`.

Both are measured by this bench, in new processes with new maps: where the kernel places a map in memory moves the figures of
many flows by up to a third from one run to the next. So the other checkout may be older than the bench.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[2]


def costs(checkout: Path, runs: int, match: str) -> dict[str, int]:
    """Situation to ns. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="xlb-bench-") as overlay:
        (Path(overlay) / "bench").symlink_to(HERE / "bench")
        command = [sys.executable, "-P", "-m", "bench.packet.situations", "--runs", str(runs), "--match", match]
        search = os.pathsep.join([overlay, str(checkout)])
        answer = subprocess.run(
            command, cwd=checkout, env={**os.environ, "PYTHONPATH": search}, stdout=subprocess.PIPE, check=True
        ).stdout
    found: dict[str, int] = json.loads(answer)
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.packet", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--runs", type=int, default=15, help="runs of which the fastest counts (default 15)")
    parser.add_argument(
        "--match", default="", metavar="TEXT", help="measure only packets whose table or name contains this text"
    )
    arguments = parser.parse_args(argv)
    checkouts = (arguments.against.resolve(), HERE)
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for _ in range(arguments.rounds):
        for checkout, best in zip(checkouts, found, strict=True):
            for name, ns in costs(checkout, arguments.runs, arguments.match).items():
                best[name] = min(ns, best.get(name, ns))
    table = Table(title=f"Minima of {arguments.rounds} rounds in turns, ns per packet net of the harness")
    for column in ("packet", "there", "here", "here/there"):
        table.add_column(column, justify="left" if column == "packet" else "right")
    there, here = found
    for name in [name for name in here if name in there]:
        table.add_row(name, str(there[name]), str(here[name]), f"{here[name] / there[name]:.2f}" if there[name] else "")
    Console().print(table)
    return 0
