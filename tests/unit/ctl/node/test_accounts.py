"""Users and tokens of xlb-web on a whole daemon and on a pair, and changes for one version: through the control socket."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ctl.api.async_client import AsyncClient
from ctl.api.caller import Caller, on_behalf_of
from ctl.api.client import Client
from ctl.config.understood import OF_0_1_0
from ctl.errors import Code, XlbError
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.pair import Site, pair_without, paired_sites, two_sites
from tests.fakes.pair import join as make_pair
from tests.refusals import invalid, refused
from tests.wait import wait_until

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
SALT, HASH = "c29tZXNhbHRzb21l", "A" * 43
ALICE = f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${HASH}"
BOB = f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${'B' * 43}"
DIGEST = "ab" * 32
NOBODY = 65534
SECRETS = (SALT, HASH, "B" * 43, DIGEST)

Node = RunningDaemon | Site


def users(node: Node) -> dict[str, str]:
    return {each["name"]: each["role"] for each in node.call("user.list")}


def tokens(node: Node) -> list[str]:
    return [each["name"] for each in node.call("token.list")]


def version(node: Node) -> str:
    found = node.call("web.accounts")
    return f"{found['epoch']}-{found['generation']}"


def on_behalf(daemon: RunningDaemon, name: str, command: str, **arguments: Any) -> Any:
    """As xlb-web asks."""

    async def ask() -> Any:
        client = AsyncClient(daemon.socket_path)
        try:
            return (await client.call(command, arguments, name)).result
        finally:
            await client.close()

    return asyncio.run(ask())


def test_users_and_tokens_come_change_and_go(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        added = daemon.call("user.add", name="alice", role="operator", password_hash=ALICE)
        assert added["name"] == "alice" and added["role"] == "operator" and added["created_s"] > 1_700_000_000
        daemon.call("user.add", name="bob", password_hash=BOB)
        assert users(daemon) == {"alice": "operator", "bob": "viewer"}
        assert daemon.call("user.set", name="bob", role="operator")["role"] == "operator"
        daemon.call("user.set", name="bob", password_hash=ALICE)
        made = daemon.call("token.add", name="ci", sha256=DIGEST, expires_s=4_000_000_000)
        assert made["role"] == "viewer" and made["expires_s"] == 4_000_000_000 and made["user"]
        told = daemon.call("web.accounts")
        assert [each["password_hash"] for each in told["users"]] == [ALICE, ALICE]
        assert told["tokens"] == [made | {"sha256": DIGEST}] and told["generation"] == daemon.farms.generation
        daemon.call("user.delete", name="bob")
        daemon.call("token.delete", name="ci")
        assert users(daemon) == {"alice": "operator"} and tokens(daemon) == []


@pytest.mark.parametrize(
    ("command", "arguments", "code", "key"),
    [
        ("user.add", {"name": "alice", "password_hash": BOB}, Code.USER_EXISTS, "user.name"),
        ("user.add", {"name": "../x", "password_hash": BOB}, Code.INVALID_VALUE, "user.name"),
        ("user.add", {"name": "n" * 65, "password_hash": BOB}, Code.INVALID_VALUE, "user.name"),
        ("user.add", {"name": "new"}, Code.MISSING_ARGUMENT, "user.password_hash"),
        ("user.add", {"name": "new", "password_hash": BOB, "role": "root"}, Code.INVALID_VALUE, "user.role"),
        ("user.add", {"name": "new", "password_hash": "secret"}, Code.INVALID_VALUE, "user.password_hash"),
        ("user.add", {"name": "new", "password_hash": BOB, "created_s": 1}, Code.UNKNOWN_ARGUMENT, "created_s"),
        ("user.set", {"name": "alise", "role": "viewer"}, Code.UNKNOWN_USER, "user.name"),
        ("user.delete", {"name": "carol"}, Code.UNKNOWN_USER, "user.name"),
        ("token.add", {"name": "ci", "sha256": "cd" * 32}, Code.TOKEN_EXISTS, "token.name"),
        ("token.add", {"name": "other", "sha256": DIGEST}, Code.TOKEN_EXISTS, "token.sha256"),
        ("token.add", {"name": "other", "sha256": DIGEST.upper()}, Code.INVALID_VALUE, "token.sha256"),
        ("token.add", {"name": "other", "sha256": "cd" * 32, "expires_s": 5}, Code.INVALID_VALUE, "token.expires_s"),
        ("token.delete", {"name": "other"}, Code.UNKNOWN_TOKEN, "token.name"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, command: str, arguments: dict[str, Any], code: Code, key: str) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("user.add", name="alice", password_hash=ALICE)
        daemon.call("token.add", name="ci", sha256=DIGEST)
        before = daemon.farms
        with invalid(code, key):
            daemon.call(command, **arguments)
        assert daemon.farms is before


def test_a_name_in_the_message_has_its_remedy(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("user.add", name="alice", password_hash=ALICE)
        with invalid(Code.UNKNOWN_USER, "user.name") as caught:
            daemon.call("user.delete", name="alise")
        assert 'did you mean "alice"' in str(caught.value)


def test_no_hash_is_in_log_event_history_or_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running_daemon(tmp_path) as daemon:
        daemon.call("user.add", name="alice", role="operator", password_hash=ALICE)
        daemon.call("user.set", name="alice", password_hash=BOB)
        daemon.call("user.set", name="alice", role="viewer")
        daemon.call("token.add", name="ci", sha256=DIGEST)
        daemon.call("user.delete", name="alice")
        daemon.call("token.delete", name="ci")
        listed = daemon.call("config.history")
        shown = [each["summary"] for each in reversed(listed)][1:]
        assert shown == [
            "user alice added (operator)",
            "user alice password changed",
            "user alice role operator → viewer",
            "token ci added (viewer)",
            "user alice removed",
            "token ci removed",
        ]
        answers = [listed, daemon.call("config.export"), daemon.call("watch", last=50), daemon.call("user.list")]
        answers += [daemon.call("config.generation", generation=each["name"]) for each in listed]
        answers += [daemon.call("metrics"), daemon.call("status")]
        text = f"{answers}{caplog.text}{daemon.farms}"
        assert "user alice added (operator)" in caplog.text
        assert [each for each in SECRETS if each in text] == []


def test_every_file_with_a_hash_is_readable_by_root_only(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        for number in range(4):
            daemon.call("user.add", name=f"u{number}", password_hash=ALICE)
    held = [each for each in (tmp_path / "state").iterdir() if each.is_file() and HASH in each.read_text()]
    assert len(held) >= 4 and {each.stat().st_mode & 0o777 for each in held} == {0o600}


def test_apply_and_rollback_leave_accounts_as_they_are(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", address="10.77.0.100/24", device="eth0")
        daemon.call("user.add", name="gone", password_hash=ALICE)
        daemon.call("token.add", name="old", sha256=DIGEST)
        with_both = daemon.farms.generation
        daemon.call("farm.add", name="web", vip="10.77.0.100", port=80)
        daemon.call("user.delete", name="gone")
        daemon.call("token.delete", name="old")
        daemon.call("user.add", name="alice", password_hash=BOB)
        answer = daemon.call("config.rollback", generation=with_both)
        assert list(daemon.farms.farms) == [] and answer["changes"] == ["farm web removed"]
        assert users(daemon) == {"alice": "viewer"} and tokens(daemon) == [], "a deleted account does not return"
        daemon.call("config.apply", document=daemon.call("config.export"))
        daemon.call("config.apply", document={})
        assert users(daemon) == {"alice": "viewer"}


def test_losing_the_last_operator_is_noted(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        for name in ("alice", "bob"):
            daemon.call("user.add", name=name, role="operator", password_hash=ALICE)
        daemon.call("token.add", name="ci", sha256=DIGEST, user="alice")
        with Client(daemon.socket_path) as client:
            client.call("user.delete", {"name": "alice"})
            assert "tokens of alice stay valid: ci" in client.note and "no user is an operator" not in client.note
            client.call("user.set", {"name": "bob", "role": "viewer"})
            assert client.note.startswith("no user is an operator any more")


# --- for whom, and for which version -------------------------------------------------------------------------------


def test_the_web_user_is_believed_of_xlb_web_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.api.caller._uid", {"xlb-web": 990}.get)
    monkeypatch.setattr("ctl.api.caller._user_name", {990: "xlb-web", 0: "root", 1000: "mallory"}.get)
    monkeypatch.setattr("ctl.api.caller._login", lambda pid: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert [Caller(uid, on_behalf="alice").name() for uid in (990, 0)] == ["alice (web)"] * 2
    assert Caller(1000, on_behalf="alice").name() == "mallory (for alice of xlb-web, not verified)"
    assert Caller(990).name() == "xlb-web"
    assert Caller(user="lb2", on_behalf="alice").name() == "lb2 (for alice of xlb-web, not verified)"


@pytest.mark.parametrize("wrong", [7, "a\nb", "x" * 101, "alice (web)", "", ["alice"]])
def test_a_web_user_that_is_no_name_is_refused(wrong: Any) -> None:
    assert on_behalf_of(wrong) is None


FORGE = """
import sys, zmq, msgpack
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.connect("ipc://" + sys.argv[1])
asked = [("vip.add", {"address": "10.77.0.100/24", "device": "eth0"}), ("web.accounts", {})]
for number, (command, arguments) in enumerate(asked):
    socket.send(msgpack.packb({"v": 1, "id": number, "cmd": command, "args": arguments, "on_behalf": "alice"}))
    assert socket.poll(10_000)
    answer = msgpack.unpackb(socket.recv())
    print(answer["ok"], answer.get("error", {}).get("code"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to ask as another user")
def test_another_user_can_only_claim_to_be_xlb_web(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctl")
    with TemporaryDirectory() as directory, running_daemon(Path(directory)) as daemon:
        for each in (Path(directory), *Path(directory).iterdir()):
            each.chmod(0o755)
        os.chown(daemon.socket_path, NOBODY, NOBODY)
        command = [sys.executable, "-c", FORGE, str(daemon.socket_path)]
        done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:2] == ["True None", "False not_permitted"]
    assert "changed by nobody (for alice of xlb-web, not verified) on lb1 (vip.add)" in caplog.text


def test_only_xlb_web_gets_the_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("web.accounts")
        monkeypatch.setattr(Caller, "is_web", lambda self: False)
        with refused(Code.NOT_PERMITTED):
            daemon.call("web.accounts")


@pytest.mark.parametrize("asked", [0, 1])
def test_the_web_user_reaches_log_event_and_history_on_both_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: int
) -> None:
    caplog.set_level(logging.INFO, "ctl")
    with paired_sites(tmp_path, {0: FAST, 1: FAST}) as sites:
        on_behalf(sites[asked].daemon, "alice", "vip.add", address="10.77.0.100/24", device="eth0")
        assert f"changed by alice (web) on lb{asked + 1} (vip.add)" in caplog.text
        for each in sites:
            wait_until(lambda each=each: "10.77.0.100" in each.daemon.farms.vips, "the change is on both nodes")  # type: ignore[misc]
            (newest, *_) = each.call("config.history")
            assert (newest["user"], newest["node"]) == ("alice (web)", f"lb{asked + 1}")
            events = [one["fields"] for one in each.call("watch", last=50)["events"]]
            assert "alice (web)" in [fields.get("user") for fields in events]


def test_a_change_for_another_version_is_refused(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        seen = version(daemon)
        daemon.call("vip.add", address="10.77.0.100/24", device="eth0", if_version=seen)
        before = daemon.farms
        changes: list[tuple[str, dict[str, Any]]] = [
            ("vip.delete", {"address": "10.77.0.100"}),
            ("config.apply", {"document": {}}),
            ("config.rollback", {"generation": "0"}),
            ("user.add", {"name": "alice", "password_hash": ALICE}),
        ]
        for command, arguments in changes:
            with refused(Code.CHANGE_OVERTAKEN):
                daemon.call(command, **arguments, if_version=seen)
        for wrong in (7, "1", "1-2-3", "*", "01-2", "1-" + "9" * 30):
            with invalid(Code.INVALID_VALUE, "if_version"):
                daemon.call("vip.delete", address="10.77.0.100", if_version=wrong)
        assert daemon.farms is before
        daemon.call("vip.delete", address="10.77.0.100", if_version=version(daemon))


def test_what_an_active_node_of_an_earlier_version_cannot_compare_is_refused(tmp_path: Path) -> None:
    with paired_sites(tmp_path, {0: FAST, 1: FAST}) as (one, two):
        seen, replica = version(two), two.member.configuration.replica
        two.daemon.on_loop(replica.peer_understands, OF_0_1_0)
        with refused(Code.PEER_VERSION) as caught:
            two.call("vip.add", address="10.77.0.100/24", device="eth0", if_version=seen)
        assert "upgrade xlb there first" in str(caught.value) and not one.daemon.farms.vips
        two.call("vip.add", address="10.77.0.100/24", device="eth0", if_version="")
        with refused(Code.PEER_VERSION):
            two.call("user.add", name="alice", password_hash=ALICE)
        assert list(one.daemon.farms.vips) == ["10.77.0.100"] and users(one) == {}


@pytest.mark.parametrize("two_nodes", [False, True], ids=["single", "active and backup"])
def test_of_two_writers_exactly_one_wins(tmp_path: Path, two_nodes: bool) -> None:
    def compete(nodes: tuple[Node, Node]) -> None:
        for number in range(4):
            seen, outcomes, start = version(nodes[0]), list[str](), threading.Barrier(2)
            wait_until(lambda seen=seen: version(nodes[1]) == seen, "both see the same version")  # type: ignore[misc]

            def write(
                node: Node, name: str, seen: str = seen, outcomes: list[str] = outcomes, start: threading.Barrier = start
            ) -> None:
                start.wait()
                try:
                    node.call("user.add", name=name, password_hash=ALICE, if_version=seen)
                    outcomes.append("won")
                except XlbError as error:
                    outcomes.append(error.code)

            writers = [
                threading.Thread(target=write, args=(node, f"{letter}{number}"))
                for node, letter in zip(nodes, "ab", strict=True)
            ]
            for each in writers:
                each.start()
            for each in writers:
                each.join()
            assert sorted(outcomes) == [Code.CHANGE_OVERTAKEN, "won"]

    if two_nodes:
        with paired_sites(tmp_path, {0: FAST, 1: FAST}) as sites:
            compete(sites)
            assert len(users(sites[0])) == 4
    else:
        with running_daemon(tmp_path) as daemon:
            compete((daemon, daemon))
            assert len(users(daemon)) == 4


# --- the pair ------------------------------------------------------------------------------------------------------


def test_the_creators_accounts_are_the_pairs_and_stay_with_both_at_its_end(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        one.call("user.add", name="alice", role="operator", password_hash=ALICE)
        two.call("user.add", name="old", password_hash=BOB)
        make_pair(one, two)
        wait_until(lambda: users(two) == {"alice": "operator"}, "the joining node has the creator's accounts")
        two.call("token.add", name="ci", sha256=DIGEST)
        wait_until(lambda: tokens(one) == tokens(two) == ["ci"], "both have the token")
        one.call("cluster.destroy")
        wait_until(lambda: two.call("status")["role"] == "single", "the other node is single, too")
        assert [users(each) for each in (one, two)] == [{"alice": "operator"}] * 2
        assert [tokens(each) for each in (one, two)] == [["ci"]] * 2


def test_accounts_change_while_the_peer_is_dead(tmp_path: Path) -> None:
    with pair_without(tmp_path, 0, FAST) as (_, two):
        wait_until(lambda: two.status["role"] == "active", "the backup took over")
        two.call("user.add", name="alice", password_hash=ALICE, if_version=version(two))
        assert users(two) == {"alice": "viewer"}
