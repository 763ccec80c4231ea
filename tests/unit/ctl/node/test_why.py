"""`xlbctl why` on a whole daemon and on either node of a pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ctl.errors import Code, XlbError
from tests.fakes.cli import run
from tests.fakes.daemon import FakeServers, RunningDaemon, running_daemon
from tests.fakes.pair import Site, pair_without, paired_sites
from tests.refusals import invalid
from tests.wait import wait_until

FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"
VIP, SERVERS = "10.77.0.100", ("10.77.0.11", "10.77.0.12")
ASKED = {"source": "192.0.2.7", "destination": VIP, "destination_port": 80}


def configure(node: RunningDaemon | Site, check: str = "none") -> None:
    if not node.call("vip.list"):
        node.call("vip.add", address=f"{VIP}/24", device="eth0")
    node.call("farm.add", name="web", vip=VIP, port=80, health={"kind": check})
    for address in SERVERS:
        node.call("backend.add", farm="web", address=address, port=8080)


def kept(daemon: RunningDaemon) -> None:
    wait_until(lambda: len(daemon.network.kept) == len(SERVERS), "the next hops to be kept")


def failing(answer: Mapping[str, Any]) -> str:
    return next((each["name"] for each in answer["findings"] if not each["ok"]), "")


def test_the_first_reason_and_its_remedy(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        answer = daemon.call("conn.why", **ASKED)
        assert (answer["connects"], failing(answer)) == (False, "vip") and "xlbctl vip add" in answer["remedy"]
        configure(daemon)
        kept(daemon)
        answer = daemon.call("conn.why", **ASKED)
        assert (answer["connects"], answer["reason"], answer["node"], answer["farm"]) == (True, "", "lb1", "web")
        assert answer["connection"] == f"192.0.2.7 -> {VIP}:80" and answer["backend"] is None
        answer = daemon.call("conn.why", **ASKED, source_port=40000)
        assert answer["backend"] in [f"{each}:8080" for each in SERVERS]

        with mock.patch.object(daemon.network, "routes", lambda addresses: [None for _ in addresses]):
            answer = daemon.call("conn.why", **ASKED)
        assert (failing(answer), answer["remedy"]) == ("route", f"ip route get {SERVERS[0]}")
        eth0 = daemon.network.links["eth0"]
        daemon.network.links["eth0"] = replace(eth0, carrier=False)
        assert failing(daemon.call("conn.why", **ASKED)) == "interface eth0"
        daemon.network.links["eth0"] = replace(eth0, xdp_program=5)
        assert "it has another XDP program" in daemon.call("conn.why", **ASKED)["reason"]
        daemon.network.links["eth0"] = eth0
        daemon.call("farm.stop", name="web")
        assert daemon.call("conn.why", **ASKED)["remedy"] == "xlbctl farm start web"


def test_a_failed_check_is_named_with_its_error(tmp_path: Path) -> None:
    with running_daemon(tmp_path, servers=FakeServers(*SERVERS)) as daemon:
        configure(daemon, "tcp")
        wait_until(lambda: not daemon.call("conn.why", **ASKED)["connects"], "the checks to fail")
        answer = daemon.call("conn.why", **ASKED)
        assert failing(answer) == "backends" and "connection refused" in answer["reason"]


def test_the_backup_asks_the_node_that_serves(tmp_path: Path) -> None:
    with paired_sites(tmp_path, {0: FAST, 1: FAST}, f"{VIP}/24") as (one, two):
        configure(one)
        kept(one.daemon)
        wait_until(lambda: two.call("farm.list") != [], "the farm on the backup")
        own, asked = one.call("conn.why", **ASKED), two.call("conn.why", **ASKED)
        assert own["connects"] is asked["connects"] is True
        assert (asked["node"], asked["asked"]) == ("lb1", "lb2") and asked["findings"][1:] == own["findings"]
        assert asked["findings"][0]["message"] == "lb2 is backup; lb1 answers for the VIPs, and judges:"
        one.daemon.network.links["eth0"] = replace(one.daemon.network.links["eth0"], carrier=False)
        assert failing(two.call("conn.why", **ASKED)) == "interface eth0", "of the node that serves"
        one.daemon.network.links["eth0"] = replace(one.daemon.network.links["eth0"], carrier=True)

        questions = one.daemon.node.parts.membership.required().configuration._questions
        one.daemon.on_loop(questions.withdraw, "conn.why")  # as version 0.1.0 answers
        answer = two.call("conn.why", **ASKED)
        assert answer["connects"] is None and "lb1 answers for the VIPs and cannot be asked" in answer["reason"]
        assert answer["remedy"] == "xlbctl why on lb1" and answer["node"] == "lb2"
        assert run("--config", str(two.daemon.config), "why", "192.0.2.7", f"{VIP}:80")[0] == 1
        answer = two.call("conn.why", **ASKED | {"destination_port": 81})
        assert (answer["connects"], failing(answer)) == (False, "farm")
        with invalid(Code.INVALID_VALUE, "destination"):
            two.call("conn.why", **ASKED | {"destination": "nowhere"})


def test_where_neither_node_serves_the_lease_is_the_reason(tmp_path: Path) -> None:
    with pair_without(tmp_path, 0, FAST, f"{VIP}/24") as (_, two):
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        configure(two)
        kept(two.daemon)
        assert two.call("conn.why", **ASKED)["connects"] is True
        two.call("cluster.maintenance", on=True, force=True)
        answer = two.call("conn.why", **ASKED)
        assert failing(answer) == "lease" and "neither node answers" in answer["reason"]
        assert answer["remedy"].startswith("xlbctl cluster status")


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": None},
        {"source": "10.0.0.0/8"},
        {"source": ["192.0.2.7"]},
        {"source": "fe80::1%eth0"},
        {"source": "2001:db8::1"},
        {"destination_port": 0},
        {"destination_port": True},
        {"destination_port": "80"},
        {"source_port": 70000},
        {"source_port": None},
        {"protocol": "icmp"},
        {"protocol": 6},
        {"more": 1},
    ],
)
def test_bad_input_on_the_socket(tmp_path: Path, wrong: dict[str, object]) -> None:
    with running_daemon(tmp_path) as daemon, pytest.raises(XlbError) as refusal:
        daemon.call("conn.why", **ASKED | wrong)
    assert refusal.value.exit_code == 2 and refusal.value.key


def test_the_command_line(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        configure(daemon)
        daemon.call("vip.add", address="2001:db8::100/64", device="eth0")
        kept(daemon)

        def xlbctl(*words: str) -> tuple[int, str, str]:
            return run("--config", str(daemon.config), *words)

        code, out, err = xlbctl("why", "192.0.2.7", f"{VIP}:80")
        assert (code, err) == (0, "") and "outcome  can connect" in out.splitlines()
        assert "recent drops" in out.splitlines()[-1]
        code, out, err = xlbctl("why", "192.0.2.7:40000", f"{VIP}:81")
        lines = out.splitlines()
        assert (
            (code, err) == (1, "")
            and lines[1] == "outcome  cannot connect"
            and lines[2].startswith("reason   farm: no running")
        )
        assert lines[3].startswith("remedy   farms listen on 80/tcp of it; xlbctl farm add")
        code, out, _ = xlbctl("why", "--udp", "2001:db8::7", "[2001:db8::100]:53", "-o", "json")
        answer = json.loads(out)
        assert code == 1 and (answer["protocol"], answer["connection"]) == ("udp", "2001:db8::7 -> [2001:db8::100]:53")
        assert answer["remedy"].endswith("--proto udp") and answer["connects"] is False
        for words, named in (
            (("why",), "CLIENT"),
            (("why", "192.0.2.7"), "VIP:PORT"),
            (("why", "client", f"{VIP}:80"), "CLIENT: 'client' is not an IP address"),
            (("why", "192.0.2.7", VIP), f"VIP:PORT: '{VIP}' is not ADDR:PORT"),
            (("why", "192.0.2.7:0", f"{VIP}:80"), "'0' is not a port"),
            (("why", "2001:db8::7", f"{VIP}:80"), "different address families"),
        ):
            code, out, err = xlbctl(*words)
            assert (code, out) == (2, "") and named in err, (words, err)
