"""Modes dsr and ipip with a real pair, kernel and backends: the VIPs are on the backends, which answer the client directly."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rig as rig_package
from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS, VIPS
from tests.rig import CLIENT4, CLIENT6, VIP6, Backend, HeldConnections, transfer, udp_exchange
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
CLIENTS = {4: CLIENT4, 6: CLIENT6}
ECHO_PORT = 7002
HELD = 30
NAT_VIP = "10.77.0.101"
TRANSFER_BYTES = 1_000_000
UNWRAP = Path(rig_package.__file__).with_name("decapsulate.py")


@contextlib.contextmanager
def prepared(backend: Backend) -> Iterator[None]:
    """As docs/ONE-WAY.md has it: the VIPs on lo, without ARP for them; and packets are unwrapped."""
    backend.namespace.sysctl({"net.ipv4.conf.all.arp_ignore": 1, "net.ipv4.conf.all.arp_announce": 2})
    backend.namespace.ip("link set lo up", *(f"addr add {vip} dev lo" for vip in VIPS.values()))
    arguments = [sys.executable, str(UNWRAP), backend.name, str(ECHO_PORT), *VIPS.values()]
    unwrapping = backend.namespace.popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert unwrapping.stdout is not None and unwrapping.stdout.readline() == "ready\n"
        yield
    finally:
        unwrapping.kill()
        unwrapping.wait(10)
        if unwrapping.stdout is not None:
            unwrapping.stdout.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[PairSite]:
    with paired(cluster=TIMES) as site, contextlib.ExitStack() as stack:
        for backend in site.rig.backends:
            stack.enter_context(prepared(backend))
        site.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        yield site


@contextlib.contextmanager
def held(pair: PairSite, address: str, port: int) -> Iterator[HeldConnections]:
    connections = HeldConnections(address, port, HELD)
    pair.rig.client.run(connections.open())
    assert pair.rig.client.run(connections.confirm()) == 0
    yield connections
    assert connections.broken == [] and connections.wrong_bytes == 0
    pair.rig.client.run(connections.close())


def test_a_takeover_before_the_backup_has_compiled_the_modes(pair: PairSite) -> None:
    """Their connections wait, and nothing of them is forwarded; those of mode snat go on at once. Then a restart with pins."""
    active, backup, backends = pair.node, pair.other, pair.rig.backends
    active.call("vip.add", address=f"{NAT_VIP}/24", device="eth0")
    document, port = active.call("config.export"), PORTS["tcp"]
    for mode, vip in (("snat", NAT_VIP), ("dsr", VIPS[4]), ("ipip", VIP6)):  # no backend has the first VIP
        addresses = [backend.address6 if vip == VIP6 else backend.address4 for backend in backends]
        farm = {"name": mode, "vip": vip, "port": port, "mode": mode, "scheduler": "roundrobin", "health": {"kind": "none"}}
        document.setdefault("farm", []).append(farm | {"backend": [{"address": each, "port": port} for each in addresses]})
    backup.break_compiler()
    active.call("config.apply", document=document)
    with (
        held(pair, NAT_VIP, PORTS["tcp"]) as nat,
        held(pair, VIPS[4], PORTS["tcp"]) as dsr,
        held(pair, VIP6, PORTS["tcp"]) as ipip,
    ):
        wait_until(lambda: pair.status(backup)["sync"]["held"] >= 2 * HELD, "the connections to be held back")
        active.kill()
        wait_until(lambda: pair.status(backup)["role"] == "active", "the takeover", 10)
        pair.node = backup
        assert pair.rig.client.run(nat.confirm()) == 0
        before = pair.counters()
        wait_until(lambda: pair.counters()["drop_not_compiled"] > before["drop_not_compiled"] + HELD, "what is not forwarded")
        assert backup.call("conn.list", farm="dsr")["connections"] == []
        backup.repair_compiler()
        assert (
            "compiled the program for mode dsr, mode ipip"
            in backup.xlbctl("farm", "set", "snat", "--idle-timeout", "600").stderr
        )
        for each in (dsr, ipip, nat):
            assert pair.rig.client.run(each.confirm()) == 0
        assert pair.counters()["event_reset_sent"] == before["event_reset_sent"]
        active.start()
        pair.settle()
        backup.xlbctl("cluster", "switchover")
        pair.settle()
        assert pair.node is active
        for each in (dsr, ipip, nat):
            assert pair.rig.client.run(each.confirm()) == 0
    for name in ("snat", "dsr", "ipip"):
        active.call("farm.delete", name=name)


@pytest.fixture(scope="module", params=["dsr", "ipip", "ipip to the other family"])
def site(request: pytest.FixtureRequest, pair: PairSite) -> Iterator[PairSite]:
    pair.settle()
    mode, _, other = str(request.param).partition(" ")
    for family in (4, 6):
        for service in ("tcp", "udp"):
            port = PORTS["tcp"] if service == "tcp" else ECHO_PORT
            fields = {"name": f"{service}{family}", "vip": VIPS[family], "port": port, "proto": service, "mode": mode}
            pair.node.call("farm.add", **fields, scheduler="roundrobin", health={"kind": "none"})
            for backend in pair.rig.backends:
                address = backend.address4 if (family == 4) is not bool(other) else backend.address6
                pair.node.call("backend.add", farm=f"{service}{family}", address=address, port=port)
    wait_until(
        lambda: all(re.search(f"compiled for .*mode {mode}", node.tail(1000)) for node in pair.rig.nodes), f"mode {mode}", 30
    )
    pair.settle()
    yield pair
    pair.settle()
    for farm in pair.node.call("farm.list"):
        pair.node.call("farm.delete", name=farm["name"])


@pytest.mark.parametrize("family", [4, 6])
def test_transfers_and_datagrams(site: PairSite, family: int) -> None:
    """Both directions byte by byte. The client's segments are of its own MTU at first, which ipip has not."""
    client, before = site.rig.client, site.counters()
    wait_until(lambda: site.tcp(family).backend, "the first answer", 10)
    assert client.run(transfer(VIPS[family], PORTS["tcp"], TRANSFER_BYTES, number=family)) == (TRANSFER_BYTES, 0)
    backends = set()
    for number in range(6):
        answer = client.run(udp_exchange(VIPS[family], ECHO_PORT, bytes(number * 200), 2, 20_000 + number))
        assert answer.error == ""
        assert answer.peer == f"{CLIENTS[family]} {20_000 + number}"
        backends.add(answer.backend)
    assert len(backends) > 1
    moved = {name: number - before[name] for name, number in site.counters().items() if number > before[name]}
    dropped = {name for name in moved if name.startswith("drop_")}
    assert dropped <= {"drop_no_tunnel_source", "drop_unresolved"}, moved  # before the first answer
    assert moved["forward_tx"] > TRANSFER_BYTES // 1500
    found = site.node.call("conn.list", farm=f"tcp{family}")["connections"]
    assert found and {each["mode"] for each in found} == {site.node.call("farm.show", name=f"tcp{family}")["mode"]}
    assert all(each["backend_sees"] == each["client"] for each in found)


def test_the_connections_stay_when_the_vips_move(site: PairSite) -> None:
    """Round robin: a node without their entries could not tell their backends. One takeover, elsewhere a switchover."""
    with site.holding(HELD, 4) as four, site.holding(HELD, 6) as six:
        former, other = site.node, site.other
        by_takeover = site.node.call("farm.show", name="tcp4")["mode"] == "dsr"
        if by_takeover:
            former.kill()
        else:
            site.node.call("cluster.switchover")
        wait_until(lambda: site.status(other)["role"] == "active", "the VIPs to move", 10)
        for held in (four, six):
            assert site.rig.client.run(held.confirm()) == 0, held.broken
            assert held.wrong_bytes == 0
        if by_takeover:
            former.start()
        site.settle()
        assert site.node is other
