"""The lower devices of an interface."""

from __future__ import annotations

from ctl.network.kernel.messages import Link
from ctl.network.kernel.offloads import devices_below


def stacked(name: str, index: int, below: int = 0, above: int = 0) -> Link:
    return Link(False, index, name, True, True, "", 1500, 0, "", below, above)


BOND = [stacked("eth0", 2, above=4), stacked("eth1", 3, above=4), stacked("bond0", 4), stacked("bond0.7", 5, below=4)]


def test_ports_and_members_are_below_through_every_level() -> None:
    assert devices_below("bond0.7", BOND) == ["bond0", "eth0", "eth1"]
    assert devices_below("bond0", BOND) == ["eth0", "eth1"]
    assert devices_below("eth0", BOND) == []


def test_a_missing_interface_has_no_lower_devices() -> None:
    assert devices_below("eth9", BOND) == []
    assert devices_below("lost0", [stacked("lost0", 2, below=77)]) == []


def test_a_circle_ends() -> None:
    circle = [stacked("one", 1, below=2), stacked("two", 2, below=1), stacked("three", 3, above=2)]
    assert devices_below("one", circle) == ["two", "three"]
