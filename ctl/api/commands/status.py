"""The answers of `status`, `cluster.status` and `stats`: what the node is, and what it has counted."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpf import libbpf
from bpf.constants import ABI_VERSION, COUNTERS, LEASE_FOREVER_NS
from bpf.dataplane import DataPlane
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, Result
from ctl.api.server import ApiCounts
from ctl.cluster.membership import Membership
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.network.network import Network
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.state.node_file import NodeSettings
from ctl.version import installed_version, package_version

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Origin:
    """How the data plane came to be."""

    pins: str  # "adopted" | "built" | "upgraded" | "replaced"
    took_ms: float


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
    membership: Membership
    lag: LoopLag
    api: ApiCounts

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("status", self.node, at_once=True)
        dispatcher.register("stats", self.stats)

    async def cluster(self, _: Arguments) -> Result:
        """The part that is about the pair; a single node has no peer and a lease that never runs out (null)."""
        deadline_ns, epoch = self.plane.lease()
        left_ms = None if deadline_ns == LEASE_FOREVER_NS else max(0, (deadline_ns - time.monotonic_ns()) // 1_000_000)
        single = {
            "node": self.settings.node.name,
            "role": self.membership.role,
            "epoch": epoch,
            "generation": self.config().generation,
            "lease_ms_left": left_ms,
            "peer": None,
            "sync": None,
        }
        member = self.membership.member
        return single if member is None else single | member.status()

    async def node(self, arguments: Arguments) -> Result:
        """The answers to what is asked first."""
        interfaces = await asyncio.to_thread(self._interfaces)
        sweep, lag, config = self.sweeper.result, self.lag.view(), self.config()
        cluster: dict[str, Any] = await self.cluster(arguments)
        return cluster | {
            "started": self.startup.done,
            "uptime_s": round(self.startup.uptime_s, 3),
            "version": package_version(),
            "abi": ABI_VERSION,
            "versions": _versions(),
            "interfaces": interfaces,
            "vips": len(config.vips),
            "farms": len(config.farms),
            "flows": {"connections": sum(sweep.connections.values()), "max": self.settings.data.max_flows, **sweep.entries},
            "pins": {
                "directory": str(self.settings.node.bpf_dir),
                "origin": self.origin.pins,
                "took_ms": round(self.origin.took_ms, 1),
            },
            "memory_bytes": resident_bytes(),
            "loop_lag_ms": lag["worst_minute"],
        }

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
        found = []
        for name in self.settings.data.interfaces:
            link, attachment = links.get(name), self.interfaces.attachments.get(name)
            found.append(
                {
                    "name": name,
                    "xdp_mode": attachment.mode if attachment else None,
                    "reason": attachment.reason if attachment else "not attached",
                    "driver": link.driver if link else "",
                    "mac": link.mac if link else "",
                    "mtu": link.mtu if link else 0,
                    "up": link.up if link else False,
                    "carrier": link.carrier if link else False,
                }
            )
        return found


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
