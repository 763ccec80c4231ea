"""`xlbctl doctor`: what the node needs, one finding per line with its remedy.

Looks, changes nothing. Blocks for a moment (it reads tables and /proc): called in a thread. A check that cannot be made
counts as failed, with the reason.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpf import constants
from bpf.dataplane import DataPlane
from bpf.loading import bpffs
from ctl.api.commands.dispatcher import Dispatcher, ReadConfig
from ctl.config.model import Config
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.errors import XlbError
from ctl.health.check_machine import HealthChecks
from ctl.health.probes.source_addresses import OwnSources
from ctl.network.neighbours import NextHopKeeper
from ctl.network.network import Network
from ctl.network.vip_addresses import VipAddresses, wanted
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.state.node_file import NodeSettings

MIN_KERNEL = (5, 18)  # bpf_xdp_load_bytes; everything else the data plane uses is older
FULL_SHARE = 0.8
SLOW_LOOP_MS = 50.0
NOTABLE_DROPS = ("drop_internal", "drop_snat_exhausted", "drop_no_backend", "drop_no_route", "drop_fenced")
CAP_NET_ADMIN, CAP_BPF = 12, 39
_SHOWN = 5
_LISTEN_STATE = "0A"
_HEADERS = Path("/usr/include/linux/bpf.h")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is empty when all is well."""

    name: str
    ok: bool
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ExaminedNode:
    """What the checks look at. in_pair: whether the node has a peer."""

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
    lag: LoopLag

    @property
    def config(self) -> Config:
        return self.read_config()


def register(dispatcher: Dispatcher, node: ExaminedNode) -> None:
    dispatcher.register("doctor", lambda _: asyncio.to_thread(examine, node))


def examine(node: ExaminedNode) -> list[dict[str, Any]]:
    """Every check, in the order in which one would look."""
    checks: tuple[Callable[[ExaminedNode], Iterator[Finding]], ...] = (
        _privileges,
        _kernel,
        _bpffs,
        _compiler,
        _interfaces,
        _forwarding,
        _addresses,
        _neighbours,
        _sources,
        _listeners,
        _health,
        _tables,
        _drops,
        _loop,
    )
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(node)
        except Exception as error:  # one broken check must not hide the others
            found.append(Finding(check.__name__.strip("_"), False, f"could not be checked: {error}", "please report this"))
    return [asdict(each) for each in found]


def _privileges(_: ExaminedNode) -> Iterator[Finding]:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    missing = [name for name, bit in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_BPF", CAP_BPF)) if not held >> bit & 1]
    message = f"xlbd lacks {', '.join(missing)}" if missing else "xlbd has the capabilities it needs"
    yield Finding("privileges", not missing, message, "run xlbd as root or by its systemd unit" if missing else "")


def _kernel(_: ExaminedNode) -> Iterator[Finding]:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    ok = numbers >= MIN_KERNEL
    wanted_version = ".".join(map(str, MIN_KERNEL))
    yield Finding("kernel", ok, f"Linux {release}", "" if ok else f"use Linux {wanted_version} or newer")


def _bpffs(node: ExaminedNode) -> Iterator[Finding]:
    directory = node.settings.node.bpf_dir
    ok = bpffs.is_bpffs(directory)
    message = f"pins under {directory}" if ok else f"{directory} is not on a bpffs"
    yield Finding("bpffs", ok, message, "" if ok else "mount -t bpf bpf /sys/fs/bpf")


def _compiler(_: ExaminedNode) -> Iterator[Finding]:
    bcc = importlib.util.find_spec("bcc") is not None or Path("/usr/lib/python3/dist-packages/bcc").is_dir()
    missing = [name for name, there in (("python3-bpfcc", bcc), ("linux-libc-dev", _HEADERS.exists())) if not there]
    message = (
        f"{' and '.join(missing)} missing: an upgrade could not be compiled" if missing else "bcc and the uapi headers are here"
    )
    yield Finding("compiler", not missing, message, f"apt install {' '.join(missing)}" if missing else "")


def _interfaces(node: ExaminedNode) -> Iterator[Finding]:
    links = node.network.interfaces()
    for name in node.settings.data.interfaces:
        link, attachment = links.get(name), node.interfaces.attachments.get(name)
        if link is None or attachment is None:
            yield Finding(
                f"interface {name}", False, "missing or without XDP", "bring the interface back; xlbd attaches by itself"
            )
            continue
        if not link.carrier:
            yield Finding(f"interface {name}", False, "has no carrier", f"check the cable and: ip link set {name} up")
            continue
        native = attachment.mode == "native"
        message = f"{attachment.mode} XDP, driver {link.driver or 'unknown'}" + (
            f": {attachment.reason}" if attachment.reason else ""
        )
        asked = node.settings.data.xdp_mode.value == "generic"
        remedy = "" if native or asked else "generic mode is correct but slow: use a driver with native XDP, or more queues"
        yield Finding(f"interface {name}", native or asked, message, remedy)
    generic = [name for name, attachment in node.interfaces.attachments.items() if attachment.mode == "generic"]
    for device, features in node.network.joining_frames(generic).items():
        message = f"joins received frames ({', '.join(features)}) below XDP in generic mode, which takes them for too long"
        yield Finding(f"interface {device}", False, message, f"ethtool -K {device} {' off '.join(features)} off")


def _forwarding(node: ExaminedNode) -> Iterator[Finding]:
    problems = node.network.forwarding_problems(node.settings.data.interfaces)
    for problem in problems:
        yield Finding("forwarding", False, *_message_and_remedy(problem))
    if not problems:
        yield Finding("forwarding", True, "the kernel forwards on every data interface")


def _addresses(node: ExaminedNode) -> Iterator[Finding]:
    if not node.addresses.serving:
        yield Finding("vips", True, f"{len(node.config.vips)} ready, none on its interface: this node is not active")
        return
    missing = sorted(wanted(node.config) - node.network.addresses(), key=lambda each: each.address)
    for each in missing[:_SHOWN]:
        remedy = f"bring {each.device} back; xlbd adds the address by itself"
        yield Finding(f"vip {each.address}", False, f"is not on {each.device}", remedy)
    if not missing:
        yield Finding("vips", True, f"{len(node.config.vips)} on their interfaces")


def _neighbours(node: ExaminedNode) -> Iterator[Finding]:
    for address in node.next_hops.unroutable[:_SHOWN]:
        yield Finding(f"backend {address}", False, "there is no route to it", f"ip route get {address}")
    resolved = {(each.index, each.address) for each in node.network.neighbours() if each.resolved}
    kept = node.next_hops.kept
    names = {link.index: link.name for link in node.network.interfaces().values()}
    unresolved = sorted(kept - resolved)
    for index, address in unresolved[:_SHOWN]:
        remedy = f"is the machine on and in this network? ip neigh show {address}"
        yield Finding(f"neighbour {address}", False, f"does not answer on {names.get(index, index)}", remedy)
    if not unresolved:
        yield Finding("neighbours", True, f"{len(kept)} next hops of backends are resolved")


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
            failing.append(Finding(f"checks of {address}", False, *_message_and_remedy(str(error))))
    yield from failing[:_SHOWN]


def _message_and_remedy(problem: str) -> tuple[str, str]:
    message, _, remedy = problem.partition(": ")
    return message, remedy


def _listeners(node: ExaminedNode) -> Iterator[Finding]:
    """Sockets of this node that a VIP's guard hides: people wonder why they get no answer."""
    ports = _listening_ports()
    for vip in node.config.vips.values():
        served = [farm for farm in node.config.farms.values() if farm.vip == vip.address]
        hidden = sorted(port for port in ports if not any(farm.port <= port <= farm.port_last for farm in served))
        if vip.guard and hidden and _is_own_address(node, vip.address):
            shown = ", ".join(map(str, hidden[:_SHOWN]))
            message = f"was this node's own address: its guard hides the listeners on TCP ports {shown}"
            yield Finding(
                f"vip {vip.address}",
                False,
                message,
                f"xlbctl vip add {vip.address}/{vip.prefix_length} --no-guard, or use another address",
            )


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
            yield Finding(f"farm {farm.name}", False, message, f"xlbctl farm show {farm.name}")
        elif farm.enabled and not farm.backends:
            yield Finding(f"farm {farm.name}", False, "has no backends", f"xlbctl backend add {farm.name} ADDR:PORT")
    if not down:
        yield Finding("health", True, "no backend that is checked is down")


def _tables(node: ExaminedNode) -> Iterator[Finding]:
    most = 2 * node.settings.data.max_flows
    entries = node.sweeper.result.entries
    for family in ("v4", "v6"):
        used = entries.get(f"flows_{family}", 0)
        ok = used < FULL_SHARE * most
        remedy = "" if ok else "raise data.max_flows in the node file (needs --replace-pins) or lower farms' idle_timeout_s"
        yield Finding(f"flow map {family}", ok, f"{used} of {most} entries ({used / most:.0%})", remedy)


def _drops(node: ExaminedNode) -> Iterator[Finding]:
    counters = node.plane.counters()
    reasons = {counter.name: counter.reason for counter in constants.COUNTERS}
    # In a pair the fence drops packets on purpose, and the journal has the time a lease expired.
    notable = [name for name in NOTABLE_DROPS if name != "drop_fenced" or not node.in_pair()]
    for name in notable:
        packets = counters.get(name, (0, 0))[0]
        if packets:
            yield Finding(
                name,
                False,
                f"{packets} packets since the tables were made: {reasons[name]}",
                "xlbctl stats --watch shows whether it continues",
            )
    if not any(counters.get(name, (0, 0))[0] for name in notable):
        yield Finding("drops", True, "none that point to a problem")


def _loop(node: ExaminedNode) -> Iterator[Finding]:
    worst_ms = node.lag.view()["worst_minute"]
    ok = worst_ms < SLOW_LOOP_MS
    message = f"woke at most {worst_ms:.1f} ms late in the last minute; up for {node.startup.uptime_s:.0f} s"
    yield Finding("event loop", ok, message, "" if ok else "the machine is short of CPU: give xlbd a higher priority")
