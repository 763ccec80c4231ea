"""The pure side of events: types are complete, the history is bounded and honest, limits make no streams of events."""

from __future__ import annotations

import ast
import re

import pytest

from ctl.events import catalogue
from ctl.events.catalogue import FARM_DOWN, ROLE_CHANGED, SYNC_CHANGED, TYPES, Severity
from ctl.events.history import MAX_BATCH, History
from ctl.events.thresholds import THRESHOLDS, Thresholds
from tests.tree import TREE


def farm(number: int) -> catalogue.Event:
    return FARM_DOWN(f"farm {number}", farm=str(number))


def test_an_event_has_exactly_the_fields_of_its_type() -> None:
    event = SYNC_CHANGED("flow maps in step: all sent", in_step=True, why="all sent")
    assert (event.name, event.severity, dict(event.fields)) == (
        "sync.changed",
        Severity.INFO,
        {"in_step": True, "why": "all sent"},
    )
    for wrong in ({"in_step": True}, {"in_step": True, "why": "", "more": 1}):
        with pytest.raises(TypeError, match=r"sync\.changed has the fields"):
            SYNC_CHANGED("", **wrong)


def test_what_others_wrote_is_one_bounded_line() -> None:
    event = ROLE_CHANGED("a\nb\x1b[31m" + 5000 * "x", role="active", epoch=2, cause="", why="c\rd")
    assert event.message.startswith("a?b?[31mxx") and len(event.message) == catalogue.MAX_TEXT
    assert event.fields["why"] == "c?d"


def test_every_type_is_reported_somewhere() -> None:
    """Of names in the code, so that no row of the table is a promise."""
    constants = {name for name, value in vars(catalogue).items() if isinstance(value, catalogue.EventType)}
    assert len(constants) == len(TYPES) > 30
    used: set[str] = set()
    for path in (TREE / "ctl").rglob("*.py"):
        if path.name != "catalogue.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    used.add(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
    assert constants - used == set()


def test_names_have_one_form() -> None:
    for name, kind in TYPES.items():
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)?", name)
        assert all(re.fullmatch(r"[a-z_]+", each.name) and each.kind in (str, int, float, bool) for each in kind.fields)
        assert all(bool(each.unit) == (each.kind in (int, float)) for each in kind.fields), name


def test_a_reader_gets_what_is_new_and_is_told_what_it_lost() -> None:
    history = History(kept=4)
    assert history.after(0) == history.newest(10) and history.after(7).last == 0
    for number in range(1, 4):
        history.add(farm(number), float(number))
    assert [each.number for each in history.newest(2).entries] == [2, 3]
    batch = history.after(1)
    assert ([each.number for each in batch.entries], batch.lost, batch.last) == ([2, 3], 0, 3)
    for number in range(4, 11):
        history.add(farm(number), float(number))
    batch = history.after(3)
    assert ([each.number for each in batch.entries], batch.lost, batch.last) == ([7, 8, 9, 10], 3, 10)
    batch = history.after(10)
    assert (batch.entries, batch.lost, batch.last) == ((), 0, 10)


def test_a_late_reader_gets_batches() -> None:
    history = History()
    for number in range(300):
        history.add(farm(number), 0.0)
    first = history.after(0)
    assert len(first.entries) == MAX_BATCH and first.last == MAX_BATCH
    assert history.after(first.last).entries[0].number == MAX_BATCH + 1
    assert len(history.newest(1000).entries) == MAX_BATCH


def test_a_limit_is_exceeded_once_and_ends_once() -> None:
    thresholds = Thresholds()
    name, limit, ended = THRESHOLDS[0].value, THRESHOLDS[0].limit, THRESHOLDS[0].ended

    def judged(value: float) -> list[str]:
        return [event.name for event in thresholds.judge({name: value})]

    assert judged(limit - 1) == [] and judged(limit) == ["threshold.exceeded"]
    assert judged(limit + 5) == judged(limit - 1) == judged(ended) == []
    assert judged(ended - 1) == ["threshold.ended"] and judged(ended - 2) == []
    assert judged(limit) == ["threshold.exceeded"]
    assert [event.name for event in thresholds.judge({})] == ["threshold.ended"], "the value is gone, e.g. with the pair"
