"""Part "wire" of the suite: throughput of xlb and its peers in the rig.

sudo .venv/bin/python -m bench.wire [--quick] [--match TEXT] [--output FILE]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from bench.suite.figures import Line, Plot, Table, Target
from bench.suite.part import Plan, part_main
from bench.suite.turns import in_turns_of_many
from bench.wire.balancers import Balancer, DnatTwin, Forwarding, Haproxy, Nftables, Nftlb, Redirect, Xlb, started
from bench.wire.generator import Generator, generator
from bench.wire.packets import FAMILIES
from bench.wire.short import short_connections
from bench.wire.site import Site, conntrack_entries
from bench.wire.tcp import PERCENTILES, Cores, Tcp, serving
from bench.wire.udp import Udp

TITLE = "Throughput in the rig"
METHOD = (
    "Each subject has a client, itself and servers in namespaces of their own, joined by veths without a switch: the same "
    "addresses, routes, neighbours, 64 backends (UDP) or 16 (TCP), and the same offload settings per table. nftables "
    "translates to a random backend and to the VIP; `nf_conntrack_max` is 4,194,304 with 2,097,152 buckets, and its "
    "connections are flushed before each round of new ones, while xlb starts with full maps and evicts. A core's packets/s are "
    "those of one core on which the generator (BPF_PROG_TEST_RUN with live frames), the balancer and the counting receiver "
    "all run, in processor time of the generator's thread and of the core's ksoftirqd: other work on the machine does not "
    "count, and what the rig itself costs is the row of the redirect, a program that only rewrites MAC addresses. A run that "
    "loses more than 0.1 % of its packets fails."
)
REDIRECT, FORWARDING, HAPROXY = "redirect only", "forwarding", "HAProxy"
NFTABLES, NFTABLES_DNAT, FLOWTABLE, NFTLB = "nftables snat", "nftables dnat", "nftables snat, flowtable", "nftlb snat"
XLB, XLB_DNAT, GENERIC = "xlb snat", "xlb dnat", "xlb snat, generic"
ORDER = (REDIRECT, FORWARDING, NFTABLES, NFTABLES_DNAT, FLOWTABLE, NFTLB, HAPROXY, XLB, XLB_DNAT, GENERIC)
STATELESS = (REDIRECT, FORWARDING)
ENTRIES = 4 << 20
MAX_FLOWS, FEW_FLOWS = 2 << 20, 128 << 10
MILLION = 1_000_000
FIRST = {100: 0, 20_000: 1_000, MILLION: 1 << 20}
"""The first flow of each set of known ones."""
NEW_GAP = (
    "the two inserts into the kernel's LRU map take 1,360 of about 2,150 ns; 790 ns remain without any. Fewer lookups would "
    "not be enough: the step that is left is a table of its own in place of the LRU. Not tried"
)
KNOWN_GAPS = {
    20_000: (
        "flows that exceed the processor's cache cost a cold line each, although the program reads one copy of an entry "
        "instead of three lines. Tried without gain: 32,768, 65,536 and 131,072 copies for each processor, fewer numbers of "
        "changes"
    ),
    MILLION: (
        "each flow has about one packet in a run and so finds no copy; its entry is three cold lines, read one after the "
        "other. Tried without gain: no new copies. A table of its own, one line for an entry, is the step that is left"
    ),
}
CONCURRENT = 32
FRAMES, LARGE = "frames of the MTU", "large segments"


class Bench:
    """The started subjects, and what measures them. subjects: with two interfaces; single: with one."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self.plan = plan
        allowed = sorted(os.sched_getaffinity(0))
        self.core, self.other = allowed[-1], allowed[0]
        os.sched_setaffinity(0, {self.other})  # threads that measure choose their own
        self.missing: dict[str, str] = {}
        limits = stack.enter_context(conntrack_entries(ENTRIES))
        if limits:
            plan.progress(limits)
        self.versions = (4,) if plan.quick else (4, 6)

        def on(core: int) -> dict[int, Generator]:
            return {version: stack.enter_context(generator(FAMILIES[version], core)) for version in self.versions}

        self.generators = on(self.core)
        self.udp = Udp(self.generators, on(self.other))
        self.short = stack.enter_context(short_connections(self.core))
        one_core = self.generators[4]
        every: dict[str, Balancer] = {
            REDIRECT: Redirect(Site("redirect"), one_core),
            FORWARDING: Forwarding(Site("forwarding")),
            NFTABLES: Nftables(Site("nftables")),
            NFTABLES_DNAT: Nftables(Site("nftables dnat"), snat=False),
            FLOWTABLE: Nftables(Site("flowtable"), flowtable=True),
            NFTLB: Nftlb(Site("nftlb")),
            HAPROXY: Haproxy(Site("haproxy")),
            XLB: Xlb(Site("xlb"), "native", MAX_FLOWS, self.other),
            GENERIC: Xlb(Site("xlb generic"), "generic", MAX_FLOWS, self.other),
        }
        single: dict[str, Balancer] = {
            REDIRECT: Redirect(Site("redirect 1", 1), one_core),
            NFTABLES: Nftables(Site("nftables 1", 1)),
            XLB: Xlb(Site("xlb 1", 1), "native", FEW_FLOWS, self.other),
        }
        all_of_them = every | {f"{name}, one interface": balancer for name, balancer in single.items()}
        subjects = stack.enter_context(started(all_of_them, self.missing))
        self.single = single
        xlb = subjects[XLB]
        assert isinstance(xlb, Xlb)
        subjects[XLB_DNAT] = DnatTwin(xlb)
        self.subjects = {name: subjects[name] for name in ORDER if name in subjects}

    def named(self, names: Sequence[str], of: Mapping[str, Balancer] | None = None) -> dict[str, Balancer]:
        subjects = self.subjects if of is None else of
        return {name: subjects[name] for name in names if name in subjects}

    def absent(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.missing[name] for name in names if name in self.missing}


def main() -> int:
    return part_main("wire", TITLE, METHOD, tables)


def tables(plan: Plan) -> Iterator[Table | Plot]:
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        plan.progress("wire: the subjects run")
        if plan.chosen("UDP"):
            yield from _udp(bench)
        if plan.chosen("UDP with one interface"):
            yield _one_interface(bench)
        if plan.chosen("Short TCP connections"):
            yield _short(bench)
        names: Sequence[str] = (FORWARDING, REDIRECT, NFTABLES, NFTLB, HAPROXY, XLB, XLB_DNAT, GENERIC)
        if plan.quick:
            names = (FORWARDING, NFTABLES, HAPROXY, XLB, GENERIC)
        if plan.chosen("TCP"):
            sites = {balancer.site for balancer in bench.named(names).values()}
            with serving(sites, Cores(bench.core, bench.other)) as tcp:
                yield from _tcp(bench, tcp, names)


# --- UDP --------------------------------------------------------------------------------------------------------


def _udp(bench: Bench) -> Iterator[Table]:
    rates, over = [], []
    for version in bench.versions:
        for flows in (100, 20_000, MILLION):
            names: Sequence[str] = (*STATELESS, NFTABLES, NFTABLES_DNAT, FLOWTABLE, NFTLB, XLB, XLB_DNAT, GENERIC)
            if flows == MILLION:
                names = (REDIRECT, NFTABLES, XLB, GENERIC)
                if version == 6:
                    continue
            elif bench.plan.quick or version == 6:
                names = (*STATELESS, NFTABLES, FLOWTABLE, NFTLB, XLB, GENERIC)
            limit = {100: 5.0, 20_000: 5.0, MILLION: 3.0}[flows]
            name = f"UDP{version}, {'among ' if flows > 100 else ''}{flows:,} known flows"
            found = _known(bench, bench.named(names), version, flows)
            gap = KNOWN_GAPS.get(flows, "")
            rate, cost = _lines(name, found, bench.absent(names), limit, gap, ceiling=flows == 100)
            rates.append(rate)
            over.append(cost)
        names = (*STATELESS, NFTABLES, NFTABLES_DNAT, NFTLB, XLB, XLB_DNAT, GENERIC)
        if bench.plan.quick or version == 6:
            names = (*STATELESS, NFTABLES, NFTLB, XLB, GENERIC)
        found = _new(bench, bench.named(names), version)
        rate, cost = _lines(f"UDP{version}, each packet a new flow", found, {}, 3.0, NEW_GAP)
        rates.append(rate)
        over.append(cost)
    yield Table("UDP, packets/s of one core", tuple(rates))
    yield Table(
        "UDP, processor time over a redirect",
        tuple(over),
        "The time of a packet less that of the bare redirect in the same round.",
    )


Samples = dict[str, dict[str, list[float]]]


def _known(bench: Bench, subjects: Mapping[str, Balancer], version: int, flows: int) -> Samples:
    bench.plan.progress(f"wire: UDP{version}, {flows:,} known flows")
    stateful = [balancer for name, balancer in reversed(list(subjects.items())) if name not in STATELESS]  # the slowest first
    bench.udp.establish(stateful, version, FIRST[flows], flows)
    count = 100_000 if bench.plan.quick else 300_000

    def measure(name: str) -> dict[str, float]:
        run = bench.udp.known(subjects[name], version, FIRST[flows], flows, count)
        return {"rate": run.per_s, "ns": run.ns}

    return _in_turns(bench, subjects, version, measure)


def _new(bench: Bench, subjects: Mapping[str, Balancer], version: int) -> Samples:
    bench.plan.progress(f"wire: UDP{version}, new flows")
    count = 50_000 if bench.plan.quick else 100_000

    def measure(name: str) -> dict[str, float]:
        run = bench.udp.new(subjects[name], version, count)
        return {"rate": run.per_s, "ns": run.ns}

    return _in_turns(bench, subjects, version, measure)


def _in_turns(
    bench: Bench, subjects: Mapping[str, Balancer], version: int, measure: Callable[[str], dict[str, float]]
) -> Samples:
    for balancer in subjects.values():
        bench.udp.receive(balancer, version)
    for name in subjects:  # warm up
        measure(name)
    return in_turns_of_many(subjects, bench.plan.rounds(7, 3), measure)


def _lines(
    name: str, found: Samples, missing: Mapping[str, str], limit: float, gap: str, *, ceiling: bool = False
) -> tuple[Line, Line]:
    """The rate with its targets, and the cost over the redirect."""
    targets = [Target(XLB, limit, against=NFTABLES, gap=gap)]
    if ceiling:
        targets.append(Target(XLB, 0.8, against=REDIRECT))
    if GENERIC in found:
        targets.append(Target(GENERIC, 1.5, against=NFTABLES, gap=gap))
    rates = {subject: figures["rate"] for subject, figures in found.items()}
    bare = found[REDIRECT]["ns"]
    over = {
        subject: [ns - base for ns, base in zip(figures["ns"], bare, strict=True)]
        for subject, figures in found.items()
        if subject != REDIRECT
    }
    rate = Line(name, "packets/s", rates, "higher", NFTABLES, tuple(targets), missing)
    return rate, Line(name, "ns/packet", over, "lower", NFTABLES, (), missing)


def _one_interface(bench: Bench) -> Table:
    lines = []
    for flows in (100, 20_000):
        found = _known(bench, bench.single, 4, flows)
        lines.append(
            _lines(
                f"UDP4, {flows:,} known flows, one interface", found, {}, 5.0, KNOWN_GAPS.get(flows, ""), ceiling=flows == 100
            )[0]
        )
    lines.append(_lines("UDP4, each packet a new flow, one interface", _new(bench, bench.single, 4), {}, 3.0, NEW_GAP)[0])
    return Table("UDP with one interface, packets/s of one core", tuple(lines), "Clients and servers are one host.")


# --- TCP --------------------------------------------------------------------------------------------------------


def _short(bench: Bench) -> Table:
    names = (*STATELESS, NFTABLES, NFTABLES_DNAT, NFTLB, HAPROXY, XLB, XLB_DNAT, GENERIC)
    subjects = bench.named(names)
    counts = dict.fromkeys(subjects, 20_000 if bench.plan.quick else 60_000)
    counts[HAPROXY] = 5_000 if bench.plan.quick else 15_000
    for balancer in subjects.values():
        bench.short.attach(balancer)
    found = in_turns_of_many(
        subjects,
        bench.plan.rounds(7, 3),
        lambda name: {"rate": bench.short.per_core_s(subjects[name], counts[name], CONCURRENT)},
    )
    targets = (
        Target(XLB, 1.3, against=NFTABLES),
        Target(XLB, 2.0, against=HAPROXY),
        Target(GENERIC, 1.3, against=NFTABLES),
    )
    samples = {name: figures["rate"] for name, figures in found.items()}
    line = Line("connect, request, response, close", "connections/s", samples, "higher", NFTABLES, targets, bench.absent(names))
    return Table(
        "Short TCP connections per second of one core",
        (line,),
        "Both ends are XDP programs that answer each segment, six per connection, so that nothing but the balancer has a TCP "
        f"stack; {CONCURRENT} connections at once. Processor time includes HAProxy's, which works on both cores.",
    )


def _tcp(bench: Bench, tcp: Tcp, names: Sequence[str]) -> Iterator[Table]:
    subjects, plan = bench.named(names), bench.plan
    missing = bench.absent(names)

    def turns(rounds: int, measure: Callable[[Balancer], dict[str, float]], of: Sequence[str] = names) -> Samples:
        chosen = bench.named(of)
        return in_turns_of_many(chosen, rounds, lambda name: measure(chosen[name]))

    def line(
        name: str,
        unit: str,
        found: Samples,
        figure: str,
        better: str,
        targets: tuple[Target, ...] = (),
        against: str = FORWARDING,
    ) -> Line:
        samples = {subject: figures[figure] for subject, figures in found.items()}
        return Line(name, unit, samples, better, against, targets, dict(missing))

    for balancer in subjects.values():
        balancer.site.offloads(large=False, merge=False)
    lines: list[Line] = []
    mbytes = 150 if plan.quick else 600
    for streams in (1, 8):
        plan.progress(f"wire: TCP bulk, {FRAMES}, {streams}")
        found = turns(plan.rounds(5, 2), partial(tcp.bulk, streams=streams, mbytes=mbytes))
        name = f"bulk, {streams} stream{'s' * (streams > 1)}"
        lines.append(line(name, "Mbit/s", found, "rate", "higher", (Target(XLB, 0.95, against=FORWARDING),)))
        lines.append(line(f"{name}: processor time", "µs/MB", found, "cpu", "lower"))
    if not plan.quick:
        plan.progress("wire: HTTP connections")
        found = turns(4, partial(tcp.connections, concurrency=CONCURRENT))
        lines.append(line("new HTTP connections, wrk and a server", "connections/s", found, "rate", "higher"))
        lines.append(line("new HTTP connections: processor time", "µs/connection", found, "cpu", "lower"))
    plan.progress("wire: round trips")
    found = turns(plan.rounds(9, 4), partial(tcp.round_trips, count=2_000 if plan.quick else 5_000))
    for name in PERCENTILES:
        targets = (Target(XLB, 1.1, at_least=False, against=FORWARDING),) if name == "p50" else ()
        lines.append(line(f"round trip on a kept connection, {name}", "µs", found, name, "lower", targets))
    yield Table(
        f"TCP between sockets, {FRAMES}",
        tuple(lines),
        "Clients (iperf3, wrk, a ping-pong of 64 bytes) run on one core, servers on the other. The processor time of the new "
        "HTTP connections is almost all that of wrk and the server: see the short connections for what a balancer costs. "
        "Segments have the size of the MTU and finished checksums, which is what a native program can take; the ends join what "
        "they receive, the balancer does not.",
    )
    if plan.quick:
        return
    plan.progress(f"wire: TCP bulk, {LARGE}")
    large = tuple(name for name in (FORWARDING, NFTABLES, NFTLB, HAPROXY) if name in names)
    for balancer in bench.named(large).values():
        balancer.site.offloads(large=True, merge=True)
    missing |= {XLB: NO_LARGE, GENERIC: NO_LARGE}
    lines = []
    for streams in (1, 8):
        found = turns(5, partial(tcp.bulk, streams=streams, mbytes=2 * mbytes), large)
        lines.append(line(f"bulk, {streams} stream{'s' * (streams > 1)}", "Mbit/s", found, "rate", "higher"))
        lines.append(line(f"bulk, {streams} stream{'s' * (streams > 1)}: processor time", "µs/MB", found, "cpu", "lower"))
    yield Table(f"TCP bulk, {LARGE}", tuple(lines), "TSO and GRO on everywhere, as inside one machine: nothing divides them.")


NO_LARGE = "an XDP program receives frames as they are on the wire"


if __name__ == "__main__":
    sys.exit(main())
