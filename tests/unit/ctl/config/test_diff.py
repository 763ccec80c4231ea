"""Differences as messages, in a stable order, and none between equal configurations."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from ctl.config.changes import change, replace_from_document
from ctl.config.diff import differences
from ctl.config.farms_file import to_document
from ctl.config.model import Config
from tests.unit.configs import configs, without_ids


def messages(old: Config, new: Config) -> list[str]:
    return [each.summary for each in differences(old, new)]


def test_messages() -> None:
    empty = Config()
    old = change(empty, "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    old = change(old, "vip.add", {"address": "10.0.0.9/24", "device": "eth0"})
    old = change(old, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80})
    old = change(old, "backend.add", {"farm": "web", "address": "10.0.0.3", "port": 80})
    assert messages(empty, old) == [
        "vip 10.0.0.1 added (/24 on eth0)",
        "vip 10.0.0.9 added (/24 on eth0)",
        "farm web added (10.0.0.1 port 80/tcp, snat, maglev)",
        "farm web: backend 10.0.0.3:80 added (weight 1)",
    ]
    new = change(old, "backend.set", {"farm": "web", "address": "10.0.0.3", "port": 80, "weight": 3, "draining": True})
    new = change(new, "backend.add", {"farm": "web", "address": "10.0.0.2", "port": 80, "priority": 1})
    new = change(new, "farm.set", {"name": "web", "port": "80-90", "snat_address": "10.0.0.9", "health": {"kind": "http"}})
    assert messages(old, new) == [
        "farm web port 80 → 80-90",
        "farm web snat_address (none) → 10.0.0.9",
        "farm web health.kind tcp → http",
        "farm web: backend 10.0.0.2:80 added (weight 1, priority 1)",
        "farm web: backend 10.0.0.3:80 weight 1 → 3",
        "farm web: backend 10.0.0.3:80 draining false → true",
    ]
    assert messages(new, empty) == ["vip 10.0.0.1 removed", "vip 10.0.0.9 removed", "farm web removed"]
    assert differences(old, new)[4] == replace(
        differences(old, new)[4], subject="farm web: backend 10.0.0.3:80", key="weight", old=1, new=3
    )


@settings(max_examples=60, deadline=None)
@given(configs(), configs())
def test_an_empty_diff_means_equal_configurations(old: Config, new: Config) -> None:
    made = replace_from_document(old, to_document(new))
    assert differences(made, new) == ()
    if not differences(old, new):
        assert made is old
    else:
        assert without_ids(made) != without_ids(old)
