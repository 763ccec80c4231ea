"""A rig whose two nodes are a pair: set up from files, faults by name, and a capture that tells who answered when.

The pair is written to disk as `xlbctl cluster create` and `join` leave it; making a pair by command is tested elsewhere.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ctl.clusterfile import ClusterFile, ClusterSettings, Member
from sync.transport import Keys
from tests.net.serving import Serving
from tests.rig import VIP4, Layout, Node, Rig, wait_until

TIMING = {"heartbeat_ms": 10, "lease_ms": 30, "takeover_ms": 36}
DEFAULT_TIMING = {"heartbeat_ms": 100, "lease_ms": 300, "takeover_ms": 350}

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_SOL_PACKET, _PACKET_RX_RING_OFF = 263, 0
_READ_BYTES = 128


def pair_members() -> tuple[ClusterSettings, ClusterSettings]:
    """What cluster.json of lb1 and of lb2 says."""
    keys = [Keys.generate(), Keys.generate()]
    members = [
        Member(f"lb{number}", f"10.99.0.{number}", f"10.77.0.{number}", 110 - 10 * number, key.public)
        for number, key in enumerate(keys, 1)
    ]
    pair_id = secrets.token_hex(16)
    one, two = members
    return (
        ClusterSettings(pair_id, one, two, keys[0].secret, True, 1),
        ClusterSettings(pair_id, two, one, keys[1].secret, False, 1),
    )


def write_pair(rig: Rig, cluster: Mapping[str, Any] = TIMING) -> None:
    """Make the rig's two nodes a pair from their next start on; `cluster` is the node files' section of that name."""
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in cluster.items())
    interfaces = ("eth0", "eth1") if rig.layout.interfaces == 2 else ("eth0",)
    for node, settings in zip(rig.nodes, pair_members(), strict=True):
        node.configure(interfaces, rig.layout.xdp_mode, rig.layout.max_flows, f"[cluster]\n{lines}")
        ClusterFile(node.state_dir).save(settings)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


class PairSite(Serving):
    """Both nodes started and in step. `node` is the one that serves, `other` the one that stands by; both change with time."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.settle()
        self.node.call("vip.add", address=f"{VIP4}/24", device="eth0")

    def settle(self, deadline_s: float = 15) -> None:
        """Wait until one node serves and the other could take over with every flow."""
        wait_until(self._in_step, "one active, one backup in step", deadline_s)

    def _in_step(self) -> bool:
        found = {status["role"]: status for status in map(self.status, self.rig.nodes)}
        if set(found) != {"active", "backup"}:
            return False
        self.node = next(node for node in self.rig.nodes if node.name == found["active"]["node"])
        return bool(found["active"]["sync"]["in_step"] and found["backup"]["sync"]["in_step"])

    @property
    def other(self) -> Node:
        return next(node for node in self.rig.nodes if node is not self.node)

    def status(self, node: Node) -> dict[str, Any]:
        """What `cluster status` says on a node that answers."""
        status: dict[str, Any] = node.call("cluster.status")
        return status

    def addresses(self, node: Node) -> str:
        """What `ip address` prints on a node."""
        return node.namespace.run("ip", "-o", "address", "show").stdout


@dataclass(frozen=True, slots=True)
class Spoken:
    """A frame that a node sent as the VIP: when the switch had it, in seconds of time.time()."""

    at_s: float
    node: str


class Capture:
    """Reads every frame the nodes put on the data network, and keeps those that speak for the VIP (IPv4 and ARP)."""

    def __init__(self, rig: Rig, vip: str = VIP4) -> None:
        self.spoken: list[Spoken] = []
        self._vip = socket.inet_aton(vip)
        self._sockets = {node.name: rig.switch.call(lambda name=node.name: _tap(f"{name}-eth0")) for node in rig.nodes}  # type: ignore[misc]
        self._stopped = False
        self._threads = [threading.Thread(target=self._read, args=item, daemon=True) for item in self._sockets.items()]
        for thread in self._threads:
            thread.start()

    def _read(self, node: str, tap: socket.socket) -> None:
        while not self._stopped:
            try:
                frame, controls, _, sender = tap.recvmsg(_READ_BYTES, 64)
            except TimeoutError:
                continue
            except OSError:
                return
            if sender[2] != socket.PACKET_OUTGOING and self._speaks(frame):
                seconds, nanoseconds = struct.unpack("=qq", controls[0][2])
                self.spoken.append(Spoken(seconds + nanoseconds / 1e9, node))

    def _speaks(self, frame: bytes) -> bool:
        kind = frame[12:14]
        return (kind == b"\x08\x00" and frame[26:30] == self._vip) or (kind == b"\x08\x06" and frame[28:32] == self._vip)

    def stop(self) -> list[Spoken]:
        """In the order of time."""
        self._stopped = True
        for thread in self._threads:
            thread.join(5)
        for tap in self._sockets.values():
            tap.close()
        return sorted(self.spoken, key=lambda each: each.at_s)


def both_answered_s(spoken: list[Spoken]) -> float:
    """For how long more than one node spoke for the VIP: the sum of all overlaps of one node's spell with another's.

    A spell is frames of one node; when a second one has begun to speak, whatever the first one still says is an overlap.
    """
    total, speaker, took_over_at = 0.0, "", 0.0
    late_until: dict[str, float] = {}
    for each in spoken:
        if not speaker:
            speaker = each.node
        elif each.node != speaker:
            last_of_new = [other.at_s for other in spoken if other.node == each.node and other.at_s >= each.at_s]
            still = [other.at_s for other in spoken if other.node == speaker and each.at_s <= other.at_s <= last_of_new[-1]]
            late_until[speaker] = still[-1] if still else 0.0
            speaker, took_over_at = each.node, each.at_s
            total += max(0.0, late_until.get(_other(spoken, speaker), 0.0) - took_over_at)
    return total


def _other(spoken: list[Spoken], name: str) -> str:
    return next((each.node for each in spoken if each.node != name), "")


def _tap(device: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    tap.bind((device, _ETH_P_ALL))
    tap.settimeout(0.2)
    return tap


PAIR = Layout(nodes=2)


@contextmanager
def paired(layout: Layout = PAIR, cluster: Mapping[str, Any] = TIMING) -> Iterator[PairSite]:
    """Build, pair, start, wait until in step, and take down."""
    with Rig(layout) as rig:
        write_pair(rig, cluster)
        for node in rig.nodes:
            node.start()
        yield PairSite(rig)


def now_s() -> float:
    """The clock of `Spoken.at_s`."""
    return time.time()
