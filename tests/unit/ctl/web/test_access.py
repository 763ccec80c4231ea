"""Sessions, login delays, origins and hosts: decisions, with the time as an argument."""

from __future__ import annotations

import hashlib

import pytest

from ctl.config.model import Role
from ctl.errors import Code
from ctl.web.access import requests
from ctl.web.access.accounts import Accounts, Token, User, read
from ctl.web.access.attempts import FREE, LONGEST_FOR_NAME_S, LONGEST_S, LONGEST_SHARED_S, MAX_ENTRIES, Attempts
from ctl.web.access.sessions import IDLE_S, MAX_PER_USER, MAX_SESSIONS, Sessions, csrf_of, key_of
from ctl.web.serving.admission import LOOPBACK
from ctl.web.serving.hosts import Hosts
from tests.refusals import refused

HOUR_S = 3600.0


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_ends_at_its_time_and_after_a_pause() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    sessions.open("id", "alice", "stamp", 0.0)
    for at_s in (0.0, IDLE_S - 1, 2 * IDLE_S - 3, HOUR_S - 0.1):
        assert sessions.use("id", at_s) is not None, at_s
    assert sessions.use("id", HOUR_S) is None
    sessions.open("other", "alice", "stamp", 0.0)
    assert sessions.use("other", IDLE_S) is None


def test_a_clock_that_is_set_back_makes_no_session_longer() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    sessions.open("id", "alice", "stamp", 100_000.0)
    assert sessions.use("id", 90_000.0) is None
    assert sessions.use("id", 99_990.0) is not None, "a clock that is corrected a little logs nobody out"


def test_an_id_is_not_in_what_is_stored() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    sessions.open("secret", "alice", "stamp", 0.0)
    stored = sessions.stored()
    assert "secret" not in repr(stored) and stored[0]["key"] == key_of("secret")
    again = Sessions(lasts_s=HOUR_S)
    again.restore(stored, 10.0)
    assert again.use("secret", 20.0) is not None


@pytest.mark.parametrize("stored", [None, {}, [1], [{"key": "x"}], [{"key": "k", "user": "u", "stamp": "s", "ends_s": "soon"}]])
def test_a_file_of_another_kind_is_no_session(stored: object) -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    sessions.restore(stored, 0.0)
    assert len(sessions) == 0


def test_a_change_of_the_user_ends_his_sessions() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    for name in ("a", "b", "c"):
        sessions.open(f"id-{name}", name, f"stamp-{name}", 0.0)
    ended = sessions.sweep(1.0, {"a": "stamp-a", "b": "another"})
    assert {each.user for each in ended} == {"b", "c"}
    assert sessions.use("id-a", 1.0) is not None


def test_the_own_password_ends_the_other_sessions_only() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    for number in range(3):
        sessions.open(f"id{number}", "alice", "old", 0.0)
    sessions.open("id-bob", "bob", "bobs", 0.0)
    assert len(sessions.close_others("alice", key_of("id1"), "new")) == 2
    assert not sessions.sweep(1.0, {"alice": "new", "bob": "bobs"})
    assert len(sessions) == 2


def test_a_hash_made_again_ends_nothing() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    sessions.open("id", "alice", "old", 0.0)
    sessions.restamp("alice", "old", "new")
    assert not sessions.sweep(1.0, {"alice": "new"})


def test_sessions_are_bounded_for_a_user_and_for_all() -> None:
    sessions = Sessions(lasts_s=HOUR_S)
    for number in range(MAX_PER_USER):
        assert not sessions.open(f"id{number}", "alice", "stamp", float(number))
    assert [each.key for each in sessions.open("one more", "alice", "stamp", 50.0)] == [key_of("id0")]
    for number in range(MAX_SESSIONS + 10):
        sessions.open(f"other{number}", f"user{number}", "stamp", 100.0 + number)
    assert len(sessions) == MAX_SESSIONS


def test_csrf_tokens_differ_and_do_not_give_the_id() -> None:
    assert csrf_of("a") != csrf_of("b") and csrf_of("a") == csrf_of("a")
    assert "a" * 20 not in csrf_of("a" * 20)


# --- login delays -----------------------------------------------------------------------------------------------------


def fail(attempts: Attempts, source: str, name: str, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        assert attempts.begin(source, name, now_s) == 0


def test_the_delay_doubles_up_to_a_limit_and_is_forgotten() -> None:
    attempts, now_s, delays = Attempts(), 0.0, []
    fail(attempts, "s", "alice", now_s, FREE)
    for number in range(14):
        wait_s = attempts.begin("s", f"name{number}", now_s)
        delays.append(wait_s)
        now_s += wait_s
        fail(attempts, "s", f"name{number}", now_s)
    assert delays[:4] == [1, 2, 4, 8] and delays[-1] == LONGEST_S
    assert attempts.begin("s", "x", now_s + 2 * LONGEST_S + 1) == 0


def test_attempts_at_once_count_before_they_are_judged() -> None:
    attempts = Attempts()
    fail(attempts, "s", "alice", 0.0, FREE)
    assert attempts.begin("s", "alice", 0.0) > 0
    assert attempts.begin("elsewhere", "alice", 0.0) > 0
    assert attempts.begin("elsewhere", "bob", 0.0) == 0


def test_others_cannot_lock_a_user_out() -> None:
    attempts = Attempts()
    fail(attempts, "home", "alice", 0.0)
    attempts.succeed("home", "alice")
    now_s = 0.0
    for number in range(40):
        now_s += attempts.begin(f"bot{number}", "alice", now_s)
        attempts.begin(f"bot{number}", "alice", now_s)
    assert 0 < attempts.begin("new", "alice", now_s) <= LONGEST_FOR_NAME_S
    assert attempts.begin("home", "alice", now_s) == 0


def test_who_guesses_behind_a_proxy_on_the_node_does_not_lock_the_others_out_for_long() -> None:
    attempts, now_s = Attempts(), 0.0
    for number in range(40):
        now_s += attempts.begin(LOOPBACK, f"victim{number}", now_s)
        attempts.begin(LOOPBACK, f"victim{number}", now_s)
    assert 0 < attempts.begin(LOOPBACK, "alice", now_s) <= LONGEST_SHARED_S < LONGEST_S


def test_a_success_between_guesses_does_not_free_the_source() -> None:
    attempts = Attempts()
    for number in range(FREE):
        fail(attempts, "s", f"victim{number}", 0.0)
    assert attempts.begin("s", "mallory", 0.0) > 0
    assert attempts.begin("s", "mallory", 1.0) == 0
    attempts.succeed("s", "mallory")
    assert attempts.begin("s", "victim", 1.0) > 0


def test_what_could_not_be_judged_is_no_failure() -> None:
    attempts = Attempts()
    for _ in range(3 * FREE):
        assert attempts.begin("s", "alice", 0.0) == 0
        attempts.withdraw("s", "alice")


def test_the_table_is_bounded() -> None:
    attempts = Attempts()
    for number in range(3 * MAX_ENTRIES):
        attempts.begin(f"s{number}", f"n{number}", 0.0)
        attempts.succeed(f"s{number}", f"n{number}")
    assert len(attempts._failures) <= MAX_ENTRIES and len(attempts._welcome) <= MAX_ENTRIES


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_accounts_are_read_and_an_unknown_role_may_only_look() -> None:
    digest = hashlib.sha256(b"xlb_text").hexdigest()
    found = read(
        {
            "users": [
                {"name": "a", "role": "operator", "password_hash": "h"},
                {"name": "b", "role": "auditor", "password_hash": "h"},
            ],
            "tokens": [{"name": "t", "role": "viewer", "sha256": digest, "expires_s": 100, "user": "a"}],
            "epoch": 1,
            "generation": 2,
        }
    )
    assert found.users["a"].role is Role.OPERATOR and found.users["b"].role is Role.VIEWER
    assert found.token("xlb_text", 99.0) == Token("t", Role.VIEWER, 100.0, "a")
    assert found.token("xlb_text", 100.0) is None and found.token("xlb_other", 0.0) is None


def test_a_stamp_changes_with_password_and_role() -> None:
    stamps = {User("a", role, text).stamp for role in Role for text in ("h1", "h2")}
    assert len(stamps) == 4
    assert Accounts({"a": User("a", Role.VIEWER, "h1")}).stamps["a"] in stamps


# --- requests ---------------------------------------------------------------------------------------------------------

OWN = {"host": "lb1:8443"}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://lb1:8443"},
        {"origin": "https://lb1"},
        {"origin": "null"},
        {"origin": "https://lb1:8443.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(headers: dict[str, str]) -> None:
    with refused(Code.NOT_PERMITTED):
        requests.check_origin("POST", OWN | headers)
    requests.check_origin("GET", OWN | headers)


def test_the_own_page_and_scripts_may() -> None:
    requests.check_origin("POST", OWN)
    requests.check_origin("POST", OWN | {"origin": "https://LB1:8443", "sec-fetch-site": "same-origin"})


def test_the_csrf_token_is_needed_for_changes_only() -> None:
    for given in ({}, {"x-csrf-token": ""}, {"x-csrf-token": "wrong"}, {"x-csrf-token": "ré"}):
        with refused(Code.NOT_PERMITTED):
            requests.check_csrf("DELETE", given, "right")
    requests.check_csrf("DELETE", {"x-csrf-token": "right"}, "right")
    requests.check_csrf("GET", {}, "right")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("__Host-xlb=abc", "abc"),
        ("a=b; __Host-xlb=abc; c", "abc"),
        ("__host-xlb=abc", ""),
        (";;=;", ""),
        ("", ""),
        ("x__Host-xlb=1", ""),
    ],
)
def test_the_cookie_is_found_among_others(header: str, found: str) -> None:
    assert requests.session_id({"cookie": header}) == found


def test_only_bearer_tokens_are_known() -> None:
    assert requests.bearer({}) is None and requests.bearer({"authorization": "bearer xlb_x"}) == "xlb_x"
    with refused(Code.NOT_LOGGED_IN):
        requests.bearer({"authorization": "Basic YTpi"})


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["lb1", "LB1:8443", "lb1.", "localhost:1", "127.0.0.1:8443", "[::1]:8443", "10.0.0.1", "web.corp.example"]
)
def test_own_names_and_addresses_are_answered(header: str) -> None:
    assert not Hosts(["lb1", "*.corp.example"]).problem(header)


@pytest.mark.parametrize(
    "header",
    ["", "evil.example", "lb1.evil.example", "lb1:", "lb1:80:80", "a b", "[::1", "corp.example", "x.y.corp.example", "ö"],
)
def test_other_names_are_not(header: str) -> None:
    assert Hosts(["lb1", "*.corp.example"]).problem(header)
