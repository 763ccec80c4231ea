"""Part "packet" of the suite: nanoseconds per packet, and the size of the program.

    sudo .venv/bin/python -m bench.packet [--quick] [--match TEXT]
    sudo .venv/bin/python -m bench.packet --against ANOTHER_CHECKOUT [--rounds 3] [--match TEXT]

bench.features measures what each optional feature adds, bench.capture what a capture does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from bench.packet import compare, situations
from bench.packet.harness import Bench, bench_on, map_costs
from bench.packet.situations import AMONG, KNOWN, NEW, UNREACHABLE, Situation
from bench.suite.figures import Line, Plot, Table, Target
from bench.suite.part import Plan, part_main
from ctl.dataplane import features
from tests.bpf.bed import V4, Bed
from tests.bpf.packets import from_client

XLB, BASE = "xlb", "known flow, TCP4 snat"
TITLE = "Per packet"
METHOD = f"""\
BPF_PROG_TEST_RUN on one pinned core. A small program restores the packet, gives it the next client
address where there are many, and tail-calls the program under test; the same with an empty program
is subtracted. A sample is the fastest of several runs of 10,000 packets and more. Ratios are to
"{BASE}": the packet of a known TCP connection over IPv4 in mode `snat`, measured in each round. The
packet itself is in the processor's cache, and nothing is sent: a driver adds its own time."""
LIMITS = {
    "UDP4 snat, known flow": (1.1, ""),
    "TCP6 snat, known flow": (1.25, "two cache lines instead of one, and four times the address words to compare and hash"),
    "TCP4 dsr, known flow": (0.9, "it shares parsing, lookup, fence and counting with snat, which are most of either"),
    "TCP4 ipip, known flow": (
        1.1,
        "bpf_xdp_adjust_head is a call, 9 ns, and 20 bytes more are written; absolute it takes 44 ns, less than a known flow "
        "of any mode took before copies (47)",
    ),
    "TCP4 snat, among 100,000 known flows": (
        4,
        "one cold cache line for a flow that has a copy, three more for one that has none; copies made the flow that all is "
        "compared with 19 ns faster, and this one 130",
    ),
    "TCP4 snat, among 1,000,000 known flows": (6, "there are copies for an eighth of them on each of two processors"),
    "TCP4 snat, new SYN each time, map full": (
        10,
        "of 2,150 ns in the rig, 1,360 are the two inserts into the kernel's LRU (600 each with an eviction, 300 to 450 "
        "without), 180 the lookups of the fast path, 200 those of the pipeline, 140 of listener and servers, 115 choosing a "
        "backend, 160 the FIB and the rewrite. Not writing the forward entry saves 180 to 380 and lets a repeated SYN find no "
        "backend. A table of its own instead of the LRU, one cache line for an entry, is the step that is left",
    ),
}
"""Upper bounds of the ratio to BASE, and why one is missed."""
BUILDS: Mapping[str, tuple[str, ...]] = {
    "no feature": (),
    "replication": ("replication",),
    "dsr, ipip": ("dsr", "ipip"),
    "every feature": tuple(sorted(features.WORDS)),
}


def tables(plan: Plan) -> Iterator[Table | Plot]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen = [each for each in situations.all_situations(plan.quick) if plan.chosen(each.table) and is_wanted(plan, each)]
    runs, rounds = plan.rounds(15, 3), plan.rounds(3, 1)
    if plan.chosen("Baselines"):
        yield baselines(runs, rounds)
    found = {each.name: Samples(each) for each in chosen}
    with situations.benches([*chosen, next(situations.known())]) as benches:
        for name in dict.fromkeys(each.table for each in chosen):
            of_table = [each for each in chosen if each.table == name]
            for number in range(rounds):
                plan.progress(f"{name}, round {number + 1} of {rounds}")
                base = measured_base(benches[()], runs)
                for each, cost in situations.measured(of_table, runs, benches):
                    found[each.name].add(cost, base)
            yield Table(name, tuple(found[each.name].line() for each in of_table), method(name))
    growing = [found[each.name] for each in chosen if each.table == AMONG]
    if growing:
        yield growth(growing)
    if plan.chosen("Size of the program"):
        yield sizes(plan)
    if plan.chosen("Maps") and not plan.quick:
        lines = tuple(Line(name, "ns", {XLB: [ns]}) for name, ns in map_costs(runs))
        yield Table(
            "Maps", lines, "A map like `flows_v4` with a million entries and no locality; the harness' 10 ns are in it."
        )


def is_wanted(plan: Plan, each: Situation) -> bool:
    """A quick run leaves out what resembles another line."""
    if not plan.quick:
        return True
    if each.table == KNOWN:
        return not any(words in each.name for words in ("reply", "UDP6", "dnat, known", "to IPv"))
    if each.table == NEW:
        return "4 snat" in each.name or "TCP4 dnat" in each.name
    return not (each.table == AMONG and "TCP6" in each.name and each.count != 20_000)


class Samples:
    """What is known of a situation."""

    def __init__(self, situation: Situation) -> None:
        self.situation, self.reason = situation, ""
        self.costs, self.bases = list[float](), list[float]()

    def add(self, cost: int | str, base: int) -> None:
        if isinstance(cost, str):
            self.reason = cost
        else:
            self.costs.append(cost)
            self.bases.append(base)

    def line(self) -> Line:
        name = self.situation.name
        if self.reason or not self.costs:
            return Line(name, "ns", {}, missing={XLB: self.reason or "no sample"})
        limit, gap = LIMITS.get(name, (0, ""))
        targets = (Target(XLB, limit, at_least=False, against=BASE, gap=gap),) if limit else ()
        return Line(name, "ns", {XLB: self.costs, BASE: self.bases}, against=BASE, targets=targets)


def measured_base(bench: Bench, runs: int) -> int:
    bench.runs = runs
    return next(situations.known()).cost(bench)


def method(name: str) -> str:
    if name == AMONG:
        return (
            "Established connections of different clients, their packets in an order without locality; each had a packet "
            "within the last second, as on a node that is busy with them."
        )
    if name == NEW:
        return (
            "Each packet is the first of a new client. Full: the map of embryonic connections is, so that each insert evicts "
            "the oldest entry. Half full: it is empty at the beginning of a run and half full at its end."
        )
    if name == situations.DROPS:
        unreachable = "; ".join(f"`{counter}` {why}" for counter, why in UNREACHABLE.items())
        return (
            "One packet for each counter of drops. Answers (TCP reset, ICMP error) are limited to 64 per tick, so nearly all "
            f"of these packets get none. Not reachable by a packet of a test run: {unreachable}."
        )
    return ""


def baselines(runs: int, rounds: int) -> Table:
    """Of the harness: what a program costs that does nothing, or parses only."""
    frame = bytes(from_client(V4, flags="A"))
    with bench_on((), runs) as bench:
        samples = {name: [float(bench.baseline(name, frame)) for _ in range(rounds)] for name in ("empty", "parse")}
    return Table(
        "Baselines",
        (
            Line("harness with an empty program, subtracted from all others", "ns", {"baseline": samples["empty"]}),
            Line("program that parses Ethernet, IPv4 and TCP, and does nothing", "ns", {"baseline": samples["parse"]}),
        ),
    )


def growth(found: Sequence[Samples]) -> Plot:
    series: dict[str, list[tuple[float, float]]] = {}
    for each in found:
        if each.costs:
            series.setdefault(each.situation.name[:9], []).append((each.situation.count, min(each.costs)))
    chosen = {name: points for name, points in series.items() if len(points) > 1}
    return Plot("A packet of a known flow among many", "flows", "ns", chosen, "x")


def sizes(plan: Plan) -> Table:
    lines: dict[str, dict[str, dict[str, float]]] = {}
    builds = {name: build for name, build in BUILDS.items() if not plan.quick or name == "no feature"}
    for name, build in builds.items():
        with Bed(dict.fromkeys(build, True)) as bed:
            for program, info in bed.programs().items():
                found = lines.setdefault(
                    program, {"instructions": {}, "bytes of machine code": {}, "instructions verified": {}}
                )
                for unit, value in zip(found, (info.instructions, info.native_bytes, info.verified), strict=True):
                    found[unit][name] = value
    return Table(
        "Size of the program",
        tuple(
            Line(f"{program}, {unit}", unit.split(" ")[0], {name: [value] for name, value in values.items()})
            for program, units in sorted(lines.items())
            for unit, values in units.items()
        ),
        "By features that are compiled in, which depends on what farms use. Known flows take `xlb` alone.",
    )


if __name__ == "__main__":
    if any(word.split("=")[0] == "--against" for word in sys.argv[1:]):
        sys.exit(compare.main(sys.argv[1:]))
    sys.exit(part_main("packet", TITLE, METHOD, tables))
