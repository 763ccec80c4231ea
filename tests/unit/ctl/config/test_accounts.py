"""Accounts in the configuration: which hashes are accepted, the record, limits, and what a difference shows."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from ctl.config import accounts, diff
from ctl.config.changes import change, replace_from_document
from ctl.config.farms_file import to_document
from ctl.config.model import Config, Role, Token, User
from ctl.config.record_codec import DamagedRecord, Decoder, Encoder, decode
from ctl.config.understood import OF_0_1_0, names, unknown_to
from ctl.errors import Code, InvalidInput
from tests.refusals import invalid

SALT, HASH = "c29tZXNhbHRzb21l", "A" * 43


def phc(memory: object = 19456, time: object = 2, lanes: object = 1, salt: str = SALT, digest: str = HASH) -> str:
    return f"$argon2id$v=19$m={memory},t={time},p={lanes}${salt}${digest}"


def with_accounts(*users: User, tokens: tuple[Token, ...] = ()) -> Config:
    of_tokens = MappingProxyType({each.name: each for each in tokens})
    return Config(generation=7, users=MappingProxyType({each.name: each for each in users}), tokens=of_tokens)


ALICE = User("alice", Role.OPERATOR, phc(), 1_800_000_000)
CI = Token("ci", Role.VIEWER, "ab" * 32, 1_800_000_000, 1_900_000_000, "alice")
BOTH = with_accounts(ALICE, User("bob", Role.VIEWER, phc(digest="B" * 43)), tokens=(CI,))


@pytest.mark.parametrize(
    "accepted", [phc(), phc(65536, 10, 4), phc(8, 1, 1), phc(salt="A" * 11, digest="A" * 22), phc(salt="+/" * 43)]
)
def test_hashes_of_bounded_cost_are_accepted(accepted: str) -> None:
    accounts.check_hash(accepted, "key")


@pytest.mark.parametrize(
    "hostile",
    [
        phc(65537),
        phc(4_194_304),
        phc(99_999_999),
        phc("9" * 30),
        phc(7),
        phc(16, 1, 4),
        phc(0),
        phc("08"),
        phc(time=11),
        phc(time=9999),
        phc(time=0),
        phc(lanes=5),
        phc(lanes=0),
        phc(salt="A" * 10),
        phc(salt="A" * 87),
        phc(digest="A" * 21),
        phc(digest="A" * 87),
        phc(salt="ä" * 16),
        phc() + "\n",
        phc() + "$",
        phc().replace("argon2id", "argon2i"),
        phc().replace("v=19", "v=16"),
        "$2b$12$" + "a" * 53,
        "hunter22222",
        "",
        "$argon2id" * 100_000,
    ],
)
def test_a_hash_that_costs_xlb_web_too_much_is_refused_everywhere(hostile: str) -> None:
    with pytest.raises(InvalidInput, match=r"^user\.password_hash") as caught:
        change(Config(), "user.add", {"name": "eve", "password_hash": hostile})
    assert len(str(caught.value)) < 200 and not (hostile and hostile in str(caught.value))
    with pytest.raises(DamagedRecord):
        decode(Encoder().encode(with_accounts(User("eve", Role.VIEWER, hostile))))


def test_a_record_holds_them() -> None:
    encoder, decoder = Encoder(), Decoder()
    body = encoder.encode(BOTH)
    assert decode(body) == decoder.decode(body) == BOTH
    fewer = change(BOTH, "user.delete", {"name": "alice"})
    assert decoder.decode(encoder.encode(fewer)) == fewer, "no line of the earlier one is left"
    assert encoder.encode(BOTH) == body


@pytest.mark.parametrize(
    "hostile",
    [
        with_accounts(replace(ALICE, name="../x")),
        with_accounts(replace(ALICE, created_s=-1)),
        with_accounts(replace(ALICE, created_s=2**70)),
        with_accounts(tokens=(replace(CI, sha256="AB" * 32),)),
        with_accounts(tokens=(replace(CI, sha256="ab"),)),
        with_accounts(tokens=(replace(CI, expires_s=-1),)),
        with_accounts(tokens=(replace(CI, user="a\nb"),)),
        with_accounts(tokens=(replace(CI, user="x" * 201),)),
        with_accounts(tokens=(CI, replace(CI, name="same"))),
        with_accounts(*(replace(ALICE, name=f"u{number}") for number in range(accounts.MAX_USERS + 1))),
        with_accounts(tokens=tuple(replace(CI, name=f"t{n}", sha256=f"{n:064x}") for n in range(accounts.MAX_TOKENS + 1))),
    ],
)
def test_a_hostile_record_is_refused(hostile: Config) -> None:
    with pytest.raises(DamagedRecord):
        decode(Encoder().encode(hostile))


@pytest.mark.parametrize(
    "line",
    [
        '{"user":{"name":"eve"}}',
        '{"user":{"name":"eve","role":"root","password_hash":"x","created_s":0}}',
        '{"user":{"name":["eve"],"role":"viewer","password_hash":"x","created_s":0}}',
        '{"user":7}',
        '{"user":null}',
        '{"token":{"name":"ci","role":"viewer","sha256":"%s","created_s":0,"expires_s":0,"user":7}}' % ("ab" * 32),
        '{"token":{"name":"ci","role":"viewer","sha256":7,"created_s":0,"expires_s":0,"user":""}}',
        '{"token":{"name":"ci","role":"viewer","sha256":"%s","created_s":"0","expires_s":0,"user":""}}' % ("ab" * 32),
    ],
)
def test_lines_that_are_no_account_are_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.config.record_codec._digest", lambda lines: "0" * 64)
    header, trailer = Encoder().encode(Config()).splitlines(keepends=True)
    with pytest.raises(DamagedRecord):
        decode(b"".join([header, line.encode() + b"\n", trailer]))


def test_the_limits() -> None:
    full = with_accounts(
        *(replace(ALICE, name=f"u{number}") for number in range(accounts.MAX_USERS)),
        tokens=tuple(replace(CI, name=f"t{n}", sha256=f"{n:064x}") for n in range(accounts.MAX_TOKENS)),
    )
    assert decode(Encoder().encode(full)) == full
    with invalid(Code.LIMIT_EXCEEDED, "users"):
        change(full, "user.add", {"name": "one", "password_hash": phc()})
    with invalid(Code.LIMIT_EXCEEDED, "tokens"):
        change(full, "token.add", {"name": "one", "sha256": "cd" * 32})


def test_a_difference_shows_no_hash() -> None:
    changed = replace(ALICE, role=Role.VIEWER, password_hash=phc(digest="C" * 43))
    other = with_accounts(changed, tokens=(replace(CI, sha256="cd" * 32),))
    shown = diff.summaries(BOTH, other)
    assert shown == [
        "user alice role operator → viewer",
        "user alice password changed",
        "user bob removed",
        "token ci removed",
        "token ci added (viewer)",
    ]
    texts = repr([*diff.differences(BOTH, other), *diff.differences(Config(), BOTH), *diff.differences(BOTH, Config()), BOTH])
    assert not [secret for secret in (SALT, HASH, "B" * 43, "C" * 43, "ab" * 32, "cd" * 32) if secret in texts]


def test_farms_files_leave_them_alone() -> None:
    assert to_document(BOTH) == to_document(Config())
    farms = change(BOTH, "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    emptied = replace_from_document(farms, {})
    assert emptied.users is farms.users and emptied.tokens is farms.tokens and not emptied.vips
    assert replace_from_document(BOTH, {}) is BOTH


def test_an_earlier_version_does_not_know_them() -> None:
    assert unknown_to(OF_0_1_0, BOTH) == "user.alice" and unknown_to(OF_0_1_0 | {"user"}, BOTH) == "token.ci"
    assert unknown_to(names(), BOTH) == ""
