"""A pair with a gateway as tie-breaker: of two nodes without contact, only the one that reaches it becomes active."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.faults import FAULTS, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.rig import HeldConnections, Layout
from tests.wait import wait_until

HELD = 50
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
OUTAGE_MS = 1000
LONG_MS = 10 * TIMES["takeover_ms"]
GATEWAY = "10.77.0.254"
"""A second address of the client, which can be removed while the client continues."""


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(Layout(backends=2, nodes=2), TIMES | {"gateway": GATEWAY}) as pair:
        pair.rig.client.namespace.ip(f"addr add {GATEWAY}/24 dev eth0")
        pair.add_farm("tcp")
        wait_until(lambda: all(pair.status(node)["vote"]["can_be_asked"] for node in pair.rig.nodes), "votes of the gateway")
        with ProbeFarm(pair.rig, pair.node):
            yield pair


@pytest.fixture
def held(site: PairSite) -> Iterator[HeldConnections]:
    with site.holding(HELD) as connections:
        yield connections


@pytest.mark.parametrize("name", ["silent cut", "kill -9", "SIGSTOP", "switchover"])
def test_the_vips_move_with_the_vote(site: PairSite, held: HeldConnections, name: str) -> None:
    fault, struck, other = FAULTS[name], site.node, site.other
    with Observer(site.rig, held) as observer:
        observer.strike(fault, struck)
        if name == "silent cut":
            wait_until(lambda: site.status(struck)["role"] == "backup", "the isolated node to be the backup")
        fault.heal(site.rig, struck)
        cost = observer.cost()
    assert cost.harmless, cost
    assert cost.outage_ms < OUTAGE_MS, cost
    site.settle()
    assert site.node is other


def test_a_backup_that_is_cut_off_does_not_serve(site: PairSite, held: HeldConnections) -> None:
    serving, other = site.node, site.other
    epoch = site.status(serving)["epoch"]
    site.rig.cut_off(other.name, silently=True)
    wait_until(lambda: site.status(other)["peer"]["last_heard_ms"] > LONG_MS, "silence for long enough to take over")
    assert site.status(other)["role"] == "backup"
    site.rig.mend_all(other.name)
    site.settle()
    assert site.node is serving
    assert site.status(serving)["epoch"] == epoch
    assert site.rig.client.run(held.confirm()) == 0


def test_a_gateway_that_dies_changes_nothing(site: PairSite, held: HeldConnections) -> None:
    serving = site.node
    epoch = site.status(serving)["epoch"]
    host = site.rig.client.namespace
    with Observer(site.rig, held) as observer:
        host.ip(f"addr del {GATEWAY}/24 dev eth0")
        observer.good(2 * LONG_MS)
        host.ip(f"addr add {GATEWAY}/24 dev eth0")
        assert (site.status(serving)["role"], site.status(serving)["epoch"]) == ("active", epoch)
        assert observer.probes.so_far().failed == 0
    site.settle()
    assert site.node is serving
