"""Farms of the modes dsr and ipip on a bed that has them compiled in."""

from __future__ import annotations

from typing import Any

import pytest

from bpf.constants import Mode, Protocol
from tests.bpf.bed import V4, V6, Bed, Family

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
KINDS = pytest.mark.parametrize("kind", ["dsr", "ipip", "ipip to the other family"])


def behind(family: Family, kind: str) -> Family:
    """The family of the backends."""
    return (V6 if family is V4 else V4) if kind.endswith("other family") else family


def farm(
    bed: Bed, family: Family, kind: str, *numbers: int, protocol: Protocol = Protocol.TCP, near: bool = False, **more: Any
) -> None:
    of = behind(family, kind)
    place = of.near if near else of.far
    backends = [(place(number), 80) for number in numbers or (11,)]
    bed.farm(family.vip, *backends, protocol=protocol, mode=Mode.DSR if kind == "dsr" else Mode.IPIP, **more)
