"""What the data plane costs per packet, net of the test harness: BPF_PROG_TEST_RUN on one pinned core.

    sudo .venv/bin/python -m bench.dataplane [--json] [--runs 15] [--flows 100000,1000000]
    sudo .venv/bin/python -m bench.dataplane --against ANOTHER_CHECKOUT [--rounds 3]

`repeat` does not restore the packet between runs, so the program under test is tail-called by a small one that first
writes the original packet, and for "among N flows" gives it the next of N client addresses in an order that defeats
prefetching. The same small program tail-calling an empty one is the harness, subtracted from every line. Each figure is the
minimum of `--runs` runs: other work on the machine can only increase it.

Machines differ by a factor of 3, so each figure is also given as a ratio to the first one, the packet of a known TCP
connection over IPv4 in mode snat. The modes dsr and ipip need another build: their lines come from a bed of their own.
After ipip the harness shortens the packet again. Of a program that does nothing but lengthen it, half is taken for that call
and subtracted too. bench.features measures optional features.

--against runs this bench of both checkouts in turns, in new processes with new maps, and compares the minima: where the
kernel places a map in memory moves the cold lines by up to a third from one run to the next.

Two more lines compare `flows` with and without preallocation, by a map of the same layout: see docs/adr/0002.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scapy.packet import Raw

from bpf import libbpf, xdp
from bpf.constants import Mode, Protocol
from bpf.dataplane import Array
from bpf.loading import loader
from bpf.loading.headers import compiler_flags, make_header_tree
from ctl.dataplane.features import VLANS
from tests.bpf.bed import V4, V6, Bed, Family, why_not
from tests.bpf.packets import from_backend, from_client, icmp_error, network, transport
from tests.bpf.tagged_bed import TaggedBed

REPEAT = 10_000
MAX_FLOWS = 1 << 20
HIT = "TCP4 snat, known flow"
"""What the other lines are compared with."""
TARGETS = {
    "UDP4 snat, known flow": 1.1,
    "TCP6 snat, known flow": 1.25,
    "TCP4 dsr, known flow": 0.9,
    "TCP4 ipip, known flow": 1.1,
    "TCP4 snat, among 100,000 known flows": 4,
    "TCP4 snat, among 1,000,000 known flows": 6,
    "TCP4 snat, new SYN each time": 10,
}
"""Upper bounds of the ratio."""
TUNNEL_SOURCES = ("10.2.0.1", "fd02::1")

HARNESS = """
#include <uapi/linux/bpf.h>
struct packet { u8 bytes[FRAME_BYTES]; };
BPF_ARRAY(original, struct packet, 1);
BPF_PERCPU_ARRAY(position, u64, 1);
BPF_PROG_ARRAY(under_test, 1);

int empty(struct xdp_md *context) { return XDP_TX; }
int longer(struct xdp_md *context) { return bpf_xdp_adjust_head(context, -HEADER_BYTES) ? XDP_ABORTED : XDP_TX; }

int harness(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	int zero = 0;
	struct packet *packet = original.lookup(&zero);
	u64 *number = position.lookup(&zero);

	long longer = (void *)(long)context->data_end - data - FRAME_BYTES; /* by the last run */

	if (longer && bpf_xdp_adjust_head(context, longer))
		return XDP_ABORTED;
	data = (void *)(long)context->data;
	if (!packet || !number || data + FRAME_BYTES > (void *)(long)context->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, packet->bytes, FRAME_BYTES);
	if (VARIANTS > 1) {
		u32 chosen = ((*number)++ * 0x9e3779b1) % VARIANTS;

		*(u32 *)(data + CLIENT_OFFSET) = __builtin_bswap32(chosen);
		if (PORT_OFFSET)
			*(u16 *)(data + PORT_OFFSET) = __builtin_bswap16(1024 + chosen % 64512);
	}
	under_test.call(context, 0);
	return XDP_ABORTED;
}
"""

FLOW_MAP = """
#include <uapi/linux/bpf.h>
struct key { u32 words[4]; };
struct value { u64 words[6]; };
BPF_F_TABLE("hash", struct key, struct value, flows, 2 << 20, FLAGS);
BPF_PERCPU_ARRAY(position, u32, 1);

int insert(struct xdp_md *context)
{
	int zero = 0;
	u32 *number = position.lookup(&zero);
	struct key key = {};
	struct value value = {};

	if (!number)
		return XDP_ABORTED;
	key.words[0] = (*number)++ * 0x9e3779b1;
	flows.update(&key, &value);
	return XDP_PASS;
}

int lookup(struct xdp_md *context)
{
	int zero = 0;
	u32 *number = position.lookup(&zero);
	struct key key = {};

	if (!number)
		return XDP_ABORTED;
	key.words[0] = (((*number)++ * 48271) % (1 << 20)) * 0x9e3779b1;
	return flows.lookup(&key) ? XDP_PASS : XDP_DROP;
}
"""


@dataclass(frozen=True, slots=True)
class Measure:
    """One line: nanoseconds per packet, the harness subtracted. ratio: to the line HIT. target: its upper bound; 0: none."""

    name: str
    net_ns: int
    ratio: float = 0
    target: float = 0


def fastest(fd: int, frame: bytes, ifindex: int, runs: int, repeat: int = REPEAT) -> int:
    """Least ns per run of a program."""
    return min(xdp.test_run(fd, frame, ifindex, repeat).duration_ns for _ in range(runs))


def import_bcc() -> Any:
    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")
    import bcc

    return bcc


@contextmanager
def compiled(text: str, flags: list[str]) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="xlb-bench-") as tree:
        make_header_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        module = import_bcc().BPF(text=text, cflags=[*compiler_flags(), *flags])
        yield module
        module.cleanup()


class Bench:
    """Runs frames through the pinned program on a bed with a capacity of a million flows."""

    def __init__(self, bed: Bed, runs: int) -> None:
        self.bed, self._runs = bed, runs
        self._program = libbpf.obj_get(loader.program_path(bed.pins))

    def measure(
        self,
        frame: bytes,
        side: str = "in0",
        variants: int = 1,
        client_offset: int = 26,
        port_offset: int = 0,
        longer_bytes: int = 0,
    ) -> int:
        """Net cost of `frame`; with variants > 1 the 32-bit word at client_offset runs through 0 … variants-1.

        port_offset: of the source port, if it varies too. Offsets in bytes from the start of the frame. longer_bytes: by which
        the program lengthens the frame.
        """
        frame, index, tag_bytes = self.bed.arriving(frame, side)
        flags = [
            f"-DHEADER_BYTES={longer_bytes or 20}",
            f"-DFRAME_BYTES={len(frame)}",
            f"-DVARIANTS={variants}ULL",
            f"-DCLIENT_OFFSET={client_offset + tag_bytes}",
        ]
        flags.append(f"-DPORT_OFFSET={port_offset and port_offset + tag_bytes}")
        with compiled(HARNESS, flags) as module:
            bcc = import_bcc()
            harness, empty, longer = (module.load_func(name, bcc.BPF.XDP).fd for name in ("harness", "empty", "longer"))
            original, under_test = module["original"], module["under_test"]
            original[0] = original.Leaf((ctypes.c_uint8 * len(frame))(*frame))
            costs = []
            for fd in (empty, self._program, longer):
                under_test[ctypes.c_int(0)] = ctypes.c_int(fd)
                costs.append(self.bed.inside(functools.partial(fastest, harness, frame, index, self._runs)))
        shortening = (costs[2] - costs[0]) // 2 if longer_bytes else 0
        return costs[1] - costs[0] - shortening

    def close(self) -> None:
        os.close(self._program)

    # --- situations ------------------------------------------------------------------------------------------

    def serve(self, family: Family, protocol: Protocol = Protocol.TCP, mode: Mode = Mode.SNAT) -> None:
        self.bed.reset()
        self.bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode)

    def known(self, family: Family, protocol: Protocol, mode: Mode = Mode.SNAT) -> int:
        """A client's packet of an established connection."""
        self.establish(family, protocol, mode)
        return self.measure(bytes(from_client(family, protocol, "A")))

    def reply(self, family: Family, protocol: Protocol, mode: Mode = Mode.SNAT) -> int:
        """A backend's packet of the same."""
        self.establish(family, protocol, mode)
        seen = family.vip if mode is Mode.SNAT else family.client
        return self.measure(bytes(from_backend(family, family.far(11), seen, 40000, protocol, "A")), "out0")

    def error(self, family: Family) -> int:
        """A client's "too big" about a packet of an established connection, translated for its backend."""
        self.establish(family)
        sent = network(family, family.vip, family.client) / transport(Protocol.TCP, 80, 40000) / Raw(bytes(8))
        frame = icmp_error(family, family.vip, sent)
        assert self.bed.send(frame).verdict == "forward_icmp_error"
        return self.measure(frame)

    def one_way(self, family: Family, mode: Mode, of: Family) -> int:
        """A client's packet of an established connection in mode dsr or ipip, to a backend of the family `of`."""
        self.bed.reset()
        self.bed.plane.set_tunnel_sources(*TUNNEL_SOURCES)
        self.bed.farm(family.vip, (of.far(11), 80), mode=mode)
        for flags in ("S", "A"):
            assert self.bed.send(bytes(from_client(family, flags=flags))).verdict == "forward_redirect"
        assert len(self.bed.flows("flows", family)) == 1
        longer_bytes = of.header_bytes if mode is Mode.IPIP else 0
        return self.measure(bytes(from_client(family, flags="A")), longer_bytes=longer_bytes)

    def establish(self, family: Family, protocol: Protocol = Protocol.TCP, mode: Mode = Mode.SNAT) -> None:
        self.serve(family, protocol, mode)
        self.connect(family, protocol, mode)

    def connect(self, family: Family, protocol: Protocol = Protocol.TCP, mode: Mode = Mode.SNAT) -> None:
        """Three packets, and for UDP one more answer: it is established."""
        seen = family.vip if mode is Mode.SNAT else family.client
        self.bed.send(bytes(from_client(family, protocol)))
        self.bed.send(bytes(from_backend(family, family.far(11), seen, 40000, protocol)), "out0")
        self.bed.send(bytes(from_client(family, protocol, "A")))
        assert len(self.bed.flows("flows", family)) == 2

    def among(self, family: Family, count: int) -> int:
        """Packets of `count` established connections in turn."""
        self.establish(family)
        offset = 14 + (12 if family is V4 else 20)
        keys, values = self._copies(family, count)
        written = self.bed.plane.update_flows(family.name, keys, values)
        if written != count:
            raise SystemExit(f"only {written} of {count} flows were written")
        return self.measure(bytes(from_client(family, flags="A")), variants=count, client_offset=offset)

    def _copies(self, family: Family, count: int) -> tuple[Array, Array]:
        """The established forward entry again, for clients whose last or only 32-bit word counts up."""
        plane = self.bed.plane
        ((keys, values),) = [slices for slices in plane.flow_batches("flows", family.name, 64) if len(slices[0])]
        at = int(np.flatnonzero(values["flags"] & 1)[0])
        all_keys, all_values = np.repeat(keys[at : at + 1], count), np.repeat(values[at : at + 1], count)
        raw = all_keys.view(np.uint8).reshape(count, -1)
        word = 0 if family is V4 else 12
        raw[:, word : word + 4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
        return all_keys, all_values

    def new(self, family: Family) -> int:
        """Each SYN of a new client: select, claim, insert both entries and, since the map is full, evict."""
        self.bed.reset()
        self.bed.farm(family.vip, *((family.far(11), 8000 + number) for number in range(50)))
        return self.strangers(bytes(from_client(family)), family)

    def strangers(self, frame: bytes, family: Family) -> int:
        """`frame` from another client each time."""
        word = 14 + (12 if family is V4 else 20)
        return self.measure(frame, variants=1 << 31, client_offset=word, port_offset=14 + family.header_bytes)

    def unserved(self) -> int:
        """A packet that is not for a VIP: three lookups, then the kernel."""
        self.serve(V4)
        return self.measure(bytes(from_client(V4, destination=V4.other_vip)))


Line = tuple[str, int]


def nat_lines(bench: Bench, flow_counts: list[int]) -> Iterator[Line]:
    yield HIT, bench.known(V4, Protocol.TCP)
    yield "TCP4 snat, reply", bench.reply(V4, Protocol.TCP)
    yield "TCP4 dnat, known flow", bench.known(V4, Protocol.TCP, Mode.DNAT)
    yield "TCP4 dnat, reply", bench.reply(V4, Protocol.TCP, Mode.DNAT)
    yield "UDP4 snat, known flow", bench.known(V4, Protocol.UDP)
    yield "TCP6 snat, known flow", bench.known(V6, Protocol.TCP)
    yield "UDP6 snat, known flow", bench.known(V6, Protocol.UDP)
    for count in flow_counts:
        yield f"TCP4 snat, among {count:,} known flows", bench.among(V4, count)
    yield "TCP4 snat, new SYN each time", bench.new(V4)
    yield "TCP6 snat, new SYN each time", bench.new(V6)
    yield "TCP4 snat, ICMP error translated", bench.error(V4)
    yield "TCP6 snat, ICMP error translated", bench.error(V6)
    yield "not for us, passed to the kernel", bench.unserved()
    yield HIT, bench.known(V4, Protocol.TCP)  # again: all ratios depend on it


def one_way_lines(bench: Bench) -> Iterator[Line]:
    for name, family in (("TCP4", V4), ("TCP6", V6)):
        yield f"{name} dsr, known flow", bench.one_way(family, Mode.DSR, family)
        yield f"{name} ipip, known flow", bench.one_way(family, Mode.IPIP, family)
        yield f"{name} ipip to the other family, known flow", bench.one_way(family, Mode.IPIP, V6 if family is V4 else V4)


@contextmanager
def bench_on(features: Iterable[str], runs: int) -> Iterator[Bench]:
    """A bench on a bed of its own, with a program that has these features."""
    chosen = dict.fromkeys(features, True)
    with TaggedBed(chosen, max_flows=MAX_FLOWS) if VLANS in chosen else Bed(chosen, max_flows=MAX_FLOWS) as bed:
        bench = Bench(bed, runs)
        yield bench
        bench.close()


def measure_maps(runs: int) -> Iterator[Line]:
    """Insert a million entries from the program, then look them up in another order. The harness, 10 ns, is in it."""
    for words, flags in (("preallocated", 0), ("not preallocated", 1)):
        with compiled(FLOW_MAP, [f"-DFLAGS={flags}"]) as module:
            insert, lookup = (module.load_func(name, import_bcc().BPF.XDP).fd for name in ("insert", "lookup"))
            yield f"map like flows, {words}: insert", xdp.test_run(insert, bytes(64), 0, 1 << 20).duration_ns
            yield f"map like flows, {words}: lookup", fastest(lookup, bytes(64), 0, runs)


def measures(lines: list[Line]) -> list[Measure]:
    """With the ratio to the first line. Of a line that was measured twice, the lower figure counts."""
    best: dict[str, int] = {}
    for name, ns in lines:
        best[name] = min(ns, best.get(name, ns))
    return [Measure(name, ns, round(ns / best[HIT], 2), TARGETS.get(name, 0)) for name, ns in best.items()]


def compare(other: Path, rounds: int, options: list[str]) -> None:
    """Both checkouts in turns; a line that one of them does not have is left out."""
    here = Path(__file__).parents[1]
    found: dict[Path, dict[str, int]] = {here: {}, other: {}}
    for _ in range(rounds):
        for checkout, best in found.items():
            command = [sys.executable, "-m", "bench.dataplane", "--json", "--no-maps", *options]
            output = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, check=False).stdout  # 1: a target missed
            for line in json.loads(output):
                best[line["name"]] = min(line["net_ns"], best.get(line["name"], line["net_ns"]))
    table = Table(title=f"Minima of {rounds} rounds in turns, ns per packet net of the harness")
    for column in ("packet", "there", "here", "here/there"):
        table.add_column(column, justify="left" if column == "packet" else "right")
    for name, ns in found[here].items():
        before = found[other].get(name)
        if before:
            table.add_row(name, str(before), str(ns), f"{ns / before:.2f}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=150, help="runs of which the fastest counts (default 150)")
    parser.add_argument("--flows", default="100000,1000000", help="numbers of flows for the cold lines, with commas")
    parser.add_argument("--no-maps", action="store_true", help="omit the comparison of map types")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with the program of another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a comparison (default 3)")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    if arguments.against:
        compare(arguments.against.resolve(), arguments.rounds, ["--runs", str(arguments.runs), "--flows", arguments.flows])
        return 0
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with bench_on((), arguments.runs) as bench:
        lines = list(nat_lines(bench, [int(word) for word in arguments.flows.split(",") if word]))
    with bench_on(("dsr", "ipip"), arguments.runs) as bench:
        lines += one_way_lines(bench)
    if not arguments.no_maps:
        lines += measure_maps(arguments.runs)
    found = measures(lines)
    if arguments.json:
        print(json.dumps([asdict(measure) for measure in found], indent=2))
    else:
        show(found)
    return 1 if any(measure.target and measure.ratio > measure.target for measure in found) else 0


def show(found: list[Measure]) -> None:
    table = Table(title="Data plane, ns per packet net of the harness")
    for column in ("packet", "ns", "ratio", "target"):
        table.add_column(column, justify="left" if column == "packet" else "right")
    for each in found:
        ratio = f"[red]{each.ratio:.2f}" if each.target and each.ratio > each.target else f"{each.ratio:.2f}"
        table.add_row(each.name, str(each.net_ns), ratio, f"≤ {each.target:g}" if each.target else "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
