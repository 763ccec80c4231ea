"""What the data plane costs per packet, net of the test harness: BPF_PROG_TEST_RUN on one pinned core.

    sudo .venv/bin/python -m bench.dataplane [--json] [--runs 15] [--flows 100000,1000000]

`repeat` does not restore the packet between runs, so the program under test is tail-called by a small one that first
writes the original packet, and for "among N flows" gives it the next of N client addresses in an order that defeats
prefetching. The same small program tail-calling an empty one is the harness, subtracted from every line. Each figure is the
minimum of `--runs` runs: other work on the machine can only increase it.

Two more lines compare `flows` with and without preallocation, by a map of the same layout: see docs/adr/0002.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bpf import libbpf, xdp
from bpf.constants import Mode, Protocol
from bpf.dataplane import Array
from bpf.loading import loader
from bpf.loading.headers import compiler_flags, make_header_tree
from tests.bpf.bed import V4, V6, Bed, Family, why_not
from tests.bpf.packets import from_backend, from_client

REPEAT = 100_000
MAX_FLOWS = 1 << 20
TARGETS = {"TCP4 snat, known flow": 60}

HARNESS = """
#include <uapi/linux/bpf.h>
struct packet { u8 bytes[FRAME_BYTES]; };
BPF_ARRAY(original, struct packet, 1);
BPF_PERCPU_ARRAY(position, u64, 1);
BPF_PROG_ARRAY(under_test, 1);

int empty(struct xdp_md *context) { return XDP_TX; }

int harness(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	int zero = 0;
	struct packet *packet = original.lookup(&zero);
	u64 *number = position.lookup(&zero);

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
    """One line: nanoseconds per packet, the harness subtracted. target_ns: the upper bound; 0: none."""

    name: str
    net_ns: int
    target_ns: int = 0


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
        self._bed, self._runs = bed, runs
        self._program = libbpf.obj_get(loader.program_path(bed.pins))

    def measure(self, frame: bytes, side: str = "in0", variants: int = 1, client_offset: int = 26, port_offset: int = 0) -> int:
        """Net cost of `frame`; with variants > 1 the 32-bit word at client_offset runs through 0 … variants-1.

        port_offset: of the source port, if it varies too. Offsets in bytes from the start of the frame.
        """
        flags = [f"-DFRAME_BYTES={len(frame)}", f"-DVARIANTS={variants}ULL", f"-DCLIENT_OFFSET={client_offset}"]
        flags.append(f"-DPORT_OFFSET={port_offset}")
        index = self._bed.in0 if side == "in0" else self._bed.out0
        with compiled(HARNESS, flags) as module:
            bcc = import_bcc()
            harness, empty = (module.load_func(name, bcc.BPF.XDP).fd for name in ("harness", "empty"))
            original, under_test = module["original"], module["under_test"]
            original[0] = original.Leaf((ctypes.c_uint8 * len(frame))(*frame))
            costs = []
            for fd in (empty, self._program):
                under_test[ctypes.c_int(0)] = ctypes.c_int(fd)
                costs.append(self._bed.inside(functools.partial(fastest, harness, frame, index, self._runs)))
        return costs[1] - costs[0]

    def close(self) -> None:
        os.close(self._program)

    # --- situations ------------------------------------------------------------------------------------------

    def serve(self, family: Family, protocol: Protocol = Protocol.TCP, mode: Mode = Mode.SNAT) -> None:
        self._bed.reset()
        self._bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode)

    def known(self, family: Family, protocol: Protocol, mode: Mode = Mode.SNAT) -> int:
        """A client's packet of an established connection."""
        self._establish(family, protocol, mode)
        return self.measure(bytes(from_client(family, protocol, "A")))

    def reply(self, family: Family, protocol: Protocol) -> int:
        """A backend's packet of the same."""
        self._establish(family, protocol, Mode.SNAT)
        return self.measure(bytes(from_backend(family, family.far(11), family.vip, 40000, protocol, "A")), "out0")

    def _establish(self, family: Family, protocol: Protocol, mode: Mode) -> None:
        self.serve(family, protocol, mode)
        seen = family.vip if mode is Mode.SNAT else family.client
        self._bed.send(bytes(from_client(family, protocol)))
        self._bed.send(bytes(from_backend(family, family.far(11), seen, 40000, protocol)), "out0")
        self._bed.send(bytes(from_client(family, protocol, "A")))

    def among(self, family: Family, count: int) -> int:
        """Packets of `count` established connections in turn."""
        self._establish(family, Protocol.TCP, Mode.SNAT)
        offset = 14 + (12 if family is V4 else 20)
        keys, values = self._copies(family, count)
        written = self._bed.plane.update_flows(family.name, keys, values)
        if written != count:
            raise SystemExit(f"only {written} of {count} flows were written")
        return self.measure(bytes(from_client(family, flags="A")), variants=count, client_offset=offset)

    def _copies(self, family: Family, count: int) -> tuple[Array, Array]:
        """The established forward entry again, for clients whose last or only 32-bit word counts up."""
        plane = self._bed.plane
        ((keys, values),) = [slices for slices in plane.flow_batches("flows", family.name, 64) if len(slices[0])]
        at = int(np.flatnonzero(values["flags"] & 1)[0])
        all_keys, all_values = np.repeat(keys[at : at + 1], count), np.repeat(values[at : at + 1], count)
        raw = all_keys.view(np.uint8).reshape(count, -1)
        word = 0 if family is V4 else 12
        raw[:, word : word + 4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
        return all_keys, all_values

    def new(self, family: Family) -> int:
        """Each SYN of a new client: select, claim, insert both entries and, since the map is full, evict."""
        self._bed.reset()
        self._bed.farm(family.vip, *((family.far(11), 8000 + number) for number in range(50)))
        word = 14 + (12 if family is V4 else 20)
        frame = bytes(from_client(family))
        return self.measure(frame, variants=1 << 31, client_offset=word, port_offset=14 + family.header_bytes)

    def unserved(self) -> int:
        """A packet that is not for a VIP: three lookups, then the kernel."""
        self.serve(V4)
        return self.measure(bytes(from_client(V4, destination=V4.other_vip)))


def measure_all(bench: Bench, flow_counts: list[int]) -> Iterator[Measure]:
    def line(name: str, ns: int) -> Measure:
        return Measure(name, ns, TARGETS.get(name, 0))

    yield line("TCP4 snat, known flow", bench.known(V4, Protocol.TCP))
    yield line("TCP4 snat, reply", bench.reply(V4, Protocol.TCP))
    yield line("TCP4 dnat, known flow", bench.known(V4, Protocol.TCP, Mode.DNAT))
    yield line("UDP4 snat, known flow", bench.known(V4, Protocol.UDP))
    yield line("TCP6 snat, known flow", bench.known(V6, Protocol.TCP))
    for count in flow_counts:
        yield line(f"TCP4 snat, among {count:,} known flows", bench.among(V4, count))
    yield line("TCP4 snat, new SYN each time", bench.new(V4))
    yield line("TCP6 snat, new SYN each time", bench.new(V6))
    yield line("not for us, passed to the kernel", bench.unserved())


def measure_maps(runs: int) -> Iterator[Measure]:
    """Insert a million entries from the program, then look them up in another order. The harness, 10 ns, is in it."""
    for words, flags in (("preallocated", 0), ("not preallocated", 1)):
        with compiled(FLOW_MAP, [f"-DFLAGS={flags}"]) as module:
            insert, lookup = (module.load_func(name, import_bcc().BPF.XDP).fd for name in ("insert", "lookup"))
            yield Measure(f"map like flows, {words}: insert", xdp.test_run(insert, bytes(64), 0, 1 << 20).duration_ns)
            yield Measure(f"map like flows, {words}: lookup", fastest(lookup, bytes(64), 0, runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=15, help="runs of which the fastest counts (default 15)")
    parser.add_argument("--flows", default="100000,1000000", help="numbers of flows for the cold lines, with commas")
    parser.add_argument("--no-maps", action="store_true", help="omit the comparison of map types")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    counts = [int(word) for word in arguments.flows.split(",") if word]
    with Bed(max_flows=MAX_FLOWS) as bed:
        bench = Bench(bed, arguments.runs)
        measures = list(measure_all(bench, counts))
        bench.close()
    if not arguments.no_maps:
        measures += measure_maps(arguments.runs)
    if arguments.json:
        print(json.dumps([asdict(measure) for measure in measures], indent=2))
    else:
        show(measures)
    return 1 if any(measure.target_ns and measure.net_ns > measure.target_ns for measure in measures) else 0


def show(measures: list[Measure]) -> None:
    table = Table(title="Data plane, ns per packet net of the harness")
    table.add_column("packet")
    table.add_column("ns", justify="right")
    table.add_column("target", justify="right")
    for measure in measures:
        missed = measure.target_ns and measure.net_ns > measure.target_ns
        table.add_row(
            measure.name,
            f"[red]{measure.net_ns}" if missed else str(measure.net_ns),
            f"≤ {measure.target_ns}" if measure.target_ns else "",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
