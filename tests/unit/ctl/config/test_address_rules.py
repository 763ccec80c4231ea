"""Which addresses a change may add as VIPs and backends."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from ctl.config.address_rules import OwnAddress, check_added, problems
from ctl.config.changes import change
from ctl.config.model import Config, Vip
from ctl.config.record_codec import Encoder, decode
from ctl.errors import Code
from tests.refusals import invalid, refused

OWN = (
    OwnAddress("lb1", "eth0", "10.0.0.11", 24),
    OwnAddress("lb1", "lo", "127.0.0.1", 8),
    OwnAddress("lb2", "eth0", "10.0.0.12", 24),
    OwnAddress("lb2", "eth0", "fd00::12", 64),
    OwnAddress("lb1", "eth1", "10.9.0.1", 31),
)


def with_vips(*vips: str) -> Config:
    """Without the checks of the commands, as an earlier version stored it."""
    made: Mapping[str, Vip] = {
        each.partition("/")[0]: Vip(each.partition("/")[0], int(each.partition("/")[2]), "eth0") for each in vips
    }
    return Config(hash_seed=1, vips=MappingProxyType(dict(made)))


def with_backend(address: str, port: int = 80, config: Config | None = None) -> Config:
    config = config or with_vips("10.0.0.100/24", "fd00::100/64", "10.0.0.101/24")
    vip = "fd00::100" if ":" in address else "10.0.0.100"
    if "web" not in config.farms:
        config = change(config, "farm.add", {"name": "web", "vip": vip, "port": 80})
    return change(config, "backend.add", {"farm": "web", "address": address, "port": port})


@pytest.mark.parametrize(
    ("vip", "remedy"),
    [
        ("fe80::1/64", "use a global or unique local"),
        ("127.0.0.5/8", "use an address of the network"),
        ("::1/128", "use an address of the network"),
        ("255.255.255.255/32", "use the address of one host"),
        ("0.1.2.3/8", "use the address of one host"),
        ("10.0.0.255/24", "use the address of one host"),
    ],
)
def test_addresses_that_no_host_can_have_are_no_vips(vip: str, remedy: str) -> None:
    with invalid(Code.INVALID_VALUE, f"vip.{vip.partition('/')[0]}") as caught:
        check_added(Config(), with_vips(vip), OWN, forced=True)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("text", ["0.0.0.0", "224.0.0.1", "::", "ff02::1", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1/33"])
def test_addresses_that_are_never_accepted(text: str) -> None:
    with refused(Code.INVALID_VALUE):
        change(Config(), "vip.add", {"address": text if "/" in text else f"{text}/24", "device": "eth0"})
    with refused(Code.INVALID_VALUE):
        with_backend(text)


@pytest.mark.parametrize(
    "vip", ["10.0.0.100/24", "192.0.2.1/24", "2001:db8::1/64", "169.254.1.1/16", "10.9.0.1/32", "100.64.0.1/10"]
)
def test_addresses_of_hosts_are_vips(vip: str) -> None:
    check_added(Config(), with_vips(vip), OWN[:4])


@pytest.mark.parametrize(("vip", "node"), [("10.0.0.11/24", "lb1"), ("10.0.0.12/32", "lb2"), ("fd00::12/64", "lb2")])
def test_an_own_address_of_either_node_is_a_vip_only_when_forced(vip: str, node: str) -> None:
    with refused(Code.OWN_ADDRESS) as caught:
        check_added(Config(), with_vips(vip), OWN)
    assert f"{node}'s own address on eth0" in str(caught.value) and "--force" in str(caught.value)
    check_added(Config(), with_vips(vip), OWN, forced=True)
    check_added(with_vips(vip), with_vips(vip, "10.0.0.100/24"), OWN)  # it is a VIP already


@pytest.mark.parametrize(
    ("backend", "code"),
    [
        ("10.0.0.11", Code.OWN_ADDRESS),
        ("10.0.0.12", Code.OWN_ADDRESS),
        ("fd00::12", Code.OWN_ADDRESS),
        ("10.0.0.101", Code.OWN_ADDRESS),  # another VIP
        ("127.0.0.1", Code.INVALID_VALUE),
        ("::1", Code.INVALID_VALUE),
        ("fe80::5", Code.INVALID_VALUE),
        ("10.0.0.255", Code.INVALID_VALUE),
        ("255.255.255.255", Code.INVALID_VALUE),
        ("0.0.0.1", Code.INVALID_VALUE),
    ],
)
def test_a_backend_is_another_machine(backend: str, code: Code) -> None:
    config = with_backend(backend)
    before = with_vips("10.0.0.100/24", "fd00::100/64", "10.0.0.101/24")
    with invalid(code, f"farm.web.backend {config.farms['web'].backends[0].endpoint}"):
        check_added(before, config, OWN, forced=True)
    check_added(config, with_backend("10.0.0.50" if "." in backend else "fd00::50", config=config), OWN)  # stored already
    with refused(code):
        check_added(config, with_backend(backend, 81, config), OWN)


def test_a_vip_is_no_backend_of_a_farm() -> None:
    config = with_backend("10.0.0.50")
    with refused(Code.OWN_ADDRESS) as caught:
        check_added(config, change(config, "vip.add", {"address": "10.0.0.50/24", "device": "eth0"}), OWN, forced=True)
    assert "the address of a backend" in str(caught.value)


def test_a_stored_configuration_is_read_and_its_problems_are_listed() -> None:
    config = with_backend("10.0.0.11", config=with_vips("10.0.0.100/24", "fe80::9/64", "10.0.0.12/24"))
    assert decode(Encoder().encode(config)) == config
    assert [each.address for each in problems(Config(), config, OWN)] == ["fe80::9", "10.0.0.12", "10.0.0.11"]
