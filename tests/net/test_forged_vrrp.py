"""Somebody on the data network advertises in the name of a node: new words without the keys, and old words of that node.

Decides nothing about roles: whatever is sent, the pair behaves as without it, and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.net.faults import FAULTS, Fault, Observer, ProbeFarm
from tests.net.forger import Forger
from tests.net.paired import PairSite, paired
from tests.rig import Layout, Node
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
OUTAGE_MS = 1000
HELD = 50


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
