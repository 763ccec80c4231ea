"""Keeps the next hops of the backends resolved, so that a new connection does not wait for ARP or NDP.

The routes decide the next hop of a backend: its own address on the link, or its gateway. Routes are looked up again after
route changes (at most once per RESOLVE_DELAY_S), and neighbours resolved again when the kernel drops an entry. The kernel
probes the neighbours (managed neighbours); on an older kernel this module repeats the request. A neighbour that the kernel
refuses does not stop the others; `ctl.node.reconciler` asks for it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from ctl.config.model import Config
from ctl.errors import Advice, XlbError
from ctl.network.network import Network

RESOLVE_DELAY_S = 0.05
REPEAT_S = 5.0
MAX_NEIGHBOURS = 32768

log = logging.getLogger(__name__)


def backend_addresses(config: Config) -> frozenset[str]:
    """The addresses of all backends."""
    return frozenset(backend.address for farm in config.farms.values() for backend in farm.backends)


class NextHopKeeper:
    """Runs as one task; `wake` starts another pass."""

    def __init__(self, network: Network, config: Callable[[], Config]) -> None:
        self._network = network
        self._config = config
        self._wake = asyncio.Event()
        self._routes_stale = True
        self._lost: set[tuple[int, str]] = set()
        self.kept: frozenset[tuple[int, str]] = frozenset()
        self.unroutable: tuple[str, ...] = ()
        self.excess: tuple[str, ...] = ()  # one message per family whose neighbour table is too small
        self._refused = False

    def wake(self) -> None:
        """The backends or the routes changed."""
        self._routes_stale = True
        self._wake.set()

    def lost(self, index: int, address: str) -> None:
        """The kernel dropped a neighbour entry."""
        if (index, address) in self.kept:
            self._lost.add((index, address))
            self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            repeat = REPEAT_S if self._network.needs_repeating else None
            try:
                async with asyncio.timeout(repeat):
                    await self._wake.wait()
            except TimeoutError:
                self._lost |= self.kept
            await asyncio.sleep(RESOLVE_DELAY_S)  # changes come in bursts
            self._wake.clear()
            try:
                await self._look()
            except (XlbError, OSError) as error:
                log.warning("cannot resolve the neighbours of backends: %s", error)

    async def _look(self) -> None:
        if self._routes_stale:
            self._routes_stale = False
            wanted, unroutable = await asyncio.to_thread(self._resolve, self._config())
            excess = await asyncio.to_thread(excess_of, self._network, (address for _, address in wanted))
            for message in excess:
                if message not in self.excess:
                    log.warning("%s", message)
            self.excess = excess
            gone, new = self.kept - wanted, wanted - self.kept
            self.kept, self.unroutable = wanted, unroutable
            if gone:
                await asyncio.to_thread(self._network.release, gone)
        else:
            new = frozenset()
        again = (self._lost & self.kept) | new
        self._lost = set()
        if again:
            self._tell_refused(await asyncio.to_thread(self._network.keep_resolved, again))

    def _tell_refused(self, messages: Sequence[str]) -> None:
        """Once, until none is refused."""
        if messages and not self._refused:
            log.warning("%s (and %d others); trying again", messages[0], len(messages) - 1)
        self._refused = bool(messages)

    def _resolve(self, config: Config) -> tuple[frozenset[tuple[int, str]], tuple[str, ...]]:
        destinations = sorted(backend_addresses(config))[:MAX_NEIGHBOURS]
        routes = self._network.routes(destinations)
        pairs = list(zip(destinations, routes, strict=True))
        wanted = frozenset((route.index, route.gateway or address) for address, route in pairs if route is not None)
        return wanted, tuple(address for address, route in pairs if route is None)


def advice(network: Network, old: Config, new: Config) -> str:
    """What an operator should know about the neighbours of a change; empty if nothing. Blocks."""
    addresses = backend_addresses(new)
    if addresses <= backend_addresses(old) or not excess_of(network, addresses):
        return ""
    destinations = sorted(addresses)[:MAX_NEIGHBOURS]  # several may be behind one gateway
    routes = zip(destinations, network.routes(destinations), strict=True)
    return "; ".join(excess_of(network, {route.gateway or address for address, route in routes if route is not None}))


def excess_of(network: Network, addresses: Iterable[str]) -> tuple[str, ...]:
    """One message for each family of which there are more neighbours than the kernel keeps, with the remedy. Blocks."""
    counts = [0, 0]
    for address in addresses:
        counts[":" in address] += 1
    messages = []
    for family, count, capacity in zip(("ipv4", "ipv6"), counts, network.neighbour_capacity(), strict=True):
        if capacity and count >= capacity:
            names = [f"net.{family}.neigh.default.gc_thresh{number}" for number in (1, 2, 3)]
            values = [count, count * 3 // 2, count * 2]
            remedy = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            message = f"{count} next hops of backends, but the kernel keeps {capacity} neighbours ({names[2]}), "
            messages.append(Advice(f"{message}and connections to the others fail", f"sysctl -w {remedy}"))
    return tuple(messages)
