"""What the data plane costs per packet, net of the test harness: BPF_PROG_TEST_RUN on one pinned core.

`repeat` does not restore the packet between runs, so the program under test is tail-called by a small one that first
writes the original packet, and for "among N flows" gives it the next of N client addresses in an order that defeats
prefetching. The same small program tail-calling an empty one is the harness, subtracted from every figure. Each figure is the
minimum of several runs: other work on the machine can only increase it.

After ipip the harness shortens the packet again. Of a program that does nothing but lengthen it, half is taken for that call
and subtracted too.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from scapy.packet import Raw

from bench.compiling import compiled, import_bcc
from bpf import libbpf, xdp
from bpf.constants import TICK_SHIFT, Mode, Protocol
from bpf.dataplane import Array, FlowTuple
from bpf.loading import loader
from ctl.dataplane.features import VLANS
from tests.bpf.bed import V4, Bed, Family
from tests.bpf.packets import from_backend, from_client, icmp_error, network, transport
from tests.bpf.tagged_bed import TaggedBed

REPEAT = 10_000
MAX_FLOWS = 1 << 20
TUNNEL_SOURCES = ("10.2.0.1", "fd02::1")

HARNESS = """
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>
struct packet { u8 bytes[FRAME_BYTES]; };
BPF_ARRAY(original, struct packet, 1);
BPF_PERCPU_ARRAY(position, u64, 1);
BPF_PROG_ARRAY(under_test, 1);

int empty(struct xdp_md *context) { return XDP_TX; }
int parse(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct tcphdr *tcp;

	if ((void *)(ip + 1) > end || ethernet->h_proto != htons(ETH_P_IP) || ip->version != 4 || ip->ihl < 5)
		return XDP_PASS;
	tcp = (void *)ip + ip->ihl * 4;
	if (ip->protocol != IPPROTO_TCP || ip->frag_off & htons(0x3fff) || (void *)(tcp + 1) > end || tcp->doff < 5)
		return XDP_PASS;
	return tcp->source ? XDP_TX : XDP_DROP;
}

int longer(struct xdp_md *context) { return bpf_xdp_adjust_head(context, -HEADER_BYTES) ? XDP_ABORTED : XDP_TX; }

int harness(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	int zero = 0;
	struct packet *packet = original.lookup(&zero);
	u64 *number = position.lookup(&zero);

	long longer = (void *)(long)context->data_end - data - FRAME_BYTES; /* by the last run */

	if (longer > 0 ? bpf_xdp_adjust_head(context, longer) : longer < 0 && bpf_xdp_adjust_tail(context, -longer))
		return XDP_ABORTED;
	data = (void *)(long)context->data;
	if (!packet || !number || data + FRAME_BYTES > (void *)(long)context->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, packet->bytes, FRAME_BYTES < 256 ? FRAME_BYTES : 256); /* no program changes what is behind */
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


def fastest(fd: int, frame: bytes, ifindex: int, runs: int, repeat: int = REPEAT) -> int:
    """Least ns per run of a program."""
    return min(xdp.test_run(fd, frame, ifindex, repeat).duration_ns for _ in range(runs))


class Harness:
    """The program that restores the packet and calls another one."""

    def __init__(self, module: Any) -> None:
        kind = import_bcc().BPF.XDP
        self.fd: int = module.load_func("harness", kind).fd
        self.programs: dict[str, int] = {name: module.load_func(name, kind).fd for name in ("empty", "parse", "longer")}
        self._original, self._under_test = module["original"], module["under_test"]

    def put(self, frame: bytes) -> None:
        self._original[0] = self._original.Leaf((ctypes.c_uint8 * len(frame))(*frame))

    def call(self, program: int) -> None:
        self._under_test[ctypes.c_int(0)] = ctypes.c_int(program)


class Bench:
    """Runs frames through the pinned program on a bed with a capacity of a million flows."""

    def __init__(self, bed: Bed, runs: int) -> None:
        self.bed, self.runs = bed, runs
        self._program = libbpf.obj_get(loader.program_path(bed.pins))
        self._stack = ExitStack()
        self._harnesses: dict[tuple[str, ...], Harness] = {}

    def measure(
        self,
        frame: bytes,
        side: str = "in0",
        variants: int = 1,
        client_offset: int = 26,
        port_offset: int = 0,
        longer_bytes: int = 0,
        repeat: int = REPEAT,
        warm: int = 0,
        refresh: Callable[[], None] | None = None,
    ) -> int:
        """Net cost of `frame`; with variants > 1 the 32-bit word at client_offset runs through 0 … variants-1.

        port_offset: of the source port, if it varies too. Offsets in bytes from the start of the frame. longer_bytes: by which
        the program lengthens the frame. warm: packets before the first run. refresh: called before each run.
        Raises RuntimeError if the harness could not restore the packet.
        """
        frame, index, tag_bytes = self.bed.arriving(frame, side)
        flags = [
            f"-DHEADER_BYTES={longer_bytes or 20}",
            f"-DFRAME_BYTES={len(frame)}",
            f"-DVARIANTS={variants}ULL",
            f"-DCLIENT_OFFSET={client_offset + tag_bytes}",
        ]
        flags.append(f"-DPORT_OFFSET={port_offset and port_offset + tag_bytes}")
        harness = self._harness(tuple(flags))
        harness.put(frame)

        def cost(program: int, repeat: int) -> int:
            harness.call(program)
            run = xdp.test_run(harness.fd, frame, index, repeat)
            if not run.action:
                raise RuntimeError("the harness could not restore the packet")
            return run.duration_ns

        def costs() -> list[int]:
            found = []
            for program in (harness.programs["empty"], self._program, *([harness.programs["longer"]] if longer_bytes else [])):
                own, samples = program == self._program, list[int]()
                if own and warm:
                    cost(program, warm)
                for _ in range(self.runs):
                    if own and refresh:
                        refresh()
                    samples.append(cost(program, repeat if own else REPEAT))
                found.append(min(samples))
            return found

        empty, own, *longer = self.bed.inside(costs)
        return own - empty - (longer[0] - empty) // 2 if longer else own - empty

    def baseline(self, name: str, frame: bytes) -> int:
        """A program of the harness: "empty" with all that the harness costs, others net of it."""
        harness = self._harness(
            ("-DHEADER_BYTES=20", f"-DFRAME_BYTES={len(frame)}", "-DVARIANTS=1ULL", "-DCLIENT_OFFSET=26", "-DPORT_OFFSET=0")
        )
        harness.put(frame)
        costs = []
        for chosen in dict.fromkeys(("empty", name)):
            harness.call(harness.programs[chosen])
            costs.append(self.bed.inside(functools.partial(fastest, harness.fd, frame, self.bed.in0, self.runs)))
        return costs[0] if name == "empty" else costs[1] - costs[0]

    def _harness(self, flags: tuple[str, ...]) -> Harness:
        if flags not in self._harnesses:
            self._harnesses[flags] = Harness(self._stack.enter_context(compiled(HARNESS, list(flags))))
        return self._harnesses[flags]

    def close(self) -> None:
        self._stack.close()
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
        """Packets of `count` established connections in turn; each had one within the last second, as in a busy node."""
        self.establish(family)
        offset = 14 + (12 if family is V4 else 20)
        keys, values = self._copies(family, count)
        written = self.bed.plane.update_flows(family.name, keys, values)
        if written != count:
            raise SystemExit(f"only {written} of {count} flows were written")
        repeat = max(REPEAT, min(count, 200_000))
        frame = bytes(from_client(family, flags="A"))
        return self.measure(frame, variants=count, client_offset=offset, repeat=repeat, warm=2 * count)

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

    def new(self, family: Family, protocol: Protocol = Protocol.TCP, mode: Mode = Mode.SNAT, full: bool = True) -> int:
        """Each packet of a new client: select, claim, insert the entries. full: the map is, so each insert evicts; otherwise it
        is empty first, and half full at the end of a run."""
        self.bed.reset()
        if mode in (Mode.DSR, Mode.IPIP):
            self.bed.plane.set_tunnel_sources(*TUNNEL_SOURCES)
            backends = [(family.far(11 + number), 80) for number in range(8)]
        else:
            backends = [(family.far(11), 8000 + number) for number in range(50)]
        self.bed.farm(family.vip, *backends, protocol=protocol, mode=mode)
        frame = bytes(from_client(family, protocol))
        longer = family.header_bytes if mode is Mode.IPIP else 0
        if full:
            return self.strangers(frame, family, longer, warm=self.bed.max_embryonic * 3)
        clear = functools.partial(self.bed.clear, "embryonic", family)
        return self.strangers(frame, family, longer, repeat=self.bed.max_embryonic // 2, refresh=clear)

    def strangers(
        self,
        frame: bytes,
        family: Family,
        longer_bytes: int = 0,
        repeat: int = REPEAT,
        warm: int = 0,
        refresh: Callable[[], None] | None = None,
    ) -> int:
        """`frame` from another client each time."""
        word = 14 + (12 if family is V4 else 20)
        port = 14 + family.header_bytes
        return self.measure(frame, "in0", 1 << 31, word, port, longer_bytes, repeat, warm, refresh)

    def take_all_ports(self, family: Family, seen: str) -> None:
        """Every reply key of a backend and the address `seen` belongs to an established connection."""
        tuples = [FlowTuple(family.far(11), seen, 8080, port, Protocol.TCP) for port in range(1, 1 << 16)]
        keys = self.bed.plane.encode_flow_keys(family.name, tuples)
        values = self.bed.blank_flows(family, len(keys))
        values["last_seen"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT
        self.bed.plane.update_flows(family.name, keys, values)

    def unserved(self) -> int:
        """A packet that is not for a VIP: three lookups, then the kernel."""
        self.serve(V4)
        return self.measure(bytes(from_client(V4, destination=V4.other_vip)))


@contextmanager
def bench_on(features: Iterable[str], runs: int) -> Iterator[Bench]:
    """A bench on a bed of its own, with a program that has these features."""
    chosen = dict.fromkeys(features, True)
    with TaggedBed(chosen, max_flows=MAX_FLOWS) if VLANS in chosen else Bed(chosen, max_flows=MAX_FLOWS) as bed:
        bench = Bench(bed, runs)
        yield bench
        bench.close()


def map_costs(runs: int) -> Iterator[tuple[str, int]]:
    """Insert a million entries from the program, then look them up in another order. The harness, 10 ns, is in it."""
    for words, flags in (("preallocated", 0), ("not preallocated", 1)):
        with compiled(FLOW_MAP, [f"-DFLAGS={flags}"]) as module:
            insert, lookup = (module.load_func(name, import_bcc().BPF.XDP).fd for name in ("insert", "lookup"))
            yield f"insert, {words}", xdp.test_run(insert, bytes(64), 0, 1 << 20).duration_ns
            yield f"lookup, {words}", fastest(lookup, bytes(64), 0, runs)
