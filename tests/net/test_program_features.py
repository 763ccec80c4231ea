"""A change that needs a feature replaces the program under living connections; here on both nodes of a pair."""

from __future__ import annotations

from tests.net.paired import PairSite, paired
from tests.net.serving import drops, program
from tests.rig import Layout, Node
from tests.wait import wait_until

HELD = 100
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}


def test_a_pair() -> None:
    with paired(Layout(backends=2, nodes=2), TIMES) as site:
        site.add_farm("tcp")
        with site.holding(HELD) as held:
            dropped, before = drops(site), {node.name: program(node) for node in site.rig.nodes}
            epoch = site.status(site.node)["epoch"]
            done = site.node.xlbctl("farm", "set", "tcp4", "--toa")
            assert "compiled the program for toa" in done.stderr
            wait_until(lambda: program(site.other) != before[site.other.name], "the backup's program", 60)
            assert program(site.node) != before[site.node.name]
            assert site.rig.client.run(held.confirm()) == 0 and drops(site) == dropped
            assert site.status(site.node)["epoch"] == epoch, "the lease was renewed all the time"
            taken_over_by(site)
            assert site.rig.client.run(held.confirm()) == 0
            assert (held.broken, held.wrong_bytes) == ([], 0)
            assert site.tcp().backend


def taken_over_by(site: PairSite) -> Node:
    """The backup, which is active now."""
    site.settle()
    other = site.other
    other.xlbctl("cluster", "switchover")
    site.settle()
    assert site.node is other
    return other
