"""Selects the source address of the node's own connections to backends.

The guard of a VIP drops packets that do not belong to a farm, so an answer to a guarded VIP is lost. If the kernel would select
a guarded VIP as source (it precedes the node's own address on the interface, or is the only one), this module selects another
address of the node, or raises an error. Must not know what the connection is for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Iterable

from ctl.config.model import Config
from ctl.errors import Advice, XlbError
from ctl.network.network import InterfaceAddress, Network

FRESH_S = 1.0
_ANY_PORT = 9  # nothing is sent to it


class OwnSources:
    """Queries the kernel's choice each time, and the node's addresses once per FRESH_S or when the one chosen is gone."""

    def __init__(self, network: Network, config: Callable[[], Config]) -> None:
        self._network, self._config = network, config
        self._addresses: frozenset[InterfaceAddress] = frozenset()
        self._fresh_until_s = 0.0

    async def towards(self, target: str) -> str:
        """The address to bind to before connecting to `target`; empty: the kernel's choice is correct.

        Raises XlbError with the remedy if this node has no address except guarded VIPs.
        """
        default = kernel_source(target)
        if not self._is_guarded(default):
            return ""
        return await asyncio.to_thread(self._instead_of, default, target)

    async def instead_of_vip(self, vip: str) -> str:
        """An address of this node to which a server can answer what comes to a VIP. Raises XlbError like `towards`."""
        return await asyncio.to_thread(self._instead_of, vip, vip)

    def look(self, target: str) -> str:
        """Like `towards`, but blocks."""
        default = kernel_source(target)
        return self._instead_of(default, target) if self._is_guarded(default) else ""

    def _is_guarded(self, address: str) -> bool:
        vip = self._config().vips.get(address)
        return vip is not None and vip.guard

    def _instead_of(self, vip: str, target: str) -> str:
        device = self._config().vips[vip].device
        own = ""
        if time.monotonic() < self._fresh_until_s:
            own = own_source(target, device, self._addresses, self._config().vips)
        if not own or not is_usable(own):  # it may have been removed since: a failed bind would count against the backend
            self._addresses = self._network.addresses()
            self._fresh_until_s = time.monotonic() + FRESH_S
            own = own_source(target, device, self._addresses, self._config().vips)
        if not own:
            message = (
                f"no source address towards {target}, as {device} has only VIPs, and the guard of VIP {vip} drops the answers"
            )
            raise XlbError(Advice(message, f"add an address of this node: ip address add ADDRESS/PREFIX dev {device}"))
        return own


def is_usable(address: str) -> bool:
    """Whether a socket can be bound to it: it is on an interface, and not tentative."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.bind((address, 0))
        except OSError:
            return False
        return True


def kernel_source(target: str) -> str:
    """The source address that the kernel would select; empty without a route."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect((target, _ANY_PORT))
        except OSError:
            return ""
        return str(unsent.getsockname()[0])


def own_source(target: str, device: str, addresses: Iterable[InterfaceAddress], vips: Collection[str]) -> str:
    """The best address that is not a VIP: in the target's network, on the egress interface, or on loopback; empty: none."""
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
