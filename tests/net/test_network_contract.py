"""The kernel's network keeps the contract of a node's network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.network_contract import NetworkContract, Subject
from tests.net.cable import joined


@pytest.fixture
def subject() -> Iterator[Subject]:
    with joined() as cable:
        yield Subject(cable.network, cable.here.call)


class TestKernelNetwork(NetworkContract):
    pass
