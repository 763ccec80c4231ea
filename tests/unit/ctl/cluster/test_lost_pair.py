"""A node whose cluster.json is lost serves nothing, so that its peer serves alone, until an operator decides it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bpf.constants import LEASE_FOREVER_NS
from ctl.errors import Code
from ctl.network.network import InterfaceAddress
from ctl.state.cluster_file import FILE
from ctl.state.epoch_file import EpochState
from ctl.state.lost_pair import why_orphaned
from tests.fakes.pair import in_step, join, site, two_sites
from tests.refusals import refused

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
PAIR = EpochState(4, 1004, nodes="lb1/lb2")
OLD = EpochState(4, 6)
VIP = InterfaceAddress("eth0", "10.0.0.1", 24)


@pytest.mark.parametrize(
    ("epochs", "pair", "lease_epoch", "why"),
    [
        (None, "", 0, ""),
        (PAIR, "ab", 4, "belongs to the pair lb1/lb2; restore cluster.json, or run xlbctl cluster destroy --yes"),
        (PAIR, "", 0, "belongs to the pair lb1/lb2"),
        (None, "ab", 0, "neither cluster.json nor epoch.json"),
        (None, "", 7, "was in a pair (epoch 7)"),
        (OLD, "ab", 0, ""),  # 0.1.0 left this behind when its pair was destroyed
        (OLD, "ab", 6, "was in a pair (epoch 6)"),
    ],
)
def test_what_remembers_the_pair(epochs: EpochState | None, pair: str, lease_epoch: int, why: str) -> None:
    found = why_orphaned(epochs, pair, lease_epoch)
    assert why in found if why else not found


def lose_the_pair_file(state_dir: Path) -> None:
    (state_dir / FILE).unlink()


def lose_everything(state_dir: Path) -> None:
    shutil.rmtree(state_dir)


@pytest.mark.parametrize("lose", [lose_the_pair_file, lose_everything])
def test_a_node_that_lost_its_pair_serves_nothing_and_says_why(
    tmp_path: Path, lose: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        join(one, two)
        in_step(one, two)
        one.call("vip.add", address="10.0.0.1/24", device="eth0")
        plane = one.daemon.plane
    lose(one.directory / "state")
    with site(tmp_path / "1", "lb1", one.address, FAST, plane) as again:
        status = again.status
        assert (status["role"], status["lease_ms_left"], status["peer"]) == ("fault", 0, None)
        assert "cluster destroy --yes" in status["why"] and status["why"] in caplog.text
        assert plane.lease()[0] == 0 and VIP not in again.daemon.network.present
        assert again.call("status")["check"]["exit_code"] == 2
        for command, arguments in (
            ("vip.add", {"address": "10.0.0.2/24", "device": "eth0"}),
            ("cluster.create", {"local": one.address, "peer": two.address}),
            ("cluster.switchover", {}),
        ):
            with refused(Code.PAIR_LOST):
                again.call(command, **arguments)
        ended = again.call("cluster.destroy")
        assert ended["serves"] and "cluster destroy there" in ended["warning"]
        assert again.status["role"] == "single" and plane.lease() == (LEASE_FOREVER_NS, 0)
        again.call("vip.add", address="10.0.0.3/24", device="eth0")
    with site(tmp_path / "1", "lb1", one.address, FAST, plane) as alone:
        assert alone.status["role"] == "single" and "10.0.0.3" in {each["address"] for each in alone.call("vip.list")}


def test_a_pair_that_was_destroyed_leaves_two_single_nodes(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        join(one, two)
        in_step(one, two)
        one.call("cluster.destroy")
    for number, each in ((1, one), (2, two)):
        with site(tmp_path / str(number), f"lb{number}", each.address, FAST, each.daemon.plane) as again:
            assert again.status["role"] == "single"
