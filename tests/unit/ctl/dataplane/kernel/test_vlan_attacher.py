"""Attaching for VLAN devices: below them where that is possible, on themselves where it is not, and what the program knows."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from bpf.dataplane import PlaneError, Vlan
from bpf.kernel.attach import Attachment, Mode
from ctl.dataplane.features import VLANS
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.network.network import Interface
from ctl.network.reconcile import AttachXdp, Desired, reconcile
from tests.fakes.daemon import PROGRAM, FakeAttacher
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane

NAMES = ("eth0.100", "eth1")
VLAN = Interface("eth0.100", 9, "02:00:00:00:00:02", 1500, True, True, "802.1Q", 0, "", 2, "vlan", 100, 0x8100)
HANDLED = frozenset({Vlan(9, 2, 100)}), frozenset({3})


class Kernel(FakeAttacher):
    """eth0.100 above eth0, and eth1."""

    def __init__(self, mode: Mode = "auto", compiled: bool = True) -> None:
        self.network, self.plane = FakeNetwork(), FakePlane()
        self.network.links["eth0.100"] = VLAN
        super().__init__(self.network, self.plane, mode)
        self.compiled = frozenset({VLANS} if compiled else ())

    def modes(self) -> dict[str, str]:
        return {name: link.xdp_mode for name, link in self.network.links.items() if link.xdp_program}

    def watch(self) -> None:
        self.follow(NAMES, self.network.interfaces(), {PROGRAM})


def test_the_program_is_on_the_interface_below() -> None:
    kernel = Kernel()
    done = kernel.attach(NAMES)
    assert done["eth0.100"] == Attachment("eth0.100", "native", "fake", "", "eth0")
    assert done["eth1"] == Attachment("eth1", "native", "fake", "")
    assert kernel.modes() == {"eth0": "native", "eth1": "native"}
    assert kernel.plane.vlan_maps == HANDLED


def test_an_interface_may_be_balanced_itself_and_below_a_vlan() -> None:
    kernel = Kernel()
    done = kernel.attach(("eth0", "eth0.100"))
    assert [each.device for each in done.values()] == ["", "eth0"]
    assert kernel.plane.vlan_maps == (frozenset({Vlan(9, 2, 100)}), frozenset({2}))


def test_without_vlan_devices_nothing_is_different() -> None:
    kernel = Kernel()
    assert set(kernel.attach(("eth0", "eth1"))) == {"eth0", "eth1"}
    assert kernel.plane.vlan_maps == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda kernel: kernel.refusing.add("eth0"), "native XDP on interface eth0 failed"),
        (lambda kernel: kernel.generic_only.add("eth1"), "native XDP on interface eth1 failed"),
        (lambda kernel: setattr(kernel, "compiled", frozenset()), "not compiled for VLANs, restart xlbd"),
        (lambda kernel: kernel.put("eth1", PROGRAM, "generic"), "eth1 is in generic mode"),
        (
            lambda kernel: (
                kernel.network.stripping.update(eth0=["rx-vlan-hw-parse"]),
                kernel.network.keep_stripping.add("eth0"),
            ),
            "keeps rx-vlan-hw-parse on",
        ),
        (lambda kernel: kernel.network.links.pop("eth0"), "another network namespace"),
    ],
    ids=["refused", "other interface", "not compiled", "generic before", "tags removed", "elsewhere"],
)
def test_where_that_is_not_possible_all_are_in_generic_mode(prepare: object, why: str) -> None:
    kernel = Kernel()
    assert callable(prepare)
    prepare(kernel)
    done = kernel.attach(NAMES)
    assert {name: each.mode for name, each in done.items()} == {"eth0.100": "generic", "eth1": "generic"}
    assert why in done["eth0.100"].reason
    assert kernel.modes() == {"eth0.100": "generic", "eth1": "generic"}
    kernel.watch()
    assert kernel.plane.vlan_maps[0] == frozenset()


def test_the_interface_below_is_left_when_another_one_needs_generic_mode() -> None:
    kernel = Kernel()
    kernel.attach(NAMES)
    kernel.put("eth1", 0, "")
    kernel.generic_only.add("eth1")
    kernel.attach(NAMES)
    assert kernel.modes() == {"eth0.100": "generic", "eth1": "generic"}
    assert kernel.plane.vlan_maps == (frozenset(), frozenset({9, 3}))


@pytest.mark.parametrize(
    ("mode", "refusing", "message"),
    [("native", "eth0", "interface eth0 failed"), ("native", "", "not possible: the interface below"), ("generic", "", "")],
)
def test_the_node_file_may_insist_on_a_mode(mode: Mode, refusing: str, message: str) -> None:
    kernel = Kernel(mode)
    kernel.refusing = {refusing} - {""}
    if mode == "native" and not refusing:
        kernel.network.links["eth0.100"] = replace(kernel.network.links["eth0.100"], lower=0)
    if not message:
        assert {each.mode for each in kernel.attach(NAMES).values()} == {mode}
        return
    with pytest.raises(PlaneError, match=message):
        kernel.attach(NAMES)
    assert "eth0.100" not in kernel.modes()


def test_native_mode_takes_the_program_off_the_vlan_device() -> None:
    kernel = Kernel("native")
    kernel.put("eth0.100", PROGRAM, "generic")
    kernel.attach(NAMES)
    assert kernel.modes() == {"eth0": "native", "eth1": "native"}


def test_everything_is_detached() -> None:
    kernel = Kernel()
    kernel.attach(NAMES)
    assert sorted(kernel.detach(NAMES)) == ["eth0", "eth1"]
    assert kernel.modes() == {}


def test_a_vlan_device_that_is_created_again_is_followed() -> None:
    kernel = Kernel()
    kernel.attach(NAMES)
    bumps = kernel.plane.next_hop_bumps
    kernel.watch()
    assert kernel.plane.next_hop_bumps == bumps, "nothing changed, nothing is written"
    old = kernel.network.links.pop("eth0.100")
    kernel.watch()
    assert kernel.plane.vlan_maps == (frozenset(), frozenset({3}))
    kernel.network.links["eth0.100"] = replace(old, index=44, vlan_id=101)
    kernel.watch()
    assert kernel.plane.vlan_maps == (frozenset({Vlan(44, 2, 101)}), frozenset({3}))


def test_an_offload_that_is_switched_on_again_is_switched_off_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kernel = Kernel()
    kernel.network.stripping["eth0"] = ["rx-vlan-hw-parse"]
    kernel.attach(NAMES)
    assert not kernel.network.stripping
    kernel.network.stripping["eth0"] = ["rx-vlan-hw-parse"]
    kernel.network.keep_stripping.add("eth0")
    caplog.clear()
    for _ in range(3):
        kernel.watch()
    assert len([each for each in caplog.messages if "rx-vlan-hw-parse" in each]) <= 1


# --- what the daemon sees ------------------------------------------------------------------------------------


def interfaces_of(kernel: Kernel, compiled: bool = True) -> DataInterfaces:
    kernel.compiled = frozenset({VLANS} if compiled else ())
    return DataInterfaces(NAMES, kernel, kernel.network)


def repairs(kernel: Kernel, compiled: bool = True) -> list[str]:
    observed = kernel.network.observe(NAMES, ())
    seen = replace(observed, interfaces=interfaces_of(kernel, compiled).as_handled(observed.interfaces))
    found = reconcile(Desired(NAMES, PROGRAM), seen)
    return [each.interface for each in found if isinstance(each, AttachXdp)]


def test_a_vlan_device_counts_as_attached_while_the_interface_below_has_the_program() -> None:
    kernel = Kernel()
    kernel.attach(NAMES)
    assert repairs(kernel) == []
    assert repairs(kernel, compiled=False) == ["eth0.100"]
    found = interfaces_of(kernel).attachments(kernel.network.interfaces())
    assert found["eth0.100"] == Attachment("eth0.100", "native", "fake", "", "eth0")
    assert found["eth1"].device == ""
    for program in (0, 99):  # removed, replaced by another's
        kernel.put("eth0", program, "native" if program else "")
        assert repairs(kernel) == ["eth0.100"]
        assert "eth0.100" not in interfaces_of(kernel).attachments(kernel.network.interfaces())


def test_generic_mode_of_a_vlan_device_puts_the_others_in_generic_mode() -> None:
    kernel = Kernel()
    kernel.put("eth0.100", PROGRAM, "generic")
    kernel.put("eth1", PROGRAM, "native")
    assert repairs(kernel) == ["eth1"]
