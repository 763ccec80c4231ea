"""QUIC connection ids: a client that changes its address keeps its backend, in both schemes; what is no id is scheduled."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from bpf.constants import MAX_QUIC_ID_BYTES, BackendFlag, Protocol, Quic, Scheduler
from bpf.dataplane import PutAffinity, PutBackend, PutQuicServers
from ctl.dataplane.flow_hash import quic_hash
from tests.bpf.bed import SEED, V4, V6, Bed, Family
from tests.bpf.packets import from_client

BACKENDS = (11, 12, 13)
FIRST = 8
SLOTS = tuple(int(each) for each in np.random.default_rng(3).integers(0, 3, 61))
IDS = {11: b"\x0b\xaa", 12: b"\x0c\xaa", 13: b"\x0d\xaa"}
UNKNOWN = b"\xff\xee"


def short(connection_id: bytes, more: bytes = b"protected payload of a packet") -> bytes:
    """A 1-RTT packet (RFC 9000 17.3): the id begins at byte 1."""
    return b"\x41" + connection_id + more


def long(connection_id: bytes, version: int = 1, first: int = 0xC3, length: int | None = None) -> bytes:
    """A packet with a long header (RFC 8999 5.1)."""
    size = len(connection_id) if length is None else length
    return bytes([first]) + version.to_bytes(4, "big") + bytes([size]) + connection_id + b"\x04peer" + bytes(30)


def start(
    bed: Bed, family: Family, scheme: Quic, offset: int, length: int, scheduler: Scheduler = Scheduler.ROUNDROBIN
) -> None:
    bed.farm(
        family.vip,
        *((family.far(n), 8080) for n in BACKENDS),
        protocol=Protocol.UDP,
        scheduler=scheduler,
        slots=SLOTS,
    )
    names = tuple((name, FIRST + number - BACKENDS[0]) for number, name in IDS.items())
    bed.plane.apply([PutAffinity(1, quic=(int(scheme), offset, length)), PutQuicServers(1, names)])


def chosen(bed: Bed, family: Family, datagram: bytes, port: int = 40000, source: str = "") -> int:
    """The number of the backend of a datagram without a flow."""
    bed.clear("embryonic", family)
    packet = from_client(family, Protocol.UDP, payload=datagram, source_port=port, source=source)
    assert bed.send(bytes(packet)).verdict == "forward_redirect"
    (found,) = [each for each in bed.flows("embryonic", family).values() if each.forward]
    return BACKENDS[0] + found.backend - FIRST


def is_scheduled(bed: Bed, family: Family, datagram: bytes) -> bool:
    """Round robin decided: other connections with the same bytes get other backends."""
    return len({chosen(bed, family, datagram, port) for port in range(40000, 40024)}) == len(BACKENDS)


# --- the id names the server --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BACKENDS)
@pytest.mark.parametrize("header", [short, long], ids=["short", "long"])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_a_server_id_names_the_backend(
    client_bed: Bed, family: Family, number: int, header: Callable[[bytes], bytes], offset: int
) -> None:
    start(client_bed, family, Quic.SERVER_ID, offset, 2)
    connection_id = os.urandom(offset) + IDS[number] + os.urandom(4)
    for port in range(40000, 40006):
        assert chosen(client_bed, family, header(connection_id), port, family.client[:-1] + str(port % 8)) == number


@pytest.mark.parametrize(
    "datagram",
    [
        short(b"\x00" + UNKNOWN),
        long(b"\x00" + UNKNOWN + bytes(5)),
        long(b"\x00" + IDS[12], length=2),  # the id ends before the server's: what follows is no id
        long(b"\x00" + IDS[12], version=0),  # version negotiation comes from servers only
        long(b""),
        b"\x41\x00" + IDS[12][:1],
        b"\x41",
        b"",
        b"\xc3\x00\x00\x00\x01\xff",  # the id's length leads past the end
    ],
    ids=["short", "long", "too short", "negotiation", "no id", "cut short", "one byte", "empty", "cut long"],
)
def test_without_a_known_id_the_scheduler_chooses(client_bed: Bed, family: Family, datagram: bytes) -> None:
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    assert is_scheduled(client_bed, family, datagram)


def test_every_version_is_routed_by_its_id(client_bed: Bed, family: Family) -> None:
    """RFC 8999: an unknown version has the same header, and its server answers with version negotiation."""
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    for version in (1, 0x6B3343CF, 0x1A2A3A4A, 0xFFFFFFFF):
        assert chosen(client_bed, family, long(b"\x00" + IDS[13], version)) == 13
    assert chosen(client_bed, family, long(bytes(40) + IDS[13], 0x1A2A3A4A)) in BACKENDS


@pytest.mark.parametrize("length", [1, 7, MAX_QUIC_ID_BYTES])
def test_server_ids_of_any_length(client_bed: Bed, family: Family, length: int) -> None:
    start(client_bed, family, Quic.SERVER_ID, 0, length)
    name = bytes(range(1, length + 1))
    client_bed.plane.apply([PutQuicServers(1, ((name, FIRST + 2),))])
    assert {chosen(client_bed, family, short(name), port) for port in range(40000, 40008)} == {13}
    assert is_scheduled(client_bed, family, short(name[:-1] + b"\xfe"))
    assert is_scheduled(client_bed, family, short(bytes(1) + IDS[11]))  # the farm's ids of before are gone


def test_a_draining_backend_keeps_its_quic_connections_and_a_failed_one_does_not(client_bed: Bed, family: Family) -> None:
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    datagram = short(b"\x00" + IDS[12])
    assert chosen(client_bed, family, datagram) == 12
    client_bed.plane.apply([PutBackend(FIRST + 1, family.far(12), 8080, int(BackendFlag.UNAVAILABLE))])
    assert is_scheduled(client_bed, family, datagram)


def test_a_server_id_of_the_other_address_family_is_scheduled(client_bed: Bed, family: Family) -> None:
    """A farm on VIPs of both families has servers of both, and a client of one may know the id of the other."""
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    other = V6 if family is V4 else V4
    client_bed.plane.apply([PutBackend(60, other.far(11), 8080), PutQuicServers(1, ((IDS[11], 60),))])
    assert is_scheduled(client_bed, family, short(b"\x01" + IDS[11]))


def test_a_tcp_farm_in_the_same_program_is_scheduled(client_bed: Bed, family: Family) -> None:
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    client_bed.farm(family.vip, *((family.far(n), 8080) for n in BACKENDS), scheduler=Scheduler.ROUNDROBIN)
    found = set()
    for port in range(40000, 40012):
        client_bed.clear("embryonic", family)
        client_bed.send(bytes(from_client(family, source_port=port, payload=short(b"\x00" + IDS[12]))))
        found |= {each.backend for each in client_bed.flows("embryonic", family).values()}
    assert len(found) == len(BACKENDS)


# --- the id's prefix is hashed -------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [short, long], ids=["short", "long"])
@pytest.mark.parametrize("length", [1, 4, 8, MAX_QUIC_ID_BYTES])
def test_a_prefix_decides_for_every_address_and_header(
    client_bed: Bed, family: Family, header: Callable[[bytes], bytes], length: int
) -> None:
    start(client_bed, family, Quic.PREFIX, 0, length)
    for number in range(12):
        prefix = bytes([number]) * length
        expected = BACKENDS[SLOTS[quic_hash(prefix, SEED) % len(SLOTS)]]
        for port in (40000, 40001):
            connection_id = prefix + os.urandom(MAX_QUIC_ID_BYTES - length)
            assert chosen(client_bed, family, header(connection_id), port) == expected


def test_an_id_shorter_than_the_prefix_is_scheduled(client_bed: Bed, family: Family) -> None:
    start(client_bed, family, Quic.PREFIX, 0, 8)
    assert is_scheduled(client_bed, family, long(bytes(7)))


def test_a_flow_comes_before_the_id(client_bed: Bed, family: Family) -> None:
    """The first packet's id is the client's choice; the connection stays where that one went."""
    start(client_bed, family, Quic.SERVER_ID, 1, 2)
    first = chosen(client_bed, family, long(os.urandom(8)))
    other = next(number for number in BACKENDS if number != first)
    packet = from_client(family, Protocol.UDP, payload=short(b"\x00" + IDS[other]))
    client_bed.send(bytes(packet))
    (found,) = [each for each in client_bed.flows("embryonic", family).values() if each.forward]
    assert BACKENDS[0] + found.backend - FIRST == first
