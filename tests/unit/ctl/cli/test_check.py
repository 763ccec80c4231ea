"""`xlbctl cluster status` and its `--check` on daemons in this process, single and in a pair."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.cli import run
from tests.fakes.daemon import running_daemon
from tests.fakes.pair import Site, paired_sites
from tests.wait import wait_until

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"


def check(config: Path) -> tuple[int, str]:
    code, out, err = run("--config", str(config), "cluster", "status", "--check")
    assert err == "" and out.count("\n") == 1
    return code, out


def sound(site: Site) -> bool:
    return check(site.daemon.config)[0] == 0


def test_a_single_node_is_ok_until_its_daemon_stops(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        assert check(daemon.config) == (0, "OK: lb1 is single\n")
        code, out, _ = run("--config", str(daemon.config), "cluster", "status", "--check", "-o", "json")
        assert (code, json.loads(out)) == (0, {"exit_code": 0, "line": "OK: lb1 is single", "findings": []})
        config = daemon.config
    code, line = check(config)
    assert code == 2 and line.startswith("CRITICAL: xlbd is not running") and "systemctl start xlbd" in line
    assert run("--config", str(config), "cluster", "status", "--chekc")[0] == 2


def test_a_pair_is_ok_until_the_peer_is_gone(tmp_path: Path) -> None:
    with paired_sites(tmp_path, {0: FAST, 1: FAST}, "10.77.0.100/24") as (one, two):
        wait_until(lambda: sound(one), "the pair to be sound on lb1")
        assert "lb2 is backup and in step" in check(one.daemon.config)[1]
        # The fake network of lb2 carries no advertisements.
        code, line = check(two.daemon.config)
        assert code == 1 and "data network" in line and ";" not in line

        rows = {row["name"]: row for row in one.call("status")["nodes"]}
        assert (rows["lb1"]["role"], rows["lb2"]["role"]) == ("active", "backup")
        for row in rows.values():
            assert row["in_step"] and row["version"] and row["since_s"] >= 0 and row["why"], row
            assert (row["epoch"], row["generation"]) == (rows["lb1"]["epoch"], rows["lb1"]["generation"])
        assert (rows["lb1"]["health"], rows["lb2"]["health"]) == ("ok", "ok")
        _, table, _ = run("--config", str(one.daemon.config), "cluster", "status")
        assert table.splitlines()[0].split()[:3] == ["NODE", "ROLE", "SINCE"]
        assert [line.split()[:2] for line in table.splitlines()[1:3]] == [["lb1", "active"], ["lb2", "backup"]]

        two.daemon.attacher.remove("eth0", by=99)
        wait_until(lambda: check(one.daemon.config)[0] == 1, "what lb2 reports of itself")
        assert "lb2 is in fault and cannot take over" in check(one.daemon.config)[1]

        two.cut_links()
        wait_until(lambda: "lb2 has not been heard" in check(one.daemon.config)[1], "the peer to be missed")
        assert check(one.daemon.config)[0] == 1
        rows = {row["name"]: row for row in one.call("status")["nodes"]}
        assert (rows["lb2"]["role"], rows["lb2"]["health"], rows["lb2"]["in_step"]) == ("silent", "silent", False)
        failed = {each["name"] for each in one.call("doctor") if not each["ok"]}
        assert "peer" in failed
