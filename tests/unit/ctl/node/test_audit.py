"""One line for each change: user, node, command, and what it was before and after."""

from __future__ import annotations

import logging
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from ctl.api.caller import Caller, from_peer, from_peer_address
from ctl.config.diff import compact
from ctl.config.model import Config, Vip
from ctl.config.record_codec import Encoder, decode
from ctl.errors import XlbError
from ctl.node import audit
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.pair import paired_sites

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
ME = pwd.getpwuid(os.getuid()).pw_name


def lines(caplog: pytest.LogCaptureFixture, logger: str = "ctl.node.audit") -> list[str]:
    """The audit lines since the last call; of a login session the user's name has more."""
    found = [record.getMessage() for record in caplog.records if record.name == logger and record.levelno == logging.INFO]
    caplog.clear()
    return found


def entered(caplog: pytest.LogCaptureFixture, daemon: RunningDaemon, command: str, **arguments: Any) -> list[str]:
    daemon.call(command, **arguments)
    return lines(caplog)


def test_each_change_has_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctl")
    with running_daemon(tmp_path) as daemon:
        caplog.clear()
        (line,) = entered(caplog, daemon, "vip.add", address="10.77.0.100/24", device="eth0")
        assert line.startswith(f"configuration {daemon.farms.generation} changed by {ME}")
        assert " on lb1 (vip.add): vip 10.77.0.100 added (/24 on eth0)" in line
        (line,) = entered(caplog, daemon, "farm.add", name="web", vip="10.77.0.100", port=80, health={"kind": "none"})
        assert "(farm.add): farm web added" in line
        (line,) = entered(caplog, daemon, "farm.set", name="web", scheduler="source")
        assert line.endswith("(farm.set): farm web scheduler maglev → source")
        assert entered(caplog, daemon, "farm.set", name="web", scheduler="source") == [], "nothing changed"
        with pytest.raises(XlbError):
            daemon.call("farm.delete", name="other")
        assert entered(caplog, daemon, "farm.list") == []
        daemon.call("conn.flush")
        (line,) = lines(caplog, "ctl.api.commands.dispatcher")
        assert line.startswith(f"conn.flush requested by {ME}")


def test_a_change_entered_on_the_backup_names_that_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctl")
    with paired_sites(tmp_path, {0: FAST, 1: FAST}, "10.77.0.100/24") as (_, two):
        caplog.clear()
        (line,) = entered(caplog, two.daemon, "farm.add", name="web", vip="10.77.0.100", port=80, health={"kind": "none"})
    assert f"changed by {ME}" in line and " on lb2 (farm.add): farm web added" in line


def test_the_user_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_peer_address("localhost:0:0:77") == Caller(0, 77)
    assert from_peer_address(":1000:1000:5").uid == 1000
    for address in ("", "127.0.0.1", "a:b:c:d", "localhost:x:0:1"):
        assert from_peer_address(address).name() == "unknown user"
    monkeypatch.setattr("ctl.api.caller._login", lambda pid: {7: 4_000_001, 8: 0}.get(pid))
    assert Caller(0, 7).name() == "root (login uid 4000001)"
    assert (Caller(0, 8).name(), Caller(0, 9).name(), Caller(4_000_002).name()) == ("root", "root", "uid 4000002")
    assert Caller().name() == "xlbd"
    claim = "root (SUDO_USER alice, not verified)"
    assert (Caller(0, 9, claim="alice").name(), Caller(0, 9, claim="root").name()) == (claim, "root")
    assert Caller(0, 7, claim="alice").name() == "root (login uid 4000001)", "what the kernel knows is no claim"


def test_what_a_peer_names_fits_into_one_line() -> None:
    assert from_peer({"user": "alice"}, "lb2") == Caller(user="alice", node="lb2")
    for told in (None, {}, {"user": 7}, {"user": "a\nb"}, {"user": "x" * 200}, "alice"):
        assert from_peer(told, "lb2").user == "unknown user"
    assert from_peer({"user": "alice", "purpose": "rollback to 3"}, "lb2").purpose == "rollback to 3"
    assert all(from_peer({"user": "alice", "purpose": wrong}, "lb2").purpose == "" for wrong in (7, "a\nb", "x" * 400))


def test_what_is_recorded_fits_into_a_line_and_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.api.caller.Caller.name", lambda self: "a\udc80\n" * 200)
    made = audit.provenance_on("lb1", lambda: 1.9)(Config(), Config(generation=2))
    assert made.time_s == 1 and len(made.user) <= audit.MAX_NAME and made.user.isprintable()
    config = Config(generation=2, provenance=made)
    assert decode(Encoder().encode(config)).provenance == made


def test_a_big_change_is_counted_not_listed() -> None:
    vips = {f"10.0.0.{number}": Vip(f"10.0.0.{number}", 24, "eth0", True) for number in range(100, 250)}
    line = audit.event(2, audit.provenance_on("lb1")(Config(), Config(generation=2, vips=vips))).message
    assert line.count(" added (") == 10 and line.endswith("; and 140 more") and len(line) < audit.MAX_LENGTH
    assert compact(Config(vips=vips), Config(vips=vips)) == ""
