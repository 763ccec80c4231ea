"""What every network of a node does, as tests: the kernel's and the fake one of the unit tests must agree on it.

A test module derives a class `Test…` from NetworkContract and has a fixture `subject`. tests/net/test_network_contract.py and
tests/unit/ctl/network/test_network_contract.py run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from ctl.errors import Code
from ctl.network.network import InterfaceAddress, Network, Route
from tests.refusals import refused
from tests.wait import wait_until

T = TypeVar("T")

ADDRESSES = [InterfaceAddress("eth0", "10.66.0.100", 24), InterfaceAddress("eth0", "fd66::100", 64)]
GATEWAYS = {"10.99.1.1": "10.66.0.2", "fd99::5": "fd66::2"}  # destination to gateway
ON_LINK = {"v4": "10.66.0.2", "v6": "fd66::2"}
families = pytest.mark.parametrize("family", ["v4", "v6"])


@dataclass(frozen=True, slots=True)
class Subject:
    """A node with eth0 up, routes as in GATEWAYS and hosts as in ON_LINK, without ADDRESSES.

    call(function): runs it where the node's interfaces are.
    """

    network: Network
    call: Callable[[Callable[[], T]], T]


class NetworkContract:
    """Derive a class `Test…` from it."""

    def test_addresses_are_added_and_removed_repeatedly(self, subject: Subject) -> None:
        def scenario() -> None:
            for _ in range(2):
                subject.network.add_addresses(ADDRESSES)
                assert subject.network.addresses() >= set(ADDRESSES)
            for _ in range(2):
                subject.network.remove_addresses(ADDRESSES)
                assert not subject.network.addresses() & set(ADDRESSES)

        subject.call(scenario)

    def test_an_unknown_interface_is_refused_and_named(self, subject: Subject) -> None:
        def scenario() -> None:
            with refused(Code.KERNEL_REFUSED) as caught:
                subject.network.add_addresses([InterfaceAddress("nothing0", "10.66.0.100", 24)])
            assert "cannot add 10.66.0.100/24 on nothing0" in str(caught.value)

        subject.call(scenario)

    def test_ready_addresses_report_those_without_an_interface(self, subject: Subject) -> None:
        def scenario() -> None:
            ready = subject.network.ready([*ADDRESSES, InterfaceAddress("nothing0", "10.66.0.101", 24)])
            assert list(ready.addresses) == ADDRESSES
            for _ in range(2):
                assert ready.add() == ["cannot add 10.66.0.101/24 on nothing0: the interface does not exist"]
                assert subject.network.addresses() >= set(ADDRESSES)
            assert ready.announce() == []
            for _ in range(2):
                assert ready.remove() == []
                assert not subject.network.addresses() & set(ADDRESSES)
            ready.close()

        subject.call(scenario)

    def test_the_interface_is_described(self, subject: Subject) -> None:
        eth0 = subject.call(subject.network.interfaces)["eth0"]
        assert (eth0.name, eth0.mtu, eth0.up, eth0.carrier) == ("eth0", 1500, True, True)
        assert len(eth0.mac.split(":")) == 6 and eth0.index > 1

    @families
    def test_routes_name_the_interface_and_the_gateway(self, subject: Subject, family: str) -> None:
        index = subject.call(subject.network.interfaces)["eth0"].index
        destination = next(each for each in GATEWAYS if (":" in each) == (family == "v6"))
        routes = subject.call(lambda: subject.network.routes([ON_LINK[family], destination]))
        assert list(routes) == [Route(index, ""), Route(index, GATEWAYS[destination])]

    def test_kept_neighbours_are_resolved(self, subject: Subject) -> None:
        index = subject.call(subject.network.interfaces)["eth0"].index
        kept = [(index, address) for address in ON_LINK.values()]

        def resolved() -> set[tuple[int, str]]:
            found = subject.call(subject.network.neighbours)
            return {(each.index, each.address) for each in found if each.resolved and each.mac}

        subject.call(lambda: subject.network.keep_resolved(kept))
        wait_until(lambda: resolved() >= set(kept), "both neighbours to be resolved")
        subject.call(lambda: subject.network.release(kept))
