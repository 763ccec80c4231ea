"""The packets that are measured, by table: each a name and a function of a bench. `python -m bench.packet.situations` prints
the costs of all as one JSON object; bench.packet.compare runs that with the program of another checkout.

Verdicts other than forwarding are those of tests/bpf/verdicts.py, by its frames: the first one of each counter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.packet.harness import Bench, bench_on
from bpf.constants import COUNTERS, Mode, Protocol
from bpf.dataplane import PutBackendLimits, PutFarmLimits, PutPrefixes
from ctl.config import prefixes
from tests.bpf.bed import UNRESOLVED, V4, V6, Bed, Family
from tests.bpf.packets import from_client

if TYPE_CHECKING:
    from tests.bpf.verdicts import Case

HIT = "TCP4 snat, known flow"
"""What the others are compared with."""
KNOWN, AMONG, NEW, NOT_A_FLOW, DROPS = "Known flows", "Known flows among many", "New flows", "No flow", "Drops"
PLAIN: tuple[str, ...] = ()
ONE_WAY, LIMITS = ("dsr", "ipip"), ("half_open", "limits", "lists", "loads", "rate")
FLOWS, FLOWS_QUICK = (1, 100, 1_000, 10_000, 20_000, 100_000, 1_000_000), (1, 1_000, 20_000, 100_000, 1_000_000)
UNREACHABLE = {
    "drop_internal": "only by a broken map entry",
    "drop_no_headroom": "only behind a driver that leaves no space in front of the frame; a test run always does",
}
"""Reasons for a drop that no packet of a test run causes."""


@dataclass(frozen=True, slots=True)
class Situation:
    """build: features of the program. cost: ns per packet. count: of flows, in the table AMONG."""

    table: str
    name: str
    cost: Callable[[Bench], int]
    build: tuple[str, ...] = PLAIN
    count: int = 0


def all_situations(quick: bool = False) -> list[Situation]:
    return [*known(), *among(FLOWS_QUICK if quick else FLOWS), *new(), *verdicts(NOT_A_FLOW), *verdicts(DROPS), *other_drops()]


# --- tables --------------------------------------------------------------------------------------------------


def known() -> Iterator[Situation]:
    for family in (V4, V6):
        of = family.name[1]
        for mode in (Mode.SNAT, Mode.DNAT):
            for protocol in (Protocol.TCP, Protocol.UDP):
                title = f"{protocol.name}{of} {mode.name.lower()}"
                yield Situation(
                    KNOWN, f"{title}, known flow", partial(Bench.known, family=family, protocol=protocol, mode=mode)
                )
                yield Situation(KNOWN, f"{title}, reply", partial(Bench.reply, family=family, protocol=protocol, mode=mode))
        for mode, to in ((Mode.DSR, family), (Mode.IPIP, family), (Mode.IPIP, V6 if family is V4 else V4)):
            title = mode.name.lower() if to is family else f"{mode.name.lower()} to IPv{to.name[1]}"
            yield Situation(
                KNOWN, f"TCP{of} {title}, known flow", partial(Bench.one_way, family=family, mode=mode, of=to), build=ONE_WAY
            )
        yield Situation(KNOWN, f"TCP{of} snat, ICMP error translated", partial(Bench.error, family=family))


def among(counts: Sequence[int]) -> Iterator[Situation]:
    for family in (V4, V6):
        for count in counts:
            name = f"TCP{family.name[1]} snat, among {count:,} known flows"
            yield Situation(AMONG, name, partial(Bench.among, family=family, count=count), count=count)


def new() -> Iterator[Situation]:
    for family, mode in ((V4, Mode.SNAT), (V4, Mode.DNAT), (V4, Mode.DSR), (V4, Mode.IPIP), (V6, Mode.SNAT)):
        for protocol in (Protocol.TCP, Protocol.UDP):
            build = ONE_WAY if mode in (Mode.DSR, Mode.IPIP) else PLAIN
            kind = "SYN" if protocol is Protocol.TCP else "datagram"
            title = f"{protocol.name}{family.name[1]} {mode.name.lower()}, new {kind} each time"
            for words, full in (("map full", True), ("map half full", False)):
                yield Situation(
                    NEW,
                    f"{title}, {words}",
                    partial(Bench.new, family=family, protocol=protocol, mode=mode, full=full),
                    build,
                )


def verdicts(table: str) -> Iterator[Situation]:
    """Those of a program without features that no ICMP answer makes longer, so that the harness can restore the packet."""
    wanted = ("drop_",) if table == DROPS else ("pass_",)
    try:
        from tests.bpf.verdicts import SITUATIONS
    except ImportError:  # of an older checkout
        return
    first: dict[str, Case] = {}
    for counter, _, case in SITUATIONS:
        if counter.startswith(wanted) and counter not in UNREACHABLE:
            first.setdefault(counter, case)
    for counter, case in first.items():
        family = V6 if "ipv6" in counter else V4
        yield Situation(table, f"{counter}: {case.__name__.replace('_', ' ')}", partial(last_of, case=case, family=family))


def other_drops() -> Iterator[Situation]:
    for counter, build, prepare in (
        ("drop_snat_exhausted", PLAIN, no_port),
        ("drop_reverse_conflict", PLAIN, no_port_of_client),
        ("drop_unresolved", ONE_WAY, unresolved),
        ("drop_no_tunnel_source", ONE_WAY, no_source),
        ("drop_denied", LIMITS, denied),
        ("drop_rate", LIMITS, fast),
        ("drop_half_open", LIMITS, half_open),
        ("drop_farm_full", LIMITS, farm_full),
        ("drop_backend_full", LIMITS, backend_full),
    ):
        yield Situation(DROPS, f"{counter}: new flow", partial(refused, counter=counter, prepare=prepare), build)


# --- what a node knows before a packet -----------------------------------------------------------------------


def last_of(bench: Bench, case: Case, family: Family) -> int:
    """The last frame that the case sends."""
    bed = bench.bed
    bed.reset()
    sent: list[tuple[bytes, str]] = []
    with recorded(bed, sent):
        case(bed, family)
    return bench.measure(*sent[-1])


@contextlib.contextmanager
def recorded(bed: Bed, sent: list[tuple[bytes, str]]) -> Iterator[None]:
    """Each frame and the side by which it comes."""
    kind = type(bed)
    arriving = kind.arriving

    def note(of: Bed, frame: bytes, side: str) -> tuple[bytes, int, int]:
        sent.append((frame, side))
        return arriving(of, frame, side)

    setattr(kind, "arriving", note)  # noqa: B010 (a Bed has slots)
    try:
        yield
    finally:
        setattr(kind, "arriving", arriving)  # noqa: B010


def refused(bench: Bench, counter: str, prepare: Callable[[Bench], None]) -> int:
    """A client's SYN; raises AssertionError if it is not dropped for this reason."""
    bench.bed.reset()
    prepare(bench)
    frame = bytes(from_client(V4))
    found = bench.bed.send(frame).verdict
    assert found == counter, f"expected {counter}, found {found}"
    return bench.measure(frame)


def no_port(bench: Bench) -> None:
    bench.serve(V4)
    bench.take_all_ports(V4, V4.vip)


def no_port_of_client(bench: Bench) -> None:
    bench.serve(V4, mode=Mode.DNAT)
    bench.take_all_ports(V4, V4.client)


def unresolved(bench: Bench) -> None:
    bench.bed.farm(V4.vip, (V4.far(UNRESOLVED), 80), mode=Mode.DSR)


def no_source(bench: Bench) -> None:
    bench.bed.plane.set_tunnel_sources("", "")
    bench.bed.farm(V4.vip, (V4.far(11), 80), mode=Mode.IPIP)


def denied(bench: Bench) -> None:
    bench.serve(V4)
    made = prefixes.parse_texts("list", [V4.client], "list")
    bench.bed.plane.apply([PutPrefixes(1, made.v4, made.v6), PutFarmLimits(1, deny=1)])


def fast(bench: Bench) -> None:
    bench.serve(V4)
    bench.bed.plane.apply([PutFarmLimits(1, rate_interval_ns=900_000_000, client_prefix_v4=32, client_prefix_v6=64)])
    bench.bed.send(bytes(from_client(V4, source_port=1)))


def half_open(bench: Bench) -> None:
    bench.serve(V4)
    limits = PutFarmLimits(1, max_half_open=1, half_open_ticks=1 << 20, client_prefix_v4=32, client_prefix_v6=64)
    bench.bed.plane.apply([limits])
    bench.bed.send(bytes(from_client(V4, source_port=1)))
    bench.bed.send(bytes(from_client(V4, source_port=2)))


def farm_full(bench: Bench) -> None:
    bench.serve(V4)
    bench.bed.plane.apply([PutBackendLimits(8, 1, 0), PutFarmLimits(1, max_connections=1, candidates_v4=(8,))])
    bench.bed.send(bytes(from_client(V4, source_port=1)))


def backend_full(bench: Bench) -> None:
    bench.serve(V4)
    bench.bed.plane.apply([PutBackendLimits(8, 1, 1), PutFarmLimits(1, backends_limited=True, candidates_v4=(8,))])
    bench.bed.send(bytes(from_client(V4, source_port=1)))


# --- all of them ---------------------------------------------------------------------------------------------


def measured(
    situations: Sequence[Situation], runs: int, benches: Mapping[tuple[str, ...], Bench]
) -> Iterator[tuple[Situation, int | str]]:
    """Each once, on the bench with its program; instead of the cost, the reason why it could not be measured."""
    for each in situations:
        bench = benches[each.build]
        bench.runs = runs
        try:
            yield each, each.cost(bench)
        except (AssertionError, RuntimeError) as error:
            yield each, f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def benches(situations: Sequence[Situation]) -> Iterator[dict[tuple[str, ...], Bench]]:
    """One for each build."""
    with contextlib.ExitStack() as stack:
        builds = dict.fromkeys(each.build for each in situations)
        yield {build: stack.enter_context(bench_on(build, 1)) for build in builds}


def reasons() -> set[str]:
    """Counters of drops that have a situation."""
    tables = (*verdicts(DROPS), *other_drops())
    return {each.name.split(":")[0] for each in tables} & {counter.name for counter in COUNTERS}


def main() -> None:
    parser = argparse.ArgumentParser(description="The costs of all situations as one JSON object.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--match", default="")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen = [each for each in all_situations() if arguments.match.lower() in f"{each.table}: {each.name}".lower()]
    found: dict[str, int] = {}
    with benches(chosen) as made:
        for each, cost in measured(chosen, arguments.runs, made):
            if isinstance(cost, int):
                found[each.name] = cost
            else:
                print(f"{each.name}: {cost}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
