"""Somebody on the data network advertises in the name of a node: new words without the keys, and old words of that node.

Decides nothing about roles: whatever is sent, the pair behaves as without it, and counts.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from sync.vrrp import codec
from tests.net.faults import FAULTS, Fault, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.rig import Layout, Node, Rig
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
INTERVAL_S = 0.2
ROUTER_ID = 51
OUTAGE_MS = 1000
HELD = 50
ADDRESSES = {4: "10.77.0.", 6: "fd77::"}
VIP = {4: "10.77.0.100", 6: "fd77::100"}
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4


class Forger:
    """Sends to both nodes, five times a second each: unsigned and wrongly signed advertisements of priority 255 and everything
    that either has sent. Use as a context manager. `listen` first: what is replayed must have been sent before."""

    def __init__(self, rig: Rig, family: int) -> None:
        self._rig, self._family = rig, family
        self._addresses = [f"{ADDRESSES[family]}{number}" for number in (1, 2)]
        self._captured: dict[int, list[bytes]] = {0: [], 1: []}
        self._done = threading.Event()
        self._mac = rig.client.namespace.mac("eth0")
        self._threads = [threading.Thread(target=rig.switch.call, args=(self._listen,), daemon=True)]
        self._threads[0].start()
        self.sent = 0

    def _listen(self) -> None:
        """What each node gets on its port of the switch."""
        sockets = {}
        for index, node in enumerate(self._rig.nodes):
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            one.bind((f"{node.name}-eth0", _ETH_P_ALL))
            sockets[one] = index
        while not self._done.is_set():
            for one in select.select(list(sockets), [], [], 0.1)[0]:
                try:
                    frame, address = one.recvfrom(2048)
                except OSError:
                    continue  # the port is down
                protocol = frame[23] if frame[12:14] == b"\x08\x00" else frame[20] if frame[12:14] == b"\x86\xdd" else 0
                if protocol == codec.PROTOCOL and address[2] == _PACKET_OUTGOING:
                    self._captured[sockets[one]].append(frame)
        for one in sockets:
            one.close()

    @property
    def heard(self) -> list[int]:
        """How many frames were captured for each node."""
        return [len(frames) for frames in self._captured.values()]

    def __enter__(self) -> Self:
        self._old = {index: [self._as_ours(frame) for frame in frames[-400:]] for index, frames in self._captured.items()}
        self._threads.append(threading.Thread(target=self._rig.client.namespace.call, args=(self._send,), daemon=True))
        self._threads[-1].start()
        return self

    def _as_ours(self, frame: bytes) -> bytes:
        """From the forger's own MAC: otherwise the switch would learn the victim's at the forger's port."""
        return frame[:6] + self._mac + frame[12:]

    def _send(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))
            turn = 0
            while not self._done.wait(INTERVAL_S):
                for index in (0, 1):
                    frames = [self._forged(index, None), self._forged(index, bytes([1, 1]) + bytes(26))]
                    old = self._old[index]
                    frames += [old[(turn * 3 + step) % len(old)] for step in range(3)] if old else []
                    for frame in frames:
                        link.send(frame)
                        self.sent += 1
                turn += 1

    def _forged(self, index: int, trailer: bytes | None) -> bytes:
        target, source = self._addresses[index], self._addresses[1 - index]
        advert = codec.Advertisement(ROUTER_ID, 255, 4, (ipaddress.ip_address(VIP[self._family]),))
        payload = codec.build(advert, source, target, trailer=None if trailer is None else lambda _: trailer)
        ethernet = Ether(src=self._mac, dst=self._rig.nodes[index].namespace.mac("eth0"))
        if self._family == 4:
            return bytes(ethernet / IP(src=source, dst=target, ttl=255, proto=codec.PROTOCOL) / payload)
        return bytes(ethernet / IPv6(src=source, dst=target, hlim=255, nh=codec.PROTOCOL) / payload)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def serving_pair(family: int) -> Iterator[PairSite]:
    with paired(Layout(backends=2, nodes=2), TIMES, data_family=family) as pair:
        pair.add_farm("tcp")
        with ProbeFarm(pair.rig, pair.node):
            yield pair


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with serving_pair(4) as pair:
        yield pair


def forger(pair: PairSite, family: int) -> Forger:
    """One that has captured advertisements of both nodes, of their present incarnations."""
    made = Forger(pair.rig, family)
    pair.settle()
    start = pair.node
    for _ in range(2):
        before = made.heard
        other = pair.rig.nodes.index(pair.other)
        wait_until(lambda: made.heard[other] > before[other] + 10, "advertisements for the backup")  # noqa: B023
        pair.node.call("cluster.switchover")
        pair.settle()
    assert pair.node is start
    return made


def rejected(pair: PairSite, node: Node) -> dict[str, int]:
    found: dict[str, int] = pair.status(node)["advertisements"]["rejected"]
    return found


def warnings(node: Node) -> int:
    return node.log.read_text().count("rejected, without effect")


def test_an_active_node_that_dies_is_replaced_in_time(site: PairSite) -> None:
    check_takeover(site, 4)


def test_an_active_node_that_dies_is_replaced_in_time_where_vrrp_is_spoken_over_ipv6() -> None:
    with serving_pair(6) as pair:
        check_takeover(pair, 6)


def check_takeover(pair: PairSite, family: int) -> None:
    with pair.holding(HELD) as held, forger(pair, family) as forging:
        struck, other = pair.node, pair.other
        wait_until(lambda: all(rejected(pair, other).values()), "each kind to be counted")
        with Observer(pair.rig, held) as observer:
            observer.strike(FAULTS["kill -9"], struck)
            cost = observer.cost()
        assert cost.harmless, cost
        assert cost.outage_ms < OUTAGE_MS, cost
        assert pair.status(other)["role"] == "active"
        assert warnings(other) == 1, other.tail()
        assert forging.sent
        assert "rejected VRRP" in other.xlbctl("cluster", "status").stdout
    struck.start()
    pair.settle()


def test_an_active_node_stays_when_its_peer_dies(site: PairSite) -> None:
    pair = site
    with pair.holding(HELD) as held, forger(pair, 4):
        serving, other = pair.node, pair.other
        epoch = pair.status(serving)["epoch"]
        with Observer(pair.rig, held) as observer:
            observer.strike(Fault("peer dies", lambda rig, node: other.kill(), moves=False), serving, good_after=1000)
            cost = observer.cost()
        status = pair.status(serving)
        assert (status["role"], status["epoch"]) == ("active", epoch)
        assert not status["paths"]["data"] and not status["peer"]["alive"]
        assert cost.harmless and cost.failed == 0, cost
    other.start()
    pair.settle()


def test_a_cut_of_the_cluster_link_changes_nothing(site: PairSite) -> None:
    pair = site
    with pair.holding(HELD) as held, forger(pair, 4):
        serving, other = pair.node, pair.other
        epoch, before = pair.status(serving)["epoch"], warnings(serving) + warnings(other)
        cut = Fault("cluster link", lambda rig, node: rig.cut(node.name, "ha0", silently=True), moves=False)
        with Observer(pair.rig, held) as observer:
            observer.strike(cut, serving, good_after=1000)
            assert not pair.status(other)["paths"]["cluster"]
            assert pair.status(other)["paths"]["data"], "the peer's own advertisements still count"
            cost = observer.cost()
        pair.rig.mend(serving.name, "ha0")
        pair.settle()
        assert pair.node is serving and pair.status(serving)["epoch"] == epoch
        assert cost.harmless and cost.failed == 0, cost
        assert rejected(pair, serving)["unsigned"] and rejected(pair, other)["unsigned"]
        assert warnings(serving) + warnings(other) <= before + 2
