"""From which addresses of this node mode ipip sends, and that they follow the node's addresses."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bpf.dataplane import PlaneError
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.network.network import InterfaceAddress
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane


def configured(mode: str = "ipip", *backends: str) -> Config:
    config = change(Config(), "vip.add", {"address": "10.0.0.100/24", "device": "eth0"})
    config = change(config, "farm.add", {"name": "web", "vip": "10.0.0.100", "port": 80, "mode": mode})
    for backend in backends or ("10.0.0.11", "fd00::11"):
        config = change(config, "backend.add", {"farm": "web", "address": backend, "port": 80})
    return config


def sources(choice: Mapping[str, str], given: tuple[str, ...] = (), own: tuple[InterfaceAddress, ...] = ()) -> TunnelSources:
    network = FakeNetwork()
    network.add_addresses(own)
    return TunnelSources(FakePlane(), network, given, lambda target: choice.get(target, ""))


def test_the_kernels_choice_towards_the_first_backend_with_a_route() -> None:
    config = configured("ipip", "10.0.0.10", "10.0.0.11", "fd00::11")
    found = sources({"10.0.0.11": "10.0.0.1", "fd00::11": "fd00::1"}).look(config)
    assert found == ("10.0.0.1", "fd00::1")
    assert sources({}).look(config) == ("", "")


def test_the_node_file_comes_first() -> None:
    choice = {"10.0.0.11": "10.0.0.1", "fd00::11": "fd00::1"}
    assert sources(choice, ("192.0.2.1",)).look(configured()) == ("192.0.2.1", "fd00::1")
    assert sources(choice, ("fd00::9", "192.0.2.1")).look(configured()) == ("192.0.2.1", "fd00::9")


def test_a_vip_is_no_source() -> None:
    own = (InterfaceAddress("eth0", "10.0.0.100", 24), InterfaceAddress("eth0", "10.0.0.1", 24))
    config = configured("ipip", "10.0.0.11")
    assert sources({"10.0.0.11": "10.0.0.100"}, own=own).look(config) == ("10.0.0.1", "")
    assert sources({"10.0.0.11": "10.0.0.100"}, own=own[:1]).look(config) == ("", "")


@pytest.mark.parametrize("mode", ["snat", "dnat"])
def test_other_modes_need_none(mode: str) -> None:
    assert sources({}).look(configured(mode, "10.0.0.11")) is None


def test_they_are_written_when_they_change() -> None:
    plane = FakePlane()
    tunnel = TunnelSources(plane, FakeNetwork())
    assert not tunnel.write(None) and tunnel.written == {"v4": "", "v6": ""}
    bumps = plane.next_hop_bumps
    assert tunnel.write(("10.0.0.1", "")) and not tunnel.write(("10.0.0.1", ""))
    assert plane.tunnel_sources == ("10.0.0.1", "") and plane.next_hop_bumps == bumps + 1
    assert tunnel.write(("10.0.0.2", "fd00::2")) and plane.tunnel_sources == ("10.0.0.2", "fd00::2")
    assert tunnel.written == {"v4": "10.0.0.2", "v6": "fd00::2"}


def test_a_program_without_the_mode_gets_them_later(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane()
    tunnel = TunnelSources(plane, FakeNetwork())

    def refuse(v4: str, v6: str) -> None:
        raise PlaneError("the program was built without mode ipip")

    with monkeypatch.context() as patch:
        patch.setattr(plane, "set_tunnel_sources", refuse)
        assert not tunnel.write(("10.0.0.1", ""))
    assert tunnel.write(("10.0.0.1", ""))
