"""The soak itself: a minute's worth of its rounds in seconds, and that it sees what it is to see."""

from __future__ import annotations

import random

import pytest

from tests.net.paired import PairSite, paired
from tests.rig import Layout, why_not
from tests.soak.faults import FAULTS, Stage
from tests.soak.ledger import Ledger

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
QUICK = ("short pause", "switchover", "cut of the data link")


def settled(site: PairSite) -> Stage:
    stage = Stage(site, random.Random(1))
    stage.learn_macs()
    return stage


def test_faults_strike_and_heal_and_the_ledger_agrees() -> None:
    with paired(Layout(nodes=2, backends=1), TIMES) as site:
        stage, ledger = settled(site), Ledger()
        for name in QUICK:
            ledger.change(site.node)
            heal = FAULTS[name].begin(stage, site.node)
            heal()
            site.settle(30)
            assert ledger.judge(site.rig.nodes) == []
        assert ledger.acknowledged == len(QUICK)
        ledger.known["change99"] = True
        ledger.known["change1"] = False
        assert ledger.judge(site.rig.nodes) == [
            "change1 was acknowledged as deleted, and is there",
            "change99 was acknowledged as added, and is not there",
        ]


def test_an_interface_is_re_created_with_another_mac() -> None:
    with paired(Layout(nodes=2, backends=1), TIMES) as site:
        stage = settled(site)
        before = site.other.namespace.mac("eth0")
        FAULTS["interface re-created"].begin(stage, site.other)()
        assert site.other.namespace.mac("eth0") != before
        assert {stage.macs[before], stage.macs[site.other.namespace.mac("eth0")]} == {site.other.name}
        site.settle(30)
