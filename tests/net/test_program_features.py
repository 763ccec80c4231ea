"""A change that needs a feature replaces the program under living connections; here on both nodes of a pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.paired import PairSite, paired
from tests.net.serving import drops, program
from tests.rig import Layout, Node
from tests.wait import wait_until

HELD = 100
COARSE_MS = 20
"""Of the clock that the lease is compared with, and of what a loop does in a turn."""
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(Layout(backends=2, nodes=2), TIMES) as pair:
        pair.add_farm("tcp")
        yield pair


def test_a_feature_is_added_on_both_nodes(site: PairSite) -> None:
    with site.holding(HELD) as held:
        dropped, before = drops(site), {node.name: program(node) for node in site.rig.nodes}
        fenced = site.counters()["drop_fenced"]
        epoch = site.status(site.node)["epoch"]
        done = site.node.xlbctl("farm", "set", "tcp4", "--toa")
        assert "compiled the program for toa" in done.stderr
        wait_until(lambda: program(site.other) != before[site.other.name], "the backup's program", 60)
        assert program(site.node) != before[site.node.name]
        assert site.rig.client.run(held.confirm()) == 0 and drops(site) == dropped
        assert site.status(site.node)["epoch"] == epoch, "the lease was renewed all the time"
        late_ms = sum(node.call("status")["loop_lag_ms"] for node in site.rig.nodes)
        in_time = late_ms < TIMES["lease_ms"] - TIMES["heartbeat_ms"] - COARSE_MS
        assert site.counters()["drop_fenced"] == fenced or not in_time, "compiling itself costs no lease"
        taken_over_by(site)
        assert site.rig.client.run(held.confirm()) == 0
        assert (held.broken, held.wrong_bytes) == ([], 0)
        assert site.tcp().backend


def test_what_does_not_compile_is_refused_by_the_active_node_and_a_fault_of_the_backup(site: PairSite) -> None:
    """Refused, nothing changes on either node. On the backup its maps follow as far as its program can."""
    active, backup, change = site.node, site.other, ("farm", "set", "tcp4", "--max-rate", "10000")
    with site.holding(HELD) as held:
        dropped, before = drops(site), site.node.call("config.export")
        programs = [program(node) for node in (active, backup)]
        active.break_compiler()
        backup.break_compiler()
        refusal = backup.xlbctl(*change, expect=1).stderr
        assert f"the program for max_rate cannot be used on {active.name}: compiling" in refusal and "types.h" in refusal
        assert [node.call("config.export") for node in site.rig.nodes] == [before, before]
        assert [program(node) for node in (active, backup)] == programs and site.node is active
        assert [site.status(node)["faults"] for node in site.rig.nodes] == [[], []]
        assert site.rig.client.run(held.confirm()) == 0 and drops(site) == dropped
        active.repair_compiler()
        done = backup.xlbctl(*change)
        assert f"{backup.name} is not ready to take over with it: the program for max_rate cannot be used" in done.stderr
        wait_until(lambda: "max_rate" in str(site.status(backup)["faults"]), "the fault of the backup")
        assert program(backup) == programs[1] and program(active) != programs[0]
        assert site.status(active)["role"] == "active" and site.rig.client.run(held.confirm()) == 0
        backup.repair_compiler()
        active.xlbctl("farm", "set", "tcp4", "--max-half-open", "10000")
        wait_until(lambda: not site.status(backup)["faults"], "the end of the fault with the next change that compiles")
        assert program(backup) != programs[1]
        taken_over_by(site)
        assert site.rig.client.run(held.confirm()) == 0
        assert (held.broken, held.wrong_bytes) == ([], 0) and site.tcp().backend


def taken_over_by(site: PairSite) -> Node:
    """The backup, which is active now."""
    site.settle()
    other = site.other
    other.xlbctl("cluster", "switchover")
    site.settle()
    assert site.node is other
    return other
