"""Clients of a farm with limits, and prefix lists, on a bed that has them compiled in."""

from __future__ import annotations

import ipaddress

from bpf.constants import Protocol
from bpf.dataplane import PutPrefixes
from ctl.config import prefixes
from tests.bpf.bed import Bed, Family
from tests.bpf.packets import from_client

SERVED = "forward_redirect"


def put_list(bed: Bed, number: int, *lines: str) -> PutPrefixes:
    made = prefixes.parse_texts("list", lines, "list")
    operation = PutPrefixes(number, made.v4, made.v6)
    bed.plane.apply([operation])
    return operation


def other_client(family: Family, number: int) -> str:
    """In another network than family.client, and than that of another number, for every prefix that tests use."""
    first = int(ipaddress.ip_address("198.18.0.1" if family.bits == 32 else "2001:db8:100::1"))
    return str(ipaddress.ip_address(first + (number << (8 if family.bits == 32 else 64))))


def opens(bed: Bed, family: Family, source: str, port: int = 40000, protocol: int = Protocol.TCP, flags: str = "S") -> str:
    return bed.send(bytes(from_client(family, protocol, flags, source=source, source_port=port))).verdict
