"""What a capture costs: ns per packet of a known connection, without a capture and with the program that records packets.

    sudo .venv/bin/python -m bench.capture [--runs 15] [--rounds 3]

Without a capture the program is the same as in a tree that has none: `xlb` on the interfaces has no instruction for it. See
bench.packet.harness; the figures are compared in turns with the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import sys
import threading
from collections.abc import Iterator

from bench.packet.harness import Bench, bench_on
from bpf.dataplane import CaptureFilter
from bpf.kernel.capture import CaptureMaps
from bpf.loading.loader import CAPTURE
from tests.bpf.bed import V4, why_not
from tests.bpf.packets import from_client

FOREVER_NS = 2**64 - 1
OTHER = CaptureFilter(client=ipaddress.ip_network("203.0.113.0/24"))
SHORT, WHOLE = CaptureFilter(snap_bytes=64), CaptureFilter()
CASES = {"client stopped": (OTHER, 0), "of another client": (OTHER, FOREVER_NS), "64 bytes": (SHORT, FOREVER_NS)}
CASES["whole"] = (WHOLE, FOREVER_NS)
DRAIN_S = 0.001


@contextlib.contextmanager
def drained(maps: CaptureMaps) -> Iterator[None]:
    """Nothing is lost: a full ring would make recording look cheap."""
    ended = threading.Event()

    def drain() -> None:
        while not ended.wait(DRAIN_S):
            maps.skip()

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def known(bench: Bench) -> int:
    return bench.measure(bytes(from_client(V4, flags="A")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of which the fastest counts (default 15)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default 3)")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    cores = sorted(os.sched_getaffinity(0))
    off: list[int] = []
    found: dict[str, list[int]] = {name: [] for name in CASES}
    with bench_on((), arguments.runs) as plain, bench_on((CAPTURE,), arguments.runs) as recording:
        for bench in (plain, recording):
            bench.establish(V4)
        with CaptureMaps(recording.bed.pins) as maps, drained(maps):
            os.sched_setaffinity(0, {cores[-1]})  # not the thread that drains
            for _ in range(arguments.rounds):
                off.append(known(plain))
                for name, (wanted, until_ns) in CASES.items():
                    maps.record(wanted, until_ns)
                    found[name].append(known(recording))
            lost = sum(each.lost for each in maps.losses())
    print(f"no capture           {min(off):6} ns")
    for name, costs in found.items():
        print(f"{name:<20} {min(costs):6} ns  {min(costs) / min(off):.1f} of it")
    print(f"records lost: {lost}")


if __name__ == "__main__":
    main()
