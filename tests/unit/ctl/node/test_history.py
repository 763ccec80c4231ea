"""`history` and `rollback` on a whole daemon and on a pair: through the control socket, as xlbctl asks."""

from __future__ import annotations

import errno
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from ctl.config.model import Config
from ctl.config.record_codec import Encoder
from ctl.errors import Code, XlbError
from ctl.state.durable_files import Files
from tests.fakes.cli import run
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.pair import Site, pair_without, paired_sites
from tests.refusals import invalid, refused
from tests.wait import wait_until

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
ME = pwd.getpwuid(os.getuid()).pw_name
VIP, VIP6 = "10.77.0.100", "2001:db8::100"


def listed(node: RunningDaemon | Site) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = node.call("config.history")
    return answer


def configure(node: RunningDaemon | Site) -> None:
    """Generations: both VIPs, a TCP farm for IPv4, a UDP farm for IPv6."""
    node.call("vip.add", address=f"{VIP}/24", device="eth0")
    node.call("vip.add", address=f"{VIP6}/64", device="eth0")
    node.call("farm.add", name="web", vip=VIP, port=80)
    node.call("backend.add", farm="web", address="10.77.0.11", port=8080)
    node.call("farm.add", name="dns", vip=VIP6, port=53, protocol="udp", scheduler="source")


def generation_of(node: RunningDaemon | Site) -> int:
    number: int = node.call("status")["generation"]
    return number


def without_ids(node: RunningDaemon | Site) -> Any:
    return node.call("config.export")


def test_each_generation_has_its_user_time_and_diff(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        newest, *_, first = listed(daemon)
        assert [each["generation"] for each in listed(daemon)] == list(range(5, -1, -1))
        assert newest["user"].startswith(ME) and (newest["node"], newest["command"]) == ("lb1", "farm.add")
        assert newest["summary"].startswith("farm dns added (") and newest["time"].startswith("20")
        assert [each["in_force"] for each in listed(daemon)] == [True] + 5 * [False]
        assert (first["user"], first["summary"]) == ("xlbd", "")
        shown = daemon.call("config.generation", generation="4")
        assert shown["changes"] == ["farm web: backend 10.77.0.11:8080 added (weight 1)"] and shown["before"] == "3"
        assert shown["document"]["farm"][0]["backend"] == [{"address": "10.77.0.11", "port": 8080, "weight": 1}]
        assert daemon.call("config.generation", generation=0)["before"] == ""


def test_a_rollback_is_a_change_with_a_generation_of_its_own(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        before, backend_id = without_ids(daemon), daemon.farms.farms["web"].backends[0].id
        daemon.call("farm.set", name="web", scheduler="roundrobin")
        daemon.call("farm.delete", name="dns")
        tried = daemon.call("config.rollback", generation="5", dry_run=True)
        assert tried["generation"] == 7 == generation_of(daemon)
        done = daemon.call("config.rollback", generation="5")
        assert done["changes"] == tried["changes"] and len(done["changes"]) == 2 and done["generation"] == 8
        assert without_ids(daemon) == before
        assert daemon.farms.farms["web"].backends[0].id == backend_id, "its connections continue"
        newest = listed(daemon)[0]
        assert (newest["generation"], newest["command"]) == (8, "rollback to 5") and newest["user"].startswith(ME)
        assert daemon.call("config.rollback", generation="8") == {"changes": [], "generation": 8}
        assert daemon.call("config.rollback", generation="0")["generation"] == 9
        assert without_ids(daemon) == {"vip": [], "prefixes": [], "farm": []}
        daemon.call("config.rollback", generation="8")
        assert without_ids(daemon) == before


def test_fifty_are_listed_and_the_oldest_has_its_diff(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        for number in range(50):
            daemon.call("farm.set", name="web", idle_timeout_s=100 + number)
        entries = listed(daemon)
        assert [each["generation"] for each in entries] == list(range(55, 5, -1))
        oldest = daemon.call("config.generation", generation="6")
        assert oldest["changes"] == ["farm web idle_timeout_s 0 → 100"] and oldest["before"] == "5"
        with invalid(Code.UNKNOWN_GENERATION, "generation"):
            daemon.call("config.rollback", generation="4")


def test_a_list_that_came_later_goes_again(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        generation = generation_of(daemon)
        daemon.call("prefixes.set", name="bad", v4="", v6="")
        daemon.call("farm.set", name="web", deny="bad")
        assert "prefix list bad removed" in daemon.call("config.rollback", generation=str(generation))["changes"]
        daemon.call("config.rollback", generation=str(generation + 2))
        assert daemon.farms.farms["web"].deny == "bad" and "bad" in daemon.farms.prefixes


def test_what_is_impossible_now_is_refused_with_the_reason(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        daemon.call("farm.delete", name="web")
        daemon.call("farm.delete", name="dns")
        daemon.call("vip.delete", address=VIP)
        daemon.call("vip.delete", address=VIP6)
        before = generation_of(daemon)
        daemon.network.links.pop("eth0")
        for dry_run in (True, False):
            with refused(Code.UNKNOWN_INTERFACE) as refusal:
                daemon.call("config.rollback", generation="5", dry_run=dry_run)
            assert "eth0" in str(refusal.value)
        assert generation_of(daemon) == before and listed(daemon)[0]["generation"] == before


def test_it_survives_a_restart_and_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
    names = sorted((tmp_path / "state").glob("farms.history-*"))
    names[2].unlink()
    names[3].unlink()
    names[3].write_bytes(b"\0" * 100)
    with running_daemon(tmp_path) as again:
        entries = listed(again)
        assert [each["name"] for each in entries] == ["5", "4", "?.4", "1", "0"] and entries[2]["problem"]
        assert again.call("config.generation", generation="4")["before"] == "1"
        again.call("farm.set", name="web", scheduler="source")
        assert listed(again)[0]["generation"] == 6
    link = os.link

    def refuse(existing: Path, new: Path) -> None:
        if "history" in new.name:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(existing, new)

    with monkeypatch.context() as patch, running_daemon(tmp_path) as third:
        patch.setattr(os, "link", refuse)
        third.call("farm.set", name="web", scheduler="maglev")
        assert generation_of(third) == 7 and "6" not in [each["name"] for each in listed(third)]
    assert [each for each in caplog.messages if "is not kept in the history" in each]
    with running_daemon(tmp_path) as fourth:
        assert [each["name"] for each in listed(fourth)][:3] == ["7", "6", "5"], "the start made up for it"


def test_on_a_full_disk_a_change_is_preferred_to_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        write, full = Files.write_synced, [True]

        def write_synced(self: Files, path: Path, content: bytes) -> None:
            if full and path.name == "farms.jsonl.new":
                full.pop()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, path, content)

        monkeypatch.setattr(Files, "write_synced", write_synced)
        daemon.call("farm.set", name="web", scheduler="source")
        names = [each["name"] for each in listed(daemon)]
        assert names[0] == "6" and names[-1] != "0", "the oldest made space"
        full += [True, True]
        with refused(Code.DISK_FULL):
            daemon.call("farm.set", name="web", scheduler="roundrobin")
        assert generation_of(daemon) == 6


def test_the_user_before_sudo_is_shown_as_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.api.caller._login", lambda pid: None)
    with running_daemon(tmp_path) as daemon:
        for claim, shown in (("alice", f"{ME} (SUDO_USER alice, not verified)"), ("a\nb", ME), ("x" * 65, ME), (ME, ME)):
            monkeypatch.setenv("SUDO_USER", claim)
            assert run("--config", str(daemon.config), "vip", "add", f"{VIP}/24", "--dev", "eth0")[0] == 0
            assert listed(daemon)[0]["user"] == shown
            assert run("--config", str(daemon.config), "vip", "delete", VIP)[0] == 0


def test_both_nodes_have_it_and_either_rolls_back(tmp_path: Path) -> None:
    with paired_sites(tmp_path, {0: FAST, 1: FAST}) as (one, two):
        configure(one)
        two.call("farm.set", name="web", scheduler="roundrobin")
        wait_until(lambda: generation_of(one) == generation_of(two), "the same configuration")
        generation = generation_of(one)
        for node in (one, two):
            newest = next(each for each in listed(node) if each["generation"] == generation)
            assert newest["user"].startswith(ME) and (newest["node"], newest["command"]) == ("lb2", "farm.set")
            assert newest["summary"] == "farm web scheduler maglev → roundrobin" and newest["in_force"]
        name = str(generation - 1)
        assert two.call("config.rollback", generation=name, dry_run=True)["generation"] == generation
        done = two.call("config.rollback", generation=name)
        assert done == {"changes": ["farm web scheduler roundrobin → maglev"], "generation": generation + 1}
        wait_until(lambda: generation_of(one) == generation_of(two) == generation + 1, "the rollback on both")
        for node in (one, two):
            newest = listed(node)[0]
            assert (newest["node"], newest["command"]) == ("lb2", f"rollback to {name}")
        paths = [site.directory / "state" for site in (one, two)]
        newest_files = {max(path.glob("farms.history-*")).read_bytes() for path in paths}
        assert len(newest_files) == 1, "the same bytes on both nodes"


def test_the_successor_rolls_back_while_its_peer_is_dead(tmp_path: Path) -> None:
    with pair_without(tmp_path, 0, FAST, f"{VIP}/24") as (_, two):
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        generation = generation_of(two)
        two.call("farm.add", name="web", vip=VIP, port=80)
        assert two.call("config.rollback", generation=str(generation))["generation"] == generation + 2
        assert two.call("farm.list") == []


def test_what_lost_in_a_split_is_read_back(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        lost = tmp_path / "state" / "farms.conflict-2-5.jsonl"
        daemon.call("farm.set", name="web", scheduler="source")
        lost.write_bytes((tmp_path / "state" / "farms.history-00000006.jsonl").read_bytes())
        entry = listed(daemon)[-1]
        assert (entry["name"], entry["conflict"], entry["in_force"]) == ("conflict-2-5", True, False)
        shown = daemon.call("config.generation", generation="conflict-2-5")
        assert shown["changes"] == ["farm web scheduler source → maglev"] and shown["before"] == ""
        daemon.call("config.rollback", generation="conflict-2-5")
        assert daemon.farms.farms["web"].scheduler == "maglev"
        hashed = f"$argon2id$v=19$m=19456,t=2,p=1${'A' * 22}${'A' * 43}"
        daemon.call("user.add", name="alice", password_hash=hashed)
        shown = daemon.call("config.generation", generation="conflict-2-5")
        assert shown["changes"] == [], "going back leaves accounts as they are"
        daemon.call("config.rollback", generation="conflict-2-5")
        assert list(daemon.farms.users) == ["alice"]
        lost.write_bytes(Encoder().encode(Config())[:-9])
        with refused(Code.DAMAGED_FILE):
            daemon.call("config.rollback", generation="conflict-2-5")


@pytest.mark.parametrize("wrong", [None, True, 1.5, ["1"], {}, "", "x", "../1", "99", -1, 2**70, "1" * 5000])
def test_bad_names_on_the_socket(tmp_path: Path, wrong: object) -> None:
    with running_daemon(tmp_path) as daemon:
        for command in ("config.generation", "config.rollback"):
            with pytest.raises(XlbError) as refusal:
                daemon.call(command, generation=wrong)
            assert refusal.value.code in (Code.INVALID_VALUE, Code.UNKNOWN_GENERATION, Code.MISSING_ARGUMENT)
        with invalid(Code.UNKNOWN_ARGUMENT, "who"):
            daemon.call("config.rollback", generation="0", who="alice")
        with invalid(Code.INVALID_VALUE, "dry_run"):
            daemon.call("config.rollback", generation="0", dry_run="yes")


def test_the_command_line(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)

        def xlbctl(*words: str) -> tuple[int, str, str]:
            return run("--config", str(daemon.config), *words)

        code, out, err = xlbctl("history")
        lines = out.splitlines()
        assert (code, err) == (0, "") and lines[0].split() == ["GENERATION", "TIME", "USER", "NODE", "COMMAND", "CHANGES"]
        assert lines[1].startswith("5 *") and "farm dns added" in lines[1] and len(lines) == 7
        generations = json.loads(xlbctl("history", "-o", "json")[1])["generations"]
        assert [each["name"] for each in generations] == ["5", "4", "3", "2", "1", "0"]

        code, out, err = xlbctl("history", "4")
        assert (code, err) == (0, "") and out.splitlines()[-1] == "farm web: backend 10.77.0.11:8080 added (weight 1)"
        assert json.loads(xlbctl("history", "4", "-o", "json")[1])["changes"] == [out.splitlines()[-1]]
        code, farms, _ = xlbctl("history", "3", "--farms")
        assert code == 0 and 'name = "web"' in farms and "[[farm.backend]]" not in farms
        assert json.loads(xlbctl("history", "3", "--farms", "-o", "json")[1])["farm"][0]["name"] == "web"

        code, out, err = xlbctl("rollback", "3", "--dry-run")
        assert code == 0 and "farm dns removed" in out and err == "" and generation_of(daemon) == 5
        answer = json.loads(xlbctl("rollback", "3", "--dry-run", "-o", "json")[1])
        assert not answer["applied"] and [each["farm"] for each in answer["impact"]["farms"]] == ["dns", "web"]
        code, out, err = xlbctl("rollback", "3")
        assert code == 0 and "farm dns removed" in out and "generation 6 is in force" in err
        code, out, err = xlbctl("rollback", "6", "-o", "json")
        assert json.loads(out) == {"changes": [], "generation": 6, "applied": True}
        (tmp_path / "file.toml").write_text(farms)
        assert xlbctl("diff", "-f", str(tmp_path / "file.toml"))[0] == 0, "the farms file is the configuration in force"
        for words, named in (
            (("history", "77"), "generation: there is no 77 in the history"),
            (("history", "conflict-1-1"), "there is no conflict-1-1"),
            (("history", "yesterday"), "expected a generation as 'xlbctl history' names it, got 'yesterday'"),
            (("history", "--farms"), "--farms: needs a GENERATION"),
            (("rollback",), "GENERATION"),
            (("rollback", "77", "--dry-run"), "there is no 77"),
            (("rollback", "5", "4"), "unexpected extra argument"),
        ):
            code, out, err = xlbctl(*words)
            assert (code, out) == (2, "") and named in err, (words, err)
