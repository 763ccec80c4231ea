"""What a node knows of itself that matters to its pair, as a map that travels to the peer for `cluster check`.

Looks, decides nothing. Blocks (name resolution, netlink): call it in a thread. A name that is not resolved in time counts
as one that cannot be.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from bpf.constants import ABI_VERSION
from bpf.kernel.attach import Attachment
from ctl.config.record_codec import FORMAT_VERSION
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.diagnosis.kernel import rulesets
from ctl.network.network import Interface, Network
from ctl.runtime.clock_check import clock_is_synchronised
from ctl.state.node_file import NodeSettings
from ctl.version import package_version

RESOLVE_S = 3.0


def facts_of(
    settings: NodeSettings, network: Network, interfaces: DataInterfaces, cluster_address: str, vips: Sequence[str]
) -> dict[str, Any]:
    """The node's side of every comparison. cluster_address: its own; empty on a single node."""
    cluster = settings.cluster
    links, addresses = network.interfaces(), network.addresses()
    attachments = interfaces.attachments(links)
    cluster_device = next((each.device for each in addresses if each.address == cluster_address), "") if cluster_address else ""
    return {
        "node": settings.node.name,
        "kernel": os.uname().release,
        "version": package_version(),
        "abi": ABI_VERSION,
        "config_format": FORMAT_VERSION,
        "clock": _clock(),
        "dns": _dns(cluster.dns_name),
        "times": {"heartbeat_ms": cluster.heartbeat_ms, "lease_ms": cluster.lease_ms, "takeover_ms": cluster.takeover_ms},
        "cluster_device": cluster_device,
        "cluster_mtu": links[cluster_device].mtu if cluster_device in links else 0,
        "firewall": [each.view() for each in rulesets.findings(settings.data.interfaces, vips)],
        "data": [_interface(name, links.get(name), attachments.get(name)) for name in settings.data.interfaces],
    }


def _clock() -> dict[str, Any]:
    try:
        synchronised = clock_is_synchronised()
    except OSError as error:
        return {"synchronised": False, "why": error.strerror}
    return {"synchronised": synchronised, "why": "" if synchronised else "the kernel's clock is not synchronised"}


def _dns(configured: str) -> dict[str, Any]:
    name = configured or socket.gethostname()
    return {"name": name, "configured": bool(configured), "error": resolve_error(name)}


def resolve_error(name: str, seconds: float = RESOLVE_S) -> str:
    """Why a name cannot be resolved; empty if it can. A resolver that hangs is left to itself."""
    outcome = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            socket.getaddrinfo(name, None)
            outcome[0] = ""
        except OSError as error:
            outcome[0] = error.strerror or str(error)

    thread = threading.Thread(target=ask, name="resolving", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]


def _interface(name: str, link: Interface | None, attachment: Attachment | None) -> dict[str, Any]:
    return {
        "name": name,
        "mtu": link.mtu if link else 0,
        "driver": attachment.driver if attachment else link.driver if link else "",
        "xdp_mode": attachment.mode if attachment else "",
    }
