"""Which packets a capture records, from what an operator asks for by names and addresses.

Decides ids and numbers of the filter that the kernel applies. Must not know how they reach it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from bpf.constants import CAPTURE_SNAP_BYTES, COUNTERS, Kind
from bpf.dataplane import CaptureFilter
from ctl.config.model import Config
from ctl.config.validation import suggest
from ctl.errors import Code, InvalidInput, XlbError

_NUMBERS = {counter.name: number for number, counter in enumerate(COUNTERS)}


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for. client: an address or a network; backend: an address, and its port or None; verdicts: counters."""

    farm: str = ""
    client: IPv4Network | IPv6Network | None = None
    backend: tuple[str, int | None] | None = None
    verdicts: frozenset[int] = frozenset()
    snap_bytes: int = CAPTURE_SNAP_BYTES

    def filter(self, config: Config) -> CaptureFilter:
        """Raises XlbError naming the farm or backend that the configuration does not have."""
        farm = config.farms.get(self.farm)
        if self.farm and farm is None:
            raise XlbError(f"no farm is called '{self.farm}'{suggest(self.farm, config.farms)}", Code.UNKNOWN_FARM)
        backends = None
        if self.backend is not None:
            address, port = self.backend
            farms = config.farms.values() if farm is None else (farm,)
            found = (each for one in farms for each in one.backends if each.address == address)
            backends = frozenset(each.id for each in found if port in (None, each.port))
            if not backends:
                where = f"farm {self.farm} has" if self.farm else "the farms have"
                shown = address if port is None else f"{address} with port {port}"
                raise XlbError(f"{where} no backend {shown}; see xlbctl farm show", Code.UNKNOWN_BACKEND)
        return CaptureFilter(self.verdicts, self.client, farm.id if farm else 0, backends, self.snap_bytes)


def parse_client(text: str) -> IPv4Network | IPv6Network:
    """An address or a network. Raises ValueError with what was expected."""
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        raise ValueError(f"'{text}' is neither an address nor a network; expected e.g. 192.0.2.7 or 2001:db8::/64") from None


def verdicts(names: Sequence[str], drops: bool) -> frozenset[int]:
    """The numbers of these counters, and with `drops` of all drops. Raises InvalidInput naming the one that does not exist."""
    for name in names:
        if name not in _NUMBERS:
            hint = suggest(name, _NUMBERS) or "; xlbctl stats shows all"
            raise InvalidInput(f"'{name}' is no verdict{hint}", "--verdict", Code.INVALID_VALUE)
    every = (number for number, counter in enumerate(COUNTERS) if drops and counter.kind is Kind.DROP)
    return frozenset({*(_NUMBERS[name] for name in names), *every})
