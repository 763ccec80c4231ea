"""The fake network keeps the contract of a node's network."""

from __future__ import annotations

import pytest

from tests.fakes.network import FakeNetwork
from tests.fakes.network_contract import GATEWAYS, NetworkContract, Subject


@pytest.fixture
def subject() -> Subject:
    network = FakeNetwork()
    network.gateways = dict(GATEWAYS)
    return Subject(network, lambda function: function())


class TestFakeNetwork(NetworkContract):
    pass
