"""`xlbctl user` and `token` against a running daemon: what is stored, what is printed, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.accounts import passwords, tokens
from tests.fakes.cli import XLBCTL, Terminal, run
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.tree import TREE

PASSWORD = "correct horse battery"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as running:
        yield running


def xlbctl(daemon: RunningDaemon, *words: str, typed: str | None = None) -> tuple[int, str, str]:
    return run("--config", str(daemon.config), *words, input=typed)


def account(daemon: RunningDaemon, name: str) -> dict[str, Any]:
    return next(each for each in daemon.call("web.accounts")["users"] if each["name"] == name)


def test_a_user_is_added_changed_listed_and_deleted(daemon: RunningDaemon) -> None:
    assert xlbctl(daemon, "user", "list")[:2] == (0, "NAME  ROLE  CREATED\n")
    assert xlbctl(daemon, "user", "add", "alice", "--role", "operator", typed=PASSWORD + "\n")[:2] == (
        0,
        "user alice added (operator)\n",
    )
    assert xlbctl(daemon, "user", "add", "bob", typed=PASSWORD)[:2] == (0, "user bob added (viewer)\n")
    first = account(daemon, "bob")["password_hash"]
    assert passwords.matches(first, PASSWORD) and not passwords.matches(first, PASSWORD + "x")
    assert xlbctl(daemon, "user", "passwd", "bob", typed="another one, longer\n")[0] == 0
    assert passwords.matches(account(daemon, "bob")["password_hash"], "another one, longer")
    assert xlbctl(daemon, "user", "set", "bob", "--role", "operator")[0] == 0
    listed = json.loads(xlbctl(daemon, "-o", "json", "user", "list")[1])
    assert [(each["name"], each["role"]) for each in listed] == [("alice", "operator"), ("bob", "operator")]
    assert "password" not in json.dumps(listed)
    assert xlbctl(daemon, "user", "delete", "bob")[0] == 0
    code, _, errors = xlbctl(daemon, "user", "delete", "alice")
    assert code == 0 and "no user is an operator any more" in errors


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("too short\n", "password: is too short: expected at least 10 characters"),
        ("\n", "password: is too short"),
        ("", "password: is too short"),
        ("x" * 1025, "password: is too long: expected at most 1024 bytes"),
        ("é" * 513, "password: is too long"),
    ],
)
def test_a_password_that_may_not_be_chosen(daemon: RunningDaemon, typed: str, expected: str) -> None:
    code, output, errors = xlbctl(daemon, "user", "add", "alice", typed=typed)
    assert (code, output) == (2, "") and expected in errors
    assert daemon.call("user.list") == []


def test_the_password_is_asked_for_twice_and_not_shown(daemon: RunningDaemon) -> None:
    with Terminal([*XLBCTL, "--config", daemon.config, "user", "add", "alice"]) as terminal:
        for second in ("something else", PASSWORD):
            terminal.expect("Password of alice: ")
            terminal.type(PASSWORD + "\n")
            terminal.expect("Repeat it: ")
            terminal.type(second + "\n")
        shown = terminal.expect(r"(?s).*user alice added \(viewer\)")[0]
        assert PASSWORD not in shown
    assert passwords.matches(account(daemon, "alice")["password_hash"], PASSWORD)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("user", "add", "a b"), 2, "user.name"),
        (("user", "add", "alice", "--role", "root"), 2, "--role"),
        (("user", "passwd", "nobody"), 2, 'there is no user "nobody"'),
        (("user", "delete", "nobody"), 2, 'there is no user "nobody"'),
        (("user", "set", "nobody", "--role", "viewer"), 2, 'there is no user "nobody"'),
        (("token", "add", "ci", "--expires", "0"), 2, "--expires"),
        (("token", "delete", "ci"), 2, 'there is no token "ci"'),
    ],
)
def test_what_is_wrong_is_refused(daemon: RunningDaemon, words: tuple[str, ...], code: int, expected: str) -> None:
    done, output, errors = xlbctl(daemon, *words, typed=PASSWORD)
    assert (done, output) == (code, "") and expected in errors and PASSWORD not in errors


def test_a_token_is_printed_once_and_alone(daemon: RunningDaemon) -> None:
    code, output, errors = xlbctl(daemon, "token", "add", "prometheus")
    assert code == 0 and "cannot be shown again" in errors and "does not expire" in errors
    text = output.strip()
    assert text.startswith(tokens.PREFIX) and len(text) == len(tokens.PREFIX) + 43
    made = json.loads(xlbctl(daemon, "-o", "json", "token", "add", "ci", "--role", "operator", "--expires", "90")[1])
    stored = {each["name"]: each for each in daemon.call("web.accounts")["tokens"]}
    assert stored["prometheus"]["sha256"] == tokens.digest(text) and stored["ci"]["sha256"] == tokens.digest(made["token"])
    assert stored["ci"]["role"] == "operator" and stored["ci"]["expires_s"] - stored["ci"]["created_s"] in (7775999, 7776000)
    listed = xlbctl(daemon, "token", "list")[1]
    assert "prometheus" in listed and "never" in listed and text not in listed and stored["ci"]["sha256"] not in listed
    assert xlbctl(daemon, "token", "delete", "ci")[0] == 0
    assert [each["name"] for each in daemon.call("token.list")] == ["prometheus"]


def test_hashes_of_other_costs_are_verified_and_outdated() -> None:
    import argon2

    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("\u00e9t\u00e9 de fer bleu")
    assert passwords.matches(cheap, "e\u0301t\u00e9 de fer bleu") and passwords.is_outdated(cheap)
    assert not passwords.is_outdated(passwords.hash_password(PASSWORD))
    assert not passwords.matches("$argon2id$v=19$nonsense", PASSWORD) and not passwords.matches("", PASSWORD)


def test_xlbd_hashes_nothing() -> None:
    code = "import sys, ctl.daemon, ctl.node.process; sys.exit('argon2' in sys.modules or 'ctl.accounts' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TREE, check=False).returncode == 0
