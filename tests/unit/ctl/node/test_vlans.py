"""A node that balances a VLAN on the interface below the VLAN device: what it shows, repairs and follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf.dataplane import Vlan
from ctl.dataplane.features import VLANS
from ctl.network.network import Interface
from ctl.node.process import features_of_interfaces
from tests.fakes.cli import run
from tests.fakes.daemon import RunningDaemon, running_daemon, write_node_file
from tests.fakes.network import FakeNetwork
from tests.wait import wait_until

DEVICE = Interface("eth0.100", 9, "02:00:00:00:00:02", 1500, True, True, "802.1Q", 0, "", 2, "vlan", 100, 0x8100)


def node_file(directory: Path) -> None:
    write_node_file(directory)
    path = directory / "node.toml"
    path.write_text(path.read_text().replace('["eth0"]', '["eth0.100"]'))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    node_file(tmp_path)
    network = FakeNetwork()
    network.links["eth0.100"] = DEVICE
    with running_daemon(tmp_path, network=network, compiled=frozenset({VLANS})) as running:
        yield running


def interface(daemon: RunningDaemon) -> dict[str, Any]:
    (found,) = daemon.call("status")["interfaces"]
    assert isinstance(found, dict)
    return found


def findings(daemon: RunningDaemon, name: str) -> list[dict[str, Any]]:
    return [each for each in daemon.call("doctor") if each["name"] == f"interface {name}"]


@pytest.mark.parametrize(
    ("mode", "device", "compiled"),
    [
        ("auto", DEVICE, {VLANS}),
        ("native", DEVICE, {VLANS}),
        ("generic", DEVICE, set()),
        ("auto", replace(DEVICE, lower=0), set()),
        ("auto", replace(DEVICE, kind="", vlan_protocol=0), set()),
    ],
    ids=["auto", "native", "generic", "below elsewhere", "no VLAN"],
)
def test_a_start_compiles_for_vlans_where_one_can_be_handled_below(
    tmp_path: Path, mode: str, device: Interface, compiled: set[str]
) -> None:
    node_file(tmp_path)
    path = tmp_path / "node.toml"
    path.write_text(path.read_text() + f'xdp_mode = "{mode}"\n')
    settings = write_node_file(tmp_path)
    assert features_of_interfaces(settings, {**FakeNetwork().links, "eth0.100": device}) == compiled


def test_status_and_doctor_name_the_interface_below(daemon: RunningDaemon) -> None:
    found = interface(daemon)
    assert (found["name"], found["xdp_mode"], found["device"], found["driver"]) == ("eth0.100", "native", "eth0", "fake")
    code, shown, _ = run("--config", str(daemon.config), "cluster", "status")
    assert code == 0 and "native on eth0, driver fake" in shown
    (finding,) = findings(daemon, "eth0.100")
    assert finding["ok"] and finding["message"] == "native XDP on eth0, driver fake"
    assert daemon.plane.vlan_maps == (frozenset({Vlan(9, 2, 100)}), frozenset())


def test_a_program_that_is_removed_from_the_interface_below_is_attached_again(daemon: RunningDaemon) -> None:
    daemon.attacher.remove("eth0")
    assert interface(daemon)["xdp_mode"] is None
    wait_until(lambda: interface(daemon)["xdp_mode"] == "native", "attached again")
    assert not daemon.network.links["eth0.100"].xdp_program


def test_another_program_on_the_interface_below_leaves_generic_mode(daemon: RunningDaemon) -> None:
    daemon.attacher.refusing = {"eth0"}
    daemon.attacher.remove("eth0", by=99)
    wait_until(lambda: interface(daemon)["xdp_mode"] == "generic", "attached to the VLAN device")
    assert interface(daemon)["device"] == "" and "interface eth0 failed" in interface(daemon)["reason"]
    (finding,) = findings(daemon, "eth0.100")
    assert not finding["ok"]
    wait_until(lambda: daemon.plane.vlan_maps[0] == frozenset(), "no VLAN is handled below")


def test_a_vlan_device_that_comes_back_is_handled_again(daemon: RunningDaemon) -> None:
    del daemon.network.links["eth0.100"]
    wait_until(lambda: daemon.plane.vlan_maps[0] == frozenset(), "forgotten")
    daemon.network.links["eth0.100"] = replace(DEVICE, index=33, vlan_id=101)
    wait_until(lambda: daemon.plane.vlan_maps[0] == {Vlan(33, 2, 101)}, "handled with its index and number")
    assert interface(daemon)["device"] == "eth0"


def test_doctor_names_an_interface_that_takes_tags_out_of_frames(daemon: RunningDaemon) -> None:
    daemon.network.keep_stripping.add("eth0")
    daemon.network.stripping["eth0"] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"]
    (finding,) = findings(daemon, "eth0")
    assert not finding["ok"]
    assert finding["remedy"] == "ethtool -K eth0 rx-vlan-hw-parse off rx-vlan-stag-hw-parse off"
