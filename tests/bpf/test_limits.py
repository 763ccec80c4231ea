"""What a farm limits: lists of clients, new connections per second, half-open connections. Both families, TCP and UDP."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter

import pytest

from bpf.constants import Protocol, Scheduler
from bpf.dataplane import DeletePrefixes, KeepPrefixes, PutFarmLimits, PutPrefixes
from ctl.config import prefixes
from tests.bpf.bed import Bed, Family
from tests.bpf.connections import client, establish
from tests.bpf.limited import SERVED, opens, other_client, put_list
from tests.bpf.packets import from_backend, from_client

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


def serve(bed: Bed, family: Family, protocol: int = Protocol.TCP, scheduler: int = Scheduler.MAGLEV, **limits: int) -> None:
    bed.farm(family.vip, (family.far(11), 8080), (family.far(12), 8080), protocol=protocol, scheduler=scheduler)
    bed.plane.apply([PutFarmLimits(1, client_prefix_v4=32, client_prefix_v6=64, **limits)])  # type: ignore[arg-type]


# --- lists --------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_a_denied_client_is_dropped_silently(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    bed = limited_bed
    put_list(bed, 7, f"{other_client(family, 1)}/{family.bits}")
    serve(bed, family, protocol, deny=7)
    out = bed.send(bytes(from_client(family, protocol, source=other_client(family, 1))))
    assert (out.verdict, out.moved) == ("drop_denied", {"drop_denied": 1}), "a reset would help who scans"
    assert opens(bed, family, other_client(family, 2), protocol=protocol) == SERVED
    assert not bed.flows("embryonic", family).keys() & {other_client(family, 1)}


@PROTOCOLS
def test_only_allowed_clients_are_served_and_deny_wins(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    bed = limited_bed
    net = f"{family.client}/{family.bits}"
    put_list(bed, 7, net, f"{other_client(family, 1)}/{family.bits}")
    put_list(bed, 8, f"{other_client(family, 1)}/{family.bits}")
    serve(bed, family, protocol, allow=7, deny=8)
    assert opens(bed, family, family.client, protocol=protocol) == SERVED
    assert opens(bed, family, other_client(family, 1), protocol=protocol) == "drop_denied"
    assert opens(bed, family, other_client(family, 2), protocol=protocol) == "drop_denied"


def test_the_lengths_of_prefixes(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    lines = {"10.128.0.0/9": ("10.128.0.1", "10.127.0.1"), "0.0.0.0/0": ("8.8.8.8", "")}
    if family.bits == 128:
        lines = {"2001:db8:8000::/33": ("2001:db8:8000::1", "2001:db8:7fff::1"), "::/0": ("2a00::1", "")}
    for number, (line, (inside, outside)) in enumerate(lines.items(), 1):
        put_list(bed, number, line)
        serve(bed, family, deny=number)
        assert opens(bed, family, inside, 5000 + number) == "drop_denied"
        assert not outside or opens(bed, family, outside, 5000 + number) == SERVED


def test_a_list_of_the_other_family_says_nothing(limited_bed: Bed, family: Family) -> None:
    put_list(limited_bed, 7, "::/0" if family.bits == 32 else "0.0.0.0/0")
    serve(limited_bed, family, deny=7)
    assert client(limited_bed, family) == SERVED
    serve(limited_bed, family, allow=7)
    assert client(limited_bed, family, port=40001) == "drop_denied"


def test_an_open_connection_goes_on_when_its_client_is_denied(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family)
    establish(bed, family)
    put_list(bed, 7, f"{family.client}/{family.bits}")
    serve(bed, family, deny=7)
    assert client(bed, family, "A") == SERVED
    assert client(bed, family, "S", 40001) == "drop_denied"
    assert client(bed, family, "A", 40002) == "drop_denied", "nor is a connection derived for it"


def test_a_long_list_is_loaded_in_seconds_and_removed(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    made = prefixes.parse_texts("big", (f"{ipaddress.ip_address((1 << 24) + (n << 8))}/24" for n in range(50_000)), "big")
    six = (f"{ipaddress.ip_address((0x20010DB9 << 96) + (n << 64))}/64" for n in range(50_000))
    made_six = prefixes.parse_texts("big", six, "big")
    started = time.monotonic()
    bed.plane.apply([PutPrefixes(9, made.v4, made_six.v6)])
    assert time.monotonic() - started < 10, "about 0.3 s on an idle machine"
    assert bed.plane.loaded_prefixes() == {9: (50_000, 50_000)}
    serve(bed, family, deny=9)
    assert opens(bed, family, "1.2.3.4" if family.bits == 32 else "2001:db9:0:77::1") == "drop_denied"
    assert client(bed, family) == SERVED
    bed.plane.apply([KeepPrefixes(frozenset({9}))])
    bed.plane.apply([DeletePrefixes(9, made.v4, made_six.v6)])
    assert opens(bed, family, "1.2.3.5" if family.bits == 32 else "2001:db9:0:78::1") == SERVED


# --- rate ---------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_a_client_opens_as_many_as_a_second_permits_at_once(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    bed = limited_bed
    serve(bed, family, protocol, rate_interval_ns=1_000_000_000 // 5)
    verdicts = Counter(opens(bed, family, family.client, 30000 + n, protocol) for n in range(12))
    assert verdicts == {SERVED: 5, "drop_rate": 7}
    assert opens(bed, family, other_client(family, 1), protocol=protocol) == SERVED, "others are not affected"
    assert client(bed, family, "S", 30000, protocol) == SERVED, "nor is a retransmission of what is open"


def test_a_bucket_fills_again(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family, rate_interval_ns=1_000_000_000 // 20)

    def opened(seconds: float, first_port: int) -> int:
        bed.set_clock(2000 + seconds)
        return sum(opens(bed, family, family.client, first_port + n) == SERVED for n in range(25))

    assert opened(0, 30000) == 20
    assert opened(0.5, 31000) == 10
    assert opened(0.52, 32000) == 0
    assert opened(60, 33000) == 20, "and is never fuller than full"


def test_the_prefix_that_makes_a_client(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family)
    bed.plane.apply([PutFarmLimits(1, rate_interval_ns=1_000_000_000, client_prefix_v4=25, client_prefix_v6=65)])
    near, far = ("198.18.0.5", "198.18.0.200") if family.bits == 32 else ("2001:db8:1::5", "2001:db8:1::8000:0:0:1")
    assert opens(bed, family, "198.18.0.1" if family.bits == 32 else "2001:db8:1::1") == SERVED
    assert opens(bed, family, near) == "drop_rate"
    assert opens(bed, family, far) == SERVED


def test_farms_count_apart(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    bed.farm(family.vip, (family.far(11), 8080), port=81, farm=2)
    serve(bed, family, rate_interval_ns=1_000_000_000)
    bed.plane.apply([PutFarmLimits(2, rate_interval_ns=1_000_000_000, client_prefix_v4=32, client_prefix_v6=64)])
    assert client(bed, family) == SERVED
    assert bed.send(bytes(from_client(family, port=81))).verdict == SERVED
    assert client(bed, family, port=40001) == "drop_rate"


# --- half-open ----------------------------------------------------------------------------------------------


def half_open(bed: Bed, family: Family, number: int, limit: int = 3, ticks: int = 900) -> Counter[str]:
    serve(bed, family, max_half_open=limit, half_open_ticks=ticks)
    return Counter(opens(bed, family, family.client, 20000 + n) for n in range(number))


def test_a_client_has_so_many_half_open_connections(limited_bed: Bed, family: Family) -> None:
    assert half_open(limited_bed, family, 8) == {SERVED: 3, "drop_half_open": 5}
    assert opens(limited_bed, family, other_client(family, 1)) == SERVED
    assert client(limited_bed, family, "S", 20000) == SERVED, "a retransmission is the same connection"


def reply(bed: Bed, family: Family, port: int, flags: str = "SA", protocol: int = Protocol.TCP) -> str:
    """By whichever backend has the connection."""
    (number,) = {
        entry.leaves.destination
        for entry in bed.flows("embryonic", family).values()
        if entry.forward and entry.arrives.source_port == port
    }
    return bed.send(bytes(from_backend(family, number, family.vip, port, protocol, flags)), "out0").verdict


def test_an_established_connection_is_not_half_open(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    assert half_open(bed, family, 4) == {SERVED: 3, "drop_half_open": 1}
    reply(bed, family, 20000)
    assert opens(bed, family, family.client, 20010) == "drop_half_open", "a SYN-ACK is no proof of the client"
    assert opens(bed, family, family.client, 20000, flags="A") == SERVED
    assert opens(bed, family, family.client, 20011) == SERVED
    assert opens(bed, family, family.client, 20012) == "drop_half_open"


def test_a_refused_connection_is_not_half_open(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    half_open(bed, family, 3)
    reply(bed, family, 20001, "RA")
    assert opens(bed, family, family.client, 20010) == SERVED
    assert opens(bed, family, family.client, 20011) == "drop_half_open"


def test_an_answered_datagram_is_not_half_open(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family, Protocol.UDP, max_half_open=2, half_open_ticks=900)
    verdicts = [opens(bed, family, family.client, 20000 + n, Protocol.UDP) for n in range(3)]
    assert verdicts == [SERVED, SERVED, "drop_half_open"]
    reply(bed, family, 20000, protocol=Protocol.UDP)
    assert opens(bed, family, family.client, 20010, Protocol.UDP) == SERVED
    assert opens(bed, family, family.client, 20011, Protocol.UDP) == "drop_half_open"


def test_what_the_kernel_evicts_is_half_open_no_longer_than_its_time(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    assert half_open(bed, family, 4, ticks=3)["drop_half_open"] == 1  # windows of 0.2 s
    bed.clear("embryonic", family)
    bed.set_clock(1000.55)
    assert opens(bed, family, family.client, 21000) == "drop_half_open"
    bed.set_clock(1000.85)
    assert Counter(opens(bed, family, family.client, 22000 + n) for n in range(4)) == {SERVED: 3, "drop_half_open": 1}
