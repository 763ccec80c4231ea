"""A pair of xlb under the judge: two real daemons, configured by files."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.failover.subject import CUTS, LAYOUT, PORTS, VIPS, Fault, cut, let_pass
from ctl.errors import XlbError
from ctl.state.cluster_file import ClusterFile
from tests.net.paired import pair_members
from tests.rig import Rig
from tests.wait import wait_until

TIMES = {5: (5, 15, 20), 10: (10, 30, 36), 20: (20, 60, 70), 100: (100, 300, 350)}
"""Heartbeat to heartbeat_ms, lease_ms, takeover_ms."""


class XlbPair:
    """Use as a context manager."""

    name = "xlb"

    def __init__(self) -> None:
        self.rig = Rig(LAYOUT)
        self._threads = ThreadPoolExecutor(2)  # a process that a thread started dies with it
        self._nodes = {node.name: node for node in self.rig.nodes}
        for node, settings in zip(self.rig.nodes, pair_members(), strict=True):
            ClusterFile(node.state_dir).save(settings)

    def __enter__(self) -> XlbPair:
        return self

    def __exit__(self, *_: object) -> None:
        self.rig.close()
        self._threads.shutdown()

    def start(self, heartbeat_ms: int) -> None:
        self._configure(heartbeat_ms)
        self.power_on(0)
        wait_until(self.is_settled, "xlb serves")
        active = self._nodes[self.serving()[0]]
        if not active.call("farm.list"):
            active.call("config.apply", document=self._document())
            wait_until(self.is_settled, "xlb serves with its farms")

    def _configure(self, heartbeat_ms: int) -> None:
        beat, lease, takeover = TIMES[heartbeat_ms]
        times = f"[cluster]\nheartbeat_ms = {beat}\nlease_ms = {lease}\ntakeover_ms = {takeover}\n"
        for node in self.rig.nodes:
            node.configure(("eth0",), LAYOUT.xdp_mode, LAYOUT.max_flows, times)

    def _document(self) -> dict[str, Any]:
        """A farms file as `config.apply` takes it."""
        farms = [
            {
                "name": f"port{port}-{family}",
                "vip": vip,
                "port": port,
                "health": {"kind": "none"},
                "backend": [
                    {"address": backend.address6 if family == 6 else backend.address4, "port": port}
                    for backend in self.rig.backends
                ],
            }
            for family, vip in VIPS.items()
            for port in PORTS
        ]
        vips = [{"address": f"{vip}/{64 if family == 6 else 24}", "device": "eth0"} for family, vip in VIPS.items()]
        return {"vip": vips, "farm": farms}

    def power_on(self, apart_s: float) -> None:
        first, second = self.rig.nodes
        started = [self._threads.submit(first.start)]
        let_pass(apart_s)
        started.append(self._threads.submit(second.start))
        for each in started:
            each.result()

    def stop(self) -> None:
        for node in self.rig.nodes:
            if node.running:
                node.stop()

    def serving(self) -> list[str]:
        return [status["node"] for status in self._statuses() if status["role"] == "active"]

    def is_settled(self) -> bool:
        found = {status["role"]: status for status in self._statuses()}
        return set(found) == {"active", "backup"} and all(status["sync"]["in_step"] for status in found.values())

    def _statuses(self) -> list[dict[str, Any]]:
        found = []
        for node in self.rig.nodes:
            try:
                found.append(node.call("cluster.status"))
            except XlbError:
                continue  # it does not run, or has just started
        return found

    def strike(self, fault: Fault, node: str) -> None:
        struck = self._nodes[node]
        if fault in CUTS:
            cut(self.rig, fault, node)
        elif fault is Fault.KILL:
            struck.kill()
        elif fault is Fault.STOP:
            struck.stop()
        elif fault is Fault.FREEZE:
            struck.signal(signal.SIGSTOP)
        else:
            struck.call("cluster.switchover")

    def heal(self, fault: Fault, node: str) -> None:
        struck = self._nodes[node]
        if fault in CUTS:
            self.rig.mend_all(node)
        elif fault in (Fault.KILL, Fault.STOP):
            self._threads.submit(struck.start).result()
        elif fault is Fault.FREEZE:
            struck.signal(signal.SIGCONT)
