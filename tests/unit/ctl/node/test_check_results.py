"""In a pair the active node checks, and its backup has the results: states, errors, and what follows from them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctl.health.probes.replication import QUESTION
from ctl.health.results import State
from tests.fakes.pair import Site, in_step, paired_sites
from tests.wait import wait_until

CHECK = {"kind": "tcp", "interval_ms": 50, "timeout_ms": 50, "rise": 1, "fall": 1}
DEAD, ALIVE = "10.77.0.11", "10.77.0.12"


def backends(of: Site) -> dict[str, dict[str, Any]]:
    return {backend["address"]: backend for backend in of.call("farm.show", name="web")["backends"]}


def states(of: Site) -> dict[str, str]:
    return {address: backend["state"] for address, backend in backends(of).items()}


def usable(of: Site) -> set[int]:
    """The backends that the node's lookup tables have."""
    return {number for key in of.daemon.plane.services() for number in of.daemon.plane.turn(key) if number}


def make_farm(active: Site) -> None:
    active.call("farm.add", name="web", vip="10.77.0.100", port=80, health=CHECK)
    for address in (DEAD, ALIVE):
        active.call("backend.add", farm="web", address=address, port=80)


def follows(backup: Site) -> bool:
    return backup.daemon.node.parts.local.checks.checks.follows


def is_quiet(backup: Site) -> bool:
    """Whether it does not probe, for several intervals."""
    before = backup.daemon.servers.asked
    deadline = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > deadline, "six intervals have passed")
    return backup.daemon.servers.asked == before


def test_the_backup_has_the_results_and_does_not_probe(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (active, backup):
        wait_until(lambda: follows(backup), "the results are complete on the backup")
        active.daemon.servers.refusing = {DEAD}
        backup.daemon.servers.refusing = {ALIVE}  # what the backup would see is another thing
        make_farm(active)
        expected = {DEAD: "down", ALIVE: "up"}
        wait_until(lambda: states(active) == states(backup) == expected, "both nodes know it")
        assert is_quiet(backup)
        shown = backends(backup)[DEAD]
        assert shown["last_error"] == f"{DEAD}:80: connection refused"
        assert 0 <= shown["last_error_s"] < 60 and 0 <= shown["state_for_s"] < 60
        ids = {backend.address: backend.id for backend in backup.daemon.farms.farms["web"].backends}
        wait_until(lambda: usable(backup) == {ids[ALIVE]}, "its maps are ready for a takeover")

        active.daemon.servers.refusing = {ALIVE}
        wait_until(lambda: states(backup) == {DEAD: "up", ALIVE: "down"}, "a change reaches the backup")
        assert is_quiet(backup)


def test_a_takeover_does_not_start_blind(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (active, backup):
        active.daemon.servers.refusing = backup.daemon.servers.refusing = {DEAD}
        make_farm(active)
        wait_until(lambda: follows(backup) and states(backup)[DEAD] == "down", "the backup knows it")
        in_step(active, backup)
        active.call("cluster.switchover")
        in_step(backup, active)
        assert states(backup) == {DEAD: "down", ALIVE: "up"}
        backup.daemon.servers.refusing = set()
        wait_until(lambda: states(backup)[DEAD] == "up", "the new active node checks")
        wait_until(lambda: follows(active) and states(active)[DEAD] == "up", "and the former one follows")
        assert is_quiet(active)


def test_a_new_backend_waits_on_both_nodes(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (active, backup):
        make_farm(active)
        wait_until(lambda: follows(backup) and states(backup) == {DEAD: "up", ALIVE: "up"}, "the backup knows them")
        active.daemon.servers.refusing = {"10.77.0.13"}
        active.call("backend.add", farm="web", address="10.77.0.13", port=80)
        wait_until(lambda: states(backup).get("10.77.0.13") == "down", "no connections for it")
        active.daemon.servers.refusing = set()
        wait_until(lambda: states(backup)["10.77.0.13"] == "up", "its first success counts on the backup")


def test_a_backup_that_gets_no_results_probes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The active node is of version 0.1.0, or the backup cannot hear it."""
    monkeypatch.setattr("ctl.health.results.FOLLOW_MS", 1500)
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (active, backup):
        wait_until(lambda: follows(backup), "the results are complete on the backup")
        backup.daemon.on_loop(lambda: backup.member._parts.questions.withdraw(QUESTION))
        make_farm(active)
        backup.daemon.servers.refusing = {ALIVE}
        wait_until(lambda: states(backup)[ALIVE] == "down", "its own view counts")
        assert states(active)[ALIVE] == "up"


def test_a_backup_that_missed_something_gets_all_results(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (active, backup):
        active.daemon.servers.refusing = {DEAD}
        make_farm(active)
        wait_until(lambda: follows(backup) and states(backup)[DEAD] == "down", "the backup knows it")
        checks = backup.daemon.node.parts.local.checks.checks
        (number,) = checks.down

        def lose() -> None:
            backup.daemon.node.parts.local.replication._inbox.forget()
            checks.adopt([replace(each, state=State.UP) for each in checks.results([number])], 0)

        backup.daemon.on_loop(lose)
        wait_until(lambda: follows(backup) and states(backup)[DEAD] == "down", "it has them again")
