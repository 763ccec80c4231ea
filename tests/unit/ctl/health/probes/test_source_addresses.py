"""The source address of the node's probes."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import pytest

from ctl.config.model import Config, Vip
from ctl.errors import XlbError
from ctl.health.probes.source_addresses import OwnSources, kernel_source, own_source
from ctl.network.network import InterfaceAddress
from tests.fakes.network import FakeNetwork

VIP = "10.7.0.100"


def at(device: str, address: str, prefix_length: int = 24) -> InterfaceAddress:
    return InterfaceAddress(device, address, prefix_length)


@pytest.mark.parametrize(
    ("target", "addresses", "expected"),
    [
        ("10.7.0.21", [at("eth1", "10.8.0.1"), at("eth0", VIP), at("eth0", "10.7.0.1")], "10.7.0.1"),
        ("10.7.0.21", [at("eth0", VIP), at("lo", "10.9.0.1", 32), at("eth0", "10.6.0.1")], "10.6.0.1"),
        ("10.7.0.21", [at("eth0", VIP), at("lo", "10.9.0.1", 32), at("lo", "127.0.0.1", 8)], "10.9.0.1"),
        ("10.7.0.21", [at("eth0", VIP), at("eth1", "10.8.0.1"), at("lo", "127.0.0.1", 8)], ""),
        ("fd07::21", [at("eth0", "10.7.0.1"), at("eth0", "fe80::1", 64), at("eth0", "fd07::1", 64)], "fd07::1"),
        ("fd07::21", [at("eth0", "10.7.0.1"), at("eth0", "fe80::1", 64)], ""),
    ],
)
def test_the_closest_address_that_is_not_a_vip(target: str, addresses: list[InterfaceAddress], expected: str) -> None:
    assert own_source(target, "eth0", addresses, {VIP}) == expected


def sources(vip: Vip, *present: InterfaceAddress) -> OwnSources:
    network = FakeNetwork()
    network.present = set(present)
    config = Config(vips=MappingProxyType({vip.address: vip}))
    return OwnSources(network, lambda: config)


def test_the_kernels_choice_is_used_unless_it_is_a_guarded_vip() -> None:
    """The kernel's source address for 127.0.0.1 is 127.0.0.1 on every machine."""
    loopback = kernel_source("127.0.0.1")
    assert asyncio.run(sources(Vip(VIP, 24, "eth0")).towards("127.0.0.1")) == ""
    assert asyncio.run(sources(Vip(loopback, 8, "lo", guard=False)).towards("127.0.0.1")) == ""
    assert asyncio.run(sources(Vip(loopback, 8, "lo"), at("lo", "10.7.0.1", 32)).towards("127.0.0.1")) == "10.7.0.1"


def test_an_address_that_is_replaced_is_followed_at_once() -> None:
    network = FakeNetwork()
    loopback = kernel_source("127.0.0.1")
    config = Config(vips=MappingProxyType({loopback: Vip(loopback, 8, "lo")}))
    chosen = OwnSources(network, lambda: config)
    for address in ("10.7.0.1", "10.7.0.2"):  # no addresses of this machine, so that a bind to them fails
        network.present = {at("lo", address, 32)}
        assert chosen.look("127.0.0.1") == address


def test_a_node_with_vips_only_gets_a_remedy() -> None:
    lonely = sources(Vip("127.0.0.1", 8, "lo"))
    with pytest.raises(XlbError, match=r"lo has only VIPs.*ip address add ADDRESS/PREFIX dev lo"):
        asyncio.run(lonely.towards("127.0.0.1"))


def test_a_missing_route_is_reported_by_the_probe() -> None:
    assert kernel_source("255.255.255.255") == ""
