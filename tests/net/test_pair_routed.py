"""Backends whose return path is through the pair: their gateway is a floating address, and moves with the VIPs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.faults import FAULTS, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.rig import CLIENT4, Layout
from tests.wait import wait_until

HELD = 50
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
OUTAGE_MS = 1000
WIRINGS = {
    "dnat-one-interface": (Layout(backends=2, nodes=2, routed=True), "10.77.0.200", "eth0", f"{CLIENT4}/32"),
    "snat-two-interfaces": (Layout(backends=2, nodes=2, interfaces=2), "10.88.0.200", "eth1", "default"),
    "dnat-two-interfaces": (Layout(backends=2, nodes=2, interfaces=2, routed=True), "10.88.0.200", "eth1", "default"),
}


@pytest.fixture(scope="module", params=WIRINGS)
def site(request: pytest.FixtureRequest) -> Iterator[PairSite]:
    layout, gateway, device, destination = WIRINGS[request.param]
    with paired(layout, TIMES) as pair:
        pair.node.call("vip.add", address=f"{gateway}/24", device=device)
        for backend in pair.rig.backends:
            backend.namespace.ip(f"route replace {destination} via {gateway}")
        pair.add_farm("tcp")
        with ProbeFarm(pair.rig, pair.node):
            yield pair


@pytest.mark.parametrize("name", ["silent cut", "kill -9", "SIGSTOP", "switchover"])
def test_the_return_path_moves_with_the_vips(site: PairSite, name: str) -> None:
    fault = FAULTS[name]
    with site.holding(HELD) as held:
        struck, other = site.node, site.other
        with Observer(site.rig, held) as observer:
            observer.strike(fault, struck)
            cost = observer.cost()
        fault.heal(site.rig, struck)
        assert cost.harmless, cost
        assert cost.outage_ms < OUTAGE_MS, cost
        wait_until(lambda: site.status(struck)["role"] == "backup", f"{struck.name} steps back")
        site.settle()
        assert site.node is other
