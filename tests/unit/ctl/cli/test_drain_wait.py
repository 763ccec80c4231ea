"""`xlbctl backend drain --wait`: what it counts, and what it does when the daemon does not answer."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.constants import FlowState
from ctl.cli import backend
from ctl.cli.base import Session
from ctl.dataplane.kernel import sweeper
from ctl.errors import Code, XlbError
from tests.fakes.cli import XLBCTL
from tests.fakes.daemon import FakeServers, RunningDaemon, running_daemon
from tests.fakes.flows import connections, put
from tests.refusals import refused
from tests.tree import TREE
from tests.wait import wait_until

ENDPOINT = "10.77.0.11", 8080


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    """It sweeps once, and its only backend fails its check."""
    monkeypatch.setattr(sweeper, "MIN_PAUSE_S", 3600.0)
    monkeypatch.setattr(sweeper, "MAX_PAUSE_S", 3600.0)
    with running_daemon(tmp_path, servers=FakeServers(ENDPOINT[0])) as running:
        running.call("vip.add", address="10.77.0.100/24", device="eth0")
        running.call("farm.add", name="web", vip="10.77.0.100", port=80, health={"kind": "tcp"})
        running.call("backend.add", farm="web", address=ENDPOINT[0], port=ENDPOINT[1])
        yield running


def connection(daemon: RunningDaemon, state: FlowState) -> None:
    (farm,) = daemon.farms.farms.values()
    rows = connections("v4", [1], daemon.plane.tick, int(state))
    for values in (rows[1], rows[3]):
        values["farm"], values["backend"] = farm.id, farm.backends[0].id
    put(daemon.plane, "v4", None, rows)


def test_a_connection_that_no_sweep_has_counted_is_waited_for_also_if_the_check_fails(daemon: RunningDaemon) -> None:
    wait_until(lambda: daemon.call("farm.show", name="web")["backends"][0]["state"] == "down", "its check to fail")
    connection(daemon, FlowState.SEEN)
    command = [*XLBCTL, "--config", str(daemon.config), "backend", "drain", "web", "10.77.0.11:8080", "--wait"]
    waits = subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waits.stderr is not None
    assert waits.stderr.readline() == "10.77.0.11:8080 of web: 1 connection left\n"
    connection(daemon, FlowState.SEEN | FlowState.RST)
    assert waits.communicate(timeout=20) == ("backend 10.77.0.11:8080 of web drained: no connection left\n", "")


class Lossy(Session):
    """A session whose daemon is away for some calls, then has the drain without a connection."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost, self.closed = lost, 0

    def call(self, command: str, **args: Any) -> Any:
        self.lost -= 1
        if self.lost >= 0:
            raise XlbError("xlbd is not running", Code.DAEMON_NOT_RUNNING if self.lost % 2 else Code.DAEMON_SILENT)
        row = {"address": ENDPOINT[0], "port": ENDPOINT[1], "draining": True, "connections": 0, "drain_until": 0}
        return {"total": 0} if command == "conn.count" else {"backends": [row | {"drain_then": "keep"}]}

    def close(self) -> None:
        self.closed += 1


def test_a_daemon_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backend, "POLL_S", 0.0)
    session = Lossy(4)
    assert backend._wait(session, "web", ENDPOINT)["connections"] == 0
    assert session.closed == 4 and capsys.readouterr().err.count("waiting for xlbd") == 1


def test_a_daemon_that_stays_away_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "POLL_S", 0.0)
    monkeypatch.setattr(backend, "LOST_S", 0.0)
    with refused(Code.DAEMON_NOT_RUNNING) as caught:
        backend._wait(Lossy(2), "web", ENDPOINT)
    assert "the drain stays in place" in str(caught.value)
