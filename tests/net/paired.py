"""A rig whose two nodes are a pair, set up from files.

The pair is written to disk as `xlbctl cluster create` and `join` leave it; making a pair by command is tested elsewhere.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctl.state.cluster_file import ClusterFile, ClusterSettings, Member
from sync.transport import Keys
from tests.net.serving import PORTS, VIPS, Serving
from tests.rig import VIP4, HeldConnections, Layout, Node, Rig
from tests.tree import TREE
from tests.wait import wait_until

TIMING = {"heartbeat_ms": 10, "lease_ms": 30, "takeover_ms": 36}
DEFAULT_TIMING = {"heartbeat_ms": 100, "lease_ms": 300, "takeover_ms": 350}


def pair_members(data_family: int = 4) -> tuple[ClusterSettings, ClusterSettings]:
    """The contents of cluster.json of lb1 and of lb2. data_family: of the addresses between which VRRP is spoken."""
    keys = [Keys.generate(), Keys.generate()]
    data = "fd77::" if data_family == 6 else "10.77.0."
    members = [
        Member(f"lb{number}", f"10.99.0.{number}", f"{data}{number}", 110 - 10 * number, key.public)
        for number, key in enumerate(keys, 1)
    ]
    pair_id = secrets.token_hex(16)
    one, two = members
    return (
        ClusterSettings(pair_id, one, two, keys[0].secret, True, 1),
        ClusterSettings(pair_id, two, one, keys[1].secret, False, 1),
    )


def write_pair(rig: Rig, cluster: Mapping[str, Any] = TIMING, data_family: int = 4) -> None:
    """Make the rig's two nodes a pair from their next start on; `cluster` is the node files' section of that name."""
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in cluster.items())
    interfaces = ("eth0", "eth1") if rig.layout.interfaces == 2 else ("eth0",)
    for node, settings in zip(rig.nodes, pair_members(data_family), strict=True):
        node.configure(interfaces, rig.layout.xdp_mode, rig.layout.max_flows, f"[cluster]\n{lines}")
        ClusterFile(node.state_dir).save(settings)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


class PairSite(Serving):
    """Both nodes started and in step. `node` is the active one, `other` the backup; both change with time."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.settle()
        self.node.call("vip.add", address=f"{VIP4}/24", device="eth0")

    def settle(self, deadline_s: float = 15) -> None:
        """Wait until one node is active and its backup could take over with every flow."""
        wait_until(self._in_step, "one active, one backup in step", deadline_s)

    def _in_step(self) -> bool:
        found = {status["role"]: status for status in map(self.status, self.rig.nodes)}
        if set(found) != {"active", "backup"}:
            return False
        self.node = next(node for node in self.rig.nodes if node.name == found["active"]["node"])
        seen = found["active"]["peer"]  # by the last heartbeat: what a switchover decides by
        if seen["role"] != "backup" or not seen["in_step"]:
            return False
        return bool(found["active"]["sync"]["in_step"] and found["backup"]["sync"]["in_step"])

    @property
    def other(self) -> Node:
        return next(node for node in self.rig.nodes if node is not self.node)

    @contextmanager
    def holding(self, count: int, family: int = 4) -> Iterator[HeldConnections]:
        """Hold `count` checked connections through the pair, all known to both nodes."""
        self.settle()
        held = HeldConnections(VIPS[family], PORTS["tcp"], count)
        self.rig.client.run(held.open())
        assert self.rig.client.run(held.confirm()) == 0
        self.settle()
        yield held
        self.rig.client.run(held.close())

    def status(self, node: Node) -> dict[str, Any]:
        """`cluster status` of a node that answers."""
        status: dict[str, Any] = node.call("cluster.status")
        return status

    def addresses(self, node: Node) -> str:
        """What `ip address` prints on a node."""
        return node.namespace.run("ip", "-o", "address", "show").stdout


PAIR = Layout(nodes=2)


@contextmanager
def paired(
    layout: Layout = PAIR,
    cluster: Mapping[str, Any] = TIMING,
    *,
    apart: bool = False,
    tree: Path = TREE,
    data_family: int = 4,
) -> Iterator[PairSite]:
    """Build, pair, start, wait until in step, and take down.

    apart: one processor for each daemon, where there are two. tree: of the daemons' code, see `Node.tree`.
    """
    with Rig(layout) as rig:
        write_pair(rig, cluster, data_family)
        processors = sorted(os.sched_getaffinity(0))
        if apart and len(processors) >= len(rig.nodes):
            for node, processor in zip(rig.nodes, processors, strict=False):
                node.processor = processor
        for node in rig.nodes:
            node.tree = tree
            node.start()
        yield PairSite(rig)
