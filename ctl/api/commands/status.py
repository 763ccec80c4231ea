"""The answers of `status`, `cluster.status` and `stats`: what the node is, and what it has counted."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from typing import TYPE_CHECKING, Any

from bpf import libbpf
from bpf.constants import ABI_VERSION, COUNTERS, LEASE_FOREVER_NS
from ctl.version import installed_version, package_version

if TYPE_CHECKING:
    from ctl.node.node import Node

_PAGE_BYTES = resource.getpagesize()


def cluster_status(node: Node) -> dict[str, Any]:
    """The part that is about the pair; a single node has no peer and a lease that never runs out (null)."""
    deadline_ns, epoch = node.plane.lease()
    left_ms = None if deadline_ns == LEASE_FOREVER_NS else max(0, (deadline_ns - time.monotonic_ns()) // 1_000_000)
    single = {
        "node": node.settings.node.name,
        "role": node.role,
        "epoch": epoch,
        "generation": node.config.generation,
        "lease_ms_left": left_ms,
        "peer": None,
        "sync": None,
    }
    return single if node.member is None else single | node.member.status()


async def status(node: Node) -> dict[str, Any]:
    """Everything a person asks first."""
    interfaces = await asyncio.to_thread(_interfaces, node)
    sweep = node.sweeper.result
    lag = node.lag.view()
    return cluster_status(node) | {
        "started": node.started.is_set(),
        "uptime_s": round(time.monotonic() - node.started_s, 3),
        "version": package_version(),
        "abi": ABI_VERSION,
        "versions": _versions(),
        "interfaces": interfaces,
        "vips": len(node.config.vips),
        "farms": len(node.config.farms),
        "flows": {"connections": sum(sweep.connections.values()), "max": node.settings.data.max_flows, **sweep.entries},
        "pins": {
            "directory": str(node.settings.node.bpf_dir),
            "origin": node.origin.pins,
            "took_ms": round(node.origin.took_ms, 1),
        },
        "memory_bytes": resident_bytes(),
        "loop_lag_ms": lag["worst_minute"],
    }


async def stats(node: Node) -> dict[str, Any]:
    """Counters with their reasons, and the daemon's own numbers."""
    counters = await asyncio.to_thread(node.plane.counters)
    sweep, api, lag = node.sweeper.result, node.api.counts, node.lag.view()
    return {
        "counters": [
            {"name": each.name, "kind": each.kind.value, "reason": each.reason, "packets": packets, "bytes": size}
            for each in COUNTERS
            for packets, size in (counters.get(each.name, (0, 0)),)
        ],
        "sweep": {
            "sweeps": node.sweeper.sweeps,
            "took_ms": round(sweep.took_ms, 1),
            "expired": node.sweeper.expired,
            **sweep.entries,
        },
        "control": {
            "answered": api.answered,
            "failed": api.failed,
            "malformed": api.malformed,
            "waiting_changes": node.configuration.waiting_changes,
        },
        "loop_lag_ms": lag["worst_minute"],
        "loop_lag": lag,
    }


def resident_bytes() -> int:
    """Memory this process holds now (statm of proc(5))."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (Path costs more than the read)
        return int(file.read().split()[1]) * _PAGE_BYTES


def _interfaces(node: Node) -> list[dict[str, Any]]:
    links = node.network.interfaces()
    found = []
    for name in node.settings.data.interfaces:
        link, attachment = links.get(name), node.interfaces.attachments.get(name)
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
