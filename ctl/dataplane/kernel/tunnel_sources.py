"""The addresses of this node from which mode ipip sends to backends: what they should be, and writes them for the program.

An address of the node file is taken as it is. Otherwise it is the one that the kernel would use towards the first backend of
the family that has a route, and never a VIP: that one moves to the peer, while answers about a packet must come back here. Each
node has its own, so none of this is replicated. `ctl.node.reconciler` asks in every pass, so that the addresses may change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from bpf.columns import family_of
from bpf.dataplane import DataPlane, PlaneError
from ctl.config.model import Config, Mode
from ctl.health.probes.source_addresses import kernel_source, own_source
from ctl.network.network import Network

FAMILIES = ("v4", "v6")
MAX_ASKED = 16
"""Backends without a route that are passed over."""

log = logging.getLogger(__name__)


def tunnel_backends(config: Config) -> dict[str, list[str]]:
    """The addresses of the backends in mode ipip, by family, in a fixed order."""
    addresses = {each.address for farm in config.farms.values() if farm.mode is Mode.IPIP for each in farm.backends}
    return {family: sorted(address for address in addresses if family_of(address) == family) for family in FAMILIES}


class TunnelSources:
    """`look` blocks and may run in any thread; `write` belongs to the event loop."""

    def __init__(
        self,
        plane: DataPlane,
        network: Network,
        given: Collection[str] = (),
        source_of: Callable[[str], str] = kernel_source,
    ) -> None:
        """given: the addresses of the node file, at most one of each family. source_of: the kernel's choice, "": no route."""
        self._plane, self._network, self._source_of = plane, network, source_of
        self._given: dict[str, str] = {family_of(address): address for address in given}
        self._written: tuple[str, str] | None = None

    @property
    def written(self) -> dict[str, str]:
        """What the program has, by family; empty: it sends nothing to backends of that family."""
        return dict(zip(FAMILIES, self._written or ("", ""), strict=True))

    def look(self, config: Config) -> tuple[str, str] | None:
        """What the sources should be, IPv4 and IPv6; None: no farm is in mode ipip. Blocks for a moment."""
        backends = tunnel_backends(config)
        if not any(backends.values()):
            return None
        v4, v6 = (self._given.get(family) or self._towards(backends[family][:MAX_ASKED], config.vips) for family in FAMILIES)
        return v4, v6

    def _towards(self, backends: Collection[str], vips: Collection[str]) -> str:
        for backend in backends:
            source = self._source_of(backend)
            if source and source not in vips:
                return source
            if source:
                device = next((each.device for each in self._network.addresses() if each.address == source), "")
                if own := own_source(backend, device, self._network.addresses(), vips):
                    return own
        return ""

    def write(self, wanted: tuple[str, str] | None) -> bool:
        """Have the program use what `look` returned. False: nothing changed, or the program is not built with the mode yet."""
        if wanted is None or wanted == self._written:
            return False
        try:
            self._plane.set_tunnel_sources(*wanted)
        except PlaneError:
            return False  # tried again in the next pass
        self._written = wanted
        log.info("packets to ipip backends leave from %s", " and ".join(filter(None, wanted)) or "no address: they are dropped")
        return True
