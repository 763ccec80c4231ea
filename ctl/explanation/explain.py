"""Explains the path of a 5-tuple: `conn show` for an existing or a hypothetical connection.

Pure: follows the data plane's steps (docs/DATAPLANE.md, "Steps of a packet") with the same hash (`ctl.dataplane.flow_hash`)
and the same lookup tables (`ctl.dataplane.maglev`, `ctl.dataplane.planner`). The caller passes the existing entry.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

from bpf.constants import COUNTERS, MAX_CANDIDATES
from bpf.dataplane import FlowTuple
from ctl.config import prefixes, table_sizes
from ctl.config.model import Backend, Config, Farm, Mode, OnNoBackend, Protocol, Scheduler, Vip, format_endpoint
from ctl.dataplane import affinity, maglev
from ctl.dataplane.affinity import Remembered
from ctl.dataplane.features import runnable
from ctl.dataplane.flow_hash import client_hash, flow_hash, snat_sources
from ctl.dataplane.flow_selection import PROTOCOL_NUMBERS
from ctl.dataplane.limits import counts
from ctl.dataplane.planner import eligible_backends, unavailable_backends
from ctl.dataplane.slow_start import WHOLE, weighted

SHOWN_CANDIDATES = 4
ONE_WAY = (Mode.DSR.value, Mode.IPIP.value)
"""Modes whose backends get the client's packet as it is, and answer past this node."""

_REASONS = {counter.name: counter.reason for counter in COUNTERS}


@dataclass(slots=True)
class _Trace:
    """The answer under construction. connection: the entry of the tuple; None: it has none."""

    connection: Mapping[str, Any] | None = None
    steps: list[str] = field(default_factory=list)
    farm: str | None = None
    backend: str | None = None
    mode: str | None = None
    rewrite: str | None = None
    slot: int | None = None
    slots: int | None = None
    why: str = ""

    def end(self, verdict: str) -> dict[str, Any]:
        return {
            "exists": self.connection is not None,
            "verdict": verdict,
            "why": self.why or _REASONS.get(verdict, ""),
            "farm": self.farm,
            "backend": self.backend,
            "mode": self.mode,
            "rewrite": self.rewrite,
            "slot": self.slot,
            "slots": self.slots,
            "steps": self.steps,
            "connection": self.connection,
        }


@dataclass(frozen=True, slots=True)
class Loads:
    """Connections at this moment by farm id and by backend id; what is missing has none."""

    farms: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    backends: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))


def explain(
    arriving: FlowTuple,
    found: Mapping[str, Any] | None,
    config: Config,
    down: AbstractSet[int],
    seed: int,
    remembered: Callable[[Farm], Remembered | None] = lambda farm: None,
    shares: Mapping[int, int] = MappingProxyType({}),
    error_of: Callable[[int], str] = lambda backend_id: "",
    loads: Loads | None = None,
    answered: bool = True,
    missing: AbstractSet[str] = frozenset(),
) -> dict[str, Any]:
    """Explain the verdict on a packet that arrives with this tuple.

    found: the connection as `conn list` shows it, if the flow maps have an entry for the tuple. down: ids of backends whose
    check failed. remembered: the persistence entry of the client in a farm. shares: of `ctl.dataplane.slow_start`. error_of:
    why a backend is down. loads: where connections are counted. answered: whether the client's next packet establishes the
    connection that was found. missing: features that the program lacks. The answer's `verdict` is "forward", "either"
    (round-robin: not predictable) or a counter's name.
    """
    trace = _Trace(found)
    if found is None:
        trace.steps.append("no entry in the flow maps: a new connection")
    elif answered or not _must_move(arriving, found, config, down):
        return _existing(found, trace)
    else:
        trace.steps.append(
            f"{_state_of(found)}: {found['backend']} takes no packets, so the next one opens the connection again"
        )
    vip = config.vips.get(arriving.destination)
    if vip is None:
        trace.steps.append(f"{arriving.destination} is not a VIP")
        return _explain_transit(arriving, config, trace)
    farm = _listener(runnable(config, missing), arriving)
    if farm is not None and farm.mode.value in missing:
        trace.farm, trace.mode = farm.name, farm.mode.value
        trace.steps.append(f"farm {farm.name} listens there, in mode {farm.mode.value}, which this node's program has not yet")
        return trace.end("drop_not_compiled")
    reason = _martian(arriving, config, farm) if not found and (farm or vip.guard) else ""
    if reason:
        trace.steps.append(f"no client has this source: {reason}")
        return trace.end("drop_martian")
    if farm is None:
        return _without_listener(arriving, config, vip, trace)
    trace.farm = farm.name
    trace.mode = farm.mode.value
    trace.steps.append(f"farm {farm.name} listens there")
    farm = next(part for part in farm.parts if arriving.destination in part.vips)
    loads = loads or Loads()
    refused = _refused(arriving.source, farm, config, loads, trace) if not found else ""
    if refused:
        return trace.end(refused)
    eligible = eligible_backends(farm, down)
    trace.steps.append(_eligible_message(farm, eligible, down, error_of))
    if not eligible:
        trace.steps[-1] += f"; {_refusal_message(farm)}"
        return trace.end("drop_no_backend")
    if starting := [f"{_endpoint(each)} {shares[each.id] / WHOLE:.0%}" for each in eligible if each.id in shares]:
        trace.steps.append(f"slow start: of its weight has {', '.join(starting)}")
    entry = remembered(farm) if farm.persistence_s else None
    return _select(arriving, farm, weighted(eligible, shares), seed, trace, entry, loads)


def _without_listener(arriving: FlowTuple, config: Config, vip: Vip, trace: _Trace) -> dict[str, Any]:
    """No running farm has this VIP and port."""
    stopped = _listener(config, arriving, running=False)
    if stopped is not None:
        trace.farm, trace.why = stopped.name, f"farm {stopped.name} is stopped"
        trace.steps.append(f"{trace.why}; xlbctl farm start {stopped.name}")
    elif (waiting := _listener(config, arriving)) is not None:
        trace.farm = waiting.name
        trace.why = f"farm {waiting.name} waits until this node's program is compiled for prefix lists"
        trace.steps.append(trace.why)
    guard = "on" if vip.guard else "off"
    trace.steps.append(f"no running farm listens on port {arriving.destination_port}; the VIP's guard is {guard}")
    return trace.end("drop_vip_guard" if vip.guard else "pass_vip_open")


def _refused(client: str, farm: Farm, config: Config, loads: Loads, trace: _Trace) -> str:
    """The verdict by which lists or limits refuse the client (bpf/program/admit.family.h); empty: they do not.

    Rate and half-open connections change with each packet: they are named, not judged.
    """
    denied = farm.deny and prefixes.matching(config.prefixes[farm.deny], client)
    allowed = farm.allow and prefixes.matching(config.prefixes[farm.allow], client)
    if denied:
        trace.why = f"prefix list {farm.deny} denies {denied}"
    elif farm.allow and not allowed:
        trace.why = f"prefix list {farm.allow} of allowed clients does not have {client}"
    if trace.why:
        trace.steps.append(f"{trace.why}; dropped without an answer")
        return "drop_denied"
    for name, why in ((farm.deny, f"does not deny {client}"), (farm.allow, f"allows {allowed}")):
        if name:
            trace.steps.append(f"prefix list {name} {why}")
    if farm.max_connections:
        now = loads.farms.get(farm.id, 0)
        trace.steps.append(f"max_connections is {farm.max_connections}, the farm has {now} now")
        if now >= farm.max_connections:
            trace.steps[-1] += f"; {_refusal_message(farm)}"
            return "drop_farm_full"
    of_client = f"per client prefix of {farm.rate_prefix_v6 if ':' in client else farm.rate_prefix_v4} bits"
    if farm.max_half_open:
        trace.steps.append(f"drop_half_open if {farm.max_half_open} connections are half-open {of_client}")
    if farm.max_rate:
        trace.steps.append(f"drop_rate above {farm.max_rate} new connections per second {of_client}")
    return ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The node that explains, and the node that answers for the VIPs at this moment; empty: neither does."""

    node: str
    role: str
    serving: str


def at_node(answer: dict[str, Any], standing: Standing) -> dict[str, Any]:
    """The explanation on this node: where it does not serve, its closed lease comes first, and the rest is its peer's."""
    if standing.node == standing.serving or answer["verdict"] == "pass_not_ours":
        return answer
    handles = f"{standing.serving} handles this" if standing.serving else "neither node answers for the VIPs"
    first = f"{standing.node} is {standing.role}: its lease is closed, so it answers nothing for a VIP; {handles}"
    rest = f"on the active node: {answer['verdict']}" + (f", {answer['why']}" if answer["why"] else "")
    steps = [first, *answer["steps"], rest]
    return answer | {"verdict": "drop_fenced", "why": f"{standing.role}; {handles}", "steps": steps}


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where this node would send a packet: interface and address; `resolved`: the kernel has its MAC address."""

    device: str
    address: str
    resolved: bool


def destination(answer: Mapping[str, Any]) -> str:
    """The address that the packet leaves for; empty: it leaves for none that is known."""
    if answer["verdict"] != "forward":
        return ""
    found = answer["connection"]
    endpoint = found["client"] if found and found["direction"] == "reply" else answer["backend"]
    return str(endpoint).rpartition(":")[0].strip("[]")


def with_next_hop(answer: dict[str, Any], address: str, hop: NextHop | None) -> dict[str, Any]:
    """The explanation with the next hop towards `address`; None: there is no route."""
    if hop is None:
        step = f"there is no route to {address}: ip route get {address}"
        return answer | {"verdict": "drop_no_route", "why": f"no route to {address}", "steps": [*answer["steps"], step]}
    through = f"{hop.address} on {hop.device}"
    if hop.resolved:
        return answer | {"steps": [*answer["steps"], f"next hop {through}"]}
    verdict, then = "pass_unresolved", "so the kernel asks for it and forwards"
    if answer["mode"] in ONE_WAY:
        verdict, then = "drop_unresolved", f"and in mode {answer['mode']} the kernel cannot forward for it"
    step = f"next hop unresolved: {through} has not answered, {then}; ip neigh show {hop.address}"
    return answer | {"verdict": verdict, "why": f"next hop unresolved: {through}", "steps": [*answer["steps"], step]}


def _explain_transit(arriving: FlowTuple, config: Config, trace: _Trace) -> dict[str, Any]:
    farm = _server(arriving, config, (Mode.DNAT,))
    if farm is None:
        return trace.end("pass_not_ours")
    trace.farm = farm.name
    trace.steps.append(
        f"{format_endpoint(arriving.source, arriving.source_port)} is a backend of farm {farm.name}, mode dnat: a reply "
        "without a flow, unless it is for the node itself, or its client came here without a VIP"
    )
    return trace.end("drop_no_flow")


def _martian(arriving: FlowTuple, config: Config, farm: Farm | None) -> str:
    """Why no client of a VIP has the source (bpf/program/pipeline.family.h, check_source); empty: it may have."""
    address = ipaddress.ip_address(arriving.source)
    first = int(address) >> address.max_prefixlen - 8
    impossible = (
        first in (0, 127) or first >= 224 if address.version == 4 else first == 0xFF or int(address) >> 32 in (0, 0xFFFF)
    )
    if impossible:
        return f"{arriving.source} is no single host"
    if arriving.source in config.vips:
        return f"{arriving.source} is a VIP"
    server = _server(arriving, config, tuple(Mode)) if farm and arriving.protocol == PROTOCOL_NUMBERS[Protocol.UDP] else None
    return f"it is the service of a backend of farm {server.name}, which would answer the answer" if server else ""


def _server(arriving: FlowTuple, config: Config, modes: Collection[Mode]) -> Farm | None:
    """A farm with a backend whose service is the source."""
    for farm in config.farms.values():
        if farm.mode not in modes or PROTOCOL_NUMBERS[farm.protocol] != arriving.protocol:
            continue
        offsets = [arriving.source_port - each.port for each in farm.backends if each.address == arriving.source]
        if any(first <= farm.port + offset <= last for offset in offsets for first, last in farm.port_ranges):
            return farm
    return None


def _state_of(found: Mapping[str, Any]) -> str:
    return f"the existing flow entry ({found['state']}, idle for {found['idle_s']} s, {found['direction']} direction)"


def _must_move(arriving: FlowTuple, found: Mapping[str, Any], config: Config, down: AbstractSet[int]) -> bool:
    """Does a UDP client without an answer get another backend, because its own is down or removed?

    The same is true of a SYN; other segments stay with the backend of their connection (pipeline.family.h, is_retry).
    """
    if found["state"] != "opening" or found["direction"] != "forward" or arriving.protocol != PROTOCOL_NUMBERS[Protocol.UDP]:
        return False
    if not found["backend_known"]:
        return True
    farm = config.farms.get(found["farm"])
    lost = unavailable_backends(farm, down) if farm else ()
    offset = arriving.destination_port - farm.port if farm else 0
    return any(_endpoint(each, offset) == found["backend"] and each.id in lost for each in (farm.backends if farm else ()))


def _existing(found: Mapping[str, Any], trace: _Trace) -> dict[str, Any]:
    trace.farm, trace.backend, trace.mode = found["farm"], found["backend"], found["mode"]
    if found["mode"] in ONE_WAY:
        trace.rewrite = _unchanged(found["mode"], found["client"], found["vip"], found["backend"])
    elif found["direction"] == "forward":
        trace.rewrite = f"{found['client']} -> {found['vip']} becomes {found['backend_sees']} -> {found['backend']}"
    else:
        trace.rewrite = f"{found['backend']} -> {found['backend_sees']} becomes {found['vip']} -> {found['client']}"
    trace.steps.append(f"{_state_of(found)} decides")
    return trace.end("forward")


def _persistent(
    farm: Farm, client: str, eligible: tuple[Backend, ...], entry: Remembered | None, trace: _Trace
) -> Backend | None:
    """The backend that the client keeps; None: the scheduler chooses."""
    prefix = affinity.client_prefix(farm, client)
    if entry is None or not affinity.is_live(farm, entry):
        trace.steps.append(f"persistence: {prefix} has no backend yet; it keeps the one chosen now for {farm.persistence_s} s")
        return None
    chosen = affinity.kept_backend(farm, entry, eligible)
    names = {backend.id: _endpoint(backend) for backend in farm.backends}
    home = names.get(entry.home, "a removed backend")
    left = f"{affinity.left_s(farm, entry)} s left"
    if chosen is None:
        trace.steps.append(f"persistence: {prefix} had {home} ({left}), which takes no new connections; the scheduler chooses")
    elif chosen.id == entry.home:
        trace.steps.append(f"persistence: {prefix} keeps {home} ({left})")
    else:
        trace.steps.append(
            f"persistence: {prefix} keeps {_endpoint(chosen)} while {home} takes no new connections ({left}); then it returns"
        )
    return chosen


def _select(
    arriving: FlowTuple,
    farm: Farm,
    eligible: tuple[Backend, ...],
    seed: int,
    trace: _Trace,
    entry: Remembered | None,
    loads: Loads,
) -> dict[str, Any]:
    chosen: Backend | None
    kept = False
    if farm.quic_cid:
        trace.steps.append(
            f'quic_cid is "{farm.quic_cid}": a datagram whose connection id decides goes to that backend; of any other:'
        )
    if farm.persistence_s and (chosen := _persistent(farm, arriving.source, eligible, entry, trace)) is not None:
        kept = True
    elif farm.scheduler is Scheduler.LEASTCONN:
        chosen = eligible[0]
    elif len(eligible) == 1:
        chosen = eligible[0]
        trace.steps.append("only one backend is eligible")
    elif farm.scheduler is Scheduler.ROUNDROBIN:
        turns = [each for each in eligible if not _is_full(each, loads)]
        if len(turns) > 1:
            names = [_endpoint(each) for each in turns]
            trace.steps.append(f"roundrobin: the next backend in turn, one of {', '.join(names)}")
            return trace.end("either")
        trace.steps.append("roundrobin: all backends in turn are full" + (f" but {_endpoint(turns[0])}" if turns else ""))
        chosen = (turns or eligible)[0]
    else:
        chosen = _by_hash(arriving, farm, eligible, seed, trace)
    if counts(farm):
        if len(eligible) > MAX_CANDIDATES and farm.scheduler is Scheduler.LEASTCONN and not kept:
            trace.steps.append(f"leastconn: the least loaded of {MAX_CANDIDATES} of {len(eligible)} backends")
            return trace.end("either")
        wanted = None if _is_least(farm, kept) else chosen
        chosen = _with_capacity(wanted, eligible, flow_hash(arriving, seed), loads, trace)
        if chosen is None:
            trace.steps.append(f"every backend has its max_connections; {_refusal_message(farm)}")
            return trace.end("drop_backend_full")
    trace.backend = _endpoint(chosen, arriving.destination_port - farm.port)
    trace.rewrite = _rewrite(arriving, farm, trace.backend, seed, trace)
    return trace.end("forward")


def _is_full(backend: Backend, loads: Loads) -> bool:
    return bool(backend.max_connections) and loads.backends.get(backend.id, 0) >= backend.max_connections


def _is_least(farm: Farm, kept: bool) -> bool:
    return farm.scheduler is Scheduler.LEASTCONN and not kept


def _with_capacity(
    chosen: Backend | None, eligible: tuple[Backend, ...], hash_value: int, loads: Loads, trace: _Trace
) -> Backend | None:
    """As bpf/program/load.h: the chosen backend unless it is full, then another; without one, the least loaded."""
    if chosen is not None and not _is_full(chosen, loads):
        return chosen
    start = hash_value % len(eligible)
    free = [each for each in (*eligible[start:], *eligible[:start]) if not _is_full(each, loads)]
    if chosen is not None:
        trace.steps.append(f"{_endpoint(chosen)} has its max_connections of {chosen.max_connections}: another one")
        return free[0] if free else None
    shown = ", ".join(f"{_endpoint(each)} {loads.backends.get(each.id, 0)}" for each in eligible[:SHOWN_CANDIDATES])
    trace.steps.append(f"leastconn: the fewest connections for its weight; now {shown}{', …' if len(eligible) > 4 else ''}")
    return min(free, key=lambda each: (loads.backends.get(each.id, 0) + 1) / each.weight, default=None)


def _by_hash(arriving: FlowTuple, farm: Farm, eligible: tuple[Backend, ...], seed: int, trace: _Trace) -> Backend:
    by_client = farm.scheduler is Scheduler.SOURCE
    value = client_hash(arriving.source, seed) if by_client else flow_hash(arriving, seed)
    size = table_sizes.size_of(farm)
    slot = value % size
    number = int(maglev.lookup_table(eligible, size)[slot])
    trace.slot, trace.slots = slot, size
    what = "the client's address" if by_client else "the 5-tuple"
    trace.steps.append(f"{farm.scheduler.value}: the hash of {what} is {value}, slot {slot} of {size}")
    return next(backend for backend in eligible if backend.id == number)


def _unchanged(mode: str, client: str, vip: str, backend: str) -> str:
    how = "to its MAC address" if mode == "dsr" else "in an IP header for its address"
    return f"{client} -> {vip} stays, and goes to {backend} {how}"


def _rewrite(arriving: FlowTuple, farm: Farm, backend: str, seed: int, trace: _Trace) -> str:
    client = format_endpoint(arriving.source, arriving.source_port)
    vip = format_endpoint(arriving.destination, arriving.destination_port)
    if farm.mode in ONE_WAY:
        trace.steps.append(f"{farm.mode.value}: the backend has {vip} too, and answers the client past this node")
        return _unchanged(farm.mode.value, client, vip, backend)
    if farm.mode is Mode.DNAT:
        if arriving.source not in {each.address for each in farm.backends}:
            trace.steps.append("dnat: the backend sees the client's address and answers through this node")
            return f"{client} -> {vip} becomes {client} -> {backend}"
        trace.steps.append(
            "the client is a backend of the farm: its address is hidden, so that it gets the answer through this node"
        )
    addresses = farm.sources(arriving.destination)
    addresses = addresses if farm.mode is Mode.SNAT else addresses[:1]
    sources = list(islice(snat_sources(arriving.source_port, flow_hash(arriving, seed), addresses), SHOWN_CANDIDATES))
    shown = [format_endpoint(*each) for each in sources] if len(addresses) > 1 else [str(port) for _, port in sources]
    what = f"{addresses[0]} and the first free port" if len(addresses) == 1 else "the first free source"
    trace.steps.append(
        f"snat: the backend sees {what} of {', '.join(shown)}, …; {shown[0]} unless another connection to {backend} uses it"
    )
    if farm.toa:
        trace.steps.append("toa: the client's address and port are in a TCP option of its first segment with data, if it fits")
    return f"{client} -> {vip} becomes {format_endpoint(*sources[0])} -> {backend}"


def _listener(config: Config, arriving: FlowTuple, running: bool = True) -> Farm | None:
    """running: of the farms that run, or of the stopped."""
    for farm in config.farms.values():
        of_kind = farm.enabled is running and PROTOCOL_NUMBERS[farm.protocol] == arriving.protocol
        if of_kind and farm.listens(arriving.destination, arriving.destination_port):
            return farm
    return None


def _eligible_message(farm: Farm, eligible: tuple[Backend, ...], down: AbstractSet[int], error_of: Callable[[int], str]) -> str:
    out = []
    chosen = {backend.id for backend in eligible}
    for backend in farm.backends:
        if backend.id in chosen:
            continue
        reason = (
            "is draining"
            if backend.draining
            else "has weight 0"
            if backend.weight == 0
            else f"is down{_because(error_of(backend.id))}"
            if backend.id in down
            else f"is a reserve of priority {backend.priority}"
        )
        out.append(f"{_endpoint(backend)} {reason}")
    message = f"{len(eligible)} of {len(farm.backends)} backends take new connections"
    return f"{message}; {', '.join(out)}" if out else message


def _because(error: str) -> str:
    return f" ({error})" if error else ""


def _refusal_message(farm: Farm) -> str:
    if farm.on_no_backend is OnNoBackend.DROP:
        return "the client gets no answer (on_no_backend is drop)"
    answer = "a TCP reset" if farm.protocol is Protocol.TCP else "ICMP port unreachable"
    return f"the client gets {answer} (on_no_backend is reject), unless this CPU has sent its share of answers"


def _endpoint(backend: Backend, offset: int = 0) -> str:
    return format_endpoint(backend.address, backend.port + offset)
