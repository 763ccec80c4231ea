"""The addresses that the nodes have themselves: those of this node as they are, those of the peer as it answers.

A peer that is silent, or of an earlier version, is known by its last answer and by the addresses it was paired with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.address_rules import OwnAddress, check_added
from ctl.config.changes import MakeConfig
from ctl.config.model import Config
from ctl.errors import XlbError
from ctl.network.network import Network
from ctl.network.vip_addresses import VipAddresses

QUESTION = "cluster.addresses"
WAIT_S = 1.0
MAX_ADDRESSES = 4096


class OwnAddresses:
    """Create on a running loop."""

    def __init__(self, node: str, network: Network, addresses: VipAddresses, membership: Callable[[], Membership]) -> None:
        self._node, self._network, self._addresses, self._membership = node, network, addresses, membership
        self._peers: tuple[OwnAddress, ...] = ()

    def answer(self, questions: PeerQuestions) -> None:
        """Register what the peer may ask."""

        async def own(_: dict[str, Any]) -> list[list[Any]]:
            found = await asyncio.to_thread(self.here)
            return [[each.device, each.address, each.prefix_length] for each in found]

        questions.register(QUESTION, own)

    def here(self) -> tuple[OwnAddress, ...]:
        """Those of this node, without the VIPs that it added. Blocks."""
        present = self._network.addresses() - self._addresses.ours
        ordered = sorted(present, key=lambda each: (each.device, each.address))
        return tuple(OwnAddress(self._node, each.device, each.address, each.prefix_length) for each in ordered[:MAX_ADDRESSES])

    async def of_both(self) -> tuple[OwnAddress, ...]:
        """Those of this node and, in a pair, of the peer."""
        return *await asyncio.to_thread(self.here), *await self._of_peer()

    async def checked(self, make: MakeConfig, forced: bool = False) -> MakeConfig:
        """The change `make`, which is refused (InvalidInput) if it adds an address that does not work."""
        own = await self.of_both()

        def made(config: Config) -> Config:
            new = make(config)
            check_added(config, new, own, forced)
            return new

        return made

    async def _of_peer(self) -> tuple[OwnAddress, ...]:
        pair = self._membership().configuration
        if pair is None:
            self._peers = ()
            return ()
        peer = pair.settings.peer
        try:
            async with asyncio.timeout(WAIT_S):
                answer = await pair.ask(QUESTION, {}, WAIT_S)
            rows = [(str(device), str(address), int(length)) for device, address, length in answer[:MAX_ADDRESSES]]
            self._peers = tuple(OwnAddress(peer.name, *row) for row in rows)
        except (XlbError, TimeoutError, TypeError, ValueError):
            pass
        paired = (peer.cluster_address, peer.data_address)
        return *self._peers, *(_paired(peer.name, address) for address in paired if address)


def _paired(node: str, address: str) -> OwnAddress:
    return OwnAddress(node, "an interface", address, 128 if ":" in address else 32)
