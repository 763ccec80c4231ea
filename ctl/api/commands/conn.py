"""The `conn` commands: list, count, show and flush connections."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpf import constants
from bpf.dataplane import PERSISTENT, DataPlane, FlowEntry, FlowTuple
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, take_flag
from ctl.config import changes, validation
from ctl.config.model import Config, Farm, Protocol, format_endpoint
from ctl.dataplane import affinity
from ctl.dataplane.affinity import Remembered
from ctl.dataplane.flow_selection import EVERYTHING, PROTOCOL_NUMBERS, FlowSelection
from ctl.dataplane.kernel import flow_maps
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.loads import loads_of
from ctl.errors import Code, InvalidInput, XlbError
from ctl.explanation import explain
from ctl.explanation.explain import NextHop, Standing
from ctl.health.check_machine import HealthChecks
from ctl.network.network import Network

DEFAULT_LIMIT = 1000
MAX_LIMIT = 20_000
SHOW_ARGUMENTS = frozenset({"source", "source_port", "destination", "destination_port", "protocol"})
TICK_S = (1 << constants.TICK_SHIFT) / 1e9


@dataclass(frozen=True, slots=True)
class ConnectionCommands:
    """What they use of the node. The maps are read in the sweeper's thread."""

    config: ReadConfig
    plane: DataPlane
    sweeper: Sweeper
    health: HealthChecks
    network: Network
    standing: Callable[[], Standing]
    shares: Callable[[], Mapping[int, int]]
    """Of `ctl.dataplane.slow_start`, as the maps have them."""
    missing: Callable[[], frozenset[str]] = frozenset
    """Features that the program lacks for the configuration."""

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("conn.list", self.list, ("farm", "limit"))
        dispatcher.register("conn.count", self.count, ("farm", "backend", "current"))
        dispatcher.register("conn.show", self.show, SHOW_ARGUMENTS)
        dispatcher.register("conn.flush", self.flush, ("farm", "backend"), acts=True)

    async def list(self, arguments: Arguments) -> dict[str, Any]:
        """{"connections": […], "total", "limit"}; `total` counts those beyond the limit too."""
        limit = _integer(arguments, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT)
        selection, config, plane = self._selection(arguments), self.config(), self.plane

        def collect() -> tuple[list[dict[str, Any]], int]:
            entries, total = flow_maps.collect(plane, selection, limit)
            names, now_tick = Names(config), plane.now_tick()
            return [connection_view(entry, names, now_tick) for entry in entries], total

        connections, total = await self.sweeper.ask(collect)
        return {"connections": connections, "total": total, "limit": limit}

    async def count(self, arguments: Arguments) -> dict[str, int]:
        """{"total"}. current: without those that both ends have closed, as `farm.show` counts."""
        current = take_flag(arguments, "current")
        return {"total": await self.sweeper.count(self._selection(arguments), current)}

    async def flush(self, arguments: Arguments) -> dict[str, int]:
        """{"removed": entries}; a connection has two."""
        return {"removed": await self.sweeper.flush(self._selection(arguments))}

    async def show(self, arguments: Arguments) -> dict[str, Any]:
        """What happens to a packet with this 5-tuple, and why; see `ctl.explanation.explain`."""
        arriving, standing = flow_tuple(arguments), self.standing()
        found = await self.look_up(arriving)

        def explained() -> dict[str, Any]:
            answer = self.explained(arriving, *found)
            address = explain.destination(answer)
            if address and standing.node == standing.serving:
                answer = explain.with_next_hop(answer, address, self.next_hops([address])[address])
            return explain.at_node(answer, standing)

        return await asyncio.to_thread(explained)

    async def look_up(self, arriving: FlowTuple) -> tuple[FlowEntry | None, FlowEntry | None]:
        """The entry of the tuple, and that of the other direction."""
        return await self.sweeper.ask(lambda: self._find(arriving))

    def explained(self, arriving: FlowTuple, entry: FlowEntry | None = None, other: FlowEntry | None = None) -> dict[str, Any]:
        """The verdict on a packet by configuration and maps; entry, other: of `look_up`. Blocks."""
        config, now_tick = self.config(), self.plane.now_tick()
        found = connection_view(entry, Names(config), now_tick) if entry is not None else None
        answered = entry is not None and is_answered(entry, other, now_tick)

        def remembered(farm: Farm) -> Remembered | None:
            return find_remembered(self.plane, farm, arriving.source)

        known = (remembered, self.shares(), self._check_error, self._loads())
        return explain.explain(
            arriving, found, config, self.health.unusable(config), config.hash_seed, *known, answered, self.missing()
        )

    def _find(self, arriving: FlowTuple) -> tuple[FlowEntry | None, FlowEntry | None]:
        entry = flow_maps.find(self.plane, arriving)
        return entry, flow_maps.find(self.plane, opposite(entry.leaves)) if entry is not None and not entry.mode else None

    def _check_error(self, backend_id: int) -> str:
        """Why a backend is down."""
        health = self.health.status(backend_id)
        return health.last_error if health is not None and not health.up else ""

    def _loads(self) -> explain.Loads | None:
        """Where connections are counted."""
        found = [self.plane.loads(kind) for kind in ("farm", "backend")]
        if found[0] is None or found[1] is None:
            return None
        return explain.Loads(*(dict(enumerate(loads_of(each).tolist())) for each in found if each is not None))

    def next_hops(self, addresses: Sequence[str]) -> dict[str, NextHop | None]:
        """Towards each address, as the kernel has it at this moment; None: there is no route. Blocks."""
        routes = self.network.routes(addresses)
        names = {link.index: link.name for link in self.network.interfaces().values()}
        resolved = {(each.index, each.address) for each in self.network.neighbours() if each.resolved}
        found: dict[str, NextHop | None] = dict.fromkeys(addresses)
        for address, route in zip(addresses, routes, strict=True):
            if route is not None:
                hop, name = route.gateway or address, names.get(route.index, f"interface {route.index}")
                found[address] = NextHop(name, hop, (route.index, hop) in resolved)
        return found

    def _selection(self, arguments: Arguments) -> FlowSelection:
        """Raises InvalidInput or XlbError naming the farm or backend there is not."""
        config, name, endpoint = self.config(), arguments.get("farm"), arguments.get("backend")
        if name is None and endpoint is None:
            return EVERYTHING
        if name is not None and not isinstance(name, str):
            raise InvalidInput("expected the name of a farm", "farm")
        farms = [changes.find_farm(config, name)] if name is not None else list(config.farms.values())
        if endpoint is None:
            return FlowSelection(farms=frozenset(farm.id for farm in farms))
        address, port = _endpoint(endpoint)
        chosen = frozenset(each.id for farm in farms for each in farm.backends if (each.address, each.port) == (address, port))
        if not chosen:
            where = f"farm {name}" if name is not None else "any farm"
            raise XlbError(f"backend {endpoint} is not in {where}; see 'xlbctl farm show'", Code.UNKNOWN_BACKEND)
        return FlowSelection(backends=chosen)


def flow_tuple(arguments: Arguments) -> FlowTuple:
    """The 5-tuple that SHOW_ARGUMENTS name. Raises InvalidInput."""
    missing = SHOW_ARGUMENTS - {"protocol"} - arguments.keys()
    if missing:
        raise InvalidInput("is missing", min(missing), Code.MISSING_ARGUMENT)
    protocol = _protocol(arguments.get("protocol", "tcp"))
    arriving = FlowTuple(
        validation.canonical_address(str(arguments["source"]), "source"),
        validation.canonical_address(str(arguments["destination"]), "destination"),
        _integer(arguments, "source_port", 1, 65535),
        _integer(arguments, "destination_port", 1, 65535),
        PROTOCOL_NUMBERS[protocol],
    )
    if validation.is_ipv6(arriving.source) != validation.is_ipv6(arriving.destination):
        raise InvalidInput(f"{arriving.source} and {arriving.destination} are of different address families", "destination")
    return arriving


def find_remembered(plane: DataPlane, farm: Farm, client: str) -> Remembered | None:
    """The persistence entry of a client's prefix."""
    family = "v6" if validation.is_ipv6(client) else "v4"
    row = np.zeros(1, PERSISTENT[family])
    prefix = ipaddress.ip_network(affinity.client_prefix(farm, client))
    row["client"], row["farm"] = np.void(prefix.network_address.packed), farm.id
    found, rows = plane.find_persistent(family, row)
    if not found[0]:
        return None
    age = (plane.now_tick() - int(rows["last_used"][0])) & 0xFFFFFFFF
    return Remembered(int(rows["home"][0]), int(rows["backend"][0]), age if age < 1 << 31 else 0)


class Names:
    """Farms and backends by the ids that flows carry."""

    def __init__(self, config: Config) -> None:
        self._farms = {farm.id: farm.name for farm in config.farms.values()}
        self._backends = frozenset(backend.id for farm in config.farms.values() for backend in farm.backends)

    def farm(self, number: int) -> str:
        return self._farms.get(number) or f"(deleted farm {number})"

    def has_backend(self, number: int) -> bool:
        return number in self._backends


def connection_view(entry: FlowEntry, names: Names, now_tick: int) -> dict[str, Any]:
    """One connection of `conn list`. The reply direction has the same fields, seen from its own arrival."""
    arrives, leaves = entry.arrives, entry.leaves
    ends = (
        format_endpoint(arrives.source, arrives.source_port),
        format_endpoint(arrives.destination, arrives.destination_port),
        format_endpoint(leaves.destination, leaves.destination_port),
        format_endpoint(leaves.source, leaves.source_port),
    )
    client, vip, backend, backend_sees = ends if entry.forward else (ends[2], ends[3], ends[0], ends[1])
    mode = entry.mode or ("dnat" if backend_sees == client else "snat")
    return {
        "protocol": constants.Protocol(arrives.protocol).name.lower(),
        "client": client,
        "vip": vip,
        "backend": backend,
        "backend_sees": backend_sees,
        "mode": mode,
        "farm": names.farm(entry.farm),
        "backend_known": names.has_backend(entry.backend),
        "direction": "forward" if entry.forward else "reply",
        "state": flow_state(entry),
        "idle_s": round(max(0, now_tick - entry.last_seen_tick) * TICK_S, 1),
    }


def opposite(leaves: FlowTuple) -> FlowTuple:
    """The tuple of the answers to packets that leave with `leaves`."""
    return FlowTuple(leaves.destination, leaves.source, leaves.destination_port, leaves.source_port, leaves.protocol)


def is_answered(entry: FlowEntry, other: FlowEntry | None, now_tick: int) -> bool:
    """Does the next packet of the client establish the connection? One way, a later packet is the sign of an answer.

    other: the entry of the other direction.
    """
    if entry.mode:
        return now_tick != entry.last_seen_tick
    seen, reset = constants.FlowState.SEEN, constants.FlowState.RST
    return other is not None and other.leaves == opposite(entry.arrives) and other.state & (seen | reset) == seen


def flow_state(entry: FlowEntry) -> str:
    """The state in one word, worst first."""
    state = constants.FlowState(entry.state)
    if state & constants.FlowState.RST:
        return "reset"
    ends = constants.FlowState.FIN_HERE | (0 if entry.mode else constants.FlowState.FIN_THERE)
    if state & ends:
        return "closing"
    return "opening" if entry.embryonic else "established"


def _endpoint(text: object) -> tuple[str, int]:
    if not isinstance(text, str):
        raise InvalidInput("expected ADDR:PORT", "backend")
    address, _, port = text.rpartition(":")
    if not port.isdigit():
        raise InvalidInput(f"expected ADDR:PORT, got {text[:64]!r}", "backend")
    return validation.canonical_address(address.strip("[]"), "backend"), int(port)


def _protocol(value: object) -> Protocol:
    try:
        return Protocol(str(value))
    except ValueError:
        raise InvalidInput(f"expected {' or '.join(Protocol)}, got {str(value)[:32]!r}", "protocol") from None


def _integer(arguments: Arguments, name: str, low: int, high: int, default: int | None = None) -> int:
    value = arguments.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(f"expected a number from {low} to {high}, got {str(value)[:32]!r}", name)
    return value
