"""A single node never announces a VIP that another machine answers for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctl.errors import Code
from tests.net.serving import VIPS
from tests.refusals import refused
from tests.rig import Rig, why_not
from tests.wait import wait_until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PREFIX = {4: 24, 6: 64}
FREE = {4: "10.77.0.200", 6: "fd77::200"}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.node.start()
        yield made


@pytest.mark.parametrize("family", [4, 6])
def test_a_vip_in_use_is_refused_when_it_is_new_and_waits_when_it_is_stored(rig: Rig, family: int) -> None:
    node, stranger, vip = rig.node, rig.backends[0].namespace, f"{VIPS[family]}/{PREFIX[family]}"
    stranger.ip(f"addr add {vip} dev eth0 nodad")
    with refused(Code.ADDRESS_IN_USE) as caught:
        node.call("vip.add", address=vip, device="eth0")
    assert stranger.mac("eth0").hex(":") in str(caught.value)
    assert node.call("vip.list") == [] and vip not in node.namespace.run("ip", "address").stdout
    stranger.ip(f"addr del {vip} dev eth0")
    node.call("vip.add", address=vip, device="eth0")
    assert node.stop() == 0
    node.namespace.ip(f"addr del {vip} dev eth0")  # a reboot
    stranger.ip(f"addr add {vip} dev eth0 nodad")
    node.start()
    assert f"vip {VIPS[family]} is in use" in node.tail() and vip not in node.namespace.run("ip", "address").stdout
    node.call("vip.add", address=f"{FREE[family]}/{PREFIX[family]}", device="eth0")  # others are added all the same
    stranger.ip(f"addr del {vip} dev eth0")
    wait_until(lambda: vip in node.namespace.run("ip", "address").stdout, "the VIP that is free again to be added", 20)
    for each in node.call("vip.list"):
        node.call("vip.delete", address=each["address"])
