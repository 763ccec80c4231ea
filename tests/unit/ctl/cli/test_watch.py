"""`xlbctl watch` against a running daemon: what it shows, how it ends, what a restart and bad input look like."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.api import server
from ctl.api.client import Client
from ctl.errors import Code
from tests.fakes.cli import XLBCTL, Terminal, run
from tests.fakes.daemon import FakeServers, RunningDaemon, running_daemon
from tests.fakes.pair import in_step, pair_without, paired_sites
from tests.fakes.watch import watching
from tests.refusals import invalid, refused
from tests.tree import TREE
from tests.wait import wait_until

VIP = {"address": "10.77.0.100/24", "device": "eth0"}
FARM = {"name": "web", "vip": "10.77.0.100", "port": 80, "health": {"kind": "tcp", "interval_ms": 1000}}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path, servers=FakeServers("10.88.0.11")) as running:
        yield running


def test_it_shows_what_was_what_comes_and_rates_and_ends_with_ctrl_c(daemon: RunningDaemon) -> None:
    daemon.call("vip.add", **VIP)
    with watching(daemon.config) as watch:
        assert watch.until("config.changed")["fields"]["command"] == "vip.add" and watch.seen[0]["event"] == "node.ready"
        assert watch.until("rates")["fields"]["connections"] == 0
        daemon.call("farm.add", **FARM)
        changed = watch.until("config.changed")
        daemon.call("backend.add", farm="web", address="10.88.0.11", port=80)
        down = watch.until("backend.changed")
        assert watch.until("farm.down")["severity"] == "error"
        daemon.servers.refusing.clear()
        assert watch.until("farm.up")["fields"] == {"farm": "web"}
        assert watch.end() == (0, "")
    assert (changed["fields"]["user"], changed["fields"]["generation"], changed["node"]) == ("root", 2, "lb1")
    assert "farm web added" in changed["fields"]["changes"] and changed["severity"] == "info"
    assert (down["severity"], down["fields"]["state"], down["fields"]["backend"]) == ("warning", "down", "10.88.0.11:80")
    assert "connection refused" in down["fields"]["why"]


def test_a_restart_is_shown_and_its_events_follow(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with running_daemon(tmp_path) as first:
            watch = stack.enter_context(watching(first.config, "--no-rates"))
            watch.until("node.ready")
            wait_until(lambda: first.node.parts.api._waiting, "it waits for more")
        watch.until("node.stopping")
        interrupted = watch.until("watch.interrupted")
        first.plane.closed = False
        stack.enter_context(running_daemon(tmp_path, first.plane))
        assert watch.until("watch.resumed")["fields"] == {"restarted": True}
        assert watch.until("node.ready")["number"] == 1
        assert watch.end() == (0, "")
    assert "is not running" in interrupted["fields"]["why"] and interrupted["number"] is None


def test_a_slow_reader_is_told_what_it_lost(daemon: RunningDaemon) -> None:
    from ctl.events.history import KEPT

    before = daemon.call("watch")
    for _ in range(KEPT + 7):
        daemon.on_loop(daemon.node._link_changed, "eth0", "up")
    answer = daemon.call("watch", incarnation=before["incarnation"], after=before["last"])
    assert answer["lost"] == 7 and answer["events"][0]["number"] == before["last"] + 8
    assert daemon.call("watch", incarnation="another", after=10**9)["events"][0]["number"] == before["last"] + 8


def test_those_who_wait_take_no_place_of_requests_and_do_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_REQUESTS_IN_FLIGHT", 2)
    monkeypatch.setattr(server, "MAX_WAITING", 4)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(tmp_path))
        last = daemon.call("watch")["last"]
        clients = [stack.enter_context(Client(daemon.socket_path)) for _ in range(4)]
        for client in clients:
            client._socket.send(client._request("watch", {"after": last, "wait_ms": 10_000})[1])
        waiting = daemon.node.parts.api._waiting
        wait_until(lambda: len(waiting) == 4, "all wait")
        with refused(Code.BUSY):
            daemon.call("watch", after=last, wait_ms=10)
        assert daemon.call("farm.list") == [] and daemon.call("watch")["last"] == last
        daemon.on_loop(daemon.node._link_changed, "eth0", "down")
        for client in clients:
            assert client._socket.poll(5000), "an answer"
        wait_until(lambda: not waiting, "nobody waits")
        clients[0]._socket.send(clients[0]._request("watch", {"after": last + 1, "wait_ms": 10_000})[1])
        wait_until(lambda: len(waiting) == 1, "one waits while the daemon stops")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("after", value) for value in (-1, True, "1", 2**60, [1])),
        ("last", 129),
        ("wait_ms", 10_001),
        ("rates_after", -1),
        ("incarnation", 5),
    ],
)
def test_bad_arguments_are_refused(daemon: RunningDaemon, key: str, value: Any) -> None:
    with invalid(Code.INVALID_VALUE, key):
        daemon.call("watch", **{key: value})
    with invalid(Code.UNKNOWN_ARGUMENT, "more"):
        daemon.call("watch", more=1)


def test_bad_options_and_no_daemon(tmp_path: Path) -> None:
    assert run("watch", "--last", "200")[0] == 2 and run("watch", "--last", "x")[0] == 2
    (tmp_path / "node.toml").write_text(f'[node]\nrun_dir = "{tmp_path}"\n[data]\ninterfaces = ["eth0"]\n')
    code, out, err = run("--config", str(tmp_path / "node.toml"), "watch")
    assert (code, out) == (1, "") and "xlbd is not running" in err


def test_a_reader_that_has_enough_ends_it(daemon: RunningDaemon) -> None:
    command = " ".join([*XLBCTL, "--config", str(daemon.config), "watch", "|", "head", "-n1"])
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, cwd=TREE, timeout=30)
    assert "node.ready" in done.stdout and done.stderr == ""


def test_on_a_terminal_rates_stay_in_the_last_line(daemon: RunningDaemon) -> None:
    with Terminal([*XLBCTL, "--config", str(daemon.config), "watch"], NO_COLOR="1") as terminal:
        terminal.expect(r"\d\d:\d\d:\d\d\.\d{3}  info     node\.ready            ready: single node lb1 serves 0 farms")
        terminal.expect(r"rates                 0 packets/s, 0\.00 Mbit/s, 0 new connections/s, 0 drops/s, 0 connections")
        terminal.expect(r"\r\x1b\[K\d\d:\d\d:\d\d\.\d{3}  info     rates")
        terminal.type("\x03")
        assert terminal.wait() == 0


def test_a_pair_from_either_node(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (one, two), watching(two.daemon.config, "--last", "0") as backup:
        wait_until(lambda: two.daemon.node.parts.hub.rates_wanted, "watch has begun")
        with watching(one.daemon.config, "--last", "0") as active:
            wait_until(lambda: one.daemon.node.parts.hub.rates_wanted, "watch has begun")
            one.daemon.servers.refusing.add("10.88.0.11")
            two.call("farm.add", **FARM)
            two.call("backend.add", farm="web", address="10.88.0.11", port=80)
            made, adopted = active.until("config.changed"), backup.until("config.adopted")
            assert (made["fields"]["node"], made["fields"]["command"]) == ("lb2", "farm.add")
            assert adopted["fields"] == made["fields"], "of both nodes"
            for watch in (active, backup):
                watch.until("farm.down")
                (down,) = [
                    each for each in watch.seen if each["event"] == "backend.changed" and each["fields"]["state"] == "down"
                ]
                assert "connection refused" in down["fields"]["why"]
            in_step(one, two)
            one.call("cluster.switchover")
            assert active.until("operator.requested")["fields"]["command"] == "cluster.switchover"
            assert backup.until("takeover.done")["fields"]["took_ms"] > 0
            roles = [event["fields"] for event in backup.seen if event["event"] == "role.changed"]
            assert roles[-1]["role"] == "active" and roles[-1]["cause"] == "peer_grants"
            assert active.until("peer.role")["fields"]["role"] == "active"


def test_while_the_peer_is_dead(tmp_path: Path) -> None:
    with pair_without(tmp_path, stopped=0, vip="10.77.0.100/24") as (_, two):
        events = two.call("watch", last=100)["events"]
        by_name = {event["event"]: event for event in events}
        assert {"peer.lost", "peer.role", "takeover.done", "sync.changed"} <= by_name.keys()
        assert by_name["role.changed"]["fields"]["role"] == "active" and by_name["peer.lost"]["severity"] == "warning"
