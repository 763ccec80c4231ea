"""A reconciler on any network, with the other parts faked: for the simulator and for measurements."""

from __future__ import annotations

from collections.abc import Callable

from ctl.config.model import Config
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.network.network import Network
from ctl.network.reconcile import VipRepair
from ctl.network.vip_addresses import VipAddresses
from ctl.node.reconciler import NextHops, Reconciler, Subjects, Transaction
from tests.fakes.daemon import FakeAttacher
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane


class FixedTransaction:
    """Implements `ctl.node.reconciler.Transaction` with a configuration that does not change."""

    def __init__(self, config: Config, addresses: VipAddresses) -> None:
        self.config, self._addresses = config, addresses

    async def follow_addresses(self) -> list[VipRepair]:
        return self._addresses.follow(self.config)


class NoProgram(FakeAttacher):
    """No program is pinned, so that none is attached."""

    def program(self) -> int:
        return 0


def reconciler_of(
    network: Network,
    transaction: Transaction,
    addresses: VipAddresses,
    next_hops: NextHops,
    fault: Callable[[str, str, bool], None] = lambda name, message, disables: None,
) -> Reconciler:
    """Reconciles VIPs, settings and neighbours of `network`; no program is attached, and nothing announced again."""
    interfaces = DataInterfaces(("eth0",), NoProgram(FakeNetwork()), network)
    subjects = Subjects(
        network,
        interfaces,
        transaction,
        addresses,
        next_hops,
        TunnelSources(FakePlane(), network),
        pair=lambda: None,
        fault=fault,
        announce=lambda: None,
        renew_next_hops=lambda: None,
    )
    return Reconciler(subjects, level=False)
