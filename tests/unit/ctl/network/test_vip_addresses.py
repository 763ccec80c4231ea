"""Addresses of the node that a VIP carries: whatever removes the VIP, they stay."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import MappingProxyType

import pytest

from ctl.config.model import Config, Vip
from ctl.network import announcer
from ctl.network.announcer import Announcer
from ctl.network.network import InterfaceAddress
from ctl.network.reconcile import RestoreAddress
from ctl.network.vip_addresses import BATCH, VipAddresses
from tests.fakes.network import FakeNetwork
from tests.wait import wait_until_async

VIP, OWN = InterfaceAddress("eth0", "10.7.0.100", 24), InterfaceAddress("eth0", "10.7.0.1", 24)
CONFIG = Config(vips=MappingProxyType({VIP.address: Vip(VIP.address, 24, "eth0")}))


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


def serving(network: FakeNetwork, directory: Path) -> VipAddresses:
    """With the VIP as the primary address of a kernel that does not promote secondaries."""
    vips = VipAddresses(network, directory)
    vips.pair(serving=True)
    vips.follow(CONFIG)
    network.present.add(OWN)
    network.secondary, network.carried = {OWN}, {VIP: {OWN}}
    vips.follow(CONFIG)  # the reconciler sees it
    return vips


def test_a_takeover_by_the_peer(network: FakeNetwork, tmp_path: Path) -> None:
    vips = serving(network, tmp_path)
    list(vips.stop_serving())
    assert network.present == set(), "the kernel removed both"
    assert vips.follow(CONFIG) == [RestoreAddress(OWN)]
    assert network.present == {OWN}
    network.present.clear()
    assert vips.follow(CONFIG) == [], "what goes later is not xlb's doing"


@pytest.mark.parametrize("how", ["vip delete", "withdraw", "backup"])
def test_whatever_else_removes_the_vip(network: FakeNetwork, tmp_path: Path, how: str) -> None:
    vips = serving(network, tmp_path)
    if how == "vip delete":
        vips.follow(Config())
    elif how == "withdraw":
        vips.withdraw()
    else:
        vips.pair(serving=False)
        vips.follow(CONFIG)
    assert network.present == {OWN}


def test_nothing_is_said_about_vips_that_are_being_moved(network: FakeNetwork, tmp_path: Path) -> None:
    vips = serving(network, tmp_path)
    moving = vips.stop_serving()
    next(moving)
    assert vips.desired(CONFIG) is None
    del moving
    assert vips.desired(CONFIG) is not None
    closed = VipAddresses(network, tmp_path, lease_open=lambda: False)
    assert closed.desired(CONFIG) is None, "a lease must be opened first"


def test_announcements_continue_while_this_node_serves(
    network: FakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "SPACING_S", 0.0)
    vips = VipAddresses(network, tmp_path)
    vips.follow(CONFIG)
    network.announced.clear()

    async def scenario() -> None:
        turn = Announcer(vips, 0.005)
        task = asyncio.ensure_future(turn.run())
        await wait_until_async(lambda: turn.rounds >= 3, "three rounds")
        assert network.announced[:3] == [VIP] * 3
        vips.pair(serving=False)
        turn.soon()
        await wait_until_async(lambda: not turn._wake.is_set(), "the next round")
        network.announced.clear()
        turn.soon()
        await wait_until_async(lambda: not turn._wake.is_set(), "the next round")
        assert network.announced == [], "a backup announces nothing"
        task.cancel()

    asyncio.run(scenario())


def test_the_rate_of_announcements_is_bounded(network: FakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "SPACING_S", 1000.0)
    numbers = [f"10.8.{number // 200}.{number % 200}" for number in range(3 * BATCH)]
    vips = VipAddresses(network, tmp_path)
    vips.follow(Config(vips=MappingProxyType({address: Vip(address, 16, "eth0") for address in numbers})))
    network.announced.clear()

    async def scenario() -> None:
        task = asyncio.ensure_future(Announcer(vips, 0.001).run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(network.announced) == BATCH, "a batch, then a pause"
        task.cancel()

    asyncio.run(scenario())
