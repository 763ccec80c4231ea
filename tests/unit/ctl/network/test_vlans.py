"""Which VLAN devices are handled on the interface below them, and what the program is told of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpf.constants import MAX_INTERFACES
from bpf.dataplane import Vlan
from ctl.network import vlans
from ctl.network.network import Interface

OURS, OTHERS = 7, 8
ETH0 = Interface("eth0", 2, "02:00:00:00:00:02", 1500, True, True, "virtio_net", OURS, "native")
ETH1 = Interface("eth1", 3, "02:00:00:00:00:03", 1500, True, True, "virtio_net", OURS, "native")
V100 = Interface("eth0.100", 9, ETH0.mac, 1496, True, True, "802.1Q VLAN Support", 0, "", 2, "vlan", 100, 0x8100)
V200 = replace(V100, name="v200", index=10, lower=3, vlan_id=200, vlan_protocol=0x88A8)


def links(*changed: Interface) -> dict[str, Interface]:
    return {each.name: each for each in (ETH0, ETH1, V100, V200, *changed)}


def test_a_vlan_device_is_handled_on_the_interface_below() -> None:
    planned = vlans.plan(("eth0.100", "eth1", "v200", "gone0"), links())
    assert planned.devices == {"eth0.100": "eth0", "eth1": "eth1", "v200": "eth1"}
    assert planned.vlans == {"eth0.100", "v200"} and not planned.why


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (replace(V100, lower=0), "another network namespace"),
        (replace(V100, lower=77), "another network namespace"),
        (replace(ETH0, kind="bond"), "eth0 below it is of kind bond"),
        (replace(ETH0, kind="vlan", vlan_id=5, vlan_protocol=0x88A8), "of kind vlan"),
        (replace(ETH0, kind="macvlan"), "of kind macvlan"),
        (replace(V100, vlan_id=0), "VLAN 0"),
        (replace(V100, index=MAX_INTERFACES), "indexes from 65536"),
        (replace(ETH0, index=MAX_INTERFACES + 1), "another network namespace"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_unusual_one_is_handled_on_itself(changed: Interface, why: str) -> None:
    planned = vlans.plan(("eth0.100",), links(changed))
    assert planned.devices == {"eth0.100": "eth0.100"} and not planned.vlans
    assert why in planned.why["eth0.100"]


@pytest.mark.parametrize("kind", ["", "veth"])
def test_hardware_and_veth_may_be_below(kind: str) -> None:
    assert vlans.plan(("eth0.100",), links(replace(ETH0, kind=kind))).vlans == {"eth0.100"}


def test_the_maps_follow_index_number_and_protocol() -> None:
    names = ("eth0.100", "eth1", "v200")
    wanted, untagged = vlans.maps(names, links(), {"eth0.100", "v200"})
    assert wanted == {Vlan(9, 2, 100, 0x8100), Vlan(10, 3, 200, 0x88A8)}
    assert untagged == {3}, "untagged frames of eth0 are the kernel's"
    again, _ = vlans.maps(names, links(replace(V100, index=44, vlan_id=101)), {"eth0.100"})
    assert again == {Vlan(44, 2, 101, 0x8100)}


def test_a_vlan_device_that_is_down_or_gone_gets_no_frames() -> None:
    assert vlans.maps(("eth0.100",), links(replace(V100, up=False)), {"eth0.100"}) == (frozenset(), frozenset())
    assert vlans.maps(("eth0.100",), {"eth0": ETH0}, {"eth0.100"}) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("changed", "handled"),
    [
        (V100, True),
        (replace(ETH0, xdp_program=0, xdp_mode=""), False),
        (replace(ETH0, xdp_program=OTHERS), False),
        (replace(ETH0, xdp_mode="generic"), False),
        (replace(V100, xdp_program=OURS, xdp_mode="generic"), False),
        (replace(V100, xdp_program=OTHERS, xdp_mode="generic"), False),
    ],
)
def test_it_is_handled_below_only_by_our_program_in_native_mode(changed: Interface, handled: bool) -> None:
    seen = vlans.as_handled(("eth0.100",), links(changed), {OURS})["eth0.100"]
    assert ("eth0.100" in vlans.handled_below(("eth0.100",), links(changed), {OURS})) is handled
    expected = links(changed)["eth0.100"]
    if handled:
        expected = replace(expected, xdp_program=OURS, xdp_mode="native", driver="virtio_net")
    assert seen == expected


def test_interfaces_with_vlan_devices_above_need_tags() -> None:
    eth2 = replace(ETH1, name="eth2", index=4)
    assert vlans.need_tags({"eth0", "eth1", "eth2", "gone0"}, links(eth2)) == ["eth0", "eth1"]
