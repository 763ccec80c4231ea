"""Frames the kernel joins before XDP in generic mode sees them: what is too long for the wire must not reach it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctl.network.kernel import offloads
from ctl.network.kernel.kernel_network import KernelNetwork
from tests.net.serving import PORTS, VIPS, Serving
from tests.rig import Layout, Rig, transfer
from tests.rig.namespaces import Namespace
from tests.wait import wait_until

LENGTH = 5_000_000


both = pytest.mark.parametrize("site", [("eth0", False), ("wire0", True)], ids=["interface", "its-port"], indirect=True)
port = pytest.mark.parametrize("site", [("wire0", True)], ids=["its-port"], indirect=True)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """The data interface, or the device it lies over, joins frames when xlbd starts."""
    device, plain_driver = request.param
    with Rig(Layout(backends=1, xdp_mode="generic", plain_driver=plain_driver)) as rig:
        rig.node.namespace.run("ethtool", "-K", device, "gro", "on")
        rig.node.start()
        yield Serving(rig)


@both
def test_large_transfers_arrive_although_frames_were_joined_before(site: Serving) -> None:
    for family in (4, 6):
        site.add_farm("tcp", family)
        assert site.rig.client.run(transfer(VIPS[family], PORTS["tcp"], LENGTH, number=family), 20) == (LENGTH, 0)
    assert site.counters()["forward_too_big"] == 0
    assert [finding for finding in site.node.call("doctor") if "joins" in finding["message"]] == []
    if site.rig.layout.plain_driver:
        assert "switched rx-gro off on wire0" in site.node.tail()
        site.node.namespace.run("ethtool", "-K", "wire0", "gro", "on")
        (finding,) = [finding for finding in site.node.call("doctor") if "joins" in finding["message"]]
        assert not finding["ok"]
        site.node.namespace.run("sh", "-c", finding["remedy"])
        assert [finding for finding in site.node.call("doctor") if "joins" in finding["message"]] == []


@port
def test_an_interface_that_comes_back_over_a_joining_port_is_seen_to(site: Serving) -> None:
    namespace = site.node.namespace
    namespace.ip("link delete eth0")
    namespace.run("ethtool", "-K", "wire0", "gro", "on")
    namespace.ip("link add eth0 link wire0 type macvlan mode bridge", "link set eth0 up")
    wait_until(lambda: namespace.call(lambda: offloads.joining(["wire0"])) == {}, "joining switched off again")


def test_members_of_a_bridge_are_found_and_another_hosts_end_is_not() -> None:
    here, there = Namespace("here"), Namespace("there")
    try:
        here.ip("link add br0 type bridge", "link add p0 type veth peer name q0", "link set p0 master br0")
        here.ip(f"link add p1 type veth peer name q1 netns {there.path}", "link set p1 master br0")
        for device in ("p0", "p1", "q0"):
            here.run("ethtool", "-K", device, "gro", "on")
        network = KernelNetwork()
        messages = here.call(lambda: network.keep_frames_whole(["br0", "p0"]))
        assert sorted(message.split(":")[0] for message in messages) == [
            "switched rx-gro off on p0",
            "switched rx-gro off on p1",
        ]
        assert here.call(lambda: network.joining_frames(["br0"])) == {}
        assert here.call(lambda: offloads.joining(["q0", "gone0"])) == {"q0": ["rx-gro"]}
    finally:
        here.close()
        there.close()


def test_tags_that_a_driver_takes_out_of_frames_are_left_in() -> None:
    """As for VLAN devices whose frames the program handles on the interface below."""
    here = Namespace("tags")
    try:
        here.ip("link add p0 type veth peer name q0")
        network = KernelNetwork()
        before = here.call(lambda: network.stripping_tags(["p0", "q0", "gone0"]))
        assert before == {"p0": ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"], "q0": before["p0"]}
        (message,) = here.call(lambda: network.keep_tags(["p0", "gone0"]))
        assert message.startswith("switched rx-vlan-hw-parse, rx-vlan-stag-hw-parse off on p0")
        assert set(here.call(lambda: network.stripping_tags(["p0", "q0"]))) == {"q0"}
        assert here.call(lambda: network.keep_tags(["p0"])) == []
    finally:
        here.close()
