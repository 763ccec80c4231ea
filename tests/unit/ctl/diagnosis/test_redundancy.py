"""What `cluster status --check` makes of the answers of two nodes."""

from __future__ import annotations

from typing import Any

import pytest

from ctl.diagnosis import redundancy
from ctl.diagnosis.finding import Finding, Severity
from ctl.diagnosis.redundancy import CRITICAL, OK, WARNING

INTERFACE = {"name": "eth0", "xdp_mode": "native", "carrier": True}
ROWS = [{"name": name, "version": "0.2.0", "generation": 5} for name in ("lb1", "lb2")]
PEER = {"name": "lb2", "role": "backup", "alive": True, "last_heard_ms": 40, "in_step": True, "can_serve": True}
ACTIVE: dict[str, Any] = {
    "node": "lb1",
    "role": "active",
    "epoch": 7,
    "started": True,
    "interfaces": [INTERFACE],
    "peer": PEER,
    "paths": {"cluster": True, "data": False},
    "sync": {"in_step": True},
    "nodes": ROWS,
}
BACKUP = ACTIVE | {
    "node": "lb2",
    "role": "backup",
    "peer": PEER | {"name": "lb1", "role": "active"},
    "paths": {"cluster": True, "data": True},
}
SINGLE = ACTIVE | {"role": "single", "peer": None, "sync": None, "paths": None}


def peer(**changes: Any) -> dict[str, Any]:
    return {"peer": PEER | changes}


def findings(status: dict[str, Any]) -> list[Finding]:
    return [*redundancy.examine_pair(status), *redundancy.examine_node(status)]


@pytest.mark.parametrize("status", [ACTIVE, BACKUP, SINGLE], ids=["active", "backup", "single"])
def test_a_sound_node_is_ok(status: dict[str, Any]) -> None:
    assert findings(status) == []
    assert redundancy.judge([]) is OK
    assert redundancy.line(OK, redundancy.summary(status), []).startswith("OK: ")


@pytest.mark.parametrize(
    ("status", "verdict", "words"),
    [
        (ACTIVE | peer(alive=False, last_heard_ms=12_300), WARNING, "lb2 has not been heard for 12.3 s"),
        (ACTIVE | peer(alive=False, last_heard_ms=None), WARNING, "lb2 has not been heard since xlbd started"),
        (ACTIVE | peer(in_step=False), WARNING, "lb2 is not in step"),
        (BACKUP | {"sync": {"in_step": False}}, WARNING, "lb2 is not in step"),
        (ACTIVE | peer(can_serve=False), WARNING, "lb2 cannot take over"),
        (ACTIVE | peer(role="maintenance"), WARNING, "maintenance off on lb2"),
        (ACTIVE | peer(role="fault"), WARNING, "lb2 is in fault"),
        (ACTIVE | peer(role="active"), CRITICAL, "lb1 and lb2 are both active"),
        (BACKUP | peer(name="lb1", role="backup"), CRITICAL, "neither node is active: lb2 is backup, lb1 is backup"),
        (BACKUP | peer(name="lb1", role="active", alive=False), CRITICAL, "neither node is active"),
        (BACKUP | {"role": "maintenance", "why": "maintenance"}, WARNING, "xlbctl cluster maintenance off"),
        (BACKUP | {"paths": {"cluster": False, "data": True}}, WARNING, "cluster link: brings no heartbeat of lb1"),
        (BACKUP | {"paths": {"cluster": True, "data": False}}, WARNING, "data network: brings no advertisement of lb1"),
        (ACTIVE | {"interfaces": [INTERFACE | {"xdp_mode": None}]}, CRITICAL, "eth0: the program is not attached"),
        (BACKUP | {"interfaces": [INTERFACE | {"xdp_mode": None}]}, WARNING, "eth0: the program is not attached"),
        (SINGLE | {"interfaces": [INTERFACE | {"carrier": False}]}, CRITICAL, "eth0: has no carrier"),
        (
            ACTIVE | {"xdp_configured": "native", "interfaces": [INTERFACE | {"xdp_mode": "generic"}]},
            WARNING,
            "the node file wants native",
        ),
        (ACTIVE | {"nodes": [ROWS[0], ROWS[1] | {"version": "0.1.0"}]}, WARNING, "xlb 0.2.0 on lb1, 0.1.0 on lb2"),
        (ACTIVE | {"nodes": [ROWS[0], ROWS[1] | {"generation": 4}]}, WARNING, "configuration 5 on lb1, 4 on lb2"),
        (
            ACTIVE | {"vote": {"gateway": "10.0.0.1", "can_be_asked": False, "why": "gateway 10.0.0.1 is silent"}},
            WARNING,
            "vote: ",
        ),
        (SINGLE | {"faults": ["the state directory is full"]}, WARNING, "fault: the state directory is full"),
        (ACTIVE | {"started": False}, WARNING, "xlbd: is starting"),
    ],
)
def test_each_loss_has_its_verdict_and_a_remedy(status: dict[str, Any], verdict: redundancy.Verdict, words: str) -> None:
    found = findings(status)
    assert redundancy.judge(found) is verdict
    line = redundancy.line(verdict, "", found)
    assert line.startswith(f"{verdict.word}: ") and words in line and "\n" not in line
    assert all(each.remedy for each in found)


def test_generic_mode_is_as_configured_unless_the_node_file_wants_native() -> None:
    assert findings(ACTIVE | {"interfaces": [INTERFACE | {"xdp_mode": "generic"}], "xdp_configured": "auto"}) == []


def test_a_vote_that_can_be_asked_is_fine() -> None:
    for vote in (None, {"gateway": "10.0.0.1", "can_be_asked": True, "why": ""}):
        assert findings(BACKUP | {"vote": vote}) == []


def test_the_gravest_comes_first() -> None:
    found = [
        Finding("one", Severity.WARN, "late"),
        Finding("two", Severity.FAIL, "gone", "come"),
        Finding("three", Severity.INFO, "x"),
    ]
    assert redundancy.line(CRITICAL, "", found) == "CRITICAL: two: gone (come); one: late"


def test_the_exit_codes_are_in_the_help() -> None:
    from ctl.cli.cluster import status

    text = " ".join((status.help or "").split())
    assert all(f"{each.exit_code}, {each.word}: {each.meaning}" in text for each in redundancy.VERDICTS)
