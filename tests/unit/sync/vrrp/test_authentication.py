"""The secret of a pair, the trailer against the draft's own packets, and which advertisements count."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

from sync.vrrp import codec
from sync.vrrp.authentication import Session, Verdict, sequence_of, trailer
from sync.vrrp.key_agreement import pair_secret, x25519

SECRET = bytes(range(32))
OURS, THEIRS = "10.7.0.1", "10.7.0.2"
MESSAGE = bytes([0x31, 51, 100, 1, 0, 10, 0, 0, 10, 7, 0, 100])

# draft-cassen-vrrp-auth-hmac, appendix: router 51, priority 200, key 00…1f, sequence 0x6800000080000000.
DRAFT = {
    "IPv4": (
        ("198.51.100.10", "198.51.100.20"),
        "3133c80100644402c0000264",
        "0101000068000000800000001b84bc4e8e43892dc6d98448f8ee2265",
    ),
    "IPv6": (
        ("fe80::10", "fe80::20"),
        "3133c8010064a2e9fe800000000000000000000000000100",
        "010100006800000080000000c8c56146ebfd66ee10ec4d8186461b78",
    ),
}


# --- the secret ---------------------------------------------------------------------------------------------------------


def test_x25519_gives_the_values_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert x25519(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    once = x25519((9).to_bytes(32, "little"), (9).to_bytes(32, "little"))
    assert once.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    with pytest.raises(ValueError, match="32 bytes"):
        x25519(scalar, point[:31])


def test_both_nodes_compute_the_same_secret_from_their_curve_keys_and_a_third_does_not() -> None:
    (public1, secret1), (public2, secret2), (_, other) = ([z85.decode(each) for each in zmq.curve_keypair()] for _ in range(3))
    assert x25519(secret1, (9).to_bytes(32, "little")) == public1, "a CURVE key is a key of X25519"
    assert pair_secret(secret1, public2) == pair_secret(secret2, public1)
    assert pair_secret(other, public2) != pair_secret(secret1, public2)
    with pytest.raises(ValueError, match="small order"):
        pair_secret(secret1, bytes(32))


# --- the trailer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DRAFT)
def test_the_packets_of_the_draft_are_read_and_verified(family: str) -> None:
    (source, destination), message, end = DRAFT[family]
    packet = codec.parse(bytes.fromhex(message + end), source, destination, 255)
    assert isinstance(packet.content, codec.Advertisement)
    assert (packet.content.router_id, packet.content.priority) == (51, 200)
    assert trailer(SECRET, 1, 0x6800000080000000, packet.message, source) == packet.trailer
    assert sequence_of(SECRET, 1, packet.message, packet.trailer, source) == 0x6800000080000000
    assert sequence_of(SECRET, 1, packet.message, packet.trailer, destination) is None, "of another sender"
    assert sequence_of(SECRET, 2, packet.message, packet.trailer, source) is None, "of another key"
    for position in range(len(packet.trailer)):
        changed = bytearray(packet.trailer)
        changed[position] ^= 1
        assert sequence_of(SECRET, 1, packet.message, bytes(changed), source) is None, f"byte {position}"


# --- what counts --------------------------------------------------------------------------------------------------------


def known(one: Session, two: Session) -> None:
    one.lives(two.boot)
    two.lives(one.boot)


def test_an_advertisement_counts_once_and_in_its_order() -> None:
    one, two = Session(SECRET, 1), Session(SECRET, 2)
    known(one, two)
    first, second, third = (one.sign(MESSAGE, OURS) for _ in range(3))
    assert two.judge(MESSAGE, first, OURS) is Verdict.GENUINE
    assert two.judge(MESSAGE, first, OURS) is Verdict.REPLAYED
    assert two.judge(MESSAGE, third, OURS) is Verdict.GENUINE
    assert two.judge(MESSAGE, second, OURS) is Verdict.REPLAYED


def test_what_is_not_signed_with_the_keys_of_both_incarnations_does_not_count() -> None:
    one, two, stranger = Session(SECRET, 1), Session(SECRET, 2), Session(bytes(32), 1)
    assert two.judge(MESSAGE, one.sign(MESSAGE, OURS), OURS) is Verdict.FORGED, "no sender is known yet"
    known(one, two)
    stranger.lives(2)
    assert two.judge(MESSAGE, b"", OURS) is Verdict.UNSIGNED
    assert two.judge(MESSAGE, stranger.sign(MESSAGE, OURS), OURS) is Verdict.FORGED
    assert two.judge(MESSAGE, one.sign(MESSAGE, OURS), THEIRS) is Verdict.FORGED, "the source is signed"
    higher = bytes([*MESSAGE[:2], 255, *MESSAGE[3:]])
    assert two.judge(higher, one.sign(MESSAGE, OURS), OURS) is Verdict.FORGED, "the priority is signed"
    assert one.judge(MESSAGE, one.sign(MESSAGE, OURS), OURS) is Verdict.FORGED, "a node does not believe its own words"
    assert two.judge(MESSAGE, one.sign(MESSAGE, OURS), OURS) is Verdict.GENUINE


def test_nothing_that_was_sent_before_either_node_restarted_counts_again() -> None:
    one, two = Session(SECRET, 1), Session(SECRET, 2)
    known(one, two)
    captured = [one.sign(MESSAGE, OURS) for _ in range(5)]
    receiver = Session(SECRET, 3)
    receiver.lives(1)
    assert {receiver.judge(MESSAGE, each, OURS) for each in captured} == {Verdict.FORGED}, "the receiver restarted"
    assert two.lives(4), "the sender restarted"
    assert {two.judge(MESSAGE, each, OURS) for each in captured} == {Verdict.FORGED}
    assert not two.lives(1), "an incarnation that was replaced does not come back"
    assert two.peer_boot == 4
