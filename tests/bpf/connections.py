"""Connections through the bed: the tuples they are found with, and the packets that make them."""

from __future__ import annotations

from bpf.constants import Protocol
from bpf.dataplane import FlowTuple
from tests.bpf.bed import Bed, Family
from tests.bpf.packets import PAYLOAD, from_backend, from_client


def arriving(family: Family, port: int = 40000, protocol: int = Protocol.TCP) -> FlowTuple:
    return FlowTuple(family.client, family.vip, port, 80, protocol)


def reply_tuple(family: Family, port: int = 40000, protocol: int = Protocol.TCP, number: int = 11) -> FlowTuple:
    return FlowTuple(family.far(number), family.vip, 8080, port, protocol)


def client(
    bed: Bed, family: Family, flags: str = "S", port: int = 40000, protocol: int = Protocol.TCP, payload: bytes = PAYLOAD
) -> str:
    return bed.send(bytes(from_client(family, protocol, flags, source_port=port, payload=payload))).verdict


def backend(
    bed: Bed,
    family: Family,
    flags: str = "SA",
    port: int = 40000,
    protocol: int = Protocol.TCP,
    payload: bytes = PAYLOAD,
    number: int = 11,
) -> str:
    packet = from_backend(family, family.far(number), family.vip, port, protocol, flags, payload=payload)
    return bed.send(bytes(packet), "out0").verdict


def establish(bed: Bed, family: Family, port: int = 40000, protocol: int = Protocol.TCP) -> None:
    verdicts = [client(bed, family, "S", port, protocol), backend(bed, family, "SA", port, protocol)]
    assert [*verdicts, client(bed, family, "A", port, protocol)] == ["forward_redirect"] * 3
