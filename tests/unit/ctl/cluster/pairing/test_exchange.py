"""The pairing exchange: authentication, mismatches, and that messages without proof of the token have no effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.cluster.pairing.exchange import (
    DENIED,
    MAX_WRONG_PROOFS,
    SECRET_BYTES,
    WORKING,
    Agreed,
    Application,
    Candidate,
    Fitting,
    Invitation,
    Reply,
    Token,
    agree,
    why_unfit,
)
from ctl.errors import Code, InvalidInput, XlbError
from ctl.state.cluster_file import ClusterSettings, Member
from sync.transport import Keys
from tests.refusals import invalid, refused

KEYS1, KEYS2 = Keys.generate(), Keys.generate()
SECRET = bytes(range(SECRET_BYTES))
TOKEN = Token("10.99.0.1", 10919, KEYS1.public, SECRET)
FITTING = Fitting("1.0", 1, 1, 1, 100, 300, 350)
ONE = Candidate(Member("lb1", "10.99.0.1", "10.77.0.1", 100, KEYS1.public), False, FITTING)
TWO = Candidate(Member("lb2", "10.99.0.2", "10.77.0.2", 100, KEYS2.public), False, FITTING)
EXPIRES_NS = 1000
CREATED_S = 1_700_000_000


def invitation(own: Candidate = ONE) -> Invitation:
    return Invitation(TOKEN, KEYS1, own, "ab" * 16, EXPIRES_NS, "10.99.0.2")


def application(own: Candidate = TWO, token: Token = TOKEN) -> Application:
    return Application(token, KEYS2, own)


def reply(outcome: Reply | Agreed) -> bytes:
    assert isinstance(outcome, Reply)
    return outcome.message


def refusal(own: Candidate = ONE, joiner: Candidate = TWO) -> str:
    """The message of both nodes, which must be the same."""
    door, knock = invitation(own), application(joiner)
    outcome = door.received(knock.join, 0, CREATED_S)
    assert isinstance(outcome, Reply)
    with pytest.raises(XlbError) as caught:
        knock.accepted(outcome.message, CREATED_S)
    assert outcome.note == f"join refused: {caught.value}"
    return str(caught.value)


def test_two_nodes_become_a_pair_and_agree_on_it() -> None:
    door, knock = invitation(), application()
    joined, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    agreed = door.received(stored, 0, CREATED_S)
    assert isinstance(agreed, Agreed)
    knock.done(door.completed())
    created = agreed.settings
    assert (created.own, created.peer, created.pair_id) == (joined.peer, joined.own, joined.pair_id)
    assert created.creator and not joined.creator
    assert created.secret_key == KEYS1.secret and joined.secret_key == KEYS2.secret
    assert created.own.priority > created.peer.priority
    assert door.used


def test_a_repeated_message_gets_the_same_answer() -> None:
    door, knock = invitation(), application()
    _, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    assert isinstance(door.received(stored, 0, CREATED_S), Agreed)
    assert reply(door.received(stored, 0, CREATED_S)) == WORKING
    done = door.completed()
    assert reply(door.received(stored, 0, CREATED_S)) == done
    knock.done(done)
    assert door.wrong_proofs == 0


def test_a_second_joiner_cannot_disturb_a_pair_that_is_being_stored() -> None:
    door, knock = invitation(), application()
    _, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    assert isinstance(door.received(stored, 0, CREATED_S), Agreed)
    late = application()
    assert reply(door.received(late.join, 0, CREATED_S)) == WORKING
    knock.done(door.completed())
    with refused(Code.TOKEN_USED):
        late.accepted(reply(door.received(late.join, 0, CREATED_S)), CREATED_S)


def test_a_used_token_is_refused() -> None:
    door, knock = invitation(), application()
    _, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    door.received(stored, 0, CREATED_S)
    door.completed()
    late = application()
    with refused(Code.TOKEN_USED):
        late.accepted(reply(door.received(late.join, 0, CREATED_S)), CREATED_S)


def test_an_expired_token_is_refused() -> None:
    door, knock = invitation(), application()
    with refused(Code.TOKEN_EXPIRED):
        knock.accepted(reply(door.received(knock.join, EXPIRES_NS, CREATED_S)), CREATED_S)


def test_a_join_that_is_finished_too_late_makes_no_pair() -> None:
    door, knock = invitation(), application()
    _, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    assert not isinstance(door.received(stored, EXPIRES_NS, CREATED_S), Agreed)
    assert not door.used


def test_a_wrong_token_is_denied_and_counted_until_the_right_one_is_void_too() -> None:
    door = invitation()
    for number in range(1, MAX_WRONG_PROOFS + 1):
        wrong = application(token=replace(TOKEN, secret=bytes(SECRET_BYTES)))
        outcome = door.received(wrong.join, 0, CREATED_S)
        assert isinstance(outcome, Reply) and f"wrong token ({number} of {MAX_WRONG_PROOFS})" in outcome.note
        with refused(Code.WRONG_TOKEN):
            wrong.accepted(outcome.message, CREATED_S)
    right = application()
    with refused(Code.TOKEN_VOID):
        right.accepted(reply(door.received(right.join, 0, CREATED_S)), CREATED_S)


def test_a_failure_of_the_creator_reaches_the_joiner_and_another_try_is_possible() -> None:
    door, knock = invitation(), application()
    _, stored = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    assert isinstance(door.received(stored, 0, CREATED_S), Agreed)
    with refused(Code.DISK_FULL):
        knock.done(door.failed(XlbError("the disk is full", Code.DISK_FULL)))
    again = application()
    again.accepted(reply(door.received(again.join, 0, CREATED_S)), CREATED_S)


@pytest.mark.parametrize(
    ("joiner", "message"),
    [
        (replace(TWO, member=replace(TWO.member, name="lb1")), 'both nodes are named "lb1"; set node.name'),
        (
            replace(TWO, member=replace(TWO.member, cluster_address="10.99.0.1")),
            "both nodes have the cluster address 10.99.0.1",
        ),
        (
            replace(TWO, member=replace(TWO.member, cluster_address="10.99.0.3")),
            "the token is for 10.99.0.2, and lb2 joins as 10.99.0.3",
        ),
        (
            replace(TWO, member=replace(TWO.member, data_address="10.77.0.1")),
            "both nodes have the address 10.77.0.1 on the data",
        ),
        (
            replace(TWO, fitting=replace(FITTING, version="2.0")),
            "lb1 has xlb 1.0 and lb2 2.0; install the same version on both",
        ),
        (replace(TWO, fitting=replace(FITTING, abi=2)), "lb1 has tables of ABI 1 and lb2 2; install the same version on both"),
        (replace(TWO, fitting=replace(FITTING, config_format=9)), "lb1 has configuration format 1 and lb2 9"),
        (replace(TWO, fitting=replace(FITTING, lease_ms=400)), "lb1 has cluster.lease_ms = 300 and lb2 400; set the same"),
        (replace(TWO, member=replace(TWO.member, name="no good")), "name: expected 1 to 64 letters"),
    ],
)
def test_mismatches_are_refused_on_both_nodes_with_the_same_message(joiner: Candidate, message: str) -> None:
    assert message in refusal(joiner=joiner)


def test_the_same_priority_in_both_node_files_is_refused() -> None:
    one, two = replace(ONE, priority_given=True), replace(TWO, priority_given=True)
    assert "both nodes have priority 100; set cluster.priority" in refusal(one, two)


@given(st.integers(1, 254), st.integers(1, 254), st.booleans(), st.booleans())
def test_priorities_differ_and_configured_ones_are_kept(one: int, two: int, first: bool, second: bool) -> None:
    creator = Candidate(replace(ONE.member, priority=one), first, FITTING)
    joiner = Candidate(replace(TWO.member, priority=two), second, FITTING)
    if first and second and one == two:
        with pytest.raises(XlbError):
            agree(creator, joiner)
        return
    mine, its = agree(creator, joiner)
    assert mine.priority != its.priority
    assert not first or mine.priority == one
    assert not second or its.priority == two


def test_a_refused_node_can_be_corrected_and_join_with_the_same_token() -> None:
    door = invitation()
    wrong = application(replace(TWO, member=replace(TWO.member, name="lb1")))
    door.received(wrong.join, 0, CREATED_S)
    right = application()
    right.accepted(reply(door.received(right.join, 0, CREATED_S)), CREATED_S)


def test_a_key_that_is_not_the_one_it_was_proven_for_is_denied() -> None:
    door, knock = invitation(), application()
    label, _, packed, proof = msgpack.unpackb(knock.join)
    forged = msgpack.packb([label, Keys.generate().public, packed, proof])
    assert reply(door.received(forged, 0, CREATED_S)) == DENIED


def test_answers_of_another_exchange_are_ignored() -> None:
    door, knock, other = invitation(), application(), application(TWO)
    answer = reply(door.received(knock.join, 0, CREATED_S))
    elsewhere = Application(TOKEN, Keys.generate(), TWO)
    with refused(Code.NOT_PROVEN):
        elsewhere.accepted(answer, CREATED_S)
    other.accepted(answer, CREATED_S)  # the same keys and messages: the same exchange


def test_stored_before_join_is_denied() -> None:
    knock = application()
    knock.accepted(reply(invitation().received(knock.join, 0, CREATED_S)), CREATED_S)
    assert reply(invitation().received(knock._transcript.seal("stored", {}), 0, CREATED_S)) == DENIED


JOIN = application().join


@settings(max_examples=300)
@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, len(JOIN) - 1), st.integers(1, 255)).map(
        lambda change: JOIN[: change[0]] + bytes([JOIN[change[0]] ^ change[1]]) + JOIN[change[0] + 1 :]
    )
)
def test_only_a_valid_proof_starts_an_exchange(message: bytes) -> None:
    door = invitation()
    assert reply(door.received(message, 0, CREATED_S)) == DENIED
    assert door._agreed is None and not door.used


@given(st.binary(max_size=300))
def test_only_the_expected_answer_is_accepted(answer: bytes) -> None:
    with pytest.raises(XlbError):
        application().accepted(answer, CREATED_S)


def test_an_introduction_of_another_version_is_refused_with_a_message() -> None:
    door, knock = invitation(), application()
    body = {"member": {"name": "lb2"}, "fitting": {}, "priority_given": False}
    knock._transcript.__init__(TOKEN, KEYS2.public)  # type: ignore[misc]
    join = knock._transcript.seal("join", body, KEYS2.public)
    with refused(Code.PEER_VERSION):
        knock.accepted(reply(door.received(join, 0, CREATED_S)), CREATED_S)


@pytest.mark.parametrize("address", ["10.99.0.1", "fd00::1"])
def test_a_token_survives_formatting_and_added_whitespace(address: str) -> None:
    token = replace(TOKEN, address=address)
    assert Token.parse(token.text()) == token
    assert Token.parse(f" {token.text()[:30]}\n{token.text()[30:]} ") == token


@given(st.integers(0, len(TOKEN.text()) - 1), st.sampled_from("ABab09-_"))
def test_a_mistyped_token_is_detected_before_any_packet_is_sent(position: int, character: str) -> None:
    text = TOKEN.text()
    if text[position] == character:
        return
    changed = text[:position] + character + text[position + 1 :]
    try:
        assert Token.parse(changed) == TOKEN  # the unused bits of the last character
    except InvalidInput as error:
        assert "this is no token of xlb" in str(error)


@pytest.mark.parametrize("text", ["", "hello", "xlb1-", "xlb1-ä", "xlb1-" + "A" * 600, TOKEN.text()[:-5]])
def test_an_invalid_token_is_reported_as_such(text: str) -> None:
    with invalid(Code.WRONG_TOKEN, "TOKEN"):
        Token.parse(text)


def test_matching_nodes_have_no_mismatch() -> None:
    assert why_unfit(FITTING, FITTING, "lb1", "lb2") == ""


def test_settings_are_accepted_by_the_cluster_file() -> None:
    door, knock = invitation(), application()
    joined, _ = knock.accepted(reply(door.received(knock.join, 0, CREATED_S)), CREATED_S)
    from ctl.state.cluster_file import decode, encode

    def roundtrip(value: ClusterSettings) -> Any:
        return decode(encode(value))

    assert roundtrip(joined) == joined


def test_a_joiner_that_introduces_another_key_than_it_proved_is_denied() -> None:
    door = invitation()
    other = replace(TWO, member=replace(TWO.member, public_key=Keys.generate().public))
    assert reply(door.received(application(other).join, 0, CREATED_S)) == DENIED
    assert door._agreed is None
