"""The program under test, and its maps entry by entry: as fast as Python allows, because millions of packets are compared."""

from __future__ import annotations

import ctypes as ct
import ipaddress
import struct

import numpy as np

from bpf import libbpf, xdp
from bpf.constants import COUNTERS, FlowFlag
from bpf.dataplane import ZeroTraffic
from bpf.maps import elements
from bpf.maps.pinned_map import PinnedMap
from ctl.cluster.flows.source import make_codec
from ctl.dataplane.kernel import flow_maps
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, SMALL, SMALL_MTU, Bed, backend_mac, near_mac
from tests.model.packet import difference, folded
from tests.model.routes import Interface, Routes
from tests.model.state import Flow, Key

_KEYS = {4: struct.Struct(">4s4sHHB3x"), 16: struct.Struct(">16s16sHHB3x")}
_FLOWS = {4: struct.Struct("<4s4s2s2sHH6s6sIIIHBBHH"), 16: struct.Struct("<16s16s2s2sHH6s6sIIIHBBHH")}
FAMILIES = {4: "v4", 16: "v6"}
FARMS, BACKENDS = 16, 256
"""Ids below these are compared."""


def encode_key(key: Key) -> bytes:
    return _KEYS[len(key.source)].pack(*key)


def decode_key(raw: bytes) -> Key:
    return Key(*_KEYS[4 if len(raw) == 16 else 16].unpack(raw))


def row_of(flow: Flow) -> tuple[object, ...]:
    """What of a flow entry is compared: all but the checksum deltas, which show in the frames."""
    size = len(flow.source)
    front = flow.source + flow.destination + flow.source_port.to_bytes(2) + flow.destination_port.to_bytes(2)
    if flow.flags & FlowFlag.OTHER_FAMILY:  # an IPv6 address takes the place of all that, and of the deltas
        front = flow.destination[:12] if size == 4 else flow.source + flow.destination + bytes(12) + front[20:]
    return (
        *(front[:size], front[size : 2 * size], front[2 * size : 2 * size + 2], front[2 * size + 2 :]),
        *(flow.destination_mac, flow.source_mac, flow.interface, flow.generation, flow.last_seen),
        *(flow.farm, flow.flags, flow.state, flow.backend, flow.mtu),
    )


def decode_row(raw: bytes) -> tuple[object, ...]:
    fields = _FLOWS[4 if len(raw) == 48 else 16].unpack(raw)
    return fields[:4] + fields[6:]


def encode_flow(key: Key, flow: Flow) -> bytes:
    """With its checksum deltas: one's complement sums in the machine's byte order."""
    addresses = difference(key.source + key.destination, flow.source + flow.destination)
    ports_before, ports_after = (each.source_port.to_bytes(2) + each.destination_port.to_bytes(2) for each in (key, flow))
    of_transport = folded(addresses + difference(ports_before, ports_after))
    of_header = folded(addresses + 0xFEFF) if len(key.source) == 4 else 0
    deltas = (of_header.to_bytes(2), of_transport.to_bytes(2))
    row = row_of(flow)
    numbers = (int.from_bytes(each, "little") for each in deltas)
    return _FLOWS[len(key.source)].pack(*row[:4], *numbers, *row[4:])


def routes_of(bed: Bed) -> Routes:
    """The routes and neighbours that the bed makes (tests/bpf/bed.py)."""

    def mac(text: str) -> bytes:
        return bytes.fromhex(text.replace(":", ""))

    def address(text: str) -> bytes:
        return ipaddress.ip_address(text).packed

    routes = Routes()
    near = Interface(bed.in0, mac(NODE_IN_MAC), {4: address("10.1.0.1"), 16: address("fd01::1")})
    far = Interface(bed.out0, mac(NODE_OUT_MAC), {4: address("10.2.0.1"), 16: address("fd02::1")})
    for prefix, interface in (("10.1.0.0/24", near), ("fd01::/64", near), ("10.2.0.0/24", far), ("fd02::/64", far)):
        routes.add(prefix, interface)
    routes.add("0.0.0.0/0", near, "10.1.0.254")
    routes.add("::/0", near, "fd01::fe")
    for prefix in ("10.9.0.0/16", "fd09::/64", "127.0.0.0/8", "::1/128", "ff00::/8"):
        routes.add(prefix, None)
    for net in ("10.1.0.", "10.2.0."):
        routes.add(f"{net}1/32", None)
        routes.add(f"{net}255/32", None)
    for net in ("fd01::", "fd02::"):
        routes.add(f"{net}1/128", None)
        routes.add(f"{net}/128", None)  # the anycast address of its routers
    routes.add(f"10.2.0.{SMALL}/32", far, mtu=SMALL_MTU)
    routes.add(f"fd02::{SMALL}/128", far, mtu=SMALL_MTU)
    for number in (*range(11, 20), SMALL):
        for net in ("10.1.0.", "fd01::"):
            routes.neighbours[address(f"{net}{number}")] = mac(near_mac(number))
        for net in ("10.2.0.", "fd02::"):
            routes.neighbours[address(f"{net}{number}")] = mac(backend_mac(number))
    for gateway in ("10.1.0.254", "fd01::fe"):
        routes.neighbours[address(gateway)] = mac(GATEWAY_MAC)
    return routes


class Kernel:
    """One bed. All methods are called in its namespace, on one CPU."""

    def __init__(self, bed: Bed, cpu: int) -> None:
        self.bed, self.plane, self.cpu = bed, bed.plane, cpu
        self.cpus = libbpf.possible_cpus()
        maps: dict[str, PinnedMap] = bed.plane._maps
        self._fds = {name: each.fd for name, each in maps.items()}
        self._lookup, self._test_run = elements._library().bpf_map_lookup_elem, xdp._library().bpf_prog_test_run_opts
        self._value = ct.create_string_buffer(256)
        self._input, self._output = ct.create_string_buffer(4096), ct.create_string_buffer(4096)
        self._context = xdp._XdpContext()
        self._options = xdp._TestRunOptions(sz=ct.sizeof(xdp._TestRunOptions), repeat=1)
        self._options.data_in, self._options.data_out = ct.addressof(self._input), ct.addressof(self._output)
        self._options.ctx_in, self._options.ctx_size_in = ct.addressof(self._context), ct.sizeof(self._context)
        self._events = {size: bed.plane.flow_events(family) for size, family in FAMILIES.items()}
        self._codec = make_codec(bed.plane)
        self._counters = self._array("counters", len(COUNTERS))
        self._farms, self._backends = self._array("farm_traffic", FARMS), self._array("backend_traffic", BACKENDS)

    def _array(self, name: str, count: int) -> tuple[int, np.ndarray, np.ndarray]:
        item = self.plane._maps[name].value.itemsize
        return self._fds[name], np.empty(count, np.uint32), np.empty(count * item // 8, np.uint64)

    def has(self, feature: str) -> bool:
        """Whether the program was built with it."""
        return bool(self.bed.features.get(feature))

    def enter(self) -> None:
        """Move this thread into the bed's namespace."""
        self.bed.namespace.enter()

    def reset(self) -> None:
        """No configuration, no flows; turns and budgets of answers from the start."""
        self.bed.reset()
        self.plane.apply([ZeroTraffic(tuple(range(1, FARMS)), tuple(range(1, BACKENDS)))])
        for name, count in (("turns", FARMS), ("error_budget", 2)):
            for number in range(count):
                elements.update(self._fds[name], number.to_bytes(4, "little"), bytes(self.plane._maps[name].value.itemsize))
        if self.has("ipip"):
            self.plane.set_tunnel_sources("", "")
        self.events()

    def run(self, frame: bytes, ingress: int) -> tuple[int, bytes]:
        """XDP action and the frame as it leaves."""
        options, size = self._options, len(frame)
        ct.memmove(self._input, frame, size)
        options.data_size_in, options.data_size_out = size, 4096
        self._context.data, self._context.data_end, self._context.ingress_ifindex = 0, size, ingress
        code = self._test_run(self.bed.plane._program, ct.byref(options))
        if code < 0:
            raise libbpf.failure(code, f"run the program on {size} bytes")
        return options.retval, self._output.raw[: options.data_size_out]

    def set_clock(self, now_ns: int) -> None:
        elements.update(self._fds["test_clock"], bytes(4), now_ns.to_bytes(8, "little"))

    def flow(self, table: str, key: Key) -> tuple[object, ...] | None:
        """An entry; None: there is none."""
        if self._lookup(self._fds[table], encode_key(key), self._value) < 0:
            return None
        if table.startswith("direct"):
            return ()
        return decode_row(self._value.raw[: 48 if len(key.source) == 4 else 72])

    def insert(self, table: str, key: Key, flow: Flow) -> None:
        elements.update(self._fds[table], encode_key(key), encode_flow(key, flow))

    def counters(self) -> list[int]:
        """Packets and bytes of each counter in turn."""
        return self._read(self._counters, 2)

    def traffic(self) -> tuple[list[int], list[int]]:
        """The fields of each farm, and of each backend, in turn."""
        return self._read(self._farms, 6), self._read(self._backends, 6)

    def _read(self, array: tuple[int, np.ndarray, np.ndarray], fields: int) -> list[int]:
        fd, keys, values = array
        elements.lookup_batch(fd, None, keys, values)
        numbers: list[int] = values.reshape(-1, self.cpus, fields).sum(axis=1).reshape(-1).tolist()
        return numbers

    def events(self) -> list[tuple[int, Key, tuple[object, ...]]]:
        """What the program has reported to the peer since the last call."""
        found = []
        for size, ring in self._events.items():
            if ring is None or not ring.backlog():
                continue
            key_bytes, flow_bytes = _KEYS[size].size, _FLOWS[size].size
            for record in ring.read(1 << 16):
                raw = record.tobytes()
                row = decode_row(raw[key_bytes : key_bytes + flow_bytes])
                found.append((raw[key_bytes + flow_bytes], decode_key(raw[:key_bytes]), row))
        return found

    def table(self, name: str) -> dict[Key, tuple[object, ...]]:
        """All entries of a flow map."""
        table, family = name.split("_")
        found: dict[Key, tuple[object, ...]] = {}
        for keys, values in self.plane.flow_batches(table, family, 4096):
            for key, value in zip(keys, values, strict=True):
                found[decode_key(key.tobytes())] = () if table == "direct" else decode_row(value.tobytes())
        return found

    def take_over(self) -> None:
        """Another node with the replicated connections: what the codec carries of `flows`, and nothing else."""
        carried = []
        for family in FAMILIES.values():
            for keys, values in list(self.plane.flow_batches("flows", family, 4096)):
                forward = flow_maps.is_forward(values)
                keys, values = keys[forward], values[forward]
                carried.append((family, len(keys), self._codec.encode(family, keys, values, 0)))
        for family in FAMILIES.values():
            for name in ("flows", "embryonic", "fragments", "direct"):
                for keys, _ in list(self.plane.flow_batches(name, family, 4096)):
                    self.plane.delete_flows(name, family, keys)
        for family, count, payload in carried:
            for _, flows in self._codec.decode(family, count, payload) if count else ():
                two_way = flows.chosen(~flows.one_way)
                for keys, values in ((flows.keys, flows.forward), (two_way.reply_keys, two_way.reply)):
                    assert self.plane.update_flows(family, keys, values) == len(keys)
