"""The verdicts of `cluster check` on given facts, and the frames it sends to the network."""

from __future__ import annotations

import copy
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ctl.cluster.pairing import check, facts
from ctl.cluster.pairing.check import (
    FAIL,
    OK,
    WARN,
    Finding,
    compare,
    judge_duplicates,
    judge_offset,
    judge_ping,
    judge_vrrp,
)
from tests.fakes.cli import run
from tests.fakes.pair import Site, paired_sites, site, two_sites
from tests.wait import wait_until

MAC = bytes.fromhex("020000000001")
FACTS: dict[str, Any] = {
    "node": "lb1",
    "kernel": "6.1.0",
    "version": "1.0",
    "abi": 1,
    "config_format": 1,
    "clock": {"synchronised": True, "why": ""},
    "dns": {"name": "lb1", "configured": False, "error": ""},
    "times": {"heartbeat_ms": 100, "lease_ms": 300, "takeover_ms": 350},
    "cluster_device": "ha0",
    "cluster_mtu": 1500,
    "data": [{"name": "eth0", "mtu": 1500, "driver": "virtio_net", "xdp_mode": "native"}],
}


def judged(one: dict[str, Any] | None = None, two: dict[str, Any] | None = None) -> dict[str, Finding]:
    """The findings when the nodes' facts are FACTS with these changes. A value that is a map is merged."""
    sides = []
    for name, changes in (("lb1", one or {}), ("lb2", two or {})):
        facts = copy.deepcopy(FACTS) | {"node": name}
        for key, value in changes.items():
            facts[key] = facts[key] | value if isinstance(value, dict) else value
        sides.append(facts)
    return {finding.name: finding for finding in compare(*sides)}


def test_two_equal_nodes_pass_every_check() -> None:
    assert {(finding.status, finding.remedy) for finding in judged().values()} == {(OK, "")}


@pytest.mark.parametrize(
    ("change", "name", "status", "message"),
    [
        ({"kernel": "5.10"}, "kernel", FAIL, "6.1.0 on lb1, 5.10 on lb2"),
        ({"version": "2.0"}, "xlb version", FAIL, "1.0 on lb1, 2.0 on lb2"),
        ({"abi": 2}, "table ABI", FAIL, "1 on lb1, 2 on lb2"),
        (
            {"times": {"lease_ms": 120, "takeover_ms": 140}},
            "failover times",
            WARN,
            "heartbeat_ms 100 lease_ms 300 takeover_ms 350 on lb1, heartbeat_ms 100 lease_ms 120 takeover_ms 140 on lb2",
        ),
        ({"clock": {"synchronised": False, "why": "no NTP"}}, "clock of lb2", WARN, "no NTP"),
        ({"dns": {"error": "no name servers"}}, "DNS on lb2", WARN, "lb1: no name servers"),
        ({"dns": {"error": "no answer", "configured": True}}, "DNS on lb2", FAIL, "lb1: no answer"),
        ({"cluster_device": "eth0"}, "cluster interface of lb2", WARN, "eth0 carries clients' traffic as well"),
        ({"cluster_device": ""}, "cluster interface of lb2", FAIL, "the cluster address is on no interface"),
        ({"cluster_mtu": 9000}, "MTU of cluster", FAIL, "1500 on lb1, 9000 on lb2"),
        ({"data": [FACTS["data"][0] | {"mtu": 1400}]}, "MTU of eth0", FAIL, "1500 on lb1, 1400 on lb2"),
        ({"data": [FACTS["data"][0] | {"xdp_mode": "generic"}]}, "XDP on lb2 eth0", WARN, "generic, driver virtio_net"),
        ({"data": [FACTS["data"][0] | {"xdp_mode": ""}]}, "XDP on lb2 eth0", FAIL, "the program is not attached"),
        (
            {"data": [FACTS["data"][0] | {"driver": "e1000"}]},
            "XDP on both",
            WARN,
            "virtio_net native on lb1, e1000 native on lb2",
        ),
    ],
)
def test_a_difference_is_named_with_its_remedy(change: dict[str, Any], name: str, status: str, message: str) -> None:
    finding = judged(two=change)[name]
    assert (finding.status, finding.message) == (status, message)
    assert finding.remedy


@pytest.mark.parametrize(("offset_ms", "status"), [(5, OK), (-99, OK), (-500, WARN), (1000, FAIL), (-3e6, FAIL), (None, FAIL)])
def test_the_offset_of_the_clocks(offset_ms: float | None, status: str) -> None:
    assert judge_offset("lb2", offset_ms).status == status


def test_results_of_the_probes() -> None:
    assert judge_ping("lb2", "ha0", True).status == OK and judge_ping("lb2", "ha0", False).status == FAIL
    assert [each.status for each in judge_vrrp("lb1", "lb2", {"unicast": True, "multicast": True})] == [OK, OK]
    assert [each.status for each in judge_vrrp("lb1", "lb2", {"unicast": False, "multicast": False})] == [FAIL, WARN]
    assert [each.message for each in judge_vrrp("lb1", "lb2", "no addresses")] == ["no addresses"] * 2
    assert [each.status for each in judge_duplicates(1, {})] == [OK]
    assert [each.status for each in judge_duplicates(1, "not asked")] == [WARN]
    (thief,) = judge_duplicates(1, {"10.0.0.1": "02:00:00:00:00:99"})
    assert thief.status == FAIL and thief.message == "10.0.0.1 is answered by 02:00:00:00:00:99 too"


def test_a_resolver_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: threading.Event().wait(5))
    assert facts.resolve_error("lb1.example", 0.05) == "no answer within 0.05 s"


# --- xlbctl ----------------------------------------------------------------------------------------------------------


def xlbctl(at: Site, *words: str, input: str | None = None) -> tuple[int, str, str]:
    return run("--config", str(at.daemon.config), *words, input=input)


def test_a_single_node_is_checked_alone(tmp_path: Path) -> None:
    with site(tmp_path / "1", "lb1", "127.200.0.1") as one:
        code, out, err = xlbctl(one, "-o", "json", "cluster", "check")
        assert (code, err) == (0, "")
        assert {each["name"]: each["status"] for each in json.loads(out)}["duplicate VIPs"] == "ok"


def test_create_join_check_and_destroy_on_the_command_line(tmp_path: Path) -> None:
    with two_sites(tmp_path) as (one, two):
        two.call("vip.add", address="10.0.0.200/24", device="eth0")
        assert xlbctl(two, "user", "add", "alice", input="correct horse battery")[0] == 0
        code, out, err = xlbctl(
            one, "-o", "json", "cluster", "create", "--local", one.address, "--peer", two.address, "--token-only"
        )
        assert (code, err) == (0, "") and set(json.loads(out)) == {"token"}
        words = ("cluster", "join", "--local", two.address, json.loads(out)["token"])
        code, out, err = xlbctl(two, *words, input="n\n")
        assert code != 0
        assert "0 farms and 1 VIP of lb2 will be removed, a backup copy is saved there: 10.0.0.200; " in err
        assert "1 account of xlb-web on lb2 will be replaced by those of the pair: alice. Continue?" in err
        assert len(two.call("vip.list")) == 1
        code, out, err = xlbctl(two, *words, "--no-check", input="y\n")
        assert code == 0 and "lb2 is the backup of lb1\nits own farms are saved in " in out and two.call("user.list") == []
        code, out, _ = xlbctl(two, "cluster", "check")
        assert code == 1  # on loopback there is no VRRP, and the fake cluster interface answers no ping
        lines = [line.split() for line in out.splitlines()]
        assert lines[0] == ["CHECK", "RESULT", "FINDING", "REMEDY"] and lines[1][:2] == ["peer", "ok"]
        code, out, err = xlbctl(two, "cluster", "destroy", input="y\n")
        assert code == 0 and "Destroy the pair of lb2 and lb1?" in err
        assert "the pair with lb1 is destroyed; this node has no farms now" in out


def test_an_unreachable_peer_fails_the_check(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (one, two):
        two.cut_links()
        wait_until(lambda: not one.status["peer"]["alive"], "the silence")

        patch = pytest.MonkeyPatch()
        patch.setattr(check, "ANSWER_S", 0.3)
        try:
            code, out, _ = xlbctl(one, "cluster", "check")
        finally:
            patch.undo()
        assert code == 1 and "lb2 cannot be asked" in out
