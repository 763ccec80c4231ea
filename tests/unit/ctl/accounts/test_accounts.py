"""Passwords and tokens."""

from __future__ import annotations

import argon2
import pytest

from ctl.accounts import passwords, tokens
from ctl.errors import Code
from tests.refusals import invalid


def test_a_hash_is_argon2id_and_only_its_password_matches() -> None:
    made = passwords.hash_password("correct horse")
    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$") and passwords.hash_password("correct horse") != made
    assert passwords.matches(made, "correct horse") and not passwords.matches(made, "correct  horse")
    assert not passwords.is_outdated(made)


def test_how_characters_are_typed_makes_no_difference() -> None:
    assert passwords.matches(passwords.hash_password("ros\u00e9 de loire"), "rose\u0301 de loire")


@pytest.mark.parametrize("broken", ["", "x", "$argon2id$v=19$m=1$x$y", "$2b$12$abc"])
def test_what_is_no_hash_matches_nothing(broken: str) -> None:
    assert not passwords.matches(broken, "whatever it is") and not passwords.is_outdated(broken)


def test_a_hash_of_other_costs_is_outdated() -> None:
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("correct horse")
    assert passwords.matches(old, "correct horse") and passwords.is_outdated(old)


@pytest.mark.parametrize("password", ["", "a" * 9, "ä" * 513, "a" * 1025, "a" * 10 + "\ud800"])
def test_short_long_and_broken_passwords_are_refused(password: str) -> None:
    with invalid(Code.INVALID_VALUE, "password") as caught:
        passwords.check(password)
    assert len(password) < 2 or password not in str(caught.value)


def test_any_other_text_is_a_password() -> None:
    for password in ("a" * 10, "ä" * 512, "пароль пароль", "🐎" * 10, " " * 10):
        passwords.check(password)


def test_tokens_are_random_and_have_a_digest() -> None:
    (one, digest), (other, _) = tokens.make(), tokens.make()
    assert one != other and one.startswith("xlb_") and len(one) == 47
    assert tokens.digest(one) == digest and len(digest) == 64 and one[4:] not in digest
