"""Why a client cannot connect: the first reason on its way, with the remedy, as findings in the order of the way.

lease → interfaces → VIP → client → farm → lists and limits → backends → next hops → way back → recent drops

Pure: judges what the caller observed and what `ctl.explanation.explain` answers for a first packet of the client. The way ends
at the first finding that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bpf.constants import COUNTERS
from bpf.dataplane import FlowTuple
from ctl.config.model import Backend, Config, Farm, Mode, Protocol, format_endpoint
from ctl.dataplane.flow_selection import PROTOCOL_NUMBERS
from ctl.dataplane.planner import eligible_backends
from ctl.diagnosis.finding import Finding, Severity, from_problem, ok
from ctl.explanation.explain import ONE_WAY, NextHop, Standing

MAX_NAMED = 3
MAX_HOPS = 256
"""Backends whose next hops are looked up."""
_REASONS = {counter.name: counter.reason for counter in COUNTERS}
_STAGES: Mapping[str, str] = MappingProxyType(
    {
        "pass_not_ours": "vip",
        "drop_no_flow": "vip",
        "drop_martian": "client",
        "drop_vip_guard": "farm",
        "pass_vip_open": "farm",
        "drop_not_compiled": "farm",
        "drop_denied": "lists",
        "drop_farm_full": "limits",
        "drop_no_backend": "backends",
        "drop_backend_full": "backends",
    }
)
"""The stage of the way at which a verdict of `explain` ends it. Other verdicts lead to a backend."""
_ORDER = ("vip", "client", "farm", "lists", "limits", "backends")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the node that serves observes of itself. interfaces: findings about its data interfaces, by their names.

    lease_left_ms: of the lease in the kernel. absent: the VIP is not on its interface; taken: the MAC address of a machine that
    answers for it. own: the node's addresses that are no VIPs. hops: by address of a backend and of the client; None: no route.
    forwarding: what keeps the kernel from forwarding. dropped: packets by counter in the last `seconds`.
    """

    lease_left_ms: int
    interfaces: Mapping[str, Finding]
    absent: bool = False
    taken: str = ""
    own: AbstractSet[str] = frozenset()
    hops: Mapping[str, NextHop | None] = field(default_factory=lambda: MappingProxyType({}))
    forwarding: Sequence[str] = ()
    seconds: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def way(
    arriving: FlowTuple,
    answer: Mapping[str, Any],
    config: Config,
    standing: Standing,
    machine: Machine | None,
    backends: Sequence[Backend],
) -> list[Finding]:
    """The findings until the first that fails.

    answer: of `explain` for the tuple. machine: None where the node does not serve, so that only the configuration, which both
    nodes have, can be judged. backends: of `reachable`.
    """
    found: list[Finding] = []
    for finding in _way(arriving, answer, config, standing, machine, backends):
        found.append(finding)
        if finding.status is Severity.FAIL:
            break
    return found


def reachable(
    arriving: FlowTuple, answer: Mapping[str, Any], config: Config, down: AbstractSet[int], exact: bool
) -> tuple[Backend, ...]:
    """The backends that the client may get; none where it gets none. exact: the tuple is the client's own, not an example."""
    farm = config.farms.get(str(answer["farm"]))
    if farm is None or answer["verdict"] in _STAGES or arriving.destination not in farm.vips:
        return ()
    offset = arriving.destination_port - farm.port
    if exact and answer["backend"]:
        return tuple(each for each in farm.backends if format_endpoint(each.address, each.port + offset) == answer["backend"])
    return eligible_backends(next(part for part in farm.parts if arriving.destination in part.vips), down)


def first_reason(findings: Iterable[Finding]) -> Finding | None:
    """The one that fails; None: the client can connect."""
    return next((each for each in findings if each.status is Severity.FAIL), None)


def _way(
    arriving: FlowTuple,
    answer: Mapping[str, Any],
    config: Config,
    standing: Standing,
    machine: Machine | None,
    backends: Sequence[Backend],
) -> Iterator[Finding]:
    vip, farm = config.vips.get(arriving.destination), config.farms.get(str(answer["farm"]))
    yield from _lease(standing, machine)
    if machine is not None:
        yield from _interfaces(machine, vip.device if vip is not None else "")
        yield from (from_problem("forwarding", each) for each in machine.forwarding)
    ends_at = _STAGES.get(str(answer["verdict"]), "")
    for stage in _ORDER:
        if stage == ends_at:
            yield Finding(stage, Severity.FAIL, _message(answer), _remedy(arriving, answer, config))
            return
        yield from _passed(stage, arriving, config, farm, backends)
        if machine is not None and stage == "vip" and vip is not None:
            yield from _address(arriving.destination, vip.device, machine)
        if machine is not None and stage == "client" and arriving.source in machine.own:
            message = f"{arriving.source} is an address of {standing.node} itself: what its kernel sends to itself enters by no"
            remedy = "connect from another machine, or to a backend"
            yield Finding("client", Severity.FAIL, f"{message} data interface, and is not balanced", remedy)
    if farm is not None and machine is not None:
        yield from _next_hops(farm, backends, machine)
        yield from _way_back(arriving.source, farm, backends, machine)
        yield from _drops(farm, machine)


def _lease(standing: Standing, machine: Machine | None) -> Iterator[Finding]:
    if not standing.serving:
        message = f"neither node answers for the VIPs: {standing.node} is {standing.role}"
        yield Finding("lease", Severity.FAIL, message, "xlbctl cluster status shows why, and what the peer is")
    elif machine is None:
        message = f"{standing.node} is {standing.role}, {standing.serving} answers for the VIPs"
        yield Finding("lease", Severity.INFO, message, f"xlbctl why on {standing.serving} also looks at its kernel")
    elif machine.lease_left_ms <= 0:
        message = f"{standing.node} is {standing.role}, but its lease has expired: it answers nothing for a VIP"
        yield Finding("lease", Severity.FAIL, message, "xlbctl cluster status; look for overload: journalctl -u xlbd")
    else:
        yield ok("lease", f"{standing.node} is {standing.role} and answers for the VIPs")


def _interfaces(machine: Machine, device: str) -> Iterator[Finding]:
    """A client may come in by any data interface, most likely by that of the VIP."""
    failing = [name for name, each in machine.interfaces.items() if each.status is Severity.FAIL]
    for name, each in machine.interfaces.items():
        if name in failing and name != device and len(failing) < len(machine.interfaces):
            yield Finding(each.name, Severity.WARN, each.message, each.remedy)
        else:
            yield each


def _address(address: str, device: str, machine: Machine) -> Iterator[Finding]:
    if machine.taken:
        message = f"another machine answers for it on {device}: {machine.taken}"
        yield Finding(
            f"vip {address}", Severity.FAIL, message, "find the machine with this MAC address, and remove the address"
        )
    elif machine.absent:
        remedy = f"bring {device} back; xlbd adds the address by itself"
        yield Finding(f"vip {address}", Severity.FAIL, f"is not on {device}, so nobody answers ARP for it", remedy)


def _passed(
    stage: str, arriving: FlowTuple, config: Config, farm: Farm | None, backends: Sequence[Backend]
) -> Iterator[Finding]:
    if stage == "vip":
        yield ok("vip", f"{arriving.destination} is a VIP on {config.vips[arriving.destination].device}")
    if farm is None:
        return
    if stage == "farm":
        yield ok("farm", f"{farm.name} listens there ({farm.protocol.value}, {farm.mode.value}, {farm.scheduler.value})")
    if stage == "lists" and (farm.allow or farm.deny):
        yield ok("lists", f"they let {arriving.source} in")
    if stage == "limits" and farm.max_connections:
        yield ok("limits", f"the farm has fewer than its {farm.max_connections} connections")
    if stage == "backends":
        yield ok("backends", f"{len(backends)} take new connections: {_named(each.endpoint for each in backends)}")


def _message(answer: Mapping[str, Any]) -> str:
    """What `explain` found last; of a stopped farm, that it is."""
    last = str(answer["steps"][-1])
    return str(answer["why"]) if answer["verdict"] in ("drop_vip_guard", "pass_vip_open") and answer["farm"] else last


def _remedy(arriving: FlowTuple, answer: Mapping[str, Any], config: Config) -> str:
    """What an operator can do about a verdict that ends the way."""
    farm, vip = config.farms.get(str(answer["farm"])), arriving.destination
    match answer["verdict"]:
        case "pass_not_ours" | "drop_no_flow":
            return f"xlbctl vip list shows the VIPs; xlbctl vip add {vip}/LENGTH --dev INTERFACE adds this one"
        case "drop_martian":
            return "the client needs a source address of its own; look for NAT or a wrong address on its way"
        case "drop_vip_guard" | "pass_vip_open" if farm is None:
            return _where_it_listens(arriving, config)
        case "drop_vip_guard" | "pass_vip_open" if farm is not None and not farm.enabled:
            return f"xlbctl farm start {farm.name}"
        case "drop_not_compiled" | "drop_vip_guard" | "pass_vip_open":
            return "xlbd compiles the program by itself; where it cannot, xlbctl doctor names the fault"
        case "drop_denied" if farm is not None:
            return f"xlbctl prefixes show {farm.deny or farm.allow}; xlbctl farm show {farm.name} has both lists"
        case "drop_farm_full" if farm is not None:
            return f"xlbctl conn count --farm {farm.name}; xlbctl farm set {farm.name} --max-connections N raises the limit"
        case "drop_backend_full" if farm is not None:
            return f"xlbctl backend add {farm.name} ADDR:PORT, or xlbctl backend set … --max-connections N"
        case _ if farm is not None:
            return _for_backends(farm)
    return "xlbctl conn show has every step"


def _where_it_listens(arriving: FlowTuple, config: Config) -> str:
    vip, port = arriving.destination, arriving.destination_port
    here = [each for each in config.farms.values() if vip in each.vips]
    other = next((each for each in here if each.enabled and each.listens(vip, port)), None)
    asked = next(each.value for each in Protocol if PROTOCOL_NUMBERS[each] == arriving.protocol)
    if other is not None:
        flag = "with --udp" if other.protocol is Protocol.UDP else "without --udp"
        return f"farm {other.name} listens there for {other.protocol.value}, not {asked}: ask again {flag}"
    shown = _named(f"{each.ports}/{each.protocol.value}" for each in here if each.enabled)
    add = f"xlbctl farm add NAME --vip {vip} --port {port}" + (" --proto udp" if asked == "udp" else "")
    return f"farms listen on {shown} of it; {add}" if shown else add


def _for_backends(farm: Farm) -> str:
    if not farm.backends:
        return f"xlbctl backend add {farm.name} ADDR:PORT"
    waiting = [each for each in farm.backends if each.draining or not each.weight]
    if len(waiting) == len(farm.backends):
        first = waiting[0]
        option = "--no-drain" if first.draining else "--weight 1"
        return f"xlbctl backend set {farm.name} {first.endpoint} {option}"
    return f"xlbctl farm show {farm.name} has the error of each check; a backend that passes it is used again"


def _next_hops(farm: Farm, backends: Sequence[Backend], machine: Machine) -> Iterator[Finding]:
    backends = [each for each in backends if each.address in machine.hops]
    lost = [each for each in backends if machine.hops[each.address] is None]
    silent = [each for each in backends if (hop := machine.hops.get(each.address)) is not None and not hop.resolved]
    share = f"of {len(backends)} backends" if len(backends) > 1 else "the backend"
    if lost:
        shown = _named(each.endpoint for each in lost)
        message = f"there is no route to {len(lost)} {share}: {shown}" if len(backends) > 1 else f"there is no route to {shown}"
        yield Finding("route", Severity.FAIL, message, f"ip route get {lost[0].address}")
    elif silent:
        hop = machine.hops[silent[0].address]
        assert hop is not None
        shown = _named(each.endpoint for each in silent)
        which = f"of {len(silent)} {share}" if len(backends) > 1 else "of the backend"
        message = f"the next hop {which} does not answer on {hop.device}: {shown}"
        yield Finding("neighbour", Severity.FAIL, message, f"ip neigh show {hop.address}; is the machine on?")
    else:
        yield ok("route", f"every backend of farm {farm.name} that takes new connections has a next hop that answers")


def _way_back(client: str, farm: Farm, backends: Sequence[Backend], machine: Machine) -> Iterator[Finding]:
    hop = machine.hops.get(client)
    if farm.mode.value in ONE_WAY:
        message = f"in mode {farm.mode.value} the backend answers the client by itself, from the VIP"
        yield Finding("way back", Severity.INFO, message, "xlbctl doctor names what a backend needs; it must have the VIP")
        return
    if hop is None:
        yield Finding("way back", Severity.FAIL, f"there is no route to {client}", f"ip route get {client}")
        return
    if farm.mode is Mode.DNAT:
        beside = [each for each in backends if (to := machine.hops.get(each.address)) and to.device == hop.device]
        if beside and hop.address == client:
            message = f"mode dnat, and {client} is on {hop.device} like {_named(each.endpoint for each in beside)}"
            remedy = f"such a backend answers the client directly, past this node: xlbctl farm set {farm.name} --mode snat"
            yield Finding("way back", Severity.WARN, message, remedy)
            return
        message = "in mode dnat the backend's answers must be routed through this node"
        yield Finding("way back", Severity.INFO, message, f"on the backend: ip route get {client}")
        return
    yield ok("way back", f"the backend answers this node, and {hop.address} on {hop.device} leads to {client}")


def _drops(farm: Farm, machine: Machine) -> Iterator[Finding]:
    """What depends on each packet, or on what others do, is judged by what was dropped in the last minute."""
    suspects: dict[str, str] = {
        "drop_snat_exhausted": f"xlbctl farm set {farm.name} --snat-address ADDR,ADDR gives more source ports",
        "drop_reverse_conflict": f"xlbctl conn list --farm {farm.name}",
        "drop_no_route": "ip route; xlbctl doctor",
        "drop_internal": "please report this",
        "drop_malformed": "capture the client's packets",
        "drop_ipv6_extension": "capture the client's packets",
    }
    if farm.max_rate:
        suspects["drop_rate"] = f"xlbctl farm set {farm.name} --max-rate N"
    if farm.max_half_open:
        suspects["drop_half_open"] = f"xlbctl farm set {farm.name} --max-half-open N"
    seen = {name: machine.dropped.get(name, 0) for name in suspects if machine.dropped.get(name, 0)}
    for name, count in seen.items():
        message = f"{name}: {count} packets of any client in the last {machine.seconds:.0f} s: {_REASONS[name]}"
        yield Finding("recent drops", Severity.WARN, message, suspects[name])
    if not seen:
        yield ok("recent drops", f"none in the last {machine.seconds:.0f} s that may concern this farm")


def _named(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:MAX_NAMED]) + (f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else "")


def heading(arriving: FlowTuple, client_port: int) -> str:
    """What was asked, e.g. "192.0.2.7 -> 10.77.0.100:80". client_port 0: any."""
    client = format_endpoint(arriving.source, client_port) if client_port else arriving.source
    return f"{client} -> {format_endpoint(arriving.destination, arriving.destination_port)}"
