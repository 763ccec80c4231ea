"""Part "replication" of the suite: what one node's connections cost until its peer has them, against conntrackd.

sudo .venv/bin/python -m bench.replication [--quick] [--match TEXT] [--output FILE]
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from bench.replication import subject
from bench.replication.conntrackd import LIMIT, Conntrackd
from bench.replication.pair import Pair
from bench.suite.figures import Line, Plot, Table, Target
from bench.suite.part import Plan, part_main
from bench.suite.turns import in_turns_of_many

XLB, CONNTRACKD, DIRECT = "xlb", "conntrackd", "conntrackd, no external cache"
ALL = (XLB, CONNTRACKD, DIRECT)
RATES = (10_000, 20_000)
MILLION = 1_000_000

GAP = "where the time goes has not been profiled yet, and nothing was tried"

TITLE = "Replication of connections"
METHOD = (
    "xlb is a pair of real daemons in the rig; heartbeats every 100 ms. conntrackd runs in FTFW mode over unicast UDP "
    "between two namespaces; with its external cache, the default, a peer still has to commit its entries to the kernel at "
    "a failover, without it they are in the kernel at once, as those of xlb are. A flow is a short connection that is "
    "established and closed, two changes in the active node's kernel: for conntrackd an entry with SNAT and DNAT made by "
    "ctnetlink as ESTABLISHED and changed to TIME_WAIT, in batches, without the events of the handshake and of the entry's "
    "end; for xlb both entries in the flow map and two records in the ring, written by a BPF program. Neither is charged "
    "for the packets or for making the connections. CPU is what the scheduler charges to the daemons' processes (user and "
    "system, all threads), network receive work in their context included; no kernel thread works for one subject alone. "
    "The active daemon has one core, its peer the other one, the maker of connections either. Subjects in turns; they rest "
    "while another one is measured."
)


def main() -> int:
    return part_main("replication", TITLE, METHOD, tables)


def tables(plan: Plan) -> Iterator[Table | Plot]:
    allowed = sorted(os.sched_getaffinity(0))
    processors = allowed[0], allowed[-1]
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        pair = stack.enter_context(Pair(processors))
        peers: dict[str, Conntrackd] = {}
        if shutil.which("conntrackd") and shutil.which("conntrack"):
            for direct in (False,) if plan.quick else (False, True):
                peer = stack.enter_context(Conntrackd(processors, direct))
                peers[peer.name] = peer
        else:
            missing = dict.fromkeys((CONNTRACKD, DIRECT), "the packages conntrackd and conntrack are not installed")
        yield _stream(plan, pair, peers, dict(missing))
        yield _lag(plan, pair, peers, dict(missing))
        yield from _growth(plan, pair, peers.get(CONNTRACKD), dict(missing))


def _stream(plan: Plan, pair: Pair, peers: Mapping[str, Conntrackd], missing: dict[str, str]) -> Table:
    flows = 150_000 if not plan.quick else 60_000
    subjects: dict[str, subject.Subject] = {XLB: pair, **peers}
    for each in subjects.values():  # warm up
        subject.stream(each, 5_000)
    found = in_turns_of_many(subjects, plan.rounds(5, 2), lambda name: subject.stream(subjects[name], flows).figures(), missing)

    def line(name: str, unit: str, figure: str, better: str, *targets: Target, against: str = CONNTRACKD) -> Line:
        samples = {each: found[each][figure] for each in ALL if each in found}
        return Line(name, unit, samples, better, against, targets, missing)

    half = Target(XLB, 0.5, at_least=False, against=CONNTRACKD, gap=GAP)
    return Table(
        "Short connections as fast as the peer takes them",
        (
            line("flows per second", "flows/s", "flows/s", "higher", Target(XLB, 10.0, against=CONNTRACKD, gap=GAP)),
            line("CPU per flow, active node", "µs", "active us", "lower", half),
            line("CPU per flow, peer", "µs", "peer us", "lower", half),
            line("bytes on the link per flow, both directions", "bytes", "bytes", "lower"),
            line("flows that the peer lacks afterwards", "flows", "missing", "lower", against=""),
        ),
        f"{flows:,} flows per round, opened {subject.CHUNK:,} at a time and closed after the next {subject.CHUNK:,}. "
        f"As many are on their way as a subject's buffers take without a loss: {Pair.window:,} (xlb), {Conntrackd.window:,} "
        "(conntrackd).",
    )


def _lag(plan: Plan, pair: Pair, peers: Mapping[str, Conntrackd], missing: dict[str, str]) -> Table:
    seconds = 1.0 if plan.quick else 3.0
    subjects: dict[str, subject.Subject] = {XLB: pair, **peers}
    lines = []
    for rate in RATES[-1:] if plan.quick else RATES:
        reasons = dict(missing)
        found = in_turns_of_many(
            subjects,
            plan.rounds(2, 1),
            lambda name, rate=rate: percentiles(subject.lags_ms(subjects[name], rate, seconds)),  # type: ignore[misc]
            reasons,
        )
        for figure in ("p50", "p99", "worst"):
            samples = {name: found[name][figure] for name in ALL if name in found}
            lines.append(Line(f"{figure} at {rate:,} flows/s", "ms", samples, against=CONNTRACKD, missing=reasons))
    return Table(
        "Lag: from a new connection until the peer has it",
        tuple(lines),
        "Connections are opened every 5 ms, and closed 5 ms later. The arrival is known to 2 ms (conntrackd) and 0.5 ms (xlb).",
    )


def percentiles(lags_ms: Sequence[float]) -> dict[str, float]:
    return {
        "p50": float(np.percentile(lags_ms, 50)),
        "p99": float(np.percentile(lags_ms, 99)),
        "worst": max(lags_ms),
    }


def _growth(plan: Plan, pair: Pair, peer: Conntrackd | None, missing: dict[str, str]) -> Iterator[Table | Plot]:
    """Rest and resynchronisation with few and with many connections; conntrackd with as many as its kernel takes."""
    levels = (1_000, MILLION) if plan.quick else (1_000, 10_000, 100_000, MILLION)
    seconds = 2.5 if plan.quick else 10.0
    rest: list[Line] = []
    joins: list[Line] = []
    series: dict[str, list[tuple[float, float]]] = {}
    pair.forget()
    if peer is not None:
        peer.prepare(1, 1)
    rest += _at_rest("an empty map", pair, peer, seconds, missing)
    for level in levels:
        plan.progress(f"{level:,} flows")
        few = min(level, LIMIT)
        pair.fill(level)
        if peer is not None:
            peer.fill(few)
        name = f"{level:,} flows" if few == level else f"{level:,} flows ({few:,} of conntrackd)"
        lines = _at_rest(name, pair, peer, seconds, missing)
        rest += lines
        for line, node in zip(lines, ("active node", "peer"), strict=True):
            for who, samples in line.samples.items():
                series.setdefault(f"rest/{who}, {node}", []).append((few if who == CONNTRACKD else level, samples[0]))
        rounds = plan.rounds(3, 1) if level >= 100_000 else 1
        empty = [pair.join_s(empty=True)["join"] for _ in range(rounds)]
        target = (Target(XLB, 2.0, at_least=False, gap=GAP),) if level == MILLION else ()
        joins.append(Line(f"{level:,} flows, empty map", "s", {XLB: empty}, targets=target, missing=missing))
        series.setdefault(f"join/{XLB}, empty map", []).append((level, min(empty)))
        if not plan.quick:
            kept = [pair.join_s(empty=False)["join"] for _ in range(rounds)]
            joins.append(Line(f"{level:,} flows, map kept", "s", {XLB: kept}))
            series.setdefault(f"join/{XLB}, map kept", []).append((level, min(kept)))
        if peer is not None:
            times = [peer.resync_s() for _ in range(rounds)]
            resync, whole = [each["resync"] for each in times], [sum(each.values()) for each in times]
            joins.append(Line(f"{few:,} flows, into the external cache (-n)", "s", {CONNTRACKD: resync}))
            joins.append(Line(f"{few:,} flows, into the kernel (-n, then -c)", "s", {CONNTRACKD: whole}))
            series.setdefault(f"join/{CONNTRACKD}, external cache", []).append((few, min(resync)))
            series.setdefault(f"join/{CONNTRACKD}, kernel", []).append((few, min(whole)))
    yield Table(
        "At rest",
        tuple(rest),
        f"Percent of a core in {seconds:g} s in which nothing happens but heartbeats and the daemons' own periodical work; all "
        "connections established, both subjects in the same seconds.",
    )
    yield Table(
        "Resynchronisation",
        tuple(joins),
        "xlb: the peer's daemon starts; from its notice that it is ready until the active node knows that it has every flow, "
        "which includes the time in which the nodes find each other. conntrackd: from `-n` on a running peer until its cache "
        "is complete, and with `-c` until its kernel has all entries.",
    )
    for kind, title, unit in (
        ("join/", "Time until a peer has every flow again", "seconds"),
        ("rest/", "CPU at rest", "percent of a core"),
    ):
        chosen = {name.removeprefix(kind): points for name, points in series.items() if name.startswith(kind)}
        yield Plot(title, "flows", unit, chosen, "xy" if kind == "join/" else "x")


def _at_rest(name: str, pair: Pair, peer: Conntrackd | None, seconds: float, missing: dict[str, str]) -> list[Line]:
    subjects: list[subject.Subject] = [pair] if peer is None else [pair, peer]
    found = subject.at_rest(subjects, seconds)
    target = (Target(XLB, 1.0, at_least=False, gap=GAP),)
    reasons = {who: why for who, why in missing.items() if who == CONNTRACKD}
    return [
        Line(
            f"{name}, {node}",
            "% of a core",
            {who: [shares[number]] for who, shares in found.items()},
            targets=target,
            missing=reasons,
        )
        for number, node in enumerate(("active node", "peer"))
    ]


if __name__ == "__main__":
    sys.exit(main())
