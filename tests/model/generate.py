"""Random steps, from what the model's node knows: valid packets of its connections and listeners above all, then odd ones.

Draws from a `random.Random`, so that a seed names a history; knows neither the kernel nor how steps are executed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from bpf.columns import address_bytes
from bpf.constants import LEASE_FOREVER_NS, LEASE_HANDED_OVER_NS, TICK_SHIFT
from ctl.config.model import (
    AllDown,
    Backend,
    Config,
    DrainThen,
    Farm,
    Mode,
    OnBackend,
    OnNoBackend,
    PrefixList,
    Protocol,
    Scheduler,
    Vip,
)
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, SMALL, UNRESOLVED, V4, V6, Family
from tests.bpf.tagged_bed import WIRINGS, Port
from tests.model import frames
from tests.model.bits import FORWARD
from tests.model.connections import ONE_WAY, is_impossible, listener, make_flow
from tests.model.packet import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Packet
from tests.model.state import Flow, Key, State
from tests.model.steps import (
    ChangeNextHops,
    Configure,
    Insert,
    Lease,
    MoveToCpu,
    Plug,
    Send,
    StallReader,
    Step,
    Sweep,
    TakeOver,
    TunnelSources,
    Wait,
)

MODES = (Mode.SNAT, Mode.DNAT)
SCHEDULERS = (Scheduler.MAGLEV, Scheduler.SOURCE, Scheduler.ROUNDROBIN)
SECOND = 1_000_000_000
TICK = 1 << TICK_SHIFT
GATEWAY, NODE_IN, NODE_OUT = (bytes.fromhex(mac.replace(":", "")) for mac in (GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC))
FLAGS = (SYN, SYN, SYN | ACK, ACK, ACK, ACK | 8, FIN | ACK, FIN, RST, RST | ACK, 0, SYN | FIN, SYN | RST, 0xFF)
SIZES = (0, 0, 1, 10, 25, 100, 474, 1210, 1250, 1280, 1440, 1460, 1480, 1500, 2000)
PORTS = (40000, 40000, 40001, 40002, 40003, 1023, 513, 1, 0, 8080, 80, 65535)
WAITS = (TICK // 3, TICK, 3 * TICK, 9 * TICK, SECOND, 5 * SECOND, 31 * SECOND, 61 * SECOND, 125 * SECOND, 245 * SECOND)
IMPOSSIBLE = {
    "v4": ("127.0.0.1", "0.1.2.3", "224.0.0.9", "240.0.0.1", "255.255.255.255", "10.1.0.1", V4.vip),
    "v6": ("::1", "::", "ff02::9", "::ffff:10.1.0.9", "fd01::1", "::2.0.0.0", V6.vip),
}
"""Sources that no client has."""
LONG_WAITS = (305 * SECOND, 3600 * SECOND, 7500 * SECOND)


def farm_slots() -> list[Farm]:
    """Every farm that a configuration may have. They share backends, VIPs and ports as far as the configuration allows it."""
    slots: list[Farm] = []
    for family, other in ((V4, V6), (V6, V4)):
        for vip, first, last, protocol, more in (
            (family.vip, 80, 80, Protocol.TCP, {"more_vips": (family.snat,), "more_ports": ((443, 443), (9000, 9005))}),
            (family.vip, 53, 53, Protocol.UDP, {"more_vips": (other.snat,)}),  # of both families
            (family.vip, 8000, 8010, Protocol.TCP, {}),
            (family.other_vip, 80, 80, Protocol.TCP, {}),
            (family.other_vip, 50, 57, Protocol.UDP, {"more_ports": ((59, 59),)}),
        ):
            number = len(slots) + 1
            slots.append(Farm(number, f"farm{number}", vip, first, last, protocol, **more))
    return slots


SLOTS = farm_slots()
ENDPOINTS = 6


def endpoints(farm: Farm) -> list[str]:
    """Addresses of the backends that the farm may have: of all families that its mode reaches."""
    family = family_of(farm)
    other = V4 if family is V6 else V6
    own = [family.far(11), family.far(12), family.near(11), family.far(SMALL), family.far(UNRESOLVED), family.unroutable]
    if farm.mode is Mode.IPIP or len({":" in vip for vip in farm.vips}) == 2:
        return [*own[:3], other.far(12), other.near(11), other.far(SMALL)]
    return own


def family_of(farm: Farm) -> Family:
    return V6 if ":" in farm.vip else V4


def quic_id(backend: int) -> bytes:
    """The id of a server in connection ids."""
    return b"\xaa\0\0" + bytes([backend])


class Generator:
    """Makes the next step from a node's state. `last`: the configuration in force."""

    def __init__(self, rng: random.Random, state: State, features: Collection[str] = ()) -> None:
        """features: of the program's build."""
        self.rng, self.state, self.features = rng, state, frozenset(features)
        self.modes = (*MODES, *(mode for mode in (Mode.DSR, Mode.IPIP) if mode.value in self.features))
        self.config, self.down = Config(), frozenset[int]()
        self.recent: deque[Send] = deque(maxlen=30)
        self.away = False  # on another CPU than at first
        self.next: list[Step] = [TunnelSources("10.2.0.1", "fd02::1")] if "ipip" in self.features else []
        self.ports = {"in0": Port("in0"), "out0": Port("out0")}
        if "vlans" in self.features:
            self.next.append(self.plug())

    def step(self) -> Step:
        if self.next:
            return self.next.pop()
        chance = self.rng.random()
        if self.state.deadline_ns != LEASE_FOREVER_NS and chance < 0.1:
            return Lease(LEASE_FOREVER_NS)
        if self.away and chance > 0.9:
            self.away = False
            return MoveToCpu(0)
        if chance < 0.90:
            return self.packet()
        if chance < 0.95:
            return self.wait()
        kinds: dict[Callable[[], Step], float] = {
            self.configure: 10,
            self.lease: 4,
            self.sweep: 5,
            self.take_over: 1.5,
            self.change_next_hops: 2,
            self.tunnels: 1.5,
            self.crowd: 2,
            self.fill: 1,
            self.burst: 0.5,
            self.move_to_cpu: 3,
            self.stall_reader: 1.5,
            self.plug: 1.5,
            self.lose: 3,
        }
        return self.rng.choices(tuple(kinds), tuple(kinds.values()))[0]()

    # --- everything but packets ------------------------------------------------------------------------------

    def wait(self) -> Wait:
        return Wait(self.rng.choice(WAITS if self.rng.random() < 0.9 else LONG_WAITS) + self.rng.randrange(TICK))

    def lease(self) -> Lease:
        return self.rng.choice(
            (Lease(0), Lease(LEASE_HANDED_OVER_NS), Lease(self.rng.choice((1, TICK, SECOND)), True), Lease(LEASE_FOREVER_NS))
        )

    def sweep(self) -> Sweep:
        return Sweep(self.rng.random() < 0.8)

    def take_over(self) -> TakeOver:
        return TakeOver()

    def change_next_hops(self) -> ChangeNextHops:
        return ChangeNextHops()

    def tunnels(self) -> Step:
        if "ipip" not in self.features:
            return self.packet()
        sources = ("10.2.0.1", ""), ("fd02::1", "")
        return TunnelSources(*(each[0] if self.rng.random() < 0.9 else each[1] for each in sources))

    def move_to_cpu(self) -> MoveToCpu:
        """Not for long: another job of the fuzz works there."""
        self.away = True
        return MoveToCpu(self.rng.randrange(4))

    def stall_reader(self) -> StallReader:
        return StallReader(self.rng.choice((None, None, 0, 1, 5)))

    def plug(self) -> Step:
        if "vlans" not in self.features:
            return self.packet()
        step = Plug(*self.rng.choice(list(WIRINGS.values())))
        self.ports = {"in0": step.in0, "out0": step.out0}
        return step

    def fill(self) -> Step:
        """`flows` is full, of connections that nobody uses."""
        family = self.rng.choice((V4, V6))
        table = self.state.flows[4 if family is V4 else 16]
        entries = []
        for port in range(1000, 1000 + max(0, table.capacity - len(table.entries) - self.rng.randrange(4))):
            key = Key(address_bytes(family.far(200)), address_bytes(family.client), port, 9, TCP)
            entries.append((key, Flow(address_bytes(family.vip), address_bytes(family.client), port, 9, farm=15, backend=63)))
            entries[-1][1].last_seen = self.state.tick
        return Insert("flows", tuple(entries))

    def crowd(self) -> Step:
        """Other connections have the sources that the next one would get."""
        rng, state = self.rng, self.state
        family, address, port, protocol = self.listener()
        key = Key(self.client(family), address, rng.choice(PORTS), port, protocol)
        service = listener(state, key) if address in state.vips else None
        size = len(address)
        crowded = len(state.embryonic[size].entries) > 900
        if not service or not service.slot_count or crowded or is_impossible(key.source) or service.mode in ONE_WAY:
            return self.packet()
        number = state.slots[service.slot_offset]
        syn = self.send(key.source, self.ip(*key[:2], protocol, self.datagram(key, SYN, b"")))
        packet = Packet(bytearray(syn.frame), 0)
        flow, candidates = make_flow(state, packet, key, service, number)
        ages = rng.choice(((0,), (0,), (0, 0, 0, 74, 75, 900)))
        states = (0, 1) if protocol == UDP else rng.choice(((0, 1), (0, 1, 8, 6, 7)))
        entries = {}
        for source, source_port in ((flow.source, flow.source_port), *candidates):
            reply_key = Key(flow.destination, source, flow.destination_port, source_port, protocol)
            holder = Flow(address, address_bytes(family.near(15)), port, source_port, farm=flow.farm, backend=number)
            holder.last_seen, holder.state = state.tick - rng.choice(ages) & 0xFFFFFFFF, rng.choice(states)
            entries[reply_key] = holder
        few = len(entries) if rng.random() < 0.6 else rng.randrange(len(entries))
        self.next = [syn]
        established = "flows" if rng.random() < 0.2 else "embryonic"
        return Insert(established, tuple(entries.items())[:few])

    def burst(self) -> Step:
        """More packets of a tick than are answered; some of them deserve no answer."""
        family, address, port, protocol = self.listener()
        client = address_bytes(family.client)
        expires = self.rng.random() < 0.5
        sends = []
        for flags in (ACK, RST, SYN, SYN):
            key = Key(client, address, 40000, port if expires or flags == SYN else 22, protocol)
            data = self.datagram(key, flags, b"")
            sends.append(self.send(client, frames.ip(client, address, protocol, data, 1 if expires and flags != RST else 64)))
        self.next = self.rng.choices(sends, k=self.rng.choice((70, 150)))
        return self.next.pop()

    def configure(self) -> Configure:
        farms = dict(self.config.farms)
        for _ in range(self.rng.choice((1, 1, 2, 6))):
            farm = self.farm()
            if farm.name in farms and self.rng.random() < 0.2:
                del farms[farm.name]
            else:
                farms[farm.name] = farm
        vips = {address: vip for address, vip in self.config.vips.items() if self.rng.random() < 0.97}
        for family in (V4, V6):
            for address in (family.vip, family.other_vip, family.snat):
                if address not in vips or self.rng.random() < 0.1:
                    vips[address] = Vip(address, 24, "in0", self.rng.random() < 0.8)
        lists = self.lists() if self.rng.random() < 0.3 or not self.config.prefixes else self.config.prefixes
        generation = self.config.generation + 1
        self.config = replace(self.config, generation=generation, vips=vips, farms=farms, prefixes=lists)
        down = {number for number in range(1, 4 * ENDPOINTS * len(SLOTS) + 1) if self.rng.random() < 0.1}
        self.down = frozenset(down) if self.rng.random() < 0.5 else self.down
        return Configure(self.config, self.down)

    def lose(self) -> Step:
        """A backend that has connections drains, fails or is removed, and the daemon sweeps."""
        rng, key = self.rng, self.some_key()
        flow = self.state.flows[len(key[0])].entries.get(key) or self.state.embryonic[len(key[0])].entries[key] if key else None
        of = ((farm, each) for farm in self.config.farms.values() for each in farm.backends if flow and each.id == flow.backend)
        farm, backend = next(of, (None, None))
        if farm is None or backend is None:
            return self.packet()
        how = rng.choice(("drain", "drain", "fail", "remove"))
        if how == "fail":
            self.down |= {backend.id}
        else:
            until = self.state.now_ns // SECOND + rng.choice((0, 5, 60))
            drained = replace(backend, draining=True, drain_until=until, drain_then=rng.choice(tuple(DrainThen)))
            others = (each for each in farm.backends if each is not backend)
            left = (*others, drained) if how == "drain" else tuple(others)
            changed = {farm.name: replace(farm, backends=tuple(sorted(left, key=lambda each: each.id)))}
            self.config = replace(self.config, generation=self.config.generation + 1, farms={**self.config.farms, **changed})
        sweeps: list[Step] = [self.sweep(), self.wait(), self.sweep(), self.wait()]
        self.next = sweeps[rng.choice((0, 2)) :]
        return Configure(self.config, self.down)

    def farm(self) -> Farm:
        rng, slot = self.rng, self.rng.choice(SLOTS)
        slot = replace(slot, mode=rng.choice(self.modes if rng.random() < 0.95 else tuple(Mode)))  # one may not be compiled
        if rng.random() < 0.3:
            slot = replace(slot, more_ports=())
        family, one_way = family_of(slot), slot.mode in (Mode.DSR, Mode.IPIP)
        port = slot.port if one_way else 53 if slot.protocol is Protocol.UDP else 8080
        mixed = endpoints(slot) != endpoints(replace(slot, mode=Mode.SNAT, more_vips=()))
        first = ((slot.id - 1) * 4 + one_way + 2 * mixed) * ENDPOINTS + 1  # an id is of one endpoint for life
        chosen = {rng.choices(range(ENDPOINTS), (12, 8, 8, 3, 2, 1))[0] for _ in range(rng.choice((0, 1, 1, 2, 2, 4)))}
        backends = tuple(
            Backend(
                first + number,
                endpoints(slot)[number],
                port,
                rng.choice((1, 1, 1, 2, 0)),
                rng.choice((0, 0, 0, 1)),
                **self.drain(),
                max_connections=rng.choice((0, 0, 1, 3)) if "loads" in self.features else 0,
                quic_id=quic_id(first + number).hex() if "quic" in self.features else "",
            )
            for number in sorted(chosen)
        )
        ends: tuple[OnBackend, ...] = (OnBackend.DEFAULT, OnBackend.DEFAULT, OnBackend.KEEP, OnBackend.RESET)
        if slot.protocol is Protocol.UDP:
            ends = (OnBackend.DEFAULT, OnBackend.KEEP, OnBackend.MOVE)
        return replace(
            slot,
            snat_address=rng.choice(("", "", family.snat, f"{family.snat},{family.other_vip}")),
            enabled=rng.random() < 0.95,
            all_down=rng.choice(tuple(AllDown)),
            on_no_backend=rng.choice(tuple(OnNoBackend)),
            idle_timeout_s=rng.choice((0, 0, 60, 200)),
            tier_minimum=rng.choice((1, 1, 2, 3)),
            slow_start_s=rng.choice((0, 0, 3, 100)),
            on_backend_down=rng.choice(ends),
            on_backend_removed=rng.choice(ends),
            backends=backends,
            **{"scheduler": rng.choice(SCHEDULERS)} | self.optional(slot),
        )

    def drain(self) -> dict[str, Any]:
        """Of a backend: whether, and how it ends."""
        rng, now_s = self.rng, self.state.now_ns // SECOND
        if rng.random() < 0.85:
            return {}
        until = rng.choice((0, 0, now_s + rng.choice((0, 1, 5, 60))))
        return {"draining": True, "drain_until": until, "drain_then": rng.choice(tuple(DrainThen))}

    def optional(self, slot: Farm) -> dict[str, Any]:
        """Settings that need a feature of the program."""
        rng, chosen = self.rng, dict[str, Any]()
        if "persistence" in self.features:
            chosen["persistence_s"] = rng.choice((0, 1, 60, 600))
            chosen["persistence_prefix_v4"], chosen["persistence_prefix_v6"] = rng.choice(((32, 128), (31, 127), (24, 64)))
            chosen["persistence_return"] = rng.random() < 0.5
        if "quic" in self.features and slot.protocol is Protocol.UDP:
            chosen["quic_cid"] = rng.choice(("", "prefix:4", "server-id:1:4", "prefix:20"))
        if "toa" in self.features and slot.protocol is Protocol.TCP:
            chosen["toa"] = rng.random() < 0.7
        if "loads" in self.features:
            chosen["max_connections"] = rng.choice((0, 0, 2, 10))
            chosen["scheduler"] = rng.choice((*SCHEDULERS, Scheduler.LEASTCONN))
        if "rate" in self.features:
            chosen["max_rate"] = rng.choice((0, 0, 1, 3, 1000))
        if "half_open" in self.features:
            chosen["max_half_open"] = rng.choice((0, 0, 1, 5))
        chosen["rate_prefix_v4"], chosen["rate_prefix_v6"] = rng.choice(((32, 128), (31, 127), (24, 64), (8, 16)))
        if "lists" in self.features:
            chosen["allow"], chosen["deny"] = rng.choice((("", ""), ("", ""), ("some", ""), ("", "few"), ("some", "few")))
        return chosen

    def lists(self) -> dict[str, PrefixList]:
        """They may change with each configuration."""
        chosen = {}
        for name in ("some", "few") if "lists" in self.features else ():
            packed = {4: set[bytes](), 16: set[bytes]()}
            for family in (V4, V6):
                for address in (family.client, family.near(12), family.far(11)):
                    size = 4 if family is V4 else 16
                    bits = self.rng.choice((0, 8 * size, 8 * size - 1, 8 * size - 8, 8))
                    unused = 8 * size - bits
                    prefix = (int.from_bytes(address_bytes(address)) >> unused << unused).to_bytes(size)
                    if self.rng.random() < (0.8 if name == "some" else 0.3):
                        packed[size].add(prefix + bytes([bits]))
            chosen[name] = PrefixList(name, *(b"".join(sorted(each)) for each in packed.values()))
        return chosen

    # --- packets ---------------------------------------------------------------------------------------------

    def packet(self) -> Send:
        kinds = (self.to_listener, self.of_flow, self.error, self.fragments, self.transit, self.neighbour, self.other)
        send = self.rng.choices(kinds, (30, 45, 8, 6, 4, 2, 2))[0]()
        if self.recent and self.rng.random() < 0.04:
            send = self.rng.choice(self.recent)  # duplicated, or late
        if self.rng.random() < 0.05:
            send = self.mutated(send)
        if self.rng.random() < 0.02:
            send = self.tagged(send)
        self.recent.append(send)
        return send

    def send(self, source: bytes, network: bytes, side: str = "") -> Send:
        """side: by default the one where the source is."""
        near = source[:3] != b"\x0a\x02\x00" and source[:2] != b"\xfd\x02"
        side = side or ("in0" if near else "out0")
        if self.rng.random() < 0.01:
            side = "out0" if side == "in0" else "in0"
        to = NODE_IN if side == "in0" else NODE_OUT
        if self.rng.random() < 0.01:
            to = b"\xff\xff\xff\xff\xff\xff"
        padding = bytes(self.rng.choice((0, 0, 0, 2, 40))) if self.rng.random() < 0.1 else b""
        return self.arrives(frames.ethernet(GATEWAY, to, network + padding), side)

    def arrives(self, frame: bytes, side: str) -> Send:
        """With the tag of its VLAN."""
        port = self.ports[side]
        if not port.number:
            return Send(frame, side)
        tag = port.tag(self.rng.choice((0, 0, 5)))
        return Send(
            frame[:12] + tag + frame[12:], port.lower if self.rng.random() < 0.98 else self.rng.choice(("wire0", "wire1"))
        )

    def payload(self) -> bytes:
        if "quic" in self.features and self.rng.random() < 0.3:
            return self.quic()
        return bytes(self.rng.choice(SIZES)) if self.rng.random() < 0.5 else b"xlb"

    def quic(self) -> bytes:
        """A datagram with a connection id of a backend, or of none."""
        backends = [backend.id for farm in self.config.farms.values() for backend in farm.backends]
        connection = b"\1" + quic_id(self.rng.choice(backends or [1])) + bytes([0, self.rng.randrange(3)]) * 8
        connection = connection[: self.rng.choice((4, 5, 8, 20, 21))]
        version = self.rng.choice((bytes(4), b"\0\0\0\1", b"\0\0\0\1"))
        head = b"\xc0" + version + bytes([len(connection)]) if self.rng.random() < 0.5 else b"\x40"
        return head + connection + bytes(self.rng.choice((0, 1, 20)))

    def hops(self) -> int:
        return self.rng.choice((64, 64, 64, 64, 64, 64, 64, 2, 1, 0, 255))

    def flags(self) -> int:
        return self.rng.choice(FLAGS)

    def client(self, family: Family) -> bytes:
        rng = self.rng
        usual = (family.client, family.client, family.near(12), family.client[:-1] + "8")
        odd = (family.far(11), family.near(11), family.far(12), family.other_vip, family.unroutable, family.far(UNRESOLVED))
        chance = rng.random()
        return address_bytes(rng.choice(usual if chance < 0.8 else odd if chance < 0.97 else IMPOSSIBLE[family.name]))

    def listener(self) -> tuple[Family, bytes, int, int]:
        """family, address, port, protocol."""
        farms = list(self.config.farms.values())
        farm = self.rng.choice(farms if farms and self.rng.random() < 0.95 else SLOTS)
        family = family_of(farm)
        port = self.rng.randint(*self.rng.choice(farm.port_ranges))
        if self.rng.random() < 0.03:
            port = self.rng.choice((22, 8080, 0, 58))
        address = self.rng.choice(farm.vips)
        if self.rng.random() < 0.03:
            address = self.rng.choice((family.vip, family.other_vip, family.snat))
        family = V6 if ":" in address else V4
        return family, address_bytes(address), port, TCP if farm.protocol is Protocol.TCP else UDP

    def ip(self, source: bytes, destination: bytes, protocol: int, payload: bytes, **fields: object) -> bytes:
        rng = self.rng
        if rng.random() < 0.03 and len(source) == 4:
            fields["options"] = bytes([1] * rng.choice((4, 8, 40)))
        if rng.random() < 0.03 and len(source) == 16:
            fields["extensions"] = tuple(rng.choice((0, 43, 60)) for _ in range(rng.choice((1, 2, 4, 5))))
        return frames.ip(
            source,
            destination,
            protocol,
            payload,
            self.hops(),
            may_fragment=rng.random() < 0.3,
            **fields,  # type: ignore[arg-type]
        )

    def datagram(self, key: Key, flags: int, payload: bytes) -> bytes:
        numbers = self.rng.choice((0, 1, 7, 0x55555555, 0xFFFFFFFF))
        out = frames.transport(key.source, key.destination, key.protocol, key[2:4], flags, payload, numbers)
        if key.protocol == UDP and self.rng.random() < 0.05:
            out = out[:6] + b"\0\0" + out[8:]  # without a checksum
        return out

    def to_listener(self) -> Send:
        family, address, port, protocol = self.listener()
        client = self.client(family)
        source_port = self.rng.choice(PORTS) if self.rng.random() < 0.9 else self.rng.randrange(65536)
        key = Key(client, address, source_port, port, protocol)
        flags = SYN if self.rng.random() < 0.6 else self.flags()
        return self.send(client, self.ip(client, address, protocol, self.datagram(key, flags, self.payload())))

    def some_key(self) -> Key | None:
        """Of an entry of a flow map, most likely a new one."""
        tables = [*self.state.flows.values(), *self.state.embryonic.values()]
        self.rng.shuffle(tables)
        for table in tables:
            if table.entries:
                keys = list(table.entries)
                return self.rng.choice(keys[-6:] if self.rng.random() < 0.7 else keys)
        return None

    def of_flow(self) -> Send:
        key = self.some_key()
        if key is None:
            return self.to_listener()
        flow = self.state.embryonic[len(key[0])].entries.get(key)
        if flow and not flow.flags & FORWARD:
            flags = SYN | ACK if self.rng.random() < 0.6 else self.flags()
        else:
            flags = ACK if self.rng.random() < 0.6 else self.flags()
        return self.send(
            key.source, self.ip(key.source, key.destination, key.protocol, self.datagram(key, flags, self.payload()))
        )

    def error(self) -> Send:
        """An ICMP error about a packet that this node has sent, or could have sent."""
        rng, key = self.rng, self.some_key()
        if key is None or rng.random() < 0.1:
            family, address, port, protocol = self.listener()
            client = address_bytes(rng.choice(IMPOSSIBLE[family.name])) if rng.random() < 0.2 else self.client(family)
            key = Key(client, address, rng.choice(PORTS), port, protocol)
        v4 = len(key.source) == 4
        quoted = self.ip(key.destination, key.source, key.protocol, self.datagram(Key(*_turned(key)), self.flags(), b"payload"))
        quoted = quoted[: rng.choice((27, 28, 36, 48, 60, 80, 200))]
        endpoint = rng.random() < 0.5
        source = key.source if endpoint else address_bytes((V4 if v4 else V6).near(19))
        if rng.random() < 0.05:
            source = self.client(V4 if v4 else V6)
        kinds = ((3, 4), (3, 4), (3, 3), (11, 0), (12, 0), (3, 1)) if v4 else ((2, 0), (2, 0), (1, 4), (3, 0), (4, 0), (1, 0))
        body = frames.icmp(source, key.destination, *rng.choice(kinds), rng.choice((1000, 1280)).to_bytes(4) + quoted)
        return self.send(key.source, self.ip(source, key.destination, ICMP if v4 else ICMPV6, body))

    def fragments(self) -> Send:
        """A fragment: the first of a datagram, or a later one. Few identifications, so that they meet."""
        rng, key = self.rng, self.some_key() if self.rng.random() < 0.7 else None
        if key is None:
            family, address, port, protocol = self.listener()
            key = Key(self.client(family), address, rng.choice(PORTS), port, protocol)
        first = rng.random() < 0.5
        data = self.datagram(key, self.flags(), bytes(rng.choice((0, 3, 12, 40, 1400))))
        piece = data[: rng.choice((6, 8, 16, 24, 32, 1408))] if first else data[8:]
        protocol = key.protocol if rng.random() < 0.95 else rng.choice((ICMP, ICMPV6, 47))
        where = (0, rng.random() < 0.95) if first else (rng.choice((8, 16, 1480)), rng.random() < 0.5)
        identification = rng.choice((1, 2, 3))
        packet = self.ip(key.source, key.destination, protocol, piece, identification=identification, fragment=where)
        return self.send(key.source, packet)

    def transit(self) -> Send:
        """Between clients and backends, past the VIPs."""
        rng, family = self.rng, self.rng.choice((V4, V6))
        ends = [rng.choice((family.far(11), family.far(12), family.near(11))), rng.choice((family.client, family.near(12)))]
        ports = [rng.choice((8080, 53, 8081, 57)), rng.choice((40000, 40001))]
        if rng.random() < 0.5:
            ends.reverse()
            ports.reverse()
        if rng.random() < 0.1:
            ends[1] = rng.choice((family.unroutable, family.near(1), family.far(UNRESOLVED), family.far(13)))
        source, destination = map(address_bytes, ends)
        key = Key(source, destination, ports[0], ports[1], rng.choice((TCP, UDP)))
        fields = {"fragment": (0, True), "identification": 5} if rng.random() < 0.2 else {}
        return self.send(
            source, self.ip(source, destination, key.protocol, self.datagram(key, self.flags(), b"12345678"), **fields)
        )

    def neighbour(self) -> Send:
        rng = self.rng
        if rng.random() < 0.6:
            target = address_bytes(rng.choice((V4.vip, V4.snat, "10.1.0.1")))
            sender = target if rng.random() < 0.5 else address_bytes(V4.near(12))
            return self.arrives(
                frames.ethernet(GATEWAY, b"\xff" * 6, frames.arp(rng.choice((1, 1, 2)), GATEWAY, sender, target)), "in0"
            )
        target = address_bytes(rng.choice((V6.vip, V6.snat, "fd01::1")))
        source, group = address_bytes("fd01::fe"), address_bytes("ff02::1:ff00:0")[:13] + target[13:]
        body = frames.icmp(source, group, rng.choice((135, 135, 136)), 0, bytes(4) + target)
        return self.arrives(frames.ethernet(GATEWAY, b"\x33\x33" + group[12:], self.ip(source, group, ICMPV6, body)), "in0")

    def other(self) -> Send:
        """Other protocols, echo requests, noise."""
        rng, (family, address, _, _) = self.rng, self.listener()
        client, v4 = self.client(family), family is V4
        chance = rng.random()
        if chance < 0.4:
            body = frames.icmp(client, address, 8 if v4 else 128, 0, b"\0\1\0\1" + b"echo")
            return self.send(client, self.ip(client, address, ICMP if v4 else ICMPV6, body))
        if chance < 0.8:
            return self.send(client, self.ip(client, address, rng.choice((47, 50, 132, 59, 4, 41)), bytes(20)))
        return Send(rng.randbytes(rng.randint(14, 120)), "in0")

    # --- damage ----------------------------------------------------------------------------------------------

    def mutated(self, send: Send) -> Send:
        """Cut, longer, or with other bytes."""
        rng, frame = self.rng, bytearray(send.frame)
        chance = rng.random()
        if chance < 0.25:
            frame = frame[: rng.randint(14, len(frame))]
        elif chance < 0.35:
            frame += bytes(rng.randint(1, 50))
        else:
            for _ in range(rng.choice((1, 1, 1, 3))):
                frame[rng.randrange(12, min(len(frame), 100))] = rng.choice((0, 1, 255, rng.randrange(256)))
        return send if b"\xfe\x80" in frame[20:54] else replace(send, frame=bytes(frame))  # link-local routes are not modelled

    def tagged(self, send: Send) -> Send:
        tags = b"".join(
            self.rng.choice((b"\x81\0", b"\x88\xa8")) + self.rng.choice((b"\0\0", b"\x60\0", b"\0\5"))
            for _ in range(self.rng.choice((1, 1, 2, 3)))
        )
        return replace(send, frame=send.frame[:12] + tags + send.frame[12:])


def _turned(key: Key) -> tuple[bytes, bytes, int, int, int]:
    return key.destination, key.source, key.destination_port, key.source_port, key.protocol
