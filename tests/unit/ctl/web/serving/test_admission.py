"""Which connections keep their place in a flood."""

from __future__ import annotations

import pytest

from ctl.web.serving.admission import LOOPBACK, Admission, prefix_of


def arrived(admission: Admission, address: str) -> int:
    number = admission.arrive(address).number
    assert number is not None
    return number


def known(admission: Admission, address: str) -> None:
    """A connection that has proven who it is."""
    number = arrived(admission, address)
    admission.greet(number)
    admission.shaken(number)
    admission.prove(number)


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.9.9.9", LOOPBACK),
        ("::1", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(address: str, prefix: str) -> None:
    assert prefix_of(address) == prefix


def test_one_source_pushes_out_itself_only() -> None:
    admission = Admission(per_prefix=2)
    other = arrived(admission, "192.0.2.1")
    first, second = (arrived(admission, "192.0.2.2") for _ in range(2))
    assert admission.arrive("192.0.2.2").evict == (first,)
    assert admission.arrive("192.0.2.2").evict == (second,)
    assert len(admission) == 3 and admission.evicted == 2
    admission.leave(other)
    admission.leave(other)
    assert len(admission) == 2


def test_each_address_of_the_loopback_is_a_source() -> None:
    admission = Admission(loopback=2)
    first, _ = (arrived(admission, "127.0.0.1") for _ in range(2))
    assert admission.arrive("127.0.0.2").evict == admission.arrive("::1").evict == ()
    assert admission.arrive("::ffff:127.0.0.1").evict == (first,)


def test_who_has_proven_who_he_is_keeps_his_place() -> None:
    admission = Admission(per_prefix=2)
    for _ in range(2):
        known(admission, "192.0.2.2")
    verdict = admission.arrive("192.0.2.2")
    assert (verdict.number, verdict.evict, admission.refused) == (None, (), 1)


def test_when_all_places_are_taken_the_source_with_the_most_loses_its_oldest() -> None:
    admission = Admission(total=4)
    single = arrived(admission, "192.0.2.1")
    first, *_ = (arrived(admission, "192.0.2.2") for _ in range(3))
    assert admission.arrive("192.0.2.3").evict == (first,)
    others = [admission.arrive(f"192.0.2.{number}").evict for number in (4, 5)]
    assert (single,) not in others[:1] and admission.evicted == 3


def test_who_has_sent_a_hello_goes_after_those_who_have_not() -> None:
    admission = Admission(total=3, per_prefix=2)
    greeted = arrived(admission, "192.0.2.1")
    admission.greet(greeted)
    second, third = (arrived(admission, f"192.0.2.{number}") for number in (2, 3))
    assert admission.arrive("192.0.2.4").evict == (second,)
    assert admission.arrive("192.0.2.5").evict == (third,)
    for number in list(admission._prefixes):
        admission.greet(number)
    assert admission.arrive("192.0.2.6").evict == (greeted,)
    for number in list(admission._prefixes):
        admission.greet(number)
        admission.prove(number)
    assert admission.arrive("192.0.2.9").number is None


@pytest.mark.parametrize("limit", ["handshakes", "strangers"])
def test_tls_is_limited_apart(limit: str) -> None:
    admission = Admission(**{limit: 2})  # type: ignore[arg-type]
    numbers = [arrived(admission, "192.0.2.1") for _ in range(2)] + [arrived(admission, "192.0.2.2")]
    for number in numbers[:2]:
        assert admission.greet(number) == ()
        if limit == "strangers":
            admission.shaken(number)
    assert admission.greet(numbers[2]) == (numbers[0],)
    admission.shaken(numbers[2])
    admission.prove(numbers[2])
    last = arrived(admission, "192.0.2.3")
    assert admission.greet(last) == (), "a proven one has no place among the strangers"


def test_a_flood_of_many_sources_leaves_nothing_behind() -> None:
    admission = Admission()
    numbers = []
    for count in range(10_000):
        verdict = admission.arrive(f"10.{count % 7}.{count % 251}.{count % 13}")
        assert verdict.number is not None and len(admission) <= admission.total
        numbers.append(verdict.number)
        if count % 3 == 0:
            admission.greet(verdict.number)
        assert len(admission._secured) <= admission.strangers and len(admission._shaking) <= admission.handshakes
    for number in numbers:
        admission.leave(number)
    assert not (admission._prefixes or admission._count or admission._waiting or admission._secured or admission._shaking)
