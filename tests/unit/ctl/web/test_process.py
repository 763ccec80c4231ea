"""xlb-web ends when a part of it fails, so that systemd starts it again: old accounts must not stay in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.errors import Code
from ctl.web import process
from ctl.web.access.gate import Gate
from tests.fakes.daemon import running_daemon
from tests.fakes.web import add_web_section
from tests.refusals import refused


def test_a_part_that_fails_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Gate) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Gate, "run", broken)
    with running_daemon(tmp_path) as daemon, refused(Code.INTERNAL) as caught:
        process.serve(add_web_section(daemon.config))
    assert "a part of xlb-web failed" in str(caught.value) and "a bug" in str(caught.value)
    assert "Traceback" in caplog.text
