"""A state directory that cannot be written becomes a fault of the node, and ends being one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ctl.cluster.membership import Membership
from ctl.node.state_watch import StateWatch
from ctl.state import storage


def test_a_problem_counts_once_two_looks_have_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[tuple[str, str]] = []
    membership: Any = SimpleNamespace(member=object(), fault_changed=lambda *fault: faults.append(fault))
    gone, disk = (storage.Problem(each, "look") for each in ("cluster.json is gone", "the disk is full"))
    found = iter((gone, None, disk, disk, disk, None))
    monkeypatch.setattr(storage, "problem", lambda directory, paired: next(found) if paired else gone)
    watch = StateWatch(Path("/state"), cast(Membership, membership))

    async def looks() -> None:
        for _ in range(6):
            await watch.look()

    asyncio.run(looks())
    full = ("storage", "the disk is full")
    assert faults == [("storage", ""), full, full, ("storage", "")]
