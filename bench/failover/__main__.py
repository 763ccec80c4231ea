"""Part "failover" of the suite: what faults cost the clients of a pair, xlb and the usual stack under the same judge.

    sudo .venv/bin/python -m bench.failover [--quick] [--faults cut,"kill -9"] [--stress-minutes 60] …

Tables: faults, idle and with busy processes, at each heartbeat; power-on of both nodes; false failovers under stress.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from bench.failover import keepalived_pair
from bench.failover.judge import Judge
from bench.failover.keepalived_pair import KeepalivedPair
from bench.failover.subject import BUSY, Fault, Subject, starved
from bench.failover.verdict import AGES, ANSWERS, NEVER_MS, Kind, Verdict
from bench.failover.xlb_pair import TIMES, XlbPair
from bench.suite.figures import Line, Plot, Table, Target
from bench.suite.part import Plan, part_main
from bench.suite.turns import in_turns_of_many

NAME = "failover"
TITLE = "Failover"
METHOD = f"""\
Each pair runs in network namespaces of its own, with the same client, backends and switch; only one runs at a time, in
turns. The judge knows of a pair its namespaces, MAC addresses and VIPs. A process with real-time priority opens a new
connection every millisecond; old connections, and fresh ones that are opened every millisecond until the fault,
exchange checked payload; a capture sees every frame that leaves a port of the switch. *Outage on the wire*: from the
last data frame of the old node to the first of its successor. *Outage for clients*: the longest time in which no new
connection succeeded. *Both answered*: from the successor's first frame of a kind to the old node's last; the unicast
"is-at" with which Linux answers a gratuitous ARP for an address that it has reaches the other node only, and is counted
apart. A connection is *broken* if it was reset or closed, or did not complete two more round trips within 4 s; its age
is that at the old node's last data frame. "keepalived" is keepalived (VRRPv3), nftables (DNAT and SNAT) and conntrackd
(FTFW) with the notify script of its documentation, without preemption; it and conntrackd have real-time priority, as
xlb has. Timing of xlb: 10/30/36, 20/60/70 and 100/300/350 ms (heartbeat, lease, takeover). "cut": both cables lose
their carrier; "silent cut": frames vanish; "kill -9": of xlbd, and of both processes of keepalived; "stop": SIGTERM;
"switchover": `xlbctl cluster switchover`, and for keepalived, which has no such command, SIGTERM, as its documentation
has it. Connections are lost by no process's fault but by its kernel's where it kept answering: neither kernel is
stopped. "busy": {BUSY} processes that never sleep, of ordinary priority, on the same processors."""

HEARTBEAT_MS = 10
BASE = "keepalived"
POWER_ON_APART_S = 0.3
STRESS_MS = (10, 20, 100)
QUICK_STRESS_MS = (20,)
QUICK_IDLE = (Fault.CUT, Fault.KILL, Fault.STOP)
QUICK_BUSY = (Fault.KILL,)
STARVED_FAULTS = (Fault.KILL, Fault.STOP, Fault.FREEZE, Fault.CUT)
WIRE_TARGETS_MS = {Fault.KILL: 4.0, Fault.STOP: 4.0, Fault.FREEZE: 4.0, Fault.CUT: 30.0}

FENCED = (
    "the successor answers only when the old node's lease in the kernel must have ended, which is why both never answer: "
    "after a kill that is the rest of the lease, after a cut the takeover time. A dead node of the usual stack forwards "
    "meanwhile. Not tried: a clock of the fence without steps of 4 ms, and a notice by the kernel that the daemon died"
)
YOUNG = (
    "connections that were younger than 100 ms at the fault: their replication waits for the end of the handshake and for the "
    "next batch"
)

Pairs = dict[str, Subject]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faults",
        type=_faults,
        default=(),
        help=f"of {','.join(Fault)} (default: all, in a quick run some, fewer while busy)",
    )
    parser.add_argument("--rounds", type=int, help="of each table")
    parser.add_argument("--connections", type=int, default=300, help="old ones that are held (default: %(default)s)")
    parser.add_argument(
        "--heartbeat-ms",
        type=int,
        choices=TIMES,
        action="append",
        default=[],
        help=f"of the faults; may be repeated (default: {HEARTBEAT_MS}, and 100 in a full run)",
    )
    parser.add_argument("--stress-minutes", type=float, help="for each heartbeat and pair")
    parser.add_argument("--subject", choices=("xlb", BASE), action="append", default=[], help="may be repeated (default: both)")


def _faults(text: str) -> tuple[Fault, ...]:
    try:
        return tuple(Fault(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; there are {', '.join(Fault)}") from None


def tables(plan: Plan) -> Iterator[Table | Plot]:
    chosen = plan.options
    subjects = chosen.subject or ["xlb", BASE]
    with ExitStack() as stack:
        pairs: Pairs = {}
        missing: dict[str, str] = {}
        if "xlb" in subjects:
            pairs["xlb"] = stack.enter_context(XlbPair())
        if BASE in subjects:
            if reason := keepalived_pair.why_not():
                missing[BASE] = reason
            else:
                pairs[BASE] = stack.enter_context(KeepalivedPair())
        bench = Bench(plan, pairs, missing)
        for heartbeat_ms in chosen.heartbeat_ms or ((HEARTBEAT_MS,) if plan.quick else (HEARTBEAT_MS, 100)):
            yield from bench.faults(heartbeat_ms, busy=False)
        yield from bench.faults((chosen.heartbeat_ms or (HEARTBEAT_MS,))[0], busy=True)
        yield from bench.power_on()
        yield from bench.stress()


@dataclass(slots=True)
class Bench:
    """The tables of this part, each measured in turns."""

    plan: Plan
    pairs: Pairs
    missing: Mapping[str, str]

    def faults(self, heartbeat_ms: int, busy: bool) -> Iterator[Table]:
        """Outages, both answered, and broken connections at one heartbeat."""
        where = f"{heartbeat_ms} ms heartbeats, {'busy' if busy else 'idle'}"
        if not self.plan.chosen(f"Faults, {where}"):
            return
        first = heartbeat_ms == HEARTBEAT_MS
        some = (QUICK_BUSY if busy else QUICK_IDLE) if self.plan.quick else (STARVED_FAULTS if busy else tuple(Fault))
        faults = self.plan.options.faults or some
        rounds = self.plan.options.rounds or self.plan.rounds((3 if busy else 4) if first else 1, 1)
        missing = dict(self.missing)
        around = starved if busy else nullcontext
        seen: dict[str, list[Verdict]] = {name: [] for name in self.pairs}

        def measure(name: str) -> dict[str, float]:
            found = self._observed(self.pairs[name], heartbeat_ms, faults, around)
            seen[name] += found.values()
            return {f"{fault.value}: {figure}": value for fault, verdict in found.items() for figure, value in figures(verdict)}

        measured = in_turns_of_many(self.pairs, rounds, measure, missing)
        yield from _fault_tables(where, faults, measured, seen, missing, with_targets=first)

    def _observed(
        self,
        pair: Subject,
        heartbeat_ms: int,
        faults: Sequence[Fault],
        around: Callable[[], AbstractContextManager[None]],
    ) -> dict[Fault, Verdict]:
        found = {}
        pair.start(heartbeat_ms)
        try:
            with Judge(pair, self.plan.options.connections) as judge, around():
                for fault in faults:
                    found[fault] = verdict = judge.observe(fault)
                    self.plan.progress(f"{pair.name}, {fault.value}: {described(verdict)}")
        finally:
            pair.stop()
        return found

    def power_on(self) -> Iterator[Table]:
        title = f"Power-on of both nodes within {POWER_ON_APART_S * 1000:.0f} ms"
        if not self.plan.chosen(title):
            return
        chance = random.Random(11)
        rounds = self.plan.options.rounds or self.plan.rounds(6, 1)
        apart = [chance.uniform(0, POWER_ON_APART_S) for _ in range(rounds)]
        turns = dict.fromkeys(self.pairs, 0)
        missing = dict(self.missing)

        def measure(name: str) -> dict[str, float]:
            pair, number = self.pairs[name], turns[name]
            turns[name] += 1
            if not number:  # its configuration is stored from here on
                pair.start(HEARTBEAT_MS)
                pair.stop()
            try:
                with Judge(pair, 0) as judge:
                    found = judge.power_on(apart[number])
            finally:
                pair.stop()
            self.plan.progress(f"{name}, power-on: {found}")
            return {"served": found.served_ms, "both": found.both_answered_ms, "moves": found.moves}

        measured = in_turns_of_many(self.pairs, rounds, measure, missing)
        note = (
            "from the start of the first process; the program of xlb is compiled and pinned, as after a restart of the daemon"
        )
        yield Table(
            title,
            (
                _line("until clients are served", "ms", measured, "served", missing, note=note),
                _line("both answered", "ms", measured, "both", missing, limit_ms=0.0),
                _line("moves of the VIPs after the first node announced them", "", measured, "moves", missing),
            ),
            f"{HEARTBEAT_MS} ms heartbeats; the second node starts at a random time within {POWER_ON_APART_S * 1000:.0f} ms.",
        )

    def stress(self) -> Iterator[Table]:
        title = "False failovers under stress"
        if not self.plan.chosen(title):
            return
        minutes = self.plan.options.stress_minutes
        if minutes is None:
            minutes = 0.04 if self.plan.quick else 0.5
        missing = dict(self.missing)
        heartbeats = QUICK_STRESS_MS if self.plan.quick else STRESS_MS

        def measure(name: str) -> dict[str, float]:
            found: dict[str, float] = {}
            for heartbeat_ms in heartbeats:
                count, outage_ms = self._stressed(self.pairs[name], heartbeat_ms, minutes)
                found |= {f"{heartbeat_ms}: moves": float(count), f"{heartbeat_ms}: outage": outage_ms}
            return found

        measured = in_turns_of_many(self.pairs, 1, measure, missing)
        lines = []
        for heartbeat_ms in heartbeats:
            note = f"measured for {minutes:g} minutes; an hour like them would have {60 / minutes:.0f} times as many"
            name = f"{heartbeat_ms} ms heartbeats: moves of the VIPs without a fault"
            limit = 0.0 if heartbeat_ms == 20 else None
            lines.append(_line(name, "", measured, f"{heartbeat_ms}: moves", missing, limit_ms=limit, note=note))
            name = f"{heartbeat_ms} ms heartbeats: longest outage of new connections"
            lines.append(_line(name, "ms", measured, f"{heartbeat_ms}: outage", missing))
        yield Table(title, tuple(lines), f"{BUSY} busy processes, {self.plan.options.connections} connections with payload.")

    def _stressed(self, pair: Subject, heartbeat_ms: int, minutes: float) -> tuple[int, float]:
        pair.start(heartbeat_ms)
        try:
            with Judge(pair, self.plan.options.connections) as judge, starved():
                found = judge.stress(minutes * 60)
        finally:
            pair.stop()
        self.plan.progress(f"{pair.name}, stress at {heartbeat_ms} ms: {found[0]} moves, outage {found[1]:.1f} ms")
        return found


def described(verdict: Verdict) -> str:
    """In one line, for the operator who waits."""
    both = ", ".join(f"{kind.value} {ms:.1f} ms" for kind, ms in verdict.both_ms.items() if ms)
    return (
        f"wire {verdict.wire_ms:.1f} ms, clients {verdict.outage_ms:.1f} ms, noise {verdict.noise_ms:.1f} ms, "
        f"broken {verdict.total_broken} of {sum(verdict.held.values())} {verdict.reasons or ''}, both {both or 'never'}, "
        f"is-at {verdict.rebuttals}"
    )


def figures(verdict: Verdict) -> Iterator[tuple[str, float]]:
    """What a verdict adds to the lines."""
    yield "wire", _finite(verdict.wire_ms)
    yield "clients", _finite(verdict.outage_ms)
    for kind in ANSWERS:
        yield kind.value, verdict.both_ms[kind]
    yield "rebuttals", verdict.rebuttals
    yield from verdict.broken.items()


def _finite(value_ms: float) -> float:
    """An outage without an end lasts as long as it was observed."""
    return value_ms if value_ms != NEVER_MS else 10_000.0


Measured = Mapping[str, Mapping[str, Sequence[float]]]


def _fault_tables(
    where: str,
    faults: Sequence[Fault],
    measured: Measured,
    seen: Mapping[str, Sequence[Verdict]],
    missing: Mapping[str, str],
    with_targets: bool,
) -> Iterator[Table]:
    outages, both, broken = [], [], []
    for fault in faults:
        limit = WIRE_TARGETS_MS.get(fault) if with_targets else None
        outages.append(_line(f"{fault.value}: on the wire", "ms", measured, f"{fault.value}: wire", missing, limit_ms=limit))
        outages.append(_line(f"{fault.value}: for clients", "ms", measured, f"{fault.value}: clients", missing))
        for kind in ANSWERS:
            both.append(_line(f"{fault.value}: {kind.value}", "ms", measured, f"{fault.value}: {kind.value}", missing, ""))
        rebuttals = f"{fault.value}: {Kind.REBUTTAL.value}"
        both.append(_line(rebuttals, "frames", measured, f"{fault.value}: rebuttals", missing, ""))
        for age in AGES:
            broken.append(_line(f"{fault.value}: {age}", "", measured, f"{fault.value}: {age}", missing, ""))
    yield Table(f"Outage, {where}", tuple(outages))
    worst = {name: [max(each.both_answered_ms for each in found)] for name, found in seen.items() if found}
    both.append(Line("worst of all runs", "ms", worst, targets=(Target("xlb", 0, at_least=False),), missing=missing))
    yield Table(f"Both nodes answered, {where}", tuple(each for each in both if _is_telling(each)))
    total = {name: [float(sum(each.total_broken for each in found))] for name, found in seen.items() if found}
    held = {name: sum(sum(each.held.values()) for each in found) for name, found in seen.items()}
    note = ", ".join(f"{name}: of {count}" for name, count in held.items())
    none = (Target("xlb", 0, at_least=False, gap=YOUNG),)
    broken.append(Line("all runs together", "", total, targets=none, missing=missing, note=note))
    yield Table(f"Broken connections, {where}", tuple(each for each in broken if _is_telling(each)))


def _is_telling(line: Line) -> bool:
    """Lines of nothing but zeros would hide the others."""
    return bool(line.targets) or any(any(samples) for samples in line.samples.values())


def _line(
    name: str,
    unit: str,
    measured: Measured,
    figure: str,
    missing: Mapping[str, str],
    against: str = BASE,
    limit_ms: float | None = None,
    note: str = "",
) -> Line:
    samples = {subject: found[figure] for subject, found in measured.items() if figure in found}
    targets = () if limit_ms is None else (Target("xlb", limit_ms, at_least=False, gap=FENCED),)
    return Line(name, unit, samples, "lower", against if against in samples else "", targets, missing, note)


if __name__ == "__main__":
    sys.exit(part_main(NAME, TITLE, METHOD, tables, add_options))
