"""Each machine as a node of its own: installed by apt, run by systemd, on Debian's kernel and virtio.

The tests are the steps of one sequence: start, serve, restart, crash, power cut, purge; an upgrade is in test_pair.py.
"""

from __future__ import annotations

import re
import time

import pytest

from tests.rig import HTTP_PORT, TCP_PORT, Client, HeldConnections, Tally, http_get, repeat
from tests.vm.machines import DataNetwork, Machine
from tests.wait import wait_until

VIP = {"lb1": "10.99.0.101", "lb2": "10.99.0.102"}
HELD = 100
START_S = 300  # emulated, and perhaps on a busy host


@pytest.fixture(params=["lb1", "lb2"])
def node(request: pytest.FixtureRequest) -> Machine:
    machine = request.getfixturevalue(request.param)
    assert isinstance(machine, Machine)
    return machine


def _serves(node: Machine) -> bool:
    return node.run("systemctl is-active xlbd", check=False).strip() == "active"


def _restarts(node: Machine) -> int:
    return int(node.run("systemctl show --property NRestarts --value xlbd"))


def _get(client: Client, vip: str, count: int) -> Tally:
    tally = Tally()
    client.run(repeat(lambda: http_get(vip, 80, timeout_s=30), count, tally, concurrency=4), deadline_s=300)
    return tally


def test_installed_without_kernel_headers(node: Machine) -> None:
    assert node.run("dpkg-query -W -f '${db:Status-Status}' xlb") == "installed"
    assert node.run("uname -r").startswith("6.1.")
    assert node.run("ls /lib/modules/$(uname -r)/build /usr/src 2>/dev/null || true").split() == ["/usr/src:"]


def test_installing_starts_nothing(node: Machine) -> None:
    assert not _serves(node)
    assert "xdp" not in node.run("ip -details link show")


def test_starts_under_systemd(node: Machine) -> None:
    started = time.monotonic()
    node.run("systemctl enable --now xlbd")
    took_s = time.monotonic() - started
    print(f"{node.name}: systemctl start to ready in {took_s:.1f} s")
    assert _serves(node)
    assert took_s <= START_S
    assert _restarts(node) == 0
    assert "serves" in node.run("systemctl show --property StatusText --value xlbd")
    assert node.run("journalctl --unit xlbd --output cat | grep 'data plane built'")


def test_the_page_runs_under_systemd(node: Machine) -> None:
    node.run("systemctl start xlb-web")
    assert node.run("ps -o user= -o group= -C xlb-web").split() == ["xlb-web", "xlb"]
    asked = "import ssl, urllib.request as r; c = ssl._create_unverified_context()"
    answer = node.run(f"python3 -c '{asked}; print(r.urlopen(\"https://127.0.0.1:8443/healthz\", context=c).status)'")
    assert answer.strip() == "200"
    node.run("systemctl stop xlb-web")
    assert node.run("systemctl show --property ExecMainStatus --value xlb-web").strip() == "0"


def test_native_xdp_on_virtio(node: Machine) -> None:
    link = node.run("ip -details link show dev eth1")
    assert re.search(r"\bprog/xdp\b", link), link
    assert "xdpgeneric" not in link
    queues = [int(number) for number in re.findall(r"Combined:\s+(\d+)", node.run("ethtool --show-channels eth1"))]
    cpus = int(node.run("nproc"))
    assert queues[0] >= 2 * cpus  # a queue of its own for each CPU's XDP_TX


def test_http_through_the_vip(node: Machine, network: DataNetwork, client: Client) -> None:
    vip = VIP[node.name]
    node.run(f"xlbctl vip add {vip}/24 --dev eth1")
    for farm, port, backend_port in (("web", 80, HTTP_PORT), ("echo", 7000, TCP_PORT)):
        node.run(f"xlbctl farm add {farm} --vip {vip} --port {port}")
        for backend in network.backends:
            node.run(f"xlbctl backend add {farm} {backend.address4}:{backend_port}")
    tally = _get(client, vip, 200)
    assert not tally.failures, tally.failures[:3]
    assert set(tally.by_backend) == {"b1", "b2"}
    counters = {row["name"]: row["packets"] for row in node.ask("stats")["counters"]}
    assert counters["forward_tx"] >= 200 * 5


def _while_held(client: Client, node: Machine, what: str, action: str) -> HeldConnections:
    """Hold checked connections through `action`, a script on the node."""
    held = client.run(HeldConnections(VIP[node.name], 7000, HELD, pause_s=1).open(concurrency=10), deadline_s=120)
    assert client.run(held.confirm(60), deadline_s=90) == 0, f"before {what}"
    node.run(action)
    assert client.run(held.confirm(60), deadline_s=90) == 0, f"after {what}: {held.broken[:3]}"
    assert not held.broken
    assert held.wrong_bytes == 0
    client.run(held.close())
    return held


def test_restart_breaks_nothing(lb1: Machine, client: Client) -> None:
    _while_held(client, lb1, "restart", "systemctl restart xlbd")
    assert lb1.run("journalctl --unit xlbd --output cat | grep 'data plane adopted'")
    assert not _get(client, VIP[lb1.name], 50).failures


def test_systemd_restarts_a_killed_daemon(lb1: Machine, client: Client) -> None:
    before = _restarts(lb1)
    _while_held(client, lb1, "kill -9", "systemctl kill --signal KILL xlbd")
    wait_until(lambda: _restarts(lb1) > before and _serves(lb1), "xlbd is back", 90, every_s=1)
    assert not _get(client, VIP[lb1.name], 50).failures


def test_a_vlan_is_balanced_natively_on_the_interface_below(lb1: Machine, lb2: Machine, network: DataNetwork) -> None:
    """From a client in VLAN 100 to backends without a VLAN: a real VLAN device, its index and tag read from rtnetlink."""
    vip = "10.97.0.101"
    for number, machine in ((11, lb1), (12, lb2)):
        machine.run(
            "modprobe 8021q; ip link add link eth1 name eth1.100 type vlan id 100; ip link set eth1.100 up; "
            f"ip address add 10.97.0.{number}/24 dev eth1.100"
        )
    for backend in network.backends:
        backend.namespace.ip(f"route replace 10.97.0.0/24 via {lb1.address}")
    lb1.run('sed -i \'s/^interfaces = .*/interfaces = ["eth1", "eth1.100"]/\' /etc/xlb/node.toml; systemctl restart xlbd')
    rows = {row["name"]: (row["xdp_mode"], row["device"]) for row in lb1.ask("cluster", "status")["interfaces"]}
    assert rows == {"eth1": ("native", ""), "eth1.100": ("native", "eth1")}
    assert "xdp" not in lb1.run("ip -details link show dev eth1.100")
    lb1.run(f"xlbctl vip add {vip}/24 --dev eth1.100; xlbctl farm add tagged --vip {vip} --port 80")
    for backend in network.backends:
        lb1.run(f"xlbctl backend add tagged {backend.address4}:{HTTP_PORT}")
    get = f"import urllib.request; [urllib.request.urlopen('http://{vip}/', timeout=30).read() for _ in range(20)]"
    lb2.run(f'python3 -c "{get}"')
    counters = {row["name"]: row["packets"] for row in lb1.ask("stats")["counters"]}
    assert counters["forward_redirect"] >= 20 * 5
    # Created again it has another index; a VLAN that is gone is the kernel's.
    lb1.run("ip link delete eth1.100; ip link add link eth1 name eth1.100 type vlan id 100; ip link set eth1.100 up")
    lb1.run("ip address add 10.97.0.11/24 dev eth1.100")
    wait_until(lambda: vip in lb1.run("ip -brief address show dev eth1.100"), "the VIP is back", 30, every_s=1)
    lb2.run(f'python3 -c "{get}"')
    lb1.run(f"xlbctl farm delete tagged; xlbctl vip delete {vip}")
    lb1.run("sed -i 's/^interfaces = .*/interfaces = [\"eth1\"]/' /etc/xlb/node.toml; systemctl restart xlbd")
    for machine in (lb1, lb2):
        machine.run("ip link delete eth1.100")


def test_power_cut_and_reboot(lb1: Machine, client: Client) -> None:
    lb1.cut_power()
    lb1.power_on()
    wait_until(lambda: _serves(lb1), "xlbd to answer after the reboot", 120, every_s=1)
    assert not _get(client, VIP["lb1"], 50).failures


def test_purge_leaves_nothing(node: Machine) -> None:
    before = node.run("ip -brief address show dev eth1")
    assert VIP[node.name] in before
    node.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge xlb < /dev/null")
    assert "xdp" not in node.run("ip -details link show")
    after = node.run("ip -brief address show dev eth1")
    assert VIP[node.name] not in after
    assert node.address in after
    places = "/sys/fs/bpf /etc/xlb /etc/systemd /run/xlb /run/systemd /var/lib/xlb /usr/lib/xlb"
    assert node.run(f"find {places} -name '*xlb*' 2> /dev/null || true") == ""
    assert node.run("getent group xlb || true") == ""
