"""Times what the control plane computes, without kernel or network: `python -m bench.control [--json] [--runs N]`.

Prints minimum and median in milliseconds with the target. Run on an idle core (`taskset -c 1`) for numbers to quote.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctl.config.changes import change, replace_from_document
from ctl.config.farms_file import parse_text, to_document, to_text
from ctl.config.model import Backend, Config
from ctl.config.record_codec import Encoder, decode
from ctl.dataplane import maglev
from ctl.dataplane.planner import PlannerState, plan
from ctl.health.check_machine import HealthChecks
from ctl.state.durable_files import Files
from ctl.state.store import Store

FARMS = 1000
BACKENDS = 10


def save_next(store: Store, encoder: Encoder, versions: Iterator[Config]) -> None:
    store.save(encoder.encode(next(versions)))


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table; `target_ms` 0: none."""

    name: str
    minimum_ms: float
    median_ms: float
    target_ms: float


class NoSync(Files):
    """Everything except the wait for the disk."""

    def write_synced(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def sync_directory(self, path: Path) -> None:
        pass


def measure(name: str, target_ms: float, runs: int, work: Callable[[], object]) -> Measured:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return Measured(name, min(times), statistics.median(times), target_ms)


def big_document() -> dict[str, object]:
    """1,000 farms of 10 backends on 10 VIPs, each with an HTTP check."""
    vips = [{"address": f"10.0.0.{number + 1}/24", "device": "eth0"} for number in range(10)]
    farms = []
    for number in range(FARMS):
        backends = [
            {"address": f"10.{1 + number // 250}.{number % 250}.{last + 1}", "port": 8080, "weight": 1 + last % 3}
            for last in range(BACKENDS)
        ]
        listener = {"name": f"farm{number}", "vip": f"10.0.0.{number % 10 + 1}", "port": 1000 + number}
        farms.append({**listener, "health": {"kind": "http"}, "backend": backends})
    return {"vip": vips, "farm": farms}


def measure_all(runs: int) -> list[Measured]:
    hundred = [Backend(number, f"10.0.0.{number}", 80) for number in range(1, 101)]
    document = big_document()
    text = to_text(document)
    config = replace_from_document(Config(), document)
    one = {"farm": "farm500", "address": config.farms["farm500"].backends[3].address, "port": 8080}
    planned = plan(PlannerState(), config, frozenset()).state
    changed = change(config, "backend.set", {**one, "weight": 7})
    lost = frozenset({config.farms["farm500"].backends[3].id})
    encoder = Encoder()
    record = encoder.encode(config)
    lines = [
        measure("Maglev table, 65,537 slots, 100 backends", 50, runs, lambda: maglev.lookup_table(hundred, 65537)),
        measure("farms file: read 1,000 farms x 10", 0, runs, lambda: parse_text(text, "bench")),
        measure("farms file: check and number them", 0, runs, lambda: replace_from_document(Config(), document)),
        measure("plan all of them from empty", 3000, runs, lambda: plan(PlannerState(), config, frozenset())),
        measure("change one backend of 10,000", 0, runs, lambda: change(config, "backend.set", {**one, "weight": 7})),
        measure("plan that change", 50, runs, lambda: plan(planned, changed, frozenset())),
        measure("plan a backend that went down", 0, runs, lambda: plan(planned, config, lost)),
        measure("plan when nothing changed", 0, runs, lambda: plan(planned, config, frozenset())),
        measure("export to TOML", 0, runs, lambda: to_text(to_document(config))),
        measure("state file: encode from nothing", 0, runs, lambda: Encoder().encode(config)),
        measure("state file: decode and check", 0, runs, lambda: decode(record)),
        measure("health checks: follow 10,000 backends", 0, runs, lambda: HealthChecks().configure(config, 0)),
    ]
    with tempfile.TemporaryDirectory() as directory:
        for name, store in (("without", Store(Path(directory) / "a", NoSync())), ("with", Store(Path(directory) / "b"))):
            encoder = Encoder()
            store.save(encoder.encode(config))
            versions = iter([config, changed] * runs)
            lines.append(
                measure(
                    f"state file: save one change, {name} fsync",
                    0,
                    runs,
                    functools.partial(save_next, store, encoder, versions),
                )
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    lines = measure_all(options.runs)
    if options.json:
        print(json.dumps([{name: getattr(line, name) for name in Measured.__slots__} for line in lines]))
        return
    print(f"{'':<50} {'min ms':>9} {'median':>9} {'target':>9}")
    for line in lines:
        target = f"{line.target_ms:9.0f}" if line.target_ms else ""
        print(f"{line.name:<50} {line.minimum_ms:9.2f} {line.median_ms:9.2f} {target}")


if __name__ == "__main__":
    main()
