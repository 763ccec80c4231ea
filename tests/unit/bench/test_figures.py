"""What the suite concludes from samples: ratios, noise, targets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.suite.figures import Line, PartResult, Plot, Table, Target, from_json, summary, to_json
from bench.suite.turns import NotMeasured, in_turns, in_turns_of_many

LINE = Line(
    "UDP",
    "packets/s",
    {"xlb": [400, 500, 600], "nftables": [100, 100, 100]},
    "higher",
    against="nftables",
    targets=(Target("xlb", 5, against="nftables"), Target("xlb", 450, at_least=False, gap="it is slow")),
)


def test_ratios_are_of_the_same_round() -> None:
    line = Line("", "s", {"a": [1, 20, 3], "b": [1, 10, 3]}, against="b")
    assert line.ratios("a", "b") == [1, 2, 1]
    assert line.ratio("a") == summary([1, 2, 1])


def test_a_slow_round_of_both_is_no_noise() -> None:
    calm = Line("", "s", {"a": [2, 20, 4, 8], "b": [1, 10, 2, 4]}, against="b")
    assert not calm.is_noisy
    assert Line("", "s", calm.samples).is_noisy, "the values themselves vary"


def test_a_round_without_the_other_counts_for_nothing() -> None:
    assert Line("", "s", {"a": [1, 2, 3], "b": [0, 4]}, against="b").ratio("a") == summary([0.5])
    assert Line("", "s", {"a": [1]}, against="b").ratio("a") is None


@pytest.mark.parametrize(("target", "reached", "met"), [(LINE.targets[0], 5, True), (LINE.targets[1], 500, False)])
def test_targets_limit_the_median(target: Target, reached: float, met: bool) -> None:
    assert LINE.reached(target) == reached
    assert target.is_met(reached) is met


def test_a_target_of_what_was_not_measured_is_not_met() -> None:
    assert LINE.reached(Target("haproxy", 1)) is None
    assert LINE.reached(Target("xlb", 1, against="haproxy")) is None


def test_a_summary_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        summary([])


@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=30))
def test_a_summary_is_ordered(values: list[float]) -> None:
    found = summary(values)
    assert found.minimum <= found.median <= found.maximum and found.spread >= 0


def test_one_outlier_of_many_rounds_is_no_noise() -> None:
    assert not summary([100, 101, 99, 100, 102, 500]).is_noisy
    assert summary([100, 140, 60, 100, 160]).is_noisy
    assert summary([100, 120]).is_noisy, "of two, the range"


def test_json_keeps_everything() -> None:
    plot = Plot("growth", "flows", "ns", {"xlb": [(1, 2.5), (10, 3)]})
    result = PartResult("packet", "P", "m", "c", True, 1.5, {"commit": "x"}, (Table("t", (LINE,), "how"),), (plot,), "broke")
    document = json.loads(json.dumps(to_json(result)))
    assert from_json(document) == result
    line = document["tables"][0]["lines"][0]
    assert line["ratio"]["xlb"]["median"] == 5 and line["summary"]["nftables"]["median"] == 100
    assert [each["met"] for each in line["targets"]] == [True, False]


def test_turns_alternate_and_every_other_round_is_reversed() -> None:
    order: list[str] = []

    def measure(subject: str) -> float:
        order.append(subject)
        return len(order)

    assert in_turns("ab", 3, measure) == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert "".join(order) == "abbaab"


def test_what_cannot_be_measured_is_named_and_the_others_are_measured() -> None:
    def measure(subject: str) -> dict[str, float]:
        if subject == "b":
            raise NotMeasured("no such package")
        return {"pps": 1, "cpu": 2}

    missing: dict[str, str] = {}
    assert in_turns_of_many("abc", 2, measure, missing) == {name: {"pps": [1, 1], "cpu": [2, 2]} for name in "ac"}
    assert missing == {"b": "no such package"}
    with pytest.raises(NotMeasured):
        in_turns_of_many("abc", 2, measure)


def test_better_is_one_of_two_words() -> None:
    with pytest.raises(ValueError, match="higher"):
        Line("x", "s", {}, better="more")
