"""Runs the reconciler: observes the kernel, has `ctl.network.reconcile` decide, and carries the repairs out.

Decides when: at once after the kernel dropped notifications, soon after a notification of something that matters, and
periodically. Observing, deciding and writing happen in a thread; the event loop is held for microseconds. A VIP is put back
between two configuration changes and never while the loop moves VIPs, so that what xlb removes itself is not mistaken for
the work of another program.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bpf.dataplane import PlaneError
from ctl.config.model import Config
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.errors import XlbError
from ctl.events import catalogue
from ctl.events.catalogue import Severity
from ctl.network.network import Interface, Network, Observed, Setting
from ctl.network.opposition import TIMES, WINDOW_S, Opposition
from ctl.network.reconcile import (
    AddVip,
    AnnounceVips,
    AttachXdp,
    CorrectSetting,
    DemoteVips,
    Desired,
    RemoveVip,
    Repair,
    ResolveNeighbours,
    RestoreAddress,
    TellCarrier,
    VipRepair,
    YieldXdp,
    reconcile,
)
from ctl.network.vip_addresses import VipAddresses
from ctl.node.transaction import uninterrupted
from ctl.runtime.event_hub import Report, log_only

PERIOD_S = 0.5
"""Nothing reports that an address of IPv6, XDP by a link (bpf_link) or most sysctls changed: it is noticed within this time."""
FULL_EVERY = 10
"""Every so many passes also look at the neighbours, of which there may be thousands."""
COALESCE_S, SPACING_S = 0.01, 0.1
"""A pass waits this long for more notifications, and follows the one before after no less than SPACING_S."""
LOG_OVERRUN_S = 10.0

VIP_REPAIRS = (AddVip, RemoveVip, DemoteVips, RestoreAddress)
_KINDS: Mapping[type, str] = {
    AttachXdp: "xdp",
    CorrectSetting: "sysctl",
    AddVip: "vip_added",
    RemoveVip: "vip_removed",
    DemoteVips: "vip_demoted",
    RestoreAddress: "address_restored",
    AnnounceVips: "announced",
    TellCarrier: "carrier",
    ResolveNeighbours: "neighbours",
}

log = logging.getLogger(__name__)


class Pair(Protocol):
    """What a pair's member takes of it (`ctl.cluster.member.PairMember`)."""

    @property
    def carriers(self) -> Mapping[str, bool]:
        """Tracked interfaces, and whether the failover machine believes that they have carrier."""

    def link_changed(self, name: str, state: str) -> None: ...


class Transaction(Protocol):
    """What it uses of `ctl.node.transaction.Transaction`."""

    @property
    def config(self) -> Config: ...

    async def follow_addresses(self) -> list[VipRepair]: ...


class NextHops(Protocol):
    """What it uses of `ctl.network.neighbours.NextHopKeeper`."""

    kept: frozenset[tuple[int, str]]

    def wake(self) -> None: ...

    def lost(self, index: int, address: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Subjects:
    """The parts whose state is compared with the kernel's.

    fault: called with name, message ("": ended) and whether it disables this node, see
    `ctl.cluster.membership.Membership.fault_changed`.
    announce: has the VIPs announced. renew_next_hops: invalidates next hops that the program cached.
    """

    network: Network
    interfaces: DataInterfaces
    transaction: Transaction
    addresses: VipAddresses
    next_hops: NextHops
    tunnel: TunnelSources
    pair: Callable[[], Pair | None]
    fault: Callable[[str, str, bool], None]
    announce: Callable[[], None]
    renew_next_hops: Callable[[], None]
    report: Report = log_only


@dataclass(slots=True)
class _Found:
    """What a thread found and did."""

    observed: Observed
    repairs: list[Repair]
    faults: dict[str, str]  # name to message; what was not repaired
    tunnel_sources: tuple[str, str] | None = None  # what they should be


class Reconciler:
    """Create on a running loop; `prepare` once before anything relies on the settings, then `run` as a task."""

    def __init__(self, subjects: Subjects, level: bool) -> None:
        """level: where one data interface is in generic mode, all must be."""
        self._of, self._level = subjects, level
        self._wake = asyncio.Event()
        self._soon = False  # without waiting for more
        self._overrun = False
        self._opposition = Opposition()
        self._opposed: dict[str, object] = {}  # name of the fault to the key of the repair
        self._faults: frozenset[str] = frozenset()  # names, of the last pass
        self._indexes: dict[str, int] = {}  # of interfaces at the last pass
        self._missing: frozenset[str] = frozenset()  # interfaces with VIPs that do not exist
        self.passes = self.overruns = 0
        self.counts: Counter[str] = Counter()
        self._last_overrun: dict[str, Any] | None = None
        self._overrun_logged_s = float("-inf")
        self._overrun_repairs = 0
        self._took_ms = self._held_ms = 0.0
        self._ended_s = float("-inf")

    # --- when ------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """The kernel reported a change of a link, an address or a setting."""
        self._wake.set()

    def overrun(self) -> None:
        """The kernel dropped notifications: compare everything at once."""
        self.overruns += 1
        self._overrun = self._soon = True
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        number = 0
        while True:
            await self._next()
            number += 1
            self._wake.clear()
            overrun, self._overrun, self._soon = self._overrun, False, False
            try:
                repairs = await self.compare(neighbours=overrun or number % FULL_EVERY == 0)
                if overrun:
                    self._log_overrun(repairs)
            except (XlbError, PlaneError, OSError) as error:
                log.error("cannot compare this node with the kernel, trying again: %s", error)

    async def _next(self) -> None:
        """Until there is something to compare: not at once if the last pass has only just ended, or more may be coming."""
        try:
            async with asyncio.timeout(PERIOD_S):
                await self._wake.wait()
        except TimeoutError:
            return
        now_s = asyncio.get_running_loop().time()
        pause_s = max(0.0 if self._soon else COALESCE_S, self._ended_s + SPACING_S - now_s)
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    async def prepare(self) -> None:
        """Set the sysctls, before the program is attached and VIPs are added."""
        of = self._of
        observed = await asyncio.to_thread(of.network.observe, of.interfaces.names, _vip_interfaces(of.transaction.config))
        for setting, value in observed.settings.items():
            if setting.is_wrong(value):
                try:
                    await asyncio.to_thread(of.network.correct, setting)
                    log.info("set %s from %s to %s", setting.name, value, setting.wanted)
                except XlbError as error:
                    log.error("%s", error)

    # --- one pass --------------------------------------------------------------------------------------------

    async def compare(self, neighbours: bool = True) -> int:
        """One pass; returns the number of repairs. Raises OSError when the kernel cannot be asked."""
        of, began_s = self._of, time.monotonic()
        config, pair = of.transaction.config, of.pair()
        vips, moves = of.addresses.desired(config), of.addresses.moves
        desired = Desired(
            interfaces=of.interfaces.names,
            level=self._level,
            vips=vips,
            announced=of.addresses.announced,
            carriers=pair.carriers if pair is not None else None,
            next_hops=of.next_hops.kept,
        )
        held_s = time.monotonic() - began_s
        found = await uninterrupted(lambda: self._compare(desired, config, neighbours))
        resumed_s = time.monotonic()
        done: list[Repair] = [each for each in found.repairs if not isinstance(each, VIP_REPAIRS)]
        if of.addresses.moves == moves and of.transaction.config is config and vips is not None:
            of.addresses.look(vips, found.observed)
        for repair in done:
            self._carry_out(repair, found, pair)
        of.tunnel.write(found.tunnel_sources)
        self._tell_faults(found)
        self._tell_missing(config, found.observed)
        held_s += time.monotonic() - resumed_s
        if len(done) < len(found.repairs):
            vip_repairs = await of.transaction.follow_addresses()
            for each in vip_repairs:
                self._log_vip(each, found.observed)
            done += vip_repairs
        self._indexes = {name: link.index for name, link in found.observed.interfaces.items()}
        self.passes += 1
        counted = [each for each in done if type(each) in _KINDS]
        self.counts.update(_KINDS[type(each)] for each in counted)
        self._took_ms, self._held_ms = (time.monotonic() - began_s) * 1000, held_s * 1000
        self._ended_s = asyncio.get_running_loop().time()
        return len(counted)

    def _compare(self, desired: Desired, config: Config, neighbours: bool) -> _Found:
        """Observe and decide; set the sysctls, attach the program and have neighbours resolved. Runs in a thread."""
        of = self._of
        replacements = of.interfaces.replacements()
        raw = of.network.observe(of.interfaces.names, _vip_interfaces(config), neighbours)
        of.interfaces.seen(raw.interfaces)
        observed = replace(raw, interfaces=of.interfaces.as_handled(raw.interfaces))
        program = of.interfaces.program()
        if replacements % 2 or of.interfaces.replacements() != replacements:
            program = 0  # it is or was being replaced since it was observed
        foreign = program != 0 and any(
            link.xdp_program not in (0, program)
            for link in (observed.interfaces.get(name) for name in of.interfaces.names)
            if link is not None
        )
        builds = of.interfaces.other_builds(observed.interfaces) if foreign else frozenset()
        repairs = reconcile(replace(desired, program=program, other_builds=builds), observed)
        found = _Found(observed, repairs, {}, of.tunnel.look(config))
        for repair in repairs:
            if isinstance(repair, CorrectSetting):
                try:
                    of.network.correct(repair.setting)
                except XlbError as error:
                    found.faults[f"sysctl {repair.setting.name}"] = str(error)
            elif isinstance(repair, ResolveNeighbours):
                of.network.keep_resolved(sorted(repair.neighbours))
            elif isinstance(repair, YieldXdp):
                name = repair.interface
                found.faults[f"xdp {name}"] = (
                    f"interface {name} balances nothing: it has the XDP program {of.interfaces.described(repair.program)}, not "
                    f"xlb's; stop the process that attached it, or: ip link set dev {name} xdp off"
                )
        missing = [each.interface for each in repairs if isinstance(each, AttachXdp)]
        if missing:
            self._attach(found, missing)
        else:
            try:
                of.interfaces.follow(raw.interfaces)
            except (PlaneError, OSError) as error:
                found.faults["vlans"] = f"VLAN devices are not handled as they are now: {error}"
        return found

    def _attach(self, found: _Found, names: Sequence[str]) -> None:
        """All that may have the program: they must agree on the mode."""
        interfaces = found.observed.interfaces
        free = [name for name in self._of.interfaces.names if name in interfaces and f"xdp {name}" not in found.faults]
        try:
            self._of.interfaces.attach_to(free)
        except XlbError as error:
            for name in names:
                found.faults[f"xdp {name}"] = f"XDP is not attached to {name}: {error}"

    def _carry_out(self, repair: Repair, found: _Found, pair: Pair | None) -> None:
        """What is left for the loop, and the log line of each repair."""
        of, interfaces = self._of, found.observed.interfaces
        if isinstance(repair, CorrectSetting):
            name = repair.setting.name
            if f"sysctl {name}" not in found.faults:
                text = f"{name} was changed to {repair.value}: restored to {repair.setting.wanted}"
                self._restored(f"sysctl {name}", repair.setting, _interface_of(repair.setting), interfaces, text)
        elif isinstance(repair, AttachXdp):
            if f"xdp {repair.interface}" not in found.faults:
                text = f"interface {repair.interface} was {repair.was}: XDP attached again"
                self._restored(f"xdp of {repair.interface}", repair.interface, repair.interface, interfaces, text)
        elif isinstance(repair, AnnounceVips):
            was = f"MAC {repair.mac}, not {repair.was}" if repair.was else "carrier again"
            log.info("interface %s has %s: announcing its VIPs", repair.interface, was)
            of.renew_next_hops()
            of.announce()
        elif isinstance(repair, TellCarrier) and pair is not None:
            pair.link_changed(repair.interface, "up" if repair.carrier else "down")
        elif isinstance(repair, ResolveNeighbours):
            log.debug("%d neighbours were not kept resolved: asked for again", len(repair.neighbours))

    def _restored(self, name: str, key: object, interface: str, interfaces: Mapping[str, Interface], text: str) -> None:
        """Log a repair of what another program seems to have changed; its persistence is a fault of this node, named `name`."""
        link = interfaces.get(interface)
        if link is not None and self._indexes.get(interface) != link.index:
            self._repaired(name, text, Severity.INFO)  # a new interface lacks everything, and no program is to blame
            return
        persistent = self._opposition.repaired(key, asyncio.get_running_loop().time())
        if name in self._opposed:
            return
        if persistent:
            self._opposed[name] = key
            self._of.fault(
                name, f"another program undoes it again and again ({TIMES} times within {WINDOW_S:g} s): {text}", False
            )
        else:
            self._repaired(name, text)

    def _repaired(self, what: str, text: str, severity: Severity = Severity.WARNING) -> None:
        self._of.report(log, catalogue.KERNEL_REPAIRED(text, severity, what=what))

    def _tell_faults(self, found: _Found) -> None:
        for name, message in found.faults.items():
            self._of.fault(name, message, name.startswith("xdp "))
        for name in self._faults - found.faults.keys():
            self._of.fault(name, "", name.startswith("xdp "))
        self._faults = frozenset(found.faults)
        now_s = asyncio.get_running_loop().time()
        for name in [name for name, key in self._opposed.items() if self._opposition.ended(key, now_s)]:
            del self._opposed[name]
            self._of.fault(name, "", False)

    def _tell_missing(self, config: Config, observed: Observed) -> None:
        missing = frozenset(_vip_interfaces(config)) - set(observed.interfaces)
        for name in sorted(missing - self._missing):
            log.error("interface %s does not exist: its VIPs cannot be reached until it comes back", name)
        self._missing = missing

    def _log_vip(self, repair: VipRepair, observed: Observed) -> None:
        match repair:
            case AddVip(address):
                text = f"vip {address.address} was missing on {address.device}: added again"
                self._restored(f"vip {address.address}", address, address.device, observed.interfaces, text)
            case RemoveVip(address):
                text = f"vip {address.address} was on {address.device} of a node that is not active: removed"
                self._repaired(f"vip {address.address}", text)
            case DemoteVips(own, addresses):
                log.info("%s is the primary address of %s again, not a VIP; %d moved", own.address, own.device, len(addresses))
            case RestoreAddress(address):
                text = f"address {address.address} went from {address.device} with a VIP: added again"
                self._repaired(f"address {address.address}", text)

    def _log_overrun(self, repairs: int) -> None:
        """One line per burst; more only if something had to be repaired, or after a while."""
        now_s = asyncio.get_running_loop().time()
        self._last_overrun = {"unix_s": round(time.time(), 3), "repairs": repairs}
        if repairs or now_s - self._overrun_logged_s >= LOG_OVERRUN_S:
            self._overrun_logged_s = now_s
            text = f"netlink notifications were lost: everything compared with the kernel, {repairs} repairs"
            self._of.report(log, catalogue.KERNEL_OVERRUN(text, repairs=repairs))

    # --- what others see -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """For `status`: counts since the start, times of the last pass."""
        return {
            "passes": self.passes,
            "repairs": sum(self.counts.values()),
            "by_kind": dict(sorted(self.counts.items())),
            "overruns": self.overruns,
            "last_overrun": self._last_overrun,
            "pass_ms": round(self._took_ms, 2),
            "loop_ms": round(self._held_ms, 2),
        }


def _vip_interfaces(config: Config) -> tuple[str, ...]:
    return tuple(sorted({vip.device for vip in config.vips.values()}))


def _interface_of(setting: Setting) -> str:
    """The interface of a setting below conf/; empty for one of the whole node."""
    parts = setting.path.split("/")
    return parts[2] if parts[1] == "conf" and parts[2] != "all" else ""
