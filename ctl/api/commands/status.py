"""The answers of `status`, `cluster.status` and `stats`: what the node is, and what it has counted."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bpf import libbpf
from bpf.constants import ABI_VERSION, COUNTERS, LEASE_FOREVER_NS
from bpf.dataplane import DataPlane
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, Result
from ctl.api.peer.report import PeerReport, Report
from ctl.api.server import ApiCounts
from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.diagnosis import redundancy
from ctl.diagnosis.finding import Finding, Severity, from_view, worst
from ctl.explanation.explain import Standing
from ctl.health.check_machine import HealthChecks
from ctl.network.network import Network
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.state.node_file import NodeSettings
from ctl.version import installed_version, package_version

_HEALTH = {Severity.OK: "ok", Severity.INFO: "ok", Severity.WARN: "degraded", Severity.FAIL: "failed"}
_MAX_PEER_FINDINGS = 50
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Origin:
    """How the data plane came to be."""

    pins: str  # "adopted" | "built" | "upgraded" | "replaced"
    took_ms: float


class Reconciling(Protocol):
    """What keeps the kernel as it should be (`ctl.node.reconciler.Reconciler`)."""

    def status(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class StatusCommands:
    """What they use of the node."""

    settings: NodeSettings
    origin: Origin
    startup: Startup
    config: ReadConfig
    waiting_changes: Callable[[], int]
    plane: DataPlane
    network: Network
    interfaces: DataInterfaces
    sweeper: Sweeper
    reconciler: Reconciling
    membership: Membership
    lag: LoopLag
    api: ApiCounts
    health: HealthChecks
    questions: PeerQuestions
    peer: PeerReport

    def register(self, dispatcher: Dispatcher) -> None:
        self.peer.answer(self.questions, self._report)
        dispatcher.register("status", self.node, at_once=True)
        dispatcher.register("stats", self.stats)

    async def cluster(self, _: Arguments) -> Result:
        """The part that is about the pair; a single node has no peer and a lease that never runs out (null)."""
        return self.view()

    def view(self) -> dict[str, Any]:
        deadline_ns, epoch = self.plane.lease()
        left_ms = None if deadline_ns == LEASE_FOREVER_NS else max(0, (deadline_ns - time.monotonic_ns()) // 1_000_000)
        single = {
            "node": self.settings.node.name,
            "role": self.membership.role,
            "since_s": round(self.startup.uptime_s, 1),
            "epoch": epoch,
            "generation": self.config().generation,
            "lease_ms_left": left_ms,
            "peer": None,
            "sync": None,
            "faults": list(self.membership.faults),
        }
        if self.membership.orphaned:
            single["why"] = self.membership.orphaned
        member = self.membership.member
        return single if member is None else single | member.status()

    def standing(self) -> Standing:
        """Which node answers for the VIPs, as far as this node knows."""
        own, status = self.settings.node.name, self.view()
        peer = status["peer"]
        its = peer["name"] if peer and peer["alive"] and peer["role"] == "active" else ""
        return Standing(own, status["role"], own if status["role"] in ("active", "single") else its)

    async def node(self, _: Arguments) -> dict[str, Any]:
        """The answers to what is asked first."""
        status = await self._own()
        seen = status["peer"]
        return judged(status, await self.peer.take(bool(seen and seen["alive"])))

    async def _own(self) -> dict[str, Any]:
        """This node, without what its peer says."""
        interfaces = await asyncio.to_thread(self._interfaces)
        sweep, lag, config = self.sweeper.result, self.lag.view(), self.config()
        down = self.health.unusable(config)
        backends = [each.id for farm in config.farms.values() if farm.enabled for each in farm.backends]
        return self.view() | {
            "started": self.startup.done,
            "uptime_s": round(self.startup.uptime_s, 3),
            "version": package_version(),
            "abi": ABI_VERSION,
            "versions": _versions(),
            "interfaces": interfaces,
            "xdp_configured": self.settings.data.xdp_mode.value,
            "vips": len(config.vips),
            "farms": len(config.farms),
            "backends": {"total": len(backends), "up": sum(each not in down for each in backends)},
            "flows": {"connections": sum(sweep.connections.values()), "max": self.settings.data.max_flows, **sweep.entries},
            "pins": {
                "directory": str(self.settings.node.bpf_dir),
                "origin": self.origin.pins,
                "took_ms": round(self.origin.took_ms, 1),
            },
            "memory_bytes": resident_bytes(),
            "loop_lag_ms": lag["worst_minute"],
            "reconcile": self.reconciler.status(),
        }

    async def _report(self) -> dict[str, Any]:
        """What the peer shows of this node."""
        status = await self._own()
        findings = list(redundancy.examine_node(status))
        return own_row(status, findings) | {"findings": [each.view() for each in findings]}

    async def stats(self, _: Arguments) -> Result:
        """Counters with their reasons, and the daemon's own numbers."""
        counters = await asyncio.to_thread(self.plane.counters)
        sweep, lag = self.sweeper.result, self.lag.view()
        return {
            "counters": [
                {"name": each.name, "kind": each.kind.value, "reason": each.reason, "packets": packets, "bytes": size}
                for each in COUNTERS
                for packets, size in (counters.get(each.name, (0, 0)),)
            ],
            "sweep": {
                "sweeps": self.sweeper.sweeps,
                "took_ms": round(sweep.took_ms, 1),
                "expired": self.sweeper.expired,
                **sweep.entries,
            },
            "control": {
                "answered": self.api.answered,
                "failed": self.api.failed,
                "malformed": self.api.malformed,
                "waiting_changes": self.waiting_changes(),
            },
            "loop_lag_ms": lag["worst_minute"],
            "loop_lag": lag,
        }

    def _interfaces(self) -> list[dict[str, Any]]:
        links = self.network.interfaces()
        attachments = self.interfaces.attachments(links)
        found = []
        for name in self.settings.data.interfaces:
            link, attachment = links.get(name), attachments.get(name)
            found.append(
                {
                    "name": name,
                    "xdp_mode": attachment.mode if attachment else None,
                    "reason": attachment.reason if attachment else self.interfaces.why_not(link),
                    "device": attachment.device if attachment else "",
                    "driver": attachment.driver if attachment else link.driver if link else "",
                    "mac": link.mac if link else "",
                    "mtu": link.mtu if link else 0,
                    "up": link.up if link else False,
                    "carrier": link.carrier if link else False,
                }
            )
        return found


def judged(status: dict[str, Any], report: Report) -> dict[str, Any]:
    """The answer of `status`: with one row for each node, and what is not well. report: the peer's own, or empty."""
    own = list(redundancy.examine_node(status))
    status["nodes"] = [own_row(status, own)]
    peer = status["peer"]
    found = own
    if peer:
        status["nodes"].append(_peer_row(peer, report))
        its = [from_view(view) for view in report.get("findings", ())[:_MAX_PEER_FINDINGS]]
        # What this node's peer cannot do is WARN here: this node's own role tells whether the VIPs are served.
        of_peer = [Finding(each.name, Severity.WARN, each.message, each.remedy) for each in its if each is not None]
        found = [*redundancy.examine_pair(status), *own, *(each.of(peer["name"]) for each in of_peer)]
    verdict = redundancy.judge(found)
    status["findings"] = [each.view() for each in found]
    status["check"] = {"exit_code": verdict.exit_code, "line": redundancy.line(verdict, redundancy.summary(status), found)}
    return status


def own_row(status: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """A node's row in the table of both."""
    serves = status["role"] in ("active", "single")
    return {
        "name": status["node"],
        "role": status["role"],
        "since_s": status["since_s"],
        "why": status.get("why", ""),
        "epoch": status["epoch"],
        "generation": status["generation"],
        "in_step": serves or bool((status["sync"] or {}).get("in_step")),
        "health": _HEALTH[worst(findings)],
        "backends": status["backends"],
        "version": status["version"],
    }


def _peer_row(peer: dict[str, Any], report: Report) -> dict[str, Any]:
    """The peer's row: what its heartbeats say, and of its report what fits to them."""
    alive, same_role = peer["alive"], report.get("role") == peer["role"]
    return {
        "name": peer["name"],
        "role": peer["role"] if alive else "silent",
        "since_s": report.get("since_s") if same_role else None,
        "why": report.get("why", "") if same_role else "",
        "epoch": peer.get("epoch"),
        "generation": peer.get("generation"),
        "in_step": alive and (peer["role"] == "active" or peer["in_step"]),
        "health": report.get("health", "") if alive else "silent",
        "backends": report.get("backends"),
        "version": report.get("version", ""),
    }


def resident_bytes() -> int:
    """Memory this process holds now (statm of proc(5))."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (Path costs more than the read)
        return int(file.read().split()[1]) * _PAGE_BYTES


def _versions() -> dict[str, Any]:
    modules = {name: installed_version(name) for name in ("bcc", "pyroute2", "pyzmq", "msgpack", "numpy")}
    return {
        "xlbd": package_version(),
        "abi": ABI_VERSION,
        "kernel": os.uname().release,
        "libbpf": libbpf.library_version(),
        "python": platform.python_version(),
        **modules,
    }
