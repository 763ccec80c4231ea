"""What the one who makes a change should know about it, besides that it is in force."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet

from ctl.config.model import Config
from ctl.explanation import impact
from ctl.network import neighbours
from ctl.network.network import Network

log = logging.getLogger(__name__)


def advice(network: Network, old: Config, new: Config, down: AbstractSet[int]) -> str:
    """Empty: nothing. Blocks; raises OSError or XlbError. down: ids of backends that are down."""
    notes = [each.message for each in impact.resized(old, new, down)]
    for note in notes:
        log.info("%s", note)
    return "; ".join(filter(None, (neighbours.advice(network, old, new), *notes)))
