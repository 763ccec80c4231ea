"""Which address the node speaks from when it asks a backend something itself.

Answers to a guarded VIP are for its farms, and the guard drops all others: where the kernel would send from a VIP (it was on
the interface before the node's own address, or there is no other), another address of the node is named, or there is none
and that is said. Must not know what is asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Iterable

from ctl.config.model import Config
from ctl.errors import XlbError
from ctl.network.network import InterfaceAddress, Network

FRESH_S = 1.0
_ANY_PORT = 9  # nothing is sent to it


class OwnSources:
    """Asks the kernel each time, and the network's addresses at most once per FRESH_S."""

    def __init__(self, network: Network, config: Callable[[], Config]) -> None:
        self._network, self._config = network, config
        self._addresses: frozenset[InterfaceAddress] = frozenset()
        self._fresh_until_s = 0.0

    async def towards(self, target: str) -> str:
        """The address to bind to before connecting to `target`; empty: the kernel chooses right.

        Raises XlbError with the remedy when this node has only VIPs to speak from.
        """
        kernels = kernel_source(target)
        if not self._is_guarded(kernels):
            return ""
        return await asyncio.to_thread(self._instead_of, kernels, target)

    def look(self, target: str) -> str:
        """The same where blocking is allowed."""
        kernels = kernel_source(target)
        return self._instead_of(kernels, target) if self._is_guarded(kernels) else ""

    def _is_guarded(self, address: str) -> bool:
        vip = self._config().vips.get(address)
        return vip is not None and vip.guard

    def _instead_of(self, vip: str, target: str) -> str:
        if time.monotonic() >= self._fresh_until_s:
            self._addresses = self._network.addresses()
            self._fresh_until_s = time.monotonic() + FRESH_S
        device = self._config().vips[vip].device
        own = own_source(target, device, self._addresses, self._config().vips)
        if not own:
            raise XlbError(
                f"no source address towards {target}: {device} has only VIPs, and the guard of VIP {vip} drops the answers; "
                f"add an address of this node: ip address add ADDRESS/PREFIX dev {device}"
            )
        return own


def kernel_source(target: str) -> str:
    """The address the kernel would send from; empty when there is no way."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect((target, _ANY_PORT))
        except OSError:
            return ""
        return str(unsent.getsockname()[0])


def own_source(target: str, device: str, addresses: Iterable[InterfaceAddress], vips: Collection[str]) -> str:
    """The best address that is no VIP: in the target's network, else on the way out, else on the loopback; empty: none."""
    wanted = ipaddress.ip_address(target)
    ranked = []
    for each in addresses:
        own = ipaddress.ip_address(each.address)
        if own.version != wanted.version or own.is_loopback or own.is_link_local or each.address in vips:
            continue
        near = wanted in ipaddress.ip_network(f"{each.address}/{each.prefix_length}", strict=False)
        rank = 0 if near else 1 if each.device == device else 2 if each.device == "lo" else 3
        ranked.append((rank, each.address))
    rank, best = min(ranked, default=(3, ""))
    return best if rank < 3 else ""
