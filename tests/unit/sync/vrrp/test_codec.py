"""VRRPv3 advertisements against RFC 9568, scapy, and random bytes."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.vrrp import VRRPv3

from sync.errors import WireError
from sync.vrrp import codec
from sync.vrrp.codec import Advertisement

V4 = ("10.77.0.1", "10.77.0.2")
V6 = ("fe80::1", "ff02::12")


def families() -> st.SearchStrategy[tuple[tuple[str, str], Advertisement]]:
    def advertisement(
        addresses: st.SearchStrategy[ipaddress.IPv4Address | ipaddress.IPv6Address],
    ) -> st.SearchStrategy[Advertisement]:
        return st.builds(
            Advertisement,
            st.integers(1, 255),
            st.integers(0, 255),
            st.integers(1, 4095),
            st.lists(addresses, min_size=1, max_size=20).map(tuple),
        )

    v4 = st.tuples(st.just(V4), advertisement(st.ip_addresses(v=4)))
    v6 = st.tuples(st.just(V6), advertisement(st.ip_addresses(v=6)))
    return v4 | v6


@given(families())
def test_advertisements_survive_encoding(case: tuple[tuple[str, str], Advertisement]) -> None:
    (source, destination), advertisement = case
    assert codec.parse(codec.build(advertisement, source, destination), source, destination, 255).content == advertisement


@given(families())
def test_scapy_builds_the_same_bytes(case: tuple[tuple[str, str], Advertisement]) -> None:
    (source, destination), advertisement = case
    ip = IP(src=source, dst=destination, proto=112) if source == V4[0] else IPv6(src=source, dst=destination, nh=112)
    layer = VRRPv3(
        vrid=advertisement.router_id,
        priority=advertisement.priority,
        adv=advertisement.interval_cs,
        addrlist=[str(address) for address in advertisement.addresses],
        ipcount=len(advertisement.addresses),
    )
    packet = bytes(ip / layer)
    assert packet[20 if source == V4[0] else 40 :] == codec.build(advertisement, source, destination)


@given(families(), st.data())
def test_one_changed_byte_is_refused(case: tuple[tuple[str, str], Advertisement], data: st.DataObject) -> None:
    (source, destination), advertisement = case
    packet = bytearray(codec.build(advertisement, source, destination))
    packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        codec.parse(bytes(packet), source, destination, 255)


@given(families(), st.integers(0, 400))
def test_any_other_length_is_refused(case: tuple[tuple[str, str], Advertisement], length: int) -> None:
    (source, destination), advertisement = case
    packet = codec.build(advertisement, source, destination)
    if length != len(packet):
        with pytest.raises(WireError):
            codec.parse(packet.ljust(length, b"\0")[:length], source, destination, 255)


@given(st.binary(max_size=80), st.sampled_from([V4, V6, (V4[0], V6[1]), ("", "x")]), st.integers(0, 255))
def test_random_bytes_raise_nothing_else(packet: bytes, addresses: tuple[str, str], ttl: int) -> None:
    with contextlib.suppress(WireError):
        codec.parse(packet, *addresses, ttl)


def test_an_advertisement_that_was_routed_is_refused() -> None:
    packet = codec.build(Advertisement(7, 100, 1, (ipaddress.ip_address("10.77.0.100"),)), *V4)
    with pytest.raises(WireError, match="TTL is 254"):
        codec.parse(packet, *V4, 254)


def test_version_two_is_refused() -> None:
    with pytest.raises(WireError, match="version 2 type 1"):
        codec.parse(bytes([0x21, 7, 100, 1, 0, 1, 0, 0, 10, 0, 0, 1]), *V4, 255)


def test_either_ipv4_checksum_is_taken() -> None:
    advertisement = Advertisement(7, 100, 1, (ipaddress.ip_address("10.77.0.100"),))
    plain = codec.build(advertisement, *V4, ipv4_pseudo_header=False)
    assert plain != codec.build(advertisement, *V4)
    assert codec.parse(plain, *V4, 255).content == advertisement


def test_the_checksum_covers_the_addresses_of_the_ip_header() -> None:
    packet = codec.build(Advertisement(7, 100, 1, (ipaddress.ip_address("10.77.0.100"),)), *V4)
    with pytest.raises(WireError, match="checksum"):
        codec.parse(packet, "10.77.0.3", V4[1], 255)


@pytest.mark.parametrize(
    "advertisement",
    [
        Advertisement(0, 100, 1, (ipaddress.ip_address("10.0.0.1"),)),
        Advertisement(256, 100, 1, (ipaddress.ip_address("10.0.0.1"),)),
        Advertisement(1, 256, 1, (ipaddress.ip_address("10.0.0.1"),)),
        Advertisement(1, 100, 0, (ipaddress.ip_address("10.0.0.1"),)),
        Advertisement(1, 100, 4096, (ipaddress.ip_address("10.0.0.1"),)),
        Advertisement(1, 100, 1, ()),
        Advertisement(1, 100, 1, (ipaddress.ip_address("10.0.0.1"),) * 256),
        Advertisement(1, 100, 1, (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1"))),
        Advertisement(1, 100, 1, (ipaddress.ip_address("::1"),)),
    ],
)
def test_values_out_of_range_are_not_encoded(advertisement: Advertisement) -> None:
    with pytest.raises(ValueError, match=r"."):
        codec.build(advertisement, *V4)


def test_the_interval_is_advertised_in_centiseconds() -> None:
    assert [codec.interval_cs(ms * 1_000_000) for ms in (5, 10, 11, 100, 10_000, 60_000)] == [1, 1, 2, 10, 1000, 4095]


TRAILER = bytes(range(28))


@pytest.mark.parametrize("addresses", [V4, V6], ids=["IPv4", "IPv6"])
def test_a_trailer_follows_the_message_and_is_read_apart(addresses: tuple[str, str]) -> None:
    advertisement = Advertisement(7, 100, 1, (ipaddress.ip_address("10.0.0.1" if addresses is V4 else "::1"),))
    signed: list[bytes] = []

    def sign(message: bytes) -> bytes:
        signed.append(message)
        return TRAILER

    packet = codec.build(advertisement, *addresses, trailer=sign)
    read = codec.parse(packet, *addresses, 255)
    assert (read.content, read.trailer) == (advertisement, TRAILER)
    assert [read.message] == signed, "the receiver verifies what the sender signed"
    assert read.message[6:8] == bytes(2)
    with pytest.raises(WireError, match="with or without a trailer"):
        codec.parse(packet[:-1], *addresses, 255)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["IPv4", "IPv6"])
def test_greetings_survive_encoding(addresses: tuple[str, str]) -> None:
    greeting = codec.Greeting(7, (1 << 63) - 1, 12)
    packet = codec.build_greeting(greeting, *addresses, lambda _: TRAILER)
    assert codec.parse(packet, *addresses, 255).content == greeting
    for change in (1, 8):  # router, incarnation
        changed = bytearray(packet)
        changed[change : change + (1 if change == 1 else 8)] = bytes(1 if change == 1 else 8)
        with pytest.raises(WireError):
            codec.parse(bytes(changed), *addresses, 255)
