"""Persistence and TOA in a pair: a client's backend is the same after a takeover, with no connection of the client left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS, VIPS
from tests.rig import CLIENT4, CLIENT6, VIP6, Layout, Node
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
CLIENTS = {4: CLIENT4, 6: CLIENT6}


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(Layout(nodes=2), TIMES) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        for family in (4, 6):
            pair.add_farm("http", family, scheduler="roundrobin", persistence_s=300, toa=True)
        pair.settle()
        yield pair


def explained(node: Node, family: int) -> dict[str, Any]:
    """`conn show` of a connection that the client has not opened."""
    ends = {"source": CLIENTS[family], "destination": VIPS[family]}
    answer: dict[str, Any] = node.call("conn.show", **ends, source_port=5, destination_port=PORTS["http"])
    return answer


def keeps(node: Node, family: int) -> str:
    """The backend that the client keeps, as the node's maps have it; empty: none."""
    steps = [step for step in explained(node, family)["steps"] if step.startswith("persistence")]
    assert len(steps) == 1
    found = re.search(r" keeps (\S+) \(", steps[0])
    return found[1] if found else ""


def test_a_server_without_a_module_ignores_the_option_with_the_clients_address(site: PairSite) -> None:
    for family in (4, 6):
        before = site.counters()["event_toa_inserted"]
        assert site.http(family).status == 200
        assert site.counters()["event_toa_inserted"] > before


def test_a_client_keeps_its_backend_through_a_takeover(site: PairSite) -> None:
    before = {family: {site.http(family).backend for _ in range(4)} for family in (4, 6)}
    assert all(len(each) == 1 for each in before.values())
    for family in (4, 6):
        wait_until(partial(keeps, site.other, family), "the backup has the entry")
        assert keeps(site.other, family) == keeps(site.node, family)
    site.node.call("conn.flush")
    struck = site.node
    struck.kill()
    wait_until(lambda: site.other.call("cluster.status")["role"] == "active", "the backup is active")
    # Left dead, to save the time of another start.
    after = {family: {site.http(family).backend for _ in range(4)} for family in (4, 6)}
    assert after == before
