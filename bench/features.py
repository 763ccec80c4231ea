"""What each optional feature of the program costs: instructions where it is compiled in, and nanoseconds where a farm uses it.

    sudo .venv/bin/python -m bench.features [--json] [--runs 15] [--only toa,loads]

A feature that no farm uses is compiled out, so the first line, the program without any, is what it costs then. The figures of
a build are those of a farm that uses the feature: the packet of a known connection, compared in turns with the same packet in
the program without features, and the first packet of a new client. See bench.packet.harness.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

from bench.packet.harness import Bench, bench_on
from bpf.constants import FarmFlag, Protocol, Quic
from bpf.dataplane import PutAffinity, PutBackendAffinity, PutBackendLimits, PutFarm, PutFarmLimits, PutPrefixes, PutQuicServers
from ctl.config import prefixes
from ctl.dataplane import features
from tests.bpf.bed import V4, Bed, why_not
from tests.bpf.packets import PAYLOAD, from_backend, from_client
from tests.bpf.tagged_bed import WIRINGS, TaggedBed

FARM = 1
BACKENDS = tuple(range(8, 58))
"""The services of one host, so that new clients find free source ports."""
LISTED = 100_000
"""Prefixes in the list that a client is looked up in."""
TARGET = 0.3
"""Upper bound of what a feature in use adds to a known flow, in hits."""


def use_nothing(bed: Bed) -> None:
    """The feature acts on its own, or the farm's mode decides."""


def use_lists(bed: Bed) -> None:
    made = prefixes.parse_texts("list", [f"{100 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24" for n in range(LISTED)], "list")
    bed.plane.apply([PutPrefixes(1, made.v4, made.v6), PutFarmLimits(FARM, deny=1)])


def use_rate(bed: Bed) -> None:
    bed.plane.apply([PutFarmLimits(FARM, rate_interval_ns=1000, client_prefix_v4=32, client_prefix_v6=64)])


def use_half_open(bed: Bed) -> None:
    limits = PutFarmLimits(FARM, max_half_open=1000, half_open_ticks=100, client_prefix_v4=32, client_prefix_v6=64)
    bed.plane.apply([limits])


def use_loads(bed: Bed) -> None:
    limits = PutFarmLimits(FARM, max_connections=1 << 30, backends_limited=True, candidates_v4=BACKENDS)
    bed.plane.apply([*(PutBackendLimits(number, 1, 1 << 30) for number in BACKENDS), limits])


def use_persistence(bed: Bed) -> None:
    bed.plane.apply([PutAffinity(FARM, 10_000), *(PutBackendAffinity(number, FARM, True) for number in BACKENDS)])


def use_toa(bed: Bed) -> None:
    bed.plane.apply([PutFarm(FARM, int(FarmFlag.TOA))])


def use_quic(bed: Bed) -> None:
    bed.plane.apply([PutAffinity(FARM, quic=(int(Quic.SERVER_ID), 1, 4)), PutQuicServers(FARM, ((b"1234", BACKENDS[0]),))])


def use_vlans(bed: Bed) -> None:
    """From one VLAN to another on the same interface."""
    assert isinstance(bed, TaggedBed)
    bed.plug(*WIRINGS["one interface"])


USES: Mapping[str, Callable[[Bed], None]] = MappingProxyType(
    {
        "": use_nothing,
        "replication": use_nothing,
        "dsr": use_nothing,
        "ipip": use_nothing,
        "lists": use_lists,
        "rate": use_rate,
        "half_open": use_half_open,
        "loads": use_loads,
        "persistence": use_persistence,
        "toa": use_toa,
        "quic": use_quic,
        "vlans": use_vlans,
    }
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One build. entry: instructions of the entry program, which known flows run; all: those of all programs; verified: the
    most that the verifier follows in one. known, new: ns per packet. hit: the known flow of the program without features, in
    turns with `known`, because other work on the machine changes both; more: what `known` has more, in hits."""

    feature: str
    entry: int
    all: int
    verified: int
    hit: int
    known: int
    more: float
    new: int


def serve(bed: Bed, feature: str, protocol: Protocol, backends: int) -> None:
    """A farm that uses the feature."""
    bed.reset()
    bed.farm(V4.vip, *((V4.far(11), 8080 + number) for number in range(backends)), protocol=protocol)
    USES[feature](bed)


def acknowledge_toa(bed: Bed) -> None:
    """The first data of the established connection, and its acknowledgement: later segments do not have the option."""
    data, answer = from_client(V4, flags="PA"), from_backend(V4, V4.far(11), V4.vip, 40000, flags="A")
    data["TCP"].seq, answer["TCP"].ack = 8, 8 + len(PAYLOAD)
    bed.send(bytes(data))
    bed.send(bytes(answer), "out0")


def measure(plain: Bench, feature: str, runs: int, rounds: int) -> Cost:
    """plain: with an established connection of the same protocol, without features."""
    with bench_on([feature] if feature else [], runs) as bench:
        bed = bench.bed
        protocol = Protocol.UDP if feature == "quic" else Protocol.TCP
        plain.establish(V4, protocol)
        serve(bed, feature, protocol, 1)
        bench.connect(V4, protocol)
        if feature == "toa":
            acknowledge_toa(bed)
        frame = bytes(from_client(V4, protocol, "A"))
        turns = [(plain.measure(frame), bench.measure(frame)) for _ in range(rounds)]
        hit, known = (min(figures) for figures in zip(*turns, strict=True))
        payload = bytes([0x40]) + bytes(20) if feature == "quic" else PAYLOAD
        serve(bed, feature, protocol, len(BACKENDS))
        new = bench.strangers(bytes(from_client(V4, protocol, payload=payload)), V4)
        programs = bed.programs()
        counts = [info.instructions for info in programs.values()]
        verified = max(info.verified for info in programs.values())
        more = round((known - hit) / hit, 2)
        return Cost(feature or "none", programs["xlb"].instructions, sum(counts), verified, hit, known, more, new)


def show(costs: list[Cost]) -> None:
    table = Table(title="Instructions, and ns per packet net of the harness")
    for column in Cost.__dataclass_fields__:
        table.add_column(column, justify="left" if column == "feature" else "right")
    for cost in costs:
        cells = asdict(cost) | {"more": f"[red]{cost.more:+.2f}" if cost.more > TARGET else f"{cost.more:+.2f}"}
        table.add_row(*(str(cell) for cell in cells.values()))
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=15, help="runs of which the fastest counts (default 15)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of a build and the one without features (default 3)")
    parser.add_argument("--only", default=",".join(features.WORDS), help="features, with commas (default: all)")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen = ["", *arguments.only.split(",")]
    with bench_on((), arguments.runs) as plain:
        costs = [measure(plain, feature, arguments.runs, arguments.rounds) for feature in chosen]
    if arguments.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
    else:
        show(costs)
    return 1 if any(cost.more > TARGET for cost in costs) else 0


if __name__ == "__main__":
    sys.exit(main())
