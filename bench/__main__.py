"""`make bench`: runs the parts of the suite one after the other and writes RESULTS.md, RESULTS.json and plots.

    sudo make bench [QUICK=1] [ONLY=packet,wire]
    sudo .venv/bin/python -m bench [--quick] [--only packet,wire] [--output bench]

What a part measured replaces its figures of an earlier run; the figures of parts that were not run stay, with the commit and
the date of their own run. A part that fails or takes too long is named in the report, and the others run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.suite import machine, plots, report
from bench.suite.figures import PartResult, from_json, to_json
from bench.suite.part import write_json, write_text
from tests.rig import why_not

PEERS = ("nftables", "nftlb", "haproxy", "keepalived", "conntrackd", "python3-bpfcc")
STOP_S = 20.0
"""For a part to take down what it built."""


@dataclass(frozen=True, slots=True)
class Part:
    """A package of this folder. full_s, quick_s: what it takes on the machine of RESULTS.md; three times that ends it."""

    name: str
    full_s: int
    quick_s: int

    def limit_s(self, quick: bool) -> float:
        return 3.0 * (self.quick_s if quick else self.full_s)


PARTS = (
    Part("packet", 240, 40),
    Part("wire", 480, 80),
    Part("failover", 780, 85),
    Part("replication", 240, 60),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure xlb and its peers; write the report.")
    parser.add_argument("--quick", action="store_true", help="few rounds: under five minutes in all")
    parser.add_argument(
        "--only", default="", metavar="PARTS", help=f"of {', '.join(part.name for part in PARTS)}; default: all"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args()
    chosen = _chosen(parser, arguments.only)
    if reason := why_not():
        print(f"cannot measure here: {reason}", file=sys.stderr)
        return 1
    before, started = earlier(arguments.output / "RESULTS.json"), time.monotonic()
    found: dict[str, PartResult] = {}
    for number, part in enumerate(chosen, 1):
        usual = part.quick_s if arguments.quick else part.full_s
        print(f"part {number} of {len(chosen)}: {part.name}, usually {usual} s", file=sys.stderr, flush=True)
        found[part.name] = run(part, arguments.quick)
        both = before | found  # written after each part: an interrupt loses the figures of one
        write([both[part.name] for part in PARTS if part.name in both], arguments.output)
    failed = [result.name for result in found.values() if result.failed]
    text = f"measured {', '.join(found)} in {time.monotonic() - started:.0f} s; the report is {arguments.output / 'RESULTS.md'}"
    print(text if not failed else f"{text}; not completely: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _chosen(parser: argparse.ArgumentParser, only: str) -> Sequence[Part]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(
            f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in PARTS)}"
        )
    return [part for part in PARTS if not names or part.name in names]


def run(part: Part, quick: bool, interpreter: Sequence[str] = (sys.executable,)) -> PartResult:
    """Run a part as a process. Whatever happens to it, there is a result."""
    limit_s, started = part.limit_s(quick), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xlb-bench-") as folder:
        output = Path(folder) / "part.json"
        command = [*interpreter, "-m", f"bench.{part.name}", "--output", str(output), *(["--quick"] if quick else [])]
        process = subprocess.Popen(command, cwd=machine.CHECKOUT)
        why = f"its process ended with {_wait(process, limit_s)} and no result"
        if time.monotonic() - started >= limit_s:
            why = f"it took longer than {limit_s:.0f} s"
        try:
            return from_json(json.loads(output.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            seconds = time.monotonic() - started
            return PartResult(
                part.name, f"Part {part.name}", "", f"python -m bench.{part.name}", quick, seconds, machine.facts(), failed=why
            )


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Its exit code; at the limit, or when this process is interrupted, it is asked to end, then killed."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    except KeyboardInterrupt:  # the terminal has interrupted the part too
        _end(process)
        raise
    return _end(process)


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def earlier(path: Path) -> dict[str, PartResult]:
    """What an earlier run wrote; empty if there is none or this version cannot read it."""
    try:
        return {result.name: result for result in map(from_json, json.loads(path.read_text())["parts"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{path} is not read and will be replaced: {type(error).__name__}: {error}", file=sys.stderr)
        return {}


def write(results: Sequence[PartResult], folder: Path) -> None:
    """The three outputs. Pictures are drawn first: the report names them."""
    facts = machine.facts() | {
        "peers": machine.packages(list(PEERS)),
        "Python packages": machine.python_packages(["pyzmq", "msgpack", "pyroute2", "numpy"]),
    }
    pictures = {result.name: [f"plots/{name}" for name in plots.draw(result, folder / "plots")] for result in results}
    write_json(folder / "RESULTS.json", {"machine": facts, "parts": [to_json(result) for result in results]})
    write_text(folder / "RESULTS.md", report.report(results, facts, pictures))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
