"""Rates and the series of the last hour, from readings that a test makes."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from ctl.web.live.samples import MAX_FARMS, POINTS, STEP_S, Sample, Series, backend_rates, node_rates, read, table_rates


def packed(*numbers: int) -> bytes:
    return array("q", numbers).tobytes()


def answer(
    farms: dict[str, int], backends: dict[str, tuple[int, int]] | None = None, lag_ms: float | None = None
) -> dict[str, Any]:
    """An answer of `metrics`: packets of each farm; of each backend the row of its farm, and packets."""
    count, of = tuple(farms.values()), backends or {}
    same = {name: packed(*count) for name in ("packets", "bytes", "new_connections", "drops", "connections")}
    own = packed(*(packets for _, packets in of.values()))
    return {
        "counters": [
            {"name": "forwarded", "kind": "forward", "packets": sum(count), "bytes": 0},
            {"name": "drop_x", "kind": "drop", "packets": 7, "bytes": 0},
        ],
        "cluster": {"sync": None if lag_ms is None else {"lag_ms": lag_ms}},
        "farms": {"names": "\n".join(farms), **same},
        "backends": {
            "names": "\n".join(of),
            "farm": packed(*(row for row, _ in of.values())),
            **dict.fromkeys(("packets", "bytes", "new_connections", "connections"), own),
        },
    }


def sample(at_s: float, farms: dict[str, int], **more: Any) -> Sample:
    return read(answer(farms, **more), at_s, 1e9 + at_s)


def test_rates_are_per_second_and_a_counter_that_shrank_has_none() -> None:
    old, new = sample(0, {"a": 100, "b": 50}), sample(2, {"a": 300, "b": 40})
    rates = table_rates(old.farms, new.farms, 2.0)
    assert rates["a"]["packets"] == 100.0 and rates["a"]["connections"] == 300
    assert rates["b"]["packets"] is None
    assert node_rates(old, new)["packets"] == (340 - 150) / 2
    assert node_rates(None, new)["packets"] is None and node_rates(None, new)["connections"] == 340


def test_farms_are_compared_by_name_where_rows_moved() -> None:
    old, new = sample(0, {"a": 100, "b": 1000}), sample(1, {"new": 5, "b": 1010})
    rates = table_rates(old.farms, new.farms, 1.0)
    assert rates["b"]["packets"] == 10.0 and rates["new"]["packets"] is None


def test_backends_of_one_farm() -> None:
    old = sample(0, {"a": 0, "b": 0}, backends={"10.0.0.1:80": (0, 10), "10.0.0.2:80": (1, 20)})
    new = sample(1, {"a": 0, "b": 0}, backends={"10.0.0.1:80": (0, 30), "10.0.0.2:80": (1, 25)})
    found = backend_rates(old, new, "b")
    assert found is not None and found.keys() == {"10.0.0.2:80"} and found["10.0.0.2:80"]["packets"] == 5.0
    assert backend_rates(old, new, "c") is None


def test_the_hour_has_a_hole_where_nothing_was_read() -> None:
    series = Series()
    for step in (0, 1, 4):
        assert series.due(step * STEP_S)
        series.add(sample(step * STEP_S, {"a": 100 * step}, lag_ms=float(step)))
        assert not series.due(step * STEP_S + STEP_S - 0.1)
    node, farm = series.view(), series.view("a")
    assert node is not None and farm is not None
    assert node["lag_ms"][-5:] == [0.0, 1.0, None, None, 4.0] and len(node["lag_ms"]) == POINTS
    assert farm["packets"][-5:] == [None, 10.0, None, None, 10.0]
    assert series.view("b") is None


def test_the_hour_forgets_what_is_older_and_farms_that_are_gone() -> None:
    series = Series()
    for step in range(POINTS + 5):
        series.add(sample(step * STEP_S, {"a": step} if step < 5 else {"b": step}))
    assert series.view("a") is None
    found = series.view("b")
    assert found is not None and None not in found["connections"] and found["connections"][-1] == POINTS + 4


def test_only_so_many_farms_have_series() -> None:
    series = Series()
    series.add(sample(0, {f"f{number}": 1 for number in range(MAX_FARMS + 5)}))
    assert series.view("f0") is not None and series.view(f"f{MAX_FARMS + 1}") is None
    series.add(sample(STEP_S, {f"f{number}": 1 for number in range(5, MAX_FARMS + 5)}))
    assert series.view(f"f{MAX_FARMS + 1}") is not None


@pytest.mark.parametrize("gap", [POINTS - 1, POINTS, 3 * POINTS])
def test_a_long_gap_leaves_nothing_old(gap: int) -> None:
    series = Series()
    series.add(sample(0, {"a": 1}))
    series.add(sample(gap * STEP_S, {"a": 2}))
    found = series.view("a")
    assert found is not None and [value for value in found["connections"] if value is not None] == (
        [1, 2] if gap < POINTS else [2]
    )
