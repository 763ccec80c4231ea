"""What the journal gets: the protocol's bytes, read back as systemd does, and stderr where it takes nothing."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctl.events.catalogue import SYNC_CHANGED
from ctl.runtime import logs
from ctl.runtime.event_hub import log_only
from tests.fakes.logs import logging_restored

log = logging.getLogger("ctl.cluster.member")


def parse(data: bytes) -> dict[str, str]:
    """The fields of one datagram."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, given, value = line.partition(b"=")
        if not given:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


@contextmanager
def journal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's side; this process's stderr counts as connected to the journal."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound, logging_restored():
        bound.bind(str(directory / "socket"))
        bound.settimeout(5)
        logs.set_up_logging("info", directory / "socket")
        yield bound


def test_an_event_has_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal(tmp_path, monkeypatch) as systemd:
        log_only(log, SYNC_CHANGED("flow maps in step: complete", in_step=True, why="complete"))
        fields = parse(systemd.recv(65536))
    assert fields == {
        "MESSAGE": "flow maps in step: complete",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "xlbd",
        "LOGGER": "ctl.cluster.member",
        "XLB_EVENT": "sync.changed",
        "XLB_IN_STEP": "true",
        "XLB_WHY": "complete",
    }


def test_other_lines_have_none_and_may_have_several_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal(tmp_path, monkeypatch) as systemd:
        log.error("task failed\nTraceback: ü")
        fields = parse(systemd.recv(65536))
    assert (fields["MESSAGE"], fields["PRIORITY"]) == ("task failed\nTraceback: ü", "3") and "XLB_EVENT" not in fields


def test_what_the_journal_does_not_take_goes_to_stderr_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with journal(tmp_path, monkeypatch):
        for number in range(1000):  # nobody reads: the socket's queue is full soon
            log.warning("line %d", number)
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == "<4>line 999" and 0 < len(lines) < 1000


def test_without_a_journal_lines_go_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_restored():
        logs.set_up_logging("info", tmp_path / "socket")
        log_only(log, SYNC_CHANGED("flow maps in step: complete", in_step=True, why="complete"))
    assert capfd.readouterr().err.endswith("INFO    flow maps in step: complete\n")
