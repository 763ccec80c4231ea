"""Random histories without end: python -m tests.model.fuzz --steps N [--seed S] [--jobs J].

Each episode of some hundred steps has its own seed. An episode in which model and program differ is cut down to the steps that
are needed, printed, and written to a file that --replay plays again; it ends the run.
"""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import gc
import itertools
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from bpf.columns import address_text
from bpf.constants import COUNTERS
from tests.bpf.bed import Bed, why_not
from tests.bpf.tagged_bed import TaggedBed
from tests.model.generate import Generator
from tests.model.kernel import Kernel
from tests.model.machine import START_NS, Machine, Mismatch
from tests.model.state import Flow, Key
from tests.model.steps import Configure, Insert, Send, Step

T = TypeVar("T")


def _read_only(entries: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(entries)


copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))  # configurations have some

EPISODE = 400
BUILDS: tuple[tuple[tuple[str, ...], int], ...] = (
    ((), 0),
    (("dsr", "ipip", "persistence", "quic", "toa"), 0),
    (("dsr", "ipip", "lists", "rate", "half_open", "loads", "persistence", "quic", "toa"), 0),
    (("dsr", "half_open", "loads", "toa"), 8),
    (("dsr", "ipip", "toa", "vlans"), 0),
)
"""The programs that are compared, episode by episode in turn: features, and embryonic connections if their map is to evict."""
INTERACTIVE = "CI" not in os.environ
LATE_NS = (1 << 58) - (200 << 26)
"""Shortly before ticks overflow."""
RARE = {
    *("drop_snat_exhausted", "drop_reverse_conflict", "drop_fenced_neighbour", "drop_too_big", "drop_half_open"),
    *("drop_no_tunnel_source", "drop_unresolved", "drop_ipv6_extension", "drop_backend_full", "drop_farm_full", "drop_rate"),
    *("event_toa_inserted", "event_toa_skipped", "event_flow_table_full", "event_ring_full"),
    "drop_not_compiled",
}
"""Outcomes of less than 1 in 200 steps: 20,000 steps need not have them."""
EXPECTED = frozenset(counter.name for counter in COUNTERS) - {"drop_internal", "drop_no_headroom"} - RARE
"""Outcomes that histories have: all but a bug, a driver without headroom, and rare ones."""


@contextlib.contextmanager
def beds() -> Iterator[list[Bed]]:
    """One for each build."""
    with contextlib.ExitStack() as stack:
        made = [
            (TaggedBed if "vlans" in features else Bed)(
                dict.fromkeys(("replication", "test_clock", *features), True), max_embryonic=embryonic
            )
            for features, embryonic in BUILDS
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(stack.enter_context, made))
        yield made


def open_kernels(opened: list[Bed]) -> list[Kernel]:
    """To be called in the thread that uses them: it stays on one CPU until a step moves it."""
    cpus = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(cpus)  # jobs begin on CPUs of their own
    return [Kernel(bed, cpus[first:] + cpus[:first]) for bed in opened]


def never_counted(counted: Counter[str]) -> list[str]:
    """Verdicts and events that should have happened, and have not."""
    return sorted(EXPECTED - counted.keys())


def features_of(kernel: Kernel) -> list[str]:
    return [feature for feature, on in kernel.bed.features.items() if on]


def start_of(seed: int) -> int:
    return LATE_NS if seed % 10 == 9 else START_NS


def episode(kernel: Kernel, seed: int, steps: int, counted: Counter[str]) -> tuple[list[Step], Mismatch | None]:
    """The steps executed, and how the last one failed."""
    machine = Machine(kernel, start_of(seed))
    generator, done = Generator(random.Random(seed), machine.state, features_of(kernel)), list[Step]()
    try:
        for number in range(steps):
            step = generator.step() if number else generator.configure()
            done.append(step)
            machine.execute(step)
        machine.compare_all()
    except Mismatch as mismatch:
        return done, mismatch
    finally:
        machine.close()
        counted.update(machine.counted)
    return done, None


def replay(kernel: Kernel, steps: list[Step], start_ns: int) -> Mismatch | None:
    """How these steps fail, if they do."""
    machine = Machine(kernel, start_ns)
    try:
        for step in steps:
            machine.execute(step)
        machine.compare_all()
    except Mismatch as mismatch:
        return mismatch
    finally:
        machine.close()
    return None


def smallest(steps: list[T], fails: Callable[[list[T]], object]) -> list[T]:
    """Steps that still fail, none of which can be left out."""
    size = max(1, len(steps) // 2)
    while True:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fewer and fails(fewer):
                steps = fewer
            else:
                at += size
        if size == 1:
            return steps
        size //= 2


def run(
    kernels: list[Kernel], steps: int, seed: int, counted: Counter[str], working: Callable[[int], None] = lambda done: None
) -> None:
    """So many steps, in episodes with the seeds from `seed` on. Raises Mismatch with the history that is needed for it."""
    done = 0
    while done < steps:
        kernel = kernels[seed % len(kernels)]
        executed, mismatch = episode(kernel, seed, min(EPISODE, max(1, steps - done)), counted)
        if mismatch:
            raise Mismatch(report(kernel, executed, seed, mismatch))
        done, seed = done + len(executed), seed + 1
        working(done)


def report(kernel: Kernel, steps: list[Step], seed: int, mismatch: Mismatch) -> str:
    """What differs, and the shortest history found for it, which is also written to a file."""
    start_ns = start_of(seed)
    steps = smallest(steps, lambda fewer: replay(kernel, fewer, start_ns))
    steps = [_with_fewer_entries(kernel, steps, number, start_ns) for number in range(len(steps))]
    mismatch = replay(kernel, steps, start_ns) or mismatch
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"xlb-model-{seed}.pickle"
    path.write_bytes(pickle.dumps((seed % len(BUILDS), start_ns, steps)))
    lines = [f"seed {seed}, build {features_of(kernel)}, {len(steps)} steps (python -m tests.model.fuzz --replay {path}):"]
    for line, same in itertools.groupby(map(described, steps)):
        count = len(list(same))
        lines.append(line if count == 1 else f"{line} ({count} times)")
    return "\n".join([*lines, str(mismatch)])


def _with_fewer_entries(kernel: Kernel, steps: list[Step], number: int, start_ns: int) -> Step:
    step = steps[number]
    if not isinstance(step, Insert):
        return step

    def fails(entries: list[tuple[Key, Flow]]) -> object:
        return replay(kernel, [*steps[:number], replace(step, entries=tuple(entries)), *steps[number + 1 :]], start_ns)

    return replace(step, entries=tuple(smallest(list(step.entries), fails)))


def described(step: Step) -> str:
    """One line."""
    if isinstance(step, Send):
        return f"  Send {step.side} {step.frame.hex()}"
    if isinstance(step, Insert):
        entries = ", ".join(f"{_address(key)} farm {flow.farm} state {flow.state}" for key, flow in step.entries[:3])
        return f"  Insert {len(step.entries)} entries in {step.table}: {entries}"
    if not isinstance(step, Configure):
        return f"  {step}"
    farms = [
        f"{farm.vip} {farm.ports} {farm.protocol} {farm.mode} {farm.scheduler} snat {farm.snat_address or '-'} "
        + ", ".join(f"{each.endpoint} weight {each.weight} priority {each.priority}" for each in farm.backends)
        for farm in step.config.farms.values()
    ]
    return f"  Configure down {sorted(step.down)}; " + "; ".join(farms)


def _address(key: Key) -> str:
    source, destination = address_text(key.source), address_text(key.destination)
    return f"{source} {key.source_port} -> {destination} {key.destination_port} protocol {key.protocol}"


def _work(steps: int, seed: int) -> int:
    counted, started, shown = Counter[str](), time.monotonic(), [0.0]

    def working(done: int) -> None:
        if time.monotonic() - shown[0] > 30:
            shown[0] = time.monotonic()
            print(f"{done} steps, {done / (time.monotonic() - started):.0f}/s", flush=True)

    gc.set_threshold(100_000, 20, 20)  # histories leave little that is cyclic
    with beds() as opened:
        try:
            run(open_kernels(opened), steps, seed, counted, working)
        except Mismatch as mismatch:
            print(f"program and model differ: {mismatch}")
            return 1
    print(f"{steps} steps from seed {seed} in {time.monotonic() - started:.0f} s, no difference; ", end="")
    print(", ".join(f"{name} {count}" for name, count in counted.most_common()))
    return 0


def _play(path: str) -> int:
    number, start_ns, steps = pickle.loads(Path(path).read_bytes())
    with beds() as opened:
        mismatch = replay(open_kernels(opened)[number], steps, start_ns)
    print(mismatch or "no difference")
    return 1 if mismatch else 0


def main() -> int:
    """0: no difference."""
    parser = argparse.ArgumentParser(description="compare the program with its model")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.getrandbits(31))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", metavar="FILE")
    arguments = parser.parse_args()
    if reason := why_not():
        print(reason)
        return 77
    if arguments.replay:
        return _play(arguments.replay)
    if arguments.jobs == 1:
        return _work(arguments.steps, arguments.seed)
    share = -(-arguments.steps // arguments.jobs)
    command = [sys.executable, "-m", "tests.model.fuzz", "--steps", str(share), "--seed"]
    jobs = [subprocess.Popen([*command, str(arguments.seed + (number << 32))]) for number in range(arguments.jobs)]
    return max(job.wait() for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
