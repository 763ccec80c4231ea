"""The two machines as a pair: created with the root password over SSH, power cut under held connections, return,
switchover, upgrade, purge.

Runs after test_node.py, which leaves the machines without the package; the pair starts from a fresh installation.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rig import TCP_PORT, Client, HeldConnections
from tests.vm.machines import WORK, DataNetwork, Machine
from tests.wait import wait_until

VIP = "10.99.0.100"
CLUSTER_ADDRESS = {"lb1": "10.98.0.11", "lb2": "10.98.0.12"}
HELD = 100
NODE_FILE = 's/^interfaces = .*/interfaces = ["eth1"]/; s/^max_flows = .*/max_flows = 65536/'
TIMES = "\n[cluster]\nheartbeat_ms = 300\nlease_ms = 1200\ntakeover_ms = 1350"
"""An emulated processor that shares two real ones stalls for longer than the 300 ms of a default lease, and
walks through maps of a million connections in seconds."""

IN_STEP_S = 300
APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both machines; which is active changes."""

    machines: tuple[Machine, Machine]

    def roles(self) -> dict[str, str]:
        return {machine.name: _status(machine).get("role", "") for machine in self.machines}

    def active(self) -> Machine:
        """The one active node; raises AssertionError when there is none or there are two."""
        roles = self.roles()
        assert list(roles.values()).count("active") == 1, roles
        return next(machine for machine in self.machines if roles[machine.name] == "active")

    def other(self, than: Machine) -> Machine:
        return next(machine for machine in self.machines if machine is not than)

    def wait_in_step(self) -> None:
        wait_until(
            lambda: sorted(self.roles().values()) == ["active", "backup"] and _status(self.active())["sync"]["in_step"],
            "the pair is in step",
            IN_STEP_S,
            every_s=1,
        )


def _status(machine: Machine) -> dict[str, Any]:
    """The node's cluster status; empty while its daemon does not answer."""
    try:
        answer: dict[str, Any] = machine.ask("cluster", "status")
    except AssertionError:
        return {}
    return answer


@pytest.fixture(scope="module")
def pair(lb1: Machine, lb2: Machine, network: DataNetwork) -> Iterator[Pair]:
    for machine in (lb1, lb2):
        machine.copy(WORK / "xlb.deb", "/root/xlb.deb")
        machine.run(f"dpkg --purge xlb < /dev/null; {APT} install /root/xlb.deb < /dev/null")
        machine.run(f"sed -i '{NODE_FILE}' /etc/xlb/node.toml")
        machine.run(f"cat >> /etc/xlb/node.toml <<< '{TIMES}'")
        machine.run("systemctl enable --now xlbd")
    lb1.run(f"xlbctl vip add {VIP}/24 --dev eth1")
    lb1.run(f"xlbctl farm add echo --vip {VIP} --port 7000")
    for backend in network.backends:
        lb1.run(f"xlbctl backend add echo {backend.address4}:{TCP_PORT}")
    password = secrets.token_urlsafe(12)
    lb2.run("chpasswd", stdin=f"root:{password}\n".encode())
    key = lb2.run("ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    local, peer = CLUSTER_ADDRESS["lb1"], CLUSTER_ADDRESS["lb2"]
    create = f"xlbctl cluster create --local {local} --peer {peer} --accept-host-key {key} --yes"
    print(lb1.run(f"ls /root/.ssh; {create} 2>&1", stdin=f"{password}\n".encode()))
    made = Pair((lb1, lb2))
    made.wait_in_step()
    yield made


@pytest.fixture
def held(pair: Pair, client: Client) -> Iterator[HeldConnections]:
    """Connections through the active node whose every byte is checked, all known to the peer."""
    connections = client.run(HeldConnections(VIP, 7000, HELD, pause_s=1).open(concurrency=10), deadline_s=120)
    assert client.run(connections.confirm(60), deadline_s=90) == 0
    pair.wait_in_step()
    yield connections
    client.run(connections.close())


def _all_continue(client: Client, held: HeldConnections) -> None:
    assert client.run(held.confirm(90), deadline_s=120) == 0, held.broken[:3]
    assert not held.broken
    assert held.wrong_bytes == 0


def test_cluster_check_passes(pair: Pair) -> None:
    for machine in pair.machines:
        findings = machine.run("xlbctl cluster check")  # which exits 1 if one fails
        assert "Operation not permitted" not in findings, "the unit forbids what a check needs"


def test_power_cut_breaks_nothing(pair: Pair, client: Client, held: HeldConnections) -> None:
    lost = pair.active()
    survivor = pair.other(lost)
    lost.cut_power()
    wait_until(lambda: _status(survivor).get("role") == "active", "the backup took over", 60, every_s=0.5)
    _all_continue(client, held)
    lost.power_on()
    pair.wait_in_step()
    assert pair.active() is survivor  # no preemption
    _all_continue(client, held)


def test_switchover_breaks_nothing(pair: Pair, client: Client, held: HeldConnections) -> None:
    before = pair.active()
    before.run("xlbctl cluster switchover")
    wait_until(lambda: _status(pair.other(before)).get("role") == "active", "the peer to be active", 60, every_s=0.5)
    _all_continue(client, held)
    pair.wait_in_step()


def test_upgrade_of_both_breaks_nothing(pair: Pair, client: Client, held: HeldConnections, next_package: Path) -> None:
    """The backup first, as an operator does; then the active, whose backup may take over meanwhile."""
    active = pair.active()
    for machine in (pair.other(active), active):
        machine.copy(next_package, "/root/next.deb")
        machine.run(f"{APT} install /root/next.deb < /dev/null")
        pair.wait_in_step()
        _all_continue(client, held)
        assert machine.run("dpkg-query -W -f '${Version}' xlb").endswith("+next")


def test_purge_leaves_nothing(pair: Pair) -> None:
    for machine in pair.machines:
        machine.run(f"{APT} purge xlb < /dev/null")
        assert machine.run("find /sys/fs/bpf -mindepth 1").split() == []
        assert "xdp" not in machine.run("ip -details link show")
        assert VIP not in machine.run("ip -4 -o address show")
        assert machine.run("ls -d /etc/xlb /var/lib/xlb /run/xlb 2>/dev/null || true").split() == []
