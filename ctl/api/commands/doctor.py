"""`xlbctl doctor` of a running node: what it needs, one finding per line with its remedy.

Looks, changes nothing. What observations mean is decided in `ctl.diagnosis`; here are those of the daemon's own parts. Blocks
for a moment (it reads tables and /proc): called in a thread. A check that cannot be made counts as failed, with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpf.dataplane import DataPlane
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig
from ctl.config.address_rules import OwnAddress, problems
from ctl.config.model import Config, Mode
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.dataplane.loads import loads_of
from ctl.dataplane.planner import eligible_backends
from ctl.diagnosis import drops, limits, machine, one_way
from ctl.diagnosis.drops import RecentCounters
from ctl.diagnosis.finding import Finding, Severity, from_problem, from_view, judged, ok
from ctl.diagnosis.kernel import machine as this_machine
from ctl.diagnosis.kernel import rulesets
from ctl.diagnosis.kernel.recent_drops import packets
from ctl.errors import XlbError
from ctl.health.check_machine import HealthChecks
from ctl.health.probes.source_addresses import OwnSources
from ctl.network import vlans
from ctl.network.neighbours import MAX_NEIGHBOURS, NextHopKeeper
from ctl.network.network import Network
from ctl.network.vip_addresses import VipAddresses, wanted
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.state import storage
from ctl.state.node_file import NodeSettings

FULL_SHARE = 0.8
SLOW_LOOP_MS = 50.0
_SHOWN = 5
_LISTEN_STATE = "0A"

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExaminedNode:
    """What the checks look at. in_pair: whether the node has a peer. status: the answer of `status`."""

    settings: NodeSettings
    startup: Startup
    read_config: ReadConfig
    in_pair: Callable[[], bool]
    plane: DataPlane
    network: Network
    interfaces: DataInterfaces
    addresses: VipAddresses
    next_hops: NextHopKeeper
    sweeper: Sweeper
    health: HealthChecks
    sources: OwnSources
    tunnel: TunnelSources
    lag: LoopLag
    recent: RecentCounters
    status: Callable[[Arguments], Awaitable[Status]]
    own_addresses: Callable[[], Awaitable[Sequence[OwnAddress]]]
    lists: Callable[[], Awaitable[limits.Lists]]

    @property
    def config(self) -> Config:
        return self.read_config()


def register(dispatcher: Dispatcher, node: ExaminedNode) -> None:
    async def doctor(arguments: Arguments) -> list[dict[str, Any]]:
        status = await node.status(arguments)
        return await asyncio.to_thread(examine, node, status, await node.own_addresses(), await node.lists())

    dispatcher.register("doctor", doctor)


def examine(node: ExaminedNode, status: Status, own: Sequence[OwnAddress], lists: limits.Lists) -> list[dict[str, Any]]:
    """Every check, in the order in which one would look. own: the addresses that the nodes have themselves."""
    checks: tuple[Callable[[ExaminedNode], Iterator[Finding]], ...] = (
        _machine,
        _interfaces,
        _forwarding,
        _firewall,
        _addresses,
        lambda node: _unusable(node, own),
        _neighbours,
        _sources,
        _one_way,
        _listeners,
        _local_clients,
        _health,
        _storage,
        _tables,
        _limits,
        lambda node: limits.examine_lists(node.config, lists),
        _drops,
        _loop,
    )
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(node)
        except Exception as error:  # one broken check must not hide the others
            name = check.__name__.strip("_")
            found.append(Finding(name, Severity.FAIL, f"could not be checked: {error}", "please report this"))
    names = {each.name for each in found if each.status is Severity.FAIL}
    found += [each for each in _redundancy(status) if each.name not in names]
    return [each.view() for each in found]


def _redundancy(status: Status) -> Iterator[Finding]:
    """The pair as `cluster status --check` judges it; here whatever asks for an action fails."""
    found = [each for each in map(from_view, status["findings"]) if each is not None]
    for each in found:
        yield replace(each, status=Severity.FAIL) if each.status is Severity.WARN else each
    if not found:
        yield ok("pair" if status["peer"] else "node", status["check"]["line"].partition(": ")[2])


def _machine(node: ExaminedNode) -> Iterator[Finding]:
    return machine.examine(this_machine.observe(node.settings.node.bpf_dir), "xlbd")


def _interfaces(node: ExaminedNode) -> Iterator[Finding]:
    links, generic = node.network.interfaces(), node.settings.data.xdp_mode.value == "generic"
    attachments = node.interfaces.attachments(links)
    yield from node.interfaces.examined(links, generic).values()
    below = [name for name, attachment in attachments.items() if attachment.mode == "generic"]
    for device, features in node.network.joining_frames(below).items():
        message = f"joins received frames ({', '.join(features)}) below XDP in generic mode, which takes them for too long"
        remedy = f"ethtool -K {device} {' off '.join(features)} off"
        yield Finding(f"interface {device}", Severity.FAIL, message, remedy)
    devices = [attachment.device or name for name, attachment in attachments.items()]
    for device, features in node.network.stripping_tags(vlans.need_tags(devices, links)).items():
        message = f"takes VLAN tags out of received frames ({', '.join(features)}): XDP takes them for untagged ones"
        remedy = f"ethtool -K {device} {' off '.join(features)} off"
        yield Finding(f"interface {device}", Severity.FAIL, message, remedy)


def _forwarding(node: ExaminedNode) -> Iterator[Finding]:
    problems = node.network.forwarding_problems(node.settings.data.interfaces)
    for problem in problems:
        yield from_problem("forwarding", problem)
    if not problems:
        yield ok("forwarding", "the kernel forwards on every data interface")


def _firewall(node: ExaminedNode) -> Iterator[Finding]:
    yield from rulesets.findings(node.settings.data.interfaces, tuple(node.config.vips))


def _addresses(node: ExaminedNode) -> Iterator[Finding]:
    if not node.addresses.serving:
        yield ok("vips", f"{len(node.config.vips)} ready, none on its interface: this node is not active")
        return
    missing = sorted(wanted(node.config) - node.network.addresses(), key=lambda each: each.address)
    for each in missing[:_SHOWN]:
        remedy = f"bring {each.device} back; xlbd adds the address by itself"
        yield Finding(f"vip {each.address}", Severity.FAIL, f"is not on {each.device}", remedy)
    if not missing:
        yield ok("vips", f"{len(node.config.vips)} on their interfaces")


def _unusable(node: ExaminedNode, own: Sequence[OwnAddress]) -> Iterator[Finding]:
    """VIPs and backends of a configuration that an earlier version accepted, or that was forced."""
    for each in list(problems(Config(), node.config, own))[:_SHOWN]:
        yield Finding(each.key.replace(".", " ", 1), Severity.WARN, each.message, each.remedy)


def _neighbours(node: ExaminedNode) -> Iterator[Finding]:
    for message in node.next_hops.excess:
        yield from_problem("neighbour table", message)
    for address in node.next_hops.unroutable[:_SHOWN]:
        yield Finding(f"backend {address}", Severity.FAIL, "there is no route to it", f"ip route get {address}")
    resolved = {(each.index, each.address) for each in node.network.neighbours() if each.resolved}
    kept = node.next_hops.kept
    names = {link.index: link.name for link in node.network.interfaces().values()}
    unresolved = sorted(kept - resolved)
    for index, address in unresolved[:_SHOWN]:
        remedy = f"is the machine on and in this network? ip neigh show {address}"
        yield Finding(f"neighbour {address}", Severity.FAIL, f"does not answer on {names.get(index, index)}", remedy)
    if not unresolved:
        yield ok("neighbours", f"{len(kept)} next hops of backends are resolved")


def _sources(node: ExaminedNode) -> Iterator[Finding]:
    """Whether the node itself can be answered by the backends it checks."""
    checked = {
        backend.address for farm in node.config.farms.values() if farm.health.kind != "none" for backend in farm.backends
    }
    failing = []
    for address in sorted(checked):
        try:
            node.sources.look(address)
        except XlbError as error:
            failing.append(from_problem(f"checks of {address}", error.detail))
    yield from failing[:_SHOWN]


def _one_way(node: ExaminedNode) -> Iterator[Finding]:
    """Backends that get the clients' packets as they are, and answer past this node."""
    farms = [farm for farm in node.config.farms.values() if farm.mode in (Mode.DSR, Mode.IPIP)]
    backends = sorted({backend.address for farm in farms for backend in farm.backends})[:MAX_NEIGHBOURS]
    links = {link.index: link for link in node.network.interfaces().values()}
    hops = {}
    for address, route in zip(backends, node.network.routes(backends), strict=True):
        link = links.get(route.index) if route is not None else None
        hops[address] = one_way.Hop(link.name, route.gateway, link.mtu) if route is not None and link is not None else None
    own = {each.address for each in node.network.addresses()}
    yield from one_way.examine(node.config, hops, node.tunnel.written, own)


def _listeners(node: ExaminedNode) -> Iterator[Finding]:
    """Sockets of this node that a VIP's guard hides: people wonder why they get no answer."""
    ports = _listening_ports()
    for vip in node.config.vips.values():
        farms = node.config.farms.values()
        hidden = sorted(port for port in ports if not any(farm.listens(vip.address, port) for farm in farms))
        if vip.guard and hidden and _is_own_address(node, vip.address):
            shown = ", ".join(map(str, hidden[:_SHOWN]))
            message = f"was this node's own address: its guard hides the listeners on TCP ports {shown}"
            yield Finding(
                f"vip {vip.address}",
                Severity.FAIL,
                message,
                f"xlbctl vip set {vip.address} --no-guard, or use another address",
            )


def _local_clients(node: ExaminedNode) -> Iterator[Finding]:
    """What the kernel delivers to itself does not enter by a data interface, so the program does not see it."""
    if not node.config.farms:
        return
    serving = "connections from this node to a VIP are refused by this node's own kernel, or reach its own listeners"
    backup = "connections from this node to a VIP are balanced by the peer, as long as it is the backup"
    message = serving if node.addresses.serving else backup
    yield Finding("local clients", Severity.INFO, message, "let programs on the nodes connect to the backends")


def _is_own_address(node: ExaminedNode, address: str) -> bool:
    return address not in {each.address for each in node.addresses.ours}


def _listening_ports() -> set[int]:
    """TCP ports this node listens on at every address (proc(5), net/tcp)."""
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTEN_STATE and not address.strip("0"):
                ports.add(int(port, 16))
    return ports


def _health(node: ExaminedNode) -> Iterator[Finding]:
    down = node.health.down
    for farm in node.config.farms.values():
        failing = [backend for backend in farm.backends if backend.id in down]
        if failing:
            first = node.health.status(failing[0].id)
            message = f"{len(failing)} of {len(farm.backends)} backends are down"
            message += f": {failing[0].endpoint}: {first.last_error}" if first and first.last_error else ""
            yield Finding(f"farm {farm.name}", Severity.FAIL, message, f"xlbctl farm show {farm.name}")
        elif farm.enabled and not farm.backends:
            yield Finding(f"farm {farm.name}", Severity.FAIL, "has no backends", f"xlbctl backend add {farm.name} ADDR:PORT")
    if not down:
        yield ok("health", "no backend that is checked is down")
    yield from list(_unchecked(node))[:_SHOWN]


def _unchecked(node: ExaminedNode) -> Iterator[Finding]:
    for farm in node.config.farms.values():
        if farm.enabled and farm.backends and farm.health.kind == "none":
            port = " --check-port PORT" if farm.protocol == "udp" else ""
            remedy = f"xlbctl farm set {farm.name} --check tcp{port}"
            message = "has no health check: a dead backend stays in service"
            yield Finding(f"farm {farm.name} check", Severity.WARN, message, remedy)


def _storage(node: ExaminedNode) -> Iterator[Finding]:
    state_dir = node.settings.node.state_dir
    if problem := storage.problem(state_dir, node.in_pair()):
        yield Finding("storage", Severity.FAIL, problem.message, problem.remedy)
    elif low := storage.low_space(state_dir):
        yield Finding("storage", Severity.WARN, low, f"free space in {state_dir}: on a full disk changes are refused")
    else:
        yield ok("storage", f"{state_dir} can be written")


def _tables(node: ExaminedNode) -> Iterator[Finding]:
    most = 2 * node.settings.data.max_flows
    entries = node.sweeper.result.entries
    for family in ("v4", "v6"):
        used = entries.get(f"flows_{family}", 0)
        remedy = "raise data.max_flows in the node file (needs --replace-pins) or lower farms' idle_timeout_s"
        message = f"{used} of {most} entries ({used / most:.0%})"
        yield judged(f"flow map {family}", used < FULL_SHARE * most, message, remedy)


def _limits(node: ExaminedNode) -> Iterator[Finding]:
    if not node.addresses.serving:
        return  # the active node decides
    swept, choosable = node.sweeper.result, dict[str, frozenset[int]]()
    for farm in node.config.farms.values():
        choosable[farm.name] = frozenset(each.id for each in eligible_backends(farm, node.health.down))
    farms, backends = _connections(node, "farm", swept.farms), _connections(node, "backend", swept.connections)
    yield from limits.examine(node.config, farms, backends, choosable)
    yield from limits.examine_drops(node.config, *node.recent.since(time.monotonic(), packets(node.plane)))


def _connections(node: ExaminedNode, kind: str, swept: Mapping[int, int]) -> Mapping[int, int]:
    """By id, as the program counts them for its limits; else those of the last sweep."""
    counted = node.plane.loads(kind)
    return swept if counted is None else dict(enumerate(loads_of(counted).tolist()))


def _drops(node: ExaminedNode) -> Iterator[Finding]:
    # In a pair the fence drops packets on purpose, and the journal has the time a lease expired.
    names = [name for name in drops.NOTABLE if name != "drop_fenced" or not node.in_pair()]
    return drops.examine(*node.recent.since(time.monotonic(), packets(node.plane)), names)


def _loop(node: ExaminedNode) -> Iterator[Finding]:
    worst_ms = node.lag.view()["worst_minute"]
    message = f"woke at most {worst_ms:.1f} ms late in the last minute; up for {node.startup.uptime_s:.0f} s"
    yield judged("event loop", worst_ms < SLOW_LOOP_MS, message, "the machine is short of CPU: give xlbd a higher priority")
