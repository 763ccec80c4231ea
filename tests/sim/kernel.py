"""What of a simulated node outlives its daemon: lease, flow maps, event rings, addresses. And what the rules see of it.

The maps are the tests' fake plane, with the program's part of them: connections that clients open, use and close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bpf import constants
from bpf.constants import EventType, FlowFlag, FlowState
from bpf.dataplane import Array
from ctl.cluster.flows.source import make_codec
from ctl.network.network import InterfaceAddress
from sync.flows.codec import PRESENT
from tests.fakes.network import FakeNetwork, FakeReadyAddresses
from tests.fakes.plane import FakePlane, FakeRing, event_dtype, flow_dtype, key_dtype

if TYPE_CHECKING:
    from tests.sim.node import Node

FAMILY = "v4"
RING_RECORDS = 8
CONNECTIONS = 96
"""Connections that may exist in a history; clients come back with the same ports."""

_NO_COUNTERS = {counter.name: (0, 0) for counter in constants.COUNTERS}
_EVENT: Mapping[str, Any] = event_dtype(FAMILY).fields or {}
_TOKEN = flow_dtype(FAMILY).fields["farm"][1], flow_dtype(FAMILY).fields["backend"][1]  # type: ignore[index]


class Ring(FakeRing):
    """A ring of single records, joined when they are read: a client's packet is one event."""

    def __init__(self, family: str, capacity: int) -> None:
        super().__init__(family, capacity)
        self.family = family
        self.waiting: list[bytes] = []

    def report(self, record: bytes) -> bool:
        """Returns whether there was space."""
        if len(self.waiting) >= self.capacity:
            self.lost += 1
            return False
        self.waiting.append(record)
        return True

    def backlog(self) -> int:
        return len(self.waiting)

    def read(self, limit: int) -> Array:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return np.frombuffer(b"".join(taken), event_dtype(self.family)).copy()


class Connection:
    """The bytes of one connection's two entries; `token` is what a change changes."""

    def __init__(self, number: int) -> None:
        key, value = np.zeros(1, key_dtype(FAMILY)), np.zeros(1, flow_dtype(FAMILY))
        for row, ends in ((key, (0x0A000000 + number, 0xC0000201)), (value, (0xC0000201, 0x0B000000 + number % 7))):
            row[0]["source"], row[0]["destination"] = (np.void(end.to_bytes(4, "big")) for end in ends)
            row[0]["source_port"], row[0]["destination_port"] = 1024 + number, 80
        key["protocol"] = 6
        value["state"], value["flags"] = int(FlowState.SEEN), int(FlowFlag.FORWARD)
        codec = make_codec(FakePlane(max_flows=1, slots=0))
        (_, flows), *_ = codec.decode(FAMILY, 1, codec.encode(FAMILY, key, value, PRESENT))
        flows.reply["state"] &= ~int(FlowState.REPLICATED) & 0xFF
        self.key, self.forward = key.tobytes(), value.tobytes()
        self.reply_key, self.reply = flows.reply_keys.tobytes(), flows.reply.tobytes()


@cache
def connection(number: int) -> Connection:
    return Connection(number)


def with_token(value: bytes, token: int) -> bytes:
    """The entry after the change of this number: in the farm's and backend's ids, which replication carries."""
    farm, backend = _TOKEN
    patched = bytearray(value)
    patched[farm : farm + 2], patched[backend : backend + 2] = (
        (token & 0xFFFF).to_bytes(2, "little"),
        (token >> 16).to_bytes(2, "little"),
    )
    return bytes(patched)


def event(key: bytes, forward: bytes) -> bytes:
    """What the program reports of an established connection."""
    record = bytearray(event_dtype(FAMILY).itemsize)
    for name, value in (("key", key), ("flow", forward), ("type", bytes([int(EventType.ESTABLISHED)]))):
        offset = _EVENT[name][1]
        record[offset : offset + len(value)] = value
    return bytes(record)


def token_of(value: bytes) -> int:
    farm, backend = _TOKEN
    return int.from_bytes(value[farm : farm + 2], "little") | int.from_bytes(value[backend : backend + 2], "little") << 16


class Kernel(FakePlane):
    """Lease, flow maps and rings of one node. Gone after a power cut only."""

    def __init__(self, node: Node) -> None:
        super().__init__(max_flows=CONNECTIONS, slots=0)
        self.node = node
        self.events = Ring(FAMILY, RING_RECORDS)
        self.rings = {FAMILY: self.events, "v6": Ring("v6", RING_RECORDS)}
        self.network = Network(self)
        self.forwards = False  # after a hand-over

    # --- lease --------------------------------------------------------------------------------------------------

    def set_lease(self, deadline_ns: int, epoch: int) -> None:
        world, node = self.node.world, self.node
        was_open = node.kernel_open()
        super().set_lease(deadline_ns, epoch)
        world.lease_written(node, deadline_ns, epoch, was_open)
        node.daemon_did("lease")

    # --- what clients do ----------------------------------------------------------------------------------------

    def client_packet(self, number: int, token: int) -> None:
        """A packet that begins connection `number`, or changes it."""
        each, flows = connection(number), self.flow_maps["flows", FAMILY]
        forward = with_token(each.forward, token)
        flows[each.reply_key] = with_token(each.reply, token)
        flows[each.key] = forward
        if not self.events.report(event(each.key, forward)):
            self.node.world.mark("event ring full")

    def connections(self) -> dict[bytes, int]:
        """Forward key to token of every connection whose both entries are there; a lone entry is a broken rule."""
        flows, found = self.flow_maps["flows", FAMILY], {}
        for number in range(CONNECTIONS):
            each = connection(number)
            ends = [flows.get(each.key), flows.get(each.reply_key)]
            if ends[0] is None and ends[1] is None:
                continue
            if ends[0] is None or ends[1] is None:
                self.node.world.fail(f"{self.node.name} has one entry only of connection {number}")
                continue
            if token_of(ends[0]) != token_of(ends[1]):
                self.node.world.fail(f"{self.node.name}: the two entries of connection {number} differ")
            found[each.key] = token_of(ends[0])
        return found

    # --- the plane ----------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, tuple[int, int]]:
        lost = sum(ring.lost for ring in self.rings.values())
        return {**_NO_COUNTERS, "event_ring_full": (lost, 0)} if lost else _NO_COUNTERS

    def update_flows(self, family: str, keys: Array, values: Array) -> int:
        if self.node.ready and self.node.daemon and self.node.daemon.replicator.only_adds:
            self.node.world.mark("late flows taken by an active node")
            known = self.flow_maps["flows", family]
            if any(key.tobytes() in known for key in keys):
                self.node.world.fail(f"{self.node.name} is active and overwrites flows with late ones")
        return super().update_flows(family, keys, values)

    def flow_events(self, family: str) -> Any:
        return self.rings[family]


class ReadyAddresses(FakeReadyAddresses):
    """Reports to the world, which may stop the daemon between any two batches."""

    _network: Network

    def add(self) -> list[str]:
        refused = super().add()
        self._network.kernel.node.world.addresses_added(self._network.kernel.node)
        self._network.changed()
        return refused

    def remove(self) -> list[str]:
        refused = super().remove()
        self._network.changed()
        return refused


class Network(FakeNetwork):
    """The interfaces of one node."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def ready(self, addresses: Sequence[InterfaceAddress]) -> ReadyAddresses:
        return ReadyAddresses(self, [each for each in addresses if each.device in self.links])

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        super().announce([each for each in addresses if each in self.present])  # another program may have removed one
        self.announced.clear()
        self.kernel.node.world.announced(self.kernel.node, addresses)
        self.kernel.node.daemon_did("announce")

    def vips(self) -> list[str]:
        """The addresses that are here; the nodes have none but VIPs."""
        return sorted(each.address for each in self.present)

    def changed(self) -> None:
        self.kernel.node.daemon_did("addresses")
