"""What a scrape of 1,000 farms with ten backends each costs: xlbd's answer, its event loop, and the text.

The whole daemon on fakes of the kernel, so that only xlb's own work is measured. Usage: python -m bench.metrics [FARMS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ctl.metrics import families
from tests.fakes.daemon import RunningDaemon, running_daemon

BACKENDS = 10
ROUNDS = 20


def document(farms: int) -> dict[str, object]:
    """A farms file of so many farms."""
    return {
        "vip": [{"address": "10.77.0.100/24", "device": "eth0"}],
        "farm": [
            {
                "name": f"farm{number}",
                "vip": "10.77.0.100",
                "port": 1000 + number,
                "health": {"kind": "none"},
                "backend": [
                    {"address": f"10.88.{number // 24}.{number % 24 * 10 + each}", "port": 80} for each in range(BACKENDS)
                ],
            }
            for number in range(farms)
        ],
    }


def main() -> None:
    """Print medians and worst values in ms."""
    farms = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    asked, rendered = [], []
    with tempfile.TemporaryDirectory() as directory, running_daemon(Path(directory)) as daemon:
        daemon.call("config.apply", document=document(farms))
        for _ in range(ROUNDS):
            began = time.perf_counter()
            answer = daemon.call("metrics")
            answered = time.perf_counter()
            text = families.render(answer)
            asked.append((answered - began) * 1000)
            rendered.append((time.perf_counter() - answered) * 1000)
        held = _held_ms(daemon)
    print(f"{farms} farms, {farms * BACKENDS} backends, {text.count(chr(10))} lines, {len(text) / 1e6:.1f} MB")
    for name, values in (
        ("answer", asked),
        ("text", rendered),
        ("both", [a + b for a, b in zip(asked, rendered, strict=True)]),
    ):
        print(
            f"{name:<8} median {statistics.median(values):6.1f} ms   least {min(values):6.1f} ms   worst {max(values):6.1f} ms"
        )
    print(f"longest single step of the event loop in {ROUNDS} scrapes: {held:.2f} ms")


def _held_ms(daemon: RunningDaemon) -> float:
    """The longest time for which one callback of a scrape holds the loop: by processor time of the loop's thread."""
    worst = 0.0
    handle_class: Any = asyncio.Handle
    run = handle_class._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal worst
        began = time.thread_time()
        run(handle)
        worst = max(worst, (time.thread_time() - began) * 1000)

    handle_class._run = timed
    try:
        for _ in range(ROUNDS):
            daemon.call("metrics")
    finally:
        handle_class._run = run
    return worst


if __name__ == "__main__":
    main()
