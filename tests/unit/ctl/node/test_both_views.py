"""`cluster.nodes`: the pair as each of its nodes sees it, whichever is asked; and why a node shows nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from ctl.api.peer import fresh_answer
from tests.fakes import cli
from tests.fakes.daemon import running_daemon
from tests.fakes.pair import Site, join, pair_without, paired_sites
from tests.wait import wait_until

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
QUESTION = "cluster.view"


def nodes(site: Site) -> list[dict[str, Any]]:
    answer = site.call("cluster.nodes")
    assert set(answer) == {"nodes"}
    found: list[dict[str, Any]] = answer["nodes"]
    assert all(set(each) == {"name", "own", "answered", "why_not", "status"} for each in found)
    return found


def test_each_node_is_shown_as_it_sees_itself_and_its_peer(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (one, two):
        for asked, peer in ((one, two), (two, one)):
            own, other = nodes(asked)
            assert (own["own"], other["own"]) == (True, False)
            assert own["answered"] and other["answered"] and not own["why_not"] and not other["why_not"]
            for shown, site in ((own, asked), (other, peer)):
                status = site.status
                assert set(shown["status"]) == set(status)
                fixed = ("node", "role", "epoch", "generation")
                assert [shown["status"][key] for key in fixed] == [status[key] for key in fixed]
                assert shown["status"]["peer"]["name"] != shown["name"] == status["node"]


def test_the_peer_is_asked_at_most_once_a_second_and_not_waited_for(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (one, two):
        asked, answer = [0], two.call("cluster.status")

        async def counting(_: dict[str, Any]) -> dict[str, Any]:
            asked[0] += 1
            return dict(answer)

        async def hanging(_: dict[str, Any]) -> None:
            await asyncio.Event().wait()

        async def nonsense(_: dict[str, Any]) -> list[int]:
            return [1]

        questions = two.member._parts.questions
        questions.register(QUESTION, counting)
        for _ in range(10):
            assert nodes(one)[1]["answered"]
        assert 1 <= asked[0] <= 2
        questions.register(QUESTION, hanging)
        wait_until(lambda: not nodes(one)[1]["answered"], "an answer that comes too late")
        assert nodes(one)[1]["why_not"] == "lb2 did not answer within 0.5 s"
        started_s = time.monotonic()
        assert nodes(one)[1]["status"] is None
        assert time.monotonic() - started_s < fresh_answer.WAIT_S, "the missing answer is not waited for again"
        questions.register(QUESTION, nonsense)
        wait_until(lambda: "no map" in nodes(one)[1]["why_not"], "the answer that is no map")
        questions.withdraw(QUESTION)  # as a peer of version 0.1.0
        wait_until(lambda: "an earlier version" in nodes(one)[1]["why_not"], "the refusal")


def test_a_single_node_shows_itself(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        (own,) = daemon.call("cluster.nodes")["nodes"]
        assert (
            own["own"]
            and own["status"]["role"] == "single"
            and own["status"] == daemon.call("cluster.status") | {"since_s": own["status"]["since_s"]}
        )


def test_a_pair_made_again_shows_no_answer_of_the_earlier_one(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (one, two):
        before = nodes(one)[1]["status"]
        one.call("cluster.destroy")
        wait_until(lambda: two.status["role"] == "single", "both single")
        assert len(nodes(one)) == 1
        join(one, two)
        wait_until(lambda: nodes(one)[1]["answered"], "the new pair's view")
        assert nodes(one)[1]["status"]["since_s"] < before["since_s"] + 60


def test_a_dead_peer_has_a_reason(tmp_path: Path) -> None:
    with pair_without(tmp_path, 0, FAST) as (_, two):
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        own, other = nodes(two)
        assert own["status"]["role"] == "active"
        assert (other["name"], other["answered"], other["status"], other["why_not"]) == ("lb1", False, None, "lb1 is silent")


def test_the_command_shows_both_views_next_to_each_other(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (one, two):
        code, out, _ = cli.run("--config", str(two.directory / "node.toml"), "cluster", "status", "--both")
        assert code == 0
        lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
        assert lines["AS"] == ["SEEN", "BY", "lb2", "lb1"] and lines["role"] == ["backup", "active"]
        assert lines["epoch"] == [str(two.status["epoch"]), str(one.status["epoch"])]
