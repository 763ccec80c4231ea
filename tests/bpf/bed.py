"""The bed on which the pinned program is run, packet by packet, with BPF_PROG_TEST_RUN.

    clients ── gateway ── in0 [ program ] out0 ── backends
                           └── backends on the same side (one-interface wiring)

A private namespace gives `bpf_fib_lookup` real routes and permanent neighbours to answer from. Nothing is sent: a test
passes in a frame and gets the verdict and the rewritten frame. Each test starts with empty flow maps and no VIP.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from bpf import libbpf
from bpf.constants import LEASE_FOREVER_NS, TICK_SHIFT, Handler, Mode, Protocol, Scheduler, ServerFlag, VipFlag
from bpf.dataplane import (
    Array,
    DeleteServer,
    DeleteService,
    DeleteVip,
    FlowEntry,
    FlowTuple,
    KeepPrefixes,
    PutBackend,
    PutFarm,
    PutFarmLimits,
    PutServer,
    PutService,
    PutSlots,
    PutVip,
    ServiceKey,
    ServiceValue,
    ZeroTraffic,
)
from bpf.kernel.plane import KernelPlane
from bpf.loading import loader
from bpf.maps import elements
from bpf.maps.layout import Layouts
from bpf.maps.mapped_array import MappedArray
from bpf.maps.pinned_map import PinnedMap
from ctl.dataplane import servers
from tests.rig import xdp_pass
from tests.rig.namespaces import Namespace

T = TypeVar("T")

MAX_FLOWS = 64
SEED = 0x5EED

GATEWAY_MAC = "02:00:00:00:01:fe"
NODE_IN_MAC = "02:00:00:00:01:01"
NODE_OUT_MAC = "02:00:00:00:02:01"
SMALL_MTU = 1300


def backend_mac(number: int) -> str:
    return f"02:00:00:00:02:{number:02x}"


def near_mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


@dataclass(frozen=True, slots=True)
class Family:
    """Addresses of one IP version. far(n) is behind out0, near(n) behind in0; n from 11 to 19 is resolved."""

    name: str
    vip: str
    other_vip: str
    snat: str
    client: str
    far_net: str
    near_net: str
    unroutable: str
    bits: int
    header_bytes: int

    def far(self, number: int) -> str:
        return f"{self.far_net}{number}"

    def near(self, number: int) -> str:
        return f"{self.near_net}{number}"


V4 = Family("v4", "192.0.2.10", "192.0.2.20", "192.0.2.30", "198.51.100.7", "10.2.0.", "10.1.0.", "10.9.0.1", 32, 20)
V6 = Family("v6", "2001:db8::10", "2001:db8::20", "2001:db8::30", "2001:db8:c::7", "fd02::", "fd01::", "fd09::1", 128, 40)
FAMILIES = (V4, V6)

UNRESOLVED, SMALL = 99, 50  # backends without a neighbour entry, and behind a route with SMALL_MTU


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one packet: the name of its verdict, the XDP action, the frame, and every counter that changed."""

    verdict: str
    action: int
    frame: bytes
    moved: Mapping[str, int]


PASS, DROP, TX, REDIRECT = 2, 1, 3, 4


@dataclass(frozen=True, slots=True)
class _SmallBuild(loader.Build):
    """embryonic: connections that the map of embryonic ones has space for, fewer than on any node; 0: as usual."""

    embryonic: int = 0

    @property
    def max_embryonic(self) -> int:
        return self.embryonic or loader.Build(self.bpf_dir, self.run_dir, self.max_flows).max_embryonic


@dataclass(slots=True)
class Bed:
    """One node: namespace, pins, plane. max_embryonic: a few let the map of embryonic connections evict; 0: as usual."""

    features: Mapping[str, bool] = field(default_factory=dict)
    max_flows: int = MAX_FLOWS
    max_embryonic: int = 0
    namespace: Namespace = field(init=False)
    plane: KernelPlane = field(init=False)
    pins: Path = field(init=False)
    layouts: Layouts = field(init=False)
    _stack: contextlib.ExitStack = field(init=False)
    _inside: ThreadPoolExecutor = field(init=False)
    _uses: dict[servers.Host, dict[str, tuple[tuple[int, int, int], ...]]] = field(default_factory=dict)
    in0: int = field(init=False)
    out0: int = field(init=False)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            name = f"xlb-bed-{secrets.token_hex(4)}"
            self.namespace = Namespace(name)
            stack.callback(self.namespace.close)
            self._wire()
            run_dir = Path(os.environ.get("TMPDIR", "/tmp")) / name
            stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            self.pins = Path("/sys/fs/bpf") / name
            stack.callback(loader.remove_pins, self.pins)
            build = _SmallBuild(self.pins, run_dir, self.max_flows, self.features, embryonic=self.max_embryonic)
            self.max_embryonic = build.max_embryonic
            loaded = loader.ensure(build)
            self.layouts = loaded.layouts
            self.plane = KernelPlane(self.pins, loaded.layouts)
            stack.callback(self.plane.close)
            self._inside = ThreadPoolExecutor(1, initializer=self.namespace.enter)
            stack.callback(self._inside.shutdown)
            self._prepare_receive_queues()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inside(self, function: Callable[[], T]) -> T:
        """Run in the namespace."""
        return self._inside.submit(function).result()

    def _wire(self) -> None:
        lines = [
            f"link add in0 address {NODE_IN_MAC} type veth peer name in1",
            f"link add out0 address {NODE_OUT_MAC} type veth peer name out1",
            *(f"link set {name} up" for name in ("in0", "in1", "out0", "out1")),
            "addr add 10.1.0.1/24 dev in0",
            "addr add 10.2.0.1/24 dev out0",
            "addr add fd01::1/64 dev in0 nodad",
            "addr add fd02::1/64 dev out0 nodad",
        ]
        for net, device, mac in (
            ("10.1.0.", "in0", near_mac),
            ("fd01::", "in0", near_mac),
            ("10.2.0.", "out0", backend_mac),
            ("fd02::", "out0", backend_mac),
        ):
            lines += [f"neigh add {net}{n} lladdr {mac(n)} dev {device} nud permanent" for n in (*range(11, 20), SMALL)]
        lines += [
            f"neigh add 10.1.0.254 lladdr {GATEWAY_MAC} dev in0 nud permanent",
            f"neigh add fd01::fe lladdr {GATEWAY_MAC} dev in0 nud permanent",
            "route add default via 10.1.0.254",
            "route add ::/0 via fd01::fe",
            "route add blackhole 10.9.0.0/16",
            "route add unreachable fd09::/64",
            f"route add 10.2.0.{SMALL} dev out0 mtu lock {SMALL_MTU}",
            f"route add fd02::{SMALL} dev out0 mtu lock {SMALL_MTU}",
        ]
        self.namespace.sysctl({"net.ipv4.conf.all.forwarding": 1, "net.ipv6.conf.all.forwarding": 1})
        self.namespace.ip(*lines)
        self.in0, self.out0 = (self.namespace.interface_index(name) for name in ("in0", "out0"))

    def _prepare_receive_queues(self) -> None:
        """A test run with an ingress interface needs that interface's receive queue, which veth sets up for XDP.

        Not with the program under test: what the kernel sends by itself over a veth must not be counted.
        """
        for index in (self.in0, self.out0):
            self.inside(functools.partial(xdp_pass.attach, index))

    @property
    def evicts(self) -> bool:
        """A few connections fill the map of embryonic ones."""
        return self.max_embryonic < loader.MIN_EMBRYONIC

    # --- what a test does ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """No configuration, no flows, an open lease."""
        plane = self.plane
        plane.apply([DeleteServer(key) for key in plane.servers()])
        self._uses.clear()
        plane.apply([*(DeleteService(key) for key in plane.services()), *(DeleteVip(address) for address in plane.vips())])
        plane.apply([ZeroTraffic(tuple(range(1, 16)), tuple(range(1, 64))), *(PutFarm(farm, 0) for farm in range(1, 16))])
        for family in FAMILIES:
            for flow_map in ("flows", "embryonic", "direct", "fragments"):
                self.clear(flow_map, family)
            MappedArray(plane._maps[f"recent_{family.name}"]).clear()
        plane.apply([KeepPrefixes(frozenset()), *(PutFarmLimits(farm) for farm in range(1, 16))])
        for name in self.layouts.maps.keys() & {"rates_v4", "rates_v6", "half_open_v4", "half_open_v6"}:
            self._empty(name)
        for name in ("pressures", "error_budget"):
            rows = plane._maps[name].max_entries
            plane._maps[name].put(np.arange(rows, dtype=np.uint32), np.zeros(rows, plane._maps[name].value))
        if "test_clock" in self.layouts.maps:
            self.set_clock(1000.0)
        for kind in ("farm", "backend"):
            values = plane.loads(kind)
            if values is not None:
                plane.set_load_bases(kind, (values["closed"] - values["opened"]).astype(np.int64))
        plane.set_lease(LEASE_FOREVER_NS, 1)
        plane.set_hash_seed(SEED)
        plane.bump_next_hops()

    def ids(self, *numbers: int) -> Array:
        """Backend ids as PutSlots takes them."""
        return np.array(numbers, dtype=np.uint32)

    def blank_flows(self, family: Family, count: int) -> Array:
        """Flow entries without a destination."""
        return np.zeros(count, dtype=self.plane.flow_dtypes(family.name)[1])

    def programs(self) -> dict[str, libbpf.ProgramInfo]:
        """What the kernel knows of the entry program and of each program that it calls."""
        handlers = libbpf.obj_get(self.pins / loader.HANDLERS)
        found = [elements.lookup(handlers, int(each).to_bytes(4, sys.byteorder), 4) for each in Handler]
        programs = [libbpf.program_by_id(int.from_bytes(number, sys.byteorder)) for number in found if number]
        programs.append(libbpf.obj_get(loader.program_path(self.pins)))
        infos = [libbpf.program_info(program) for program in programs]
        for fd in (handlers, *programs):
            os.close(fd)
        return {info.name: info for info in infos}

    def fill_flows(self, family: Family) -> None:
        """Fill `flows` to its capacity."""
        tuples = [FlowTuple(family.far(200), family.client, 1, port, Protocol.TCP) for port in range(1, 2 * MAX_FLOWS + 1)]
        keys = self.plane.encode_flow_keys(family.name, tuples)
        assert self.plane.update_flows(family.name, keys, self.blank_flows(family, len(keys))) == len(keys)

    def age(self, flow_map: str, family: Family, seconds: float) -> None:
        """Make all entries of a flow map look as if their last packets had come so much earlier."""
        pinned = PinnedMap(self.pins, f"{flow_map}_{family.name}", self.layouts.maps[f"{flow_map}_{family.name}"])
        for keys, values in list(self.plane.flow_batches(flow_map, family.name, 4096)):
            values["last_seen"] -= int(seconds * 1e9) >> TICK_SHIFT
            pinned.put(keys, values)
            self.plane.end_copies(keys)
        pinned.close()

    def _empty(self, name: str) -> None:
        bpf_map = self.plane._maps[name]
        for keys, _ in list(bpf_map.slices(4096)):
            bpf_map.remove(keys)

    def set_clock(self, seconds: float) -> None:
        """The time that a program with the feature test_clock sees."""
        self.plane._maps["test_clock"].put(np.zeros(1, np.uint32), np.array([round(seconds * 1e9)], np.uint64))

    def clear(self, flow_map: str, family: Family) -> None:
        for keys, _ in list(self.plane.flow_batches(flow_map, family.name, 4096)):
            self.plane.delete_flows(flow_map, family.name, keys)

    def farm(
        self,
        vip: str,
        *backends: tuple[str, int],
        port: int = 80,
        port_last: int = 0,
        protocol: int = Protocol.TCP,
        mode: int = Mode.SNAT,
        scheduler: int = Scheduler.MAGLEV,
        snat: str = "",
        flags: int = 0,
        slots: tuple[int, ...] = (),
        farm: int = 1,
        first_backend: int = 0,
    ) -> None:
        """A VIP with one farm. Backend n (from 1, or first_backend) is the n-th of `backends`; slots default to one turn."""
        first = first_backend or farm * 8
        ids = tuple(range(first, first + len(backends)))
        chosen = tuple(ids[n] for n in slots) if slots else ids
        offset = 1024 * farm
        key = ServiceKey(vip, port, port_last or port, protocol)
        if port_last:
            flags |= VipFlag.RANGES
        self.plane.apply(
            [
                PutVip(vip, flags),
                *(PutBackend(number, *backend) for number, backend in zip(ids, backends, strict=True)),
                PutSlots(offset, np.array(chosen or (0,), dtype=np.uint32)),
                PutService(key, ServiceValue(farm, offset, len(chosen), mode, scheduler, port, snat or vip)),
                *self._servers(farm, protocol, mode, backends, key.port_last - port),
            ]
        )

    def _servers(
        self, farm: int, protocol: int, mode: int, backends: tuple[tuple[str, int], ...], more_ports: int
    ) -> list[PutServer]:
        """The services of a farm's backends."""
        flag = ServerFlag.DNAT if mode == Mode.DNAT else ServerFlag.SNAT
        puts = []
        for address, port in backends:
            uses = self._uses.setdefault((address, protocol), {})
            uses[str(farm)] = (*uses.get(str(farm), ()), (port, port + more_ports, int(flag)))
            puts += [PutServer(key, flags) for key, flags in servers.server_flags((address, protocol), uses).items()]
        return puts

    def send(self, frame: bytes, side: str = "in0", tags: int = 0) -> Outcome:
        """Run one frame as if it had come in by `side`. Fails unless exactly one verdict was counted, with all its bytes.

        tags: VLAN tags that the program is expected to remove, and not to count.
        """
        frame, index, _ = self.arriving(frame, side)
        return self.run(frame, index, tags)

    def arriving(self, frame: bytes, side: str) -> tuple[bytes, int, int]:
        """How a frame comes in by `side`: its bytes there, the interface's index, and how many bytes are before its IP header
        in addition to the usual ones."""
        return frame, self.in0 if side == "in0" else self.out0, 0

    def run(self, frame: bytes, index: int, tags: int = 0) -> Outcome:
        """The same as if the frame had come in by the interface with this index."""
        before = self.plane.counters()
        run = self.inside(lambda: self.plane.test_run(frame, index))
        after = self.plane.counters()
        moved = {name: packets - before[name][0] for name, (packets, _) in after.items() if packets != before[name][0]}
        verdicts = [name for name in moved if not name.startswith("event_")]
        assert len(verdicts) == 1 and moved[verdicts[0]] == 1, f"one packet must be counted once: {moved}"
        counted = after[verdicts[0]][1] - before[verdicts[0]][1]
        assert counted == len(frame) - 4 * tags, "a verdict counts the bytes of the frame"
        answered = any(name.endswith("_sent") for name in moved)
        action = {"pass": (PASS,), "drop": (TX if answered else DROP,), "forward": (TX, REDIRECT)}[verdicts[0].split("_")[0]]
        assert run.action in action, f"{verdicts[0]} ended in XDP action {run.action}"
        return Outcome(verdicts[0], run.action, run.packet, moved)

    def raw(self, flow_map: str, family: Family) -> list[tuple[Array, Array]]:
        """Every entry of a map that is laid out like a flow map: key and value, one row each."""
        batches = [(keys, values) for keys, values in self.plane.flow_batches(flow_map, family.name, 65536)]
        return [(keys[n : n + 1].copy(), values[n : n + 1].copy()) for keys, values in batches for n in range(len(keys))]

    def write(self, flow_map: str, family: Family, key: Array, value: Array) -> None:
        """Overwrite an entry that `raw` returned."""
        self.plane._maps[f"{flow_map}_{family.name}"].put(key, value)

    def flows(self, flow_map: str, family: Family) -> dict[FlowTuple, FlowEntry]:
        """All entries of a flow map by their arriving tuple."""
        found: dict[FlowTuple, FlowEntry] = {}
        for keys, values in self.plane.flow_batches(flow_map, family.name, 4096):
            found |= {entry.arrives: entry for entry in self.plane.decode_flows(flow_map, keys, values)}
        return found

    def map_state(self, family: Family) -> tuple[Any, ...]:
        """Everything in the flow maps that packets can change, to compare."""
        return tuple(
            sorted(
                (keys.tobytes(), values.tobytes())
                for flow_map in ("flows", "embryonic")
                for keys, values in self.plane.flow_batches(flow_map, family.name, 4096)
            )
        )


def why_not() -> str:
    """Why the bed cannot be created here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: loads XDP programs and makes network namespaces"
    return ""
