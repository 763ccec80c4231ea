"""Selects flows by farm, backend or protocol. Pure: columns in, a mask out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bpf import constants
from bpf.dataplane import Array
from ctl.config.model import Protocol

PROTOCOL_NUMBERS = {Protocol.TCP: int(constants.Protocol.TCP), Protocol.UDP: int(constants.Protocol.UDP)}


@dataclass(frozen=True, slots=True)
class FlowSelection:
    """A filter by farm ids, backend ids and protocol. None: no filter."""

    farms: frozenset[int] | None = None
    backends: frozenset[int] | None = None
    protocol: Protocol | None = None

    def matches(self, keys: Array, values: Array) -> Array:
        """One bool per row."""
        chosen = np.ones(len(keys), dtype=bool)
        if self.farms is not None:
            chosen &= np.isin(values["farm"], np.fromiter(self.farms, dtype=np.uint32))
        if self.backends is not None:
            chosen &= np.isin(values["backend"], np.fromiter(self.backends, dtype=np.uint32))
        if self.protocol is not None:
            chosen &= keys["protocol"] == PROTOCOL_NUMBERS[self.protocol]
        return chosen


EVERYTHING = FlowSelection()
