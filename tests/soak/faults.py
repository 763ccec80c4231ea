"""The faults of a soak: each strikes one node or both, and returns what heals it.

Decides how a fault is made in the rig. Which fault comes when, and what a pair owes its clients, is decided in `__main__`.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from ctl.errors import XlbError
from tests.net.paired import PairSite
from tests.rig import Node
from tests.soak.ledger import ask

Heal = Callable[[], object]

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 15.0


@dataclass(slots=True)
class Stage:
    """What a fault works on. macs: of the nodes' interfaces, also former ones, to the node's name; see `Capture`."""

    site: PairSite
    rng: random.Random
    macs: dict[bytes, str] = field(default_factory=dict)

    def learn_macs(self) -> None:
        """Called after anything that changes a MAC."""
        for node in self.site.rig.nodes:
            self.macs[node.namespace.mac("eth0")] = node.name


@dataclass(frozen=True, slots=True)
class Fault:
    """`begin` strikes a node and returns the heal. shortest_s, longest_s: bounds of its length, spread evenly by ratio."""

    begin: Callable[[Stage, Node], Heal]
    shortest_s: float = 0.1
    longest_s: float = 4.0
    both: bool = False  # strikes both nodes at once

    def length_s(self, rng: random.Random) -> float:
        """How long this time."""
        return float(self.shortest_s * (self.longest_s / self.shortest_s) ** rng.random())


def _nothing() -> None:
    pass


def _kill(stage: Stage, node: Node) -> Heal:
    node.kill()
    return node.start


def _pause(stage: Stage, node: Node) -> Heal:
    node.signal(signal.SIGSTOP)
    return lambda: node.signal(signal.SIGCONT)


def _cut(silently: bool, *devices: str) -> Callable[[Stage, Node], Heal]:
    def begin(stage: Stage, node: Node) -> Heal:
        rig = stage.site.rig
        for device in devices:
            rig.cut(node.name, device, silently=silently)

        def heal() -> None:
            for device in reversed(devices):
                rig.mend(node.name, device)

        return heal

    return begin


def _cut_off(silently: bool) -> Callable[[Stage, Node], Heal]:
    def begin(stage: Stage, node: Node) -> Heal:
        rig = stage.site.rig
        rig.cut_off(node.name, silently=silently)
        return lambda: rig.mend_all(node.name)

    return begin


def _replug(stage: Stage, node: Node) -> Heal:
    """The driver is loaded again, or a hypervisor replaces the card: another ifindex, another MAC."""
    stage.site.rig.replug(node)
    stage.learn_macs()
    return _nothing


def _detach_program(stage: Stage, node: Node) -> Heal:
    for mode in ("xdpdrv", "xdpgeneric"):
        node.namespace.run("ip", "link", "set", "dev", "eth0", mode, "off", check=False)
    return _nothing


def _flush_addresses(stage: Stage, node: Node) -> Heal:
    """Somebody restarts the network's configuration: every address goes, the node's own come back."""
    node.namespace.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    own = stage.site.rig.own_addresses(node)
    return lambda: node.namespace.ip(*(f"addr replace {address} dev eth0 nodad" for address in own))


def _change_mac(stage: Stage, node: Node) -> Heal:
    mac = bytes((0x02, *(stage.rng.randrange(256) for _ in range(5))))
    stage.macs[mac] = node.name
    node.namespace.ip(f"link set dev eth0 address {mac.hex(':')}")
    return _nothing


def _fill_disk(stage: Stage, node: Node) -> Heal:
    """Needs a state_dir of its own small file system; see `__main__`."""
    filler = node.state_dir / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler.unlink


def _switch_over(stage: Stage, node: Node) -> Heal:
    with contextlib.suppress(XlbError):  # refused, e.g. while not in step
        ask(node, "cluster.switchover")
    return _nothing


def _maintain(stage: Stage, node: Node) -> Heal:
    with contextlib.suppress(XlbError):
        ask(node, "cluster.maintenance", on=True)
    return lambda: ask(node, "cluster.maintenance", on=False)


def _sysctl(stage: Stage, node: Node) -> Heal:
    node.namespace.sysctl({"net.ipv4.conf.eth0.forwarding": 0})
    return _nothing


FAULTS: dict[str, Fault] = {
    "kill -9": Fault(_kill, 0.05, 3),
    "kill -9 of both": Fault(_kill, 0.05, 2, both=True),
    "pause": Fault(_pause, SHORTEST_PAUSE_S, LONGEST_PAUSE_S),
    "short pause": Fault(_pause, SHORTEST_PAUSE_S, 0.5),
    "pause of both": Fault(_pause, SHORTEST_PAUSE_S, LONGEST_PAUSE_S, both=True),
    "cut": Fault(_cut_off(silently=False)),
    "silent cut": Fault(_cut_off(silently=True)),
    "cut of the data link": Fault(_cut(False, "eth0")),
    "cut of the cluster link": Fault(_cut(False, "ha0")),
    "silent cut of the cluster link": Fault(_cut(True, "ha0")),
    "interface re-created": Fault(_replug),
    "program detached": Fault(_detach_program),
    "addresses flushed": Fault(_flush_addresses, 0.1, 2),
    "another MAC": Fault(_change_mac),
    "forwarding switched off": Fault(_sysctl),
    "disk full": Fault(_fill_disk, 0.5, 5),
    "switchover": Fault(_switch_over, 0.01, 0.2),
    "maintenance": Fault(_maintain, 0.1, 2),
}
