"""The usual stack under the judge: keepalived (VRRPv3), nftables (DNAT and SNAT) and conntrackd (FTFW), on both nodes.

As their documentation recommends: the notify script commits conntrackd's external cache when a node becomes master, and asks
for a resynchronization when it becomes backup; `nf_conntrack_tcp_be_liberal` is on; keepalived and conntrackd run with
real-time priority, as xlb does. No node preempts the other one, so that a node that returns stays backup, as with xlb.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bench.failover.subject import CUTS, LAYOUT, PORTS, VIPS, Fault, cut, let_pass
from tests.rig import Node, Rig
from tests.wait import wait_until

COMMANDS = {"keepalived": "keepalived", "conntrackd": "conntrackd", "nft": "nftables", "conntrack": "conntrack"}
ROUTER_ID = 51
PRIORITIES = {"lb1": 110, "lb2": 100}
SETTLE_S = 20.0
SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.netfilter.nf_conntrack_tcp_be_liberal": 1,
}


def why_not() -> str:
    """Why this pair cannot run here; empty if it can."""
    missing = sorted({package for command, package in COMMANDS.items() if shutil.which(command) is None})
    return f"missing packages: {', '.join(missing)}" if missing else ""


@dataclass(slots=True)
class Machine:
    """One node of the pair: its files and processes."""

    node: Node
    number: int
    directory: Path
    keepalived: subprocess.Popen[bytes] | None = None
    conntrackd: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def peer(self) -> str:
        return f"10.99.0.{3 - self.number}"

    @property
    def own(self) -> str:
        return f"10.99.0.{self.number}"

    # --- files -------------------------------------------------------------------------------------------------------

    def write(self, heartbeat_ms: int, rig: Rig) -> None:
        script = self.directory / "notify.sh"
        script.write_text(self._notify())
        (self.directory / "keepalived.conf").write_text(self._keepalived(heartbeat_ms, script))
        (self.directory / "conntrackd.conf").write_text(self._conntrackd())
        (self.directory / "nat.nft").write_text(_nat(rig))

    def _notify(self) -> str:
        """keepalived appends: type, name, state, priority."""
        ask = f"conntrackd -C {self.directory / 'conntrackd.conf'}"
        return (
            f'echo "$3" >> {self.directory / "states"}\n'
            f"case $3 in\n"
            f"MASTER) {ask} -c; {ask} -f; {ask} -R; {ask} -B;;\n"
            f"BACKUP) {ask} -t; {ask} -n;;\n"
            f"FAULT) {ask} -t;;\n"
            "esac\n"
        )

    def _keepalived(self, heartbeat_ms: int, script: Path) -> str:
        return (
            "global_defs {\n vrrp_version 3\n script_user root\n vrrp_rt_priority 2\n vrrp_no_swap\n}\n"
            f"vrrp_instance pair {{\n state BACKUP\n nopreempt\n interface eth0\n virtual_router_id {ROUTER_ID}\n"
            f" priority {PRIORITIES[self.name]}\n advert_int {heartbeat_ms / 1000:g}\n"
            f" virtual_ipaddress {{\n  {VIPS[4]}/24\n }}\n"
            f" virtual_ipaddress_excluded {{\n  {VIPS[6]}/64\n }}\n"
            f' notify "/bin/sh {script}"\n}}\n'
        )

    def _conntrackd(self) -> str:
        ignored = f"IPv4_address 127.0.0.1\n   IPv4_address {self.own}\n   IPv4_address {self.peer}"
        return (
            "Sync {\n Mode FTFW {\n  DisableExternalCache Off\n }\n"
            f" UDP {{\n  IPv4_address {self.own}\n  IPv4_Destination_Address {self.peer}\n  Port 3780\n  Interface ha0\n"
            "  SndSocketBuffer 4194304\n  RcvSocketBuffer 4194304\n  Checksum on\n }\n}\n"
            "General {\n Scheduler {\n  Type FIFO\n  Priority 2\n }\n HashSize 32768\n HashLimit 131072\n"
            f" LockFile {self.directory / 'conntrackd.lock'}\n"
            f" UNIX {{\n  Path {self.directory / 'conntrackd.ctl'}\n }}\n"
            " NetlinkBufferSize 4194304\n NetlinkBufferSizeMaxGrowth 16777216\n"
            " Filter From Userspace {\n  Protocol Accept {\n   TCP\n  }\n"
            f"  Address Ignore {{\n   {ignored}\n  }}\n }}\n}}\n"
        )

    # --- processes ---------------------------------------------------------------------------------------------------

    def start_conntrackd(self) -> None:
        self.node.namespace.sysctl(SYSCTLS)
        self.node.namespace.run("nft", "-f", str(self.directory / "nat.nft"))
        self.conntrackd = self._start("conntrackd", "-C", str(self.directory / "conntrackd.conf"))
        wait_until(lambda: (self.directory / "conntrackd.ctl").exists(), f"conntrackd of {self.name}: {self.tail}")

    def start_keepalived(self) -> None:
        (self.directory / "states").unlink(missing_ok=True)
        pids = ["--pid", str(self.directory / "all.pid"), "--vrrp_pid", str(self.directory / "vrrp.pid")]
        file = str(self.directory / "keepalived.conf")
        self.keepalived = self._start("keepalived", "--vrrp", "--dont-fork", "--log-console", "--use-file", file, *pids)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        log = self.directory / f"{command[0]}.log"
        with log.open("ab") as out:
            return self.node.namespace.popen(list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def tail(self) -> str:
        logs = [self.directory / f"{name}.log" for name in ("keepalived", "conntrackd")]
        return "".join("\n".join(log.read_text(errors="replace").splitlines()[-15:]) for log in logs if log.exists())

    @property
    def state(self) -> str:
        """The VRRP state that the notify script was called with last."""
        states = self.directory / "states"
        return states.read_text().split()[-1] if self.alive and states.exists() and states.stat().st_size else ""

    @property
    def alive(self) -> bool:
        return self.keepalived is not None and self.keepalived.poll() is None

    @property
    def has_vip(self) -> bool:
        shown = self.node.namespace.run("ip", "-o", "-4", "address", "show", "dev", "eth0").stdout
        return f" {VIPS[4]}/" in shown

    def signal(self, number: signal.Signals) -> None:
        """To both of its processes, as to a service."""
        assert self.keepalived is not None
        child = self.directory / "vrrp.pid"
        pids = [int(child.read_text())] if child.exists() else []
        for pid in [self.keepalived.pid, *pids]:
            os.kill(pid, number)

    def kill_keepalived(self) -> None:
        assert self.keepalived is not None
        self.signal(signal.SIGKILL)
        self.keepalived.wait(10)
        (self.directory / "vrrp.pid").unlink(missing_ok=True)

    def stop_keepalived(self) -> None:
        if self.keepalived is not None and self.keepalived.poll() is None:
            self.keepalived.terminate()
            self.keepalived.wait(10)

    def remove_vips(self) -> None:
        """What an operator does after a crash: keepalived's addresses stay."""
        for vip, length in ((VIPS[4], 24), (VIPS[6], 64)):
            self.node.namespace.run("ip", "address", "del", f"{vip}/{length}", "dev", "eth0", check=False)

    def stop(self) -> None:
        self.stop_keepalived()
        self.remove_vips()
        if self.conntrackd is not None and self.conntrackd.poll() is None:
            self.conntrackd.terminate()
            self.conntrackd.wait(10)
        (self.directory / "conntrackd.ctl").unlink(missing_ok=True)
        self.node.namespace.run("nft", "flush", "ruleset")
        self.node.namespace.run("conntrack", "-F", check=False)


class KeepalivedPair:
    """Use as a context manager."""

    name = "keepalived"

    def __init__(self) -> None:
        self.rig = Rig(LAYOUT)
        self._machines = {node.name: Machine(node, number, node.directory) for number, node in enumerate(self.rig.nodes, 1)}

    def __enter__(self) -> KeepalivedPair:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._machines.values():
            for process in (machine.keepalived, machine.conntrackd):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait(10)
        self.rig.close()

    def start(self, heartbeat_ms: int) -> None:
        for machine in self._machines.values():
            machine.write(heartbeat_ms, self.rig)
        self.power_on(0)
        wait_until(self.is_settled, "keepalived serves", SETTLE_S)

    def power_on(self, apart_s: float) -> None:
        machines = list(self._machines.values())
        for machine in machines:
            machine.start_conntrackd()
        machines[0].start_keepalived()
        let_pass(apart_s)
        machines[1].start_keepalived()

    def stop(self) -> None:
        for machine in self._machines.values():
            machine.stop()

    def serving(self) -> list[str]:
        return [machine.name for machine in self._machines.values() if machine.has_vip]

    def is_settled(self) -> bool:
        return sorted(machine.state for machine in self._machines.values()) == ["BACKUP", "MASTER"] and len(self.serving()) == 1

    def strike(self, fault: Fault, node: str) -> None:
        machine = self._machines[node]
        if fault in CUTS:
            cut(self.rig, fault, node)
        elif fault is Fault.KILL:
            machine.kill_keepalived()
        elif fault is Fault.FREEZE:
            machine.signal(signal.SIGSTOP)
        else:
            machine.stop_keepalived()

    def heal(self, fault: Fault, node: str) -> None:
        machine = self._machines[node]
        if fault in CUTS:
            self.rig.mend_all(node)
        elif fault is Fault.FREEZE:
            machine.signal(signal.SIGCONT)
        else:
            machine.remove_vips()
            machine.start_keepalived()


def _nat(rig: Rig) -> str:
    """Both VIPs on every port to all backends in turn, with the VIP as source."""
    lines = ["flush ruleset", "table inet nat {", " chain pre {", "  type nat hook prerouting priority dstnat;"]
    for family, vip in VIPS.items():
        backends = [backend.address6 if family == 6 else backend.address4 for backend in rig.backends]
        chosen = ", ".join(f"{number} : {address}" for number, address in enumerate(backends))
        word = "ip6" if family == 6 else "ip"
        ports = ", ".join(str(port) for port in PORTS)
        lines.append(
            f"  {word} daddr {vip} tcp dport {{ {ports} }} dnat {word} to numgen inc mod {len(backends)} map {{ {chosen} }}"
        )
    lines += [" }", " chain post {", "  type nat hook postrouting priority srcnat;"]
    for family, vip in VIPS.items():
        word = "ip6" if family == 6 else "ip"
        backends = [backend.address6 if family == 6 else backend.address4 for backend in rig.backends]
        lines.append(f"  {word} daddr {{ {', '.join(backends)} }} tcp dport {{ {ports} }} snat {word} to {vip}")
    return "\n".join([*lines, " }", "}"]) + "\n"
