"""Which connections get a place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ctl.web.serving.admission import Admission, prefix_of


def test_sources_are_addresses_and_prefixes_of_64_bits() -> None:
    assert prefix_of("10.0.0.1") != prefix_of("10.0.0.2")
    assert prefix_of("2001:db8::1") == prefix_of("2001:db8::ffff:1") != prefix_of("2001:db8:0:1::1")
    assert prefix_of("::ffff:10.0.0.1") == prefix_of("10.0.0.1")
    assert prefix_of("fe80::1%eth0") == prefix_of("fe80::2%eth1")
    assert prefix_of("127.0.0.9") == prefix_of("::1")


def test_a_flood_of_one_source_pushes_out_itself() -> None:
    admission = Admission(per_prefix=4)
    known = admission.arrive("10.0.0.1").number
    assert known is not None
    admission.prove(known)
    elsewhere = admission.arrive("10.0.0.2").number
    for _ in range(100):
        verdict = admission.arrive("10.0.0.1")
        assert verdict.number is not None and known not in verdict.evict and elsewhere not in verdict.evict
    assert len(admission) == 5 and admission.evicted == 97


def test_where_all_are_known_a_new_one_is_refused() -> None:
    admission = Admission(total=3, per_prefix=2)
    for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
        number = admission.arrive(address).number
        assert number is not None
        admission.prove(number)
    assert admission.arrive("10.0.0.1").number is None
    assert admission.arrive("10.0.0.3").number is None
    assert admission.refused == 2


def test_the_oldest_unfinished_handshake_gives_way() -> None:
    admission = Admission(handshakes=2)
    first, second, third = (admission.arrive(f"10.0.0.{number}") for number in (1, 2, 3))
    assert third.evict == (first.number,)
    assert second.number is not None
    admission.shaken(second.number)
    assert admission.arrive("10.0.0.4").evict == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "shaken", "prove", "leave"]),
            st.integers(0, 30),
            st.sampled_from(["10.0.0.1", "::1", "10.0.0.2"]),
        )
    )
)
def test_the_bounds_hold_whatever_happens(steps: list[tuple[str, int, str]]) -> None:
    admission = Admission(total=5, per_prefix=3, loopback=4, handshakes=2)
    there: dict[int, str] = {}
    for what, number, address in steps:
        if what == "arrive":
            verdict = admission.arrive(address)
            for each in verdict.evict:
                del there[each]
            if verdict.number is not None:
                there[verdict.number] = address
        elif what == "leave":
            admission.leave(number)
            there.pop(number, None)
        else:
            getattr(admission, what)(number)
        assert len(admission) == len(there) <= 5
        assert all(list(there.values()).count(each) <= most for each, most in (("10.0.0.1", 3), ("10.0.0.2", 3), ("::1", 4)))
        assert len(admission._shaking) <= 2
