"""Users, tokens and own passwords through HTTP, conditional changes, and who a change is of."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import argon2
import pytest

from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.web import PASSWORD, RunningWeb, WebClient, give_accounts, running_web
from tests.wait import wait_until

NEW = "another long password"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("node")) as running:
        give_accounts(running)
        yield running


@pytest.fixture(scope="module")
def web(daemon: RunningDaemon) -> Iterator[RunningWeb]:
    with running_web(daemon.config) as running:
        yield running


def test_a_user_is_added_changed_and_deleted(web: RunningWeb, caplog: pytest.LogCaptureFixture) -> None:
    operator, client = web.client("olga"), web.client()
    with caplog.at_level(logging.DEBUG):
        made = operator.post("users", {"name": "mia", "password": PASSWORD})
        assert made.result["role"] == "viewer"
        assert client.login("mia").status == 200
        assert operator.request("PATCH", "users/mia", {"role": "operator"}).status == 200
        assert client.get("farms").status == 401, "another role ends the sessions"
        assert client.login("mia").result["role"] == "operator"
        assert operator.request("PATCH", "users/mia", {"password": NEW}).status == 200
        assert (
            client.get("farms").status == 401 and client.login("mia").status == 401 and client.login("mia", NEW).status == 200
        )
        assert operator.request("DELETE", "users/mia").status == 200
        wait_until(lambda: client.get("farms").status == 401, "a user who is deleted is logged out")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert PASSWORD not in text and NEW not in text and "argon2id" not in text
    assert "argon2" not in operator.get("users").body.decode() and "argon2" not in made.body.decode()


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"name": "x"}, "password"),
        ({"name": "x", "password": "short"}, "password"),
        ({"name": "x", "password": "a" * 1025}, "password"),
        ({"name": "x", "password": 5}, "password"),
        ({"name": "<b>", "password": PASSWORD}, "name"),
        ({"name": "x", "password": PASSWORD, "role": "admin"}, "role"),
        ({"name": "x", "password": PASSWORD, "password_hash": "y"}, "password_hash"),
    ],
)
def test_what_is_no_user_is_named(web: RunningWeb, body: dict[str, object], key: str) -> None:
    answer = web.client("olga").post("users", body)
    assert answer.status == 422 and answer.json["error"]["key"].endswith(key), answer.body
    assert PASSWORD not in answer.body.decode()


def test_the_own_password_ends_the_other_sessions(web: RunningWeb) -> None:
    operator = web.client("olga")
    assert operator.post("users", {"name": "ron", "password": PASSWORD}).status == 200
    client, other = web.client("ron"), web.client("ron")
    assert client.request("PUT", "session/password", {"old": "wrong password", "new": NEW}).code == "login_refused"
    assert client.request("PUT", "session/password", {"old": PASSWORD, "new": "short"}).json["error"]["key"] == "new"
    assert client.request("PUT", "session/password", {"old": PASSWORD, "new": NEW}).status == 200
    assert other.get("farms").status == 401 and client.get("farms").status == 200
    assert web.client().login("ron", NEW).status == 200


def test_an_operator_who_changes_his_own_account_stays_logged_in(web: RunningWeb) -> None:
    operator = web.client("olga")
    assert operator.post("users", {"name": "ida", "password": PASSWORD, "role": "operator"}).status == 200
    client = web.client("ida")
    assert client.request("PATCH", "users/ida", {"password": NEW}).status == 200
    assert client.get("users").status == 200


def test_a_hash_of_other_costs_is_made_again_at_the_login(web: RunningWeb, daemon: RunningDaemon) -> None:
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    daemon.call("user.add", name="old", role="viewer", password_hash=old)
    first = WebClient(web.port)
    wait_until(lambda: first.login("old").status == 200, "the account is known")
    assert daemon.farms.users["old"].password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first.get("farms").status == 200 and web.client("old").get("farms").status == 200


def test_a_token_is_shown_once_and_ends(web: RunningWeb, daemon: RunningDaemon) -> None:
    operator = web.client("olga")
    made = operator.post("tokens", {"name": "ci", "role": "operator", "expires_days": 1}).result
    script = WebClient(web.port, headers={"Authorization": f"Bearer {made['token']}"})
    assert script.get("farms").status == 200
    assert script.post("vips", {"address": "10.77.0.77/24", "device": "eth0"}).status == 200, "no CSRF token with a token"
    assert made["token"] not in operator.get("tokens").body.decode()
    assert script.request("PUT", "session/password", {"old": "x", "new": "y"}).status == 403
    assert operator.request("DELETE", "tokens/ci").status == 200
    wait_until(lambda: script.get("farms").status == 401, "a token that is deleted is refused")
    reader = operator.post("tokens", {"name": "reader"}).result
    assert reader["role"] == "viewer" and reader["expires_s"] == 0
    script = WebClient(web.port, headers={"Authorization": f"Bearer {reader['token']}"})
    assert script.get("metrics").status == 200 and script.post("farms/x/stop").status == 403


def test_two_writers_cannot_overwrite_each_other(web: RunningWeb) -> None:
    one, other = web.client("olga"), web.client("olga")
    assert one.post("vips", {"address": "10.77.0.60/24", "device": "eth0"}).status == 200
    assert one.post("farms", {"name": "shop", "vip": "10.77.0.60", "port": 80}, If_Match="*").status == 200
    read = other.get("farms/shop")
    tag = read.headers["etag"]
    assert tag == f'"{read.json["version"]}"'
    assert one.request("PATCH", "farms/shop", {"scheduler": "source"}, If_Match=tag).status == 200
    late = other.request("PATCH", "farms/shop", {"scheduler": "roundrobin"}, If_Match=tag)
    assert (late.status, late.code) == (412, "change_overtaken")
    for method, path, body in (
        ("DELETE", "farms/shop", None),
        ("POST", "farms/shop/backends", {"address": "10.0.0.1", "port": 80}),
        ("POST", "users", {"name": "late", "password": PASSWORD}),
        ("POST", "tokens", {"name": "late"}),
        ("PUT", "config", {"document": {}, "force": True}),
        ("PUT", "prefixes/late", {"prefixes": ["10.0.0.0/8"]}),
        ("POST", "history/1/rollback", {}),
    ):
        answer = other.request(method, path, body, If_Match=tag)
        assert answer.status in (412, 404) and (answer.status == 412 or "history" in path), (method, path, answer.body)
    now = other.get("farms/shop").headers["etag"]
    assert other.request("PATCH", "farms/shop", {"scheduler": "roundrobin"}, If_Match=now).status == 200
    assert other.request("DELETE", "farms/shop", If_Match="yesterday").status == 400


def test_the_event_and_the_history_of_a_change_name_the_user(web: RunningWeb) -> None:
    operator = web.client("olga")
    assert operator.post("vips", {"address": "10.77.0.61/24", "device": "eth0"}).status == 200
    events = [each for each in operator.get("events/recent?last=20").result if each["event"] == "config.changed"]
    assert "olga (web)" in json.dumps(events[-1])
    assert "olga (web)" in operator.get("history").result[0]["user"]
