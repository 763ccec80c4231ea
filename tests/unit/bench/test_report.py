"""The report names every target, gap, reason and noisy line, and a run that fails loses nothing of the others."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as suite
from bench.suite import part, report
from bench.suite.figures import Line, PartResult, Plot, Table, Target, to_json
from bench.suite.part import Plan, measured

TIMES = "\N{MULTIPLICATION SIGN}"
FAST = Line(
    "known flow",
    "packets/s",
    {"xlb": [2_000_000, 2_100_000, 2_050_000], "nftables": [400_000, 420_000, 410_000]},
    "higher",
    "nftables",
    (Target("xlb", 4, against="nftables"), Target("xlb", 9, against="nftables", gap="two cold lines per packet. Tried: one.")),
    {"haproxy": "it has no UDP"},
)
WILD = Line("lag", "ms", {"xlb": [1, 5, 20]}, targets=(Target("xlb", 50, at_least=False),))
PLOT = Plot("cost over flows", "flows", "ns", {"xlb": [(1, 47), (1_000_000, 500)], "other": [(1, 100)]})
RESULT = PartResult(
    "packet",
    "Per packet",
    "Pinned.",
    "python -m bench.packet",
    False,
    61.2,
    {"commit": "abc"},
    (Table("Hits", (FAST, WILD), "Warm."),),
)


def text(result: PartResult = RESULT) -> str:
    return report.report([result], {"kernel": "6.1"}, {result.name: ["plots/a.svg"] * len(result.plots)})


def test_each_target_has_a_row_with_what_was_reached() -> None:
    assert "2 of 3 are met." in text()
    assert f"| packet | known flow: xlb | ≥ 4 {TIMES} nftables | 5 {TIMES} | yes |" in text()
    assert f"| packet | known flow: xlb | ≥ 9 {TIMES} nftables | 5 {TIMES} | **no** |" in text()
    assert "| packet | lag: xlb | ≤ 50 ms | 5 ms | yes, noisy |" in text()


def test_a_missed_target_is_a_gap_with_its_reason() -> None:
    gaps = text().split("## Gaps")[1].split("\n## ")[0]
    assert gaps.count("\n- ") == 1
    assert "wanted ≥ 9" in gaps and "Two cold lines per packet. Tried: one." in gaps


def test_a_target_that_was_not_measured_is_a_gap() -> None:
    line = replace(FAST, targets=(Target("haproxy", 1),))
    found = text(replace(RESULT, tables=(Table("t", (line,)),)))
    assert "| not measured | not measured |" in found and "It has no UDP." in found


def test_cells_show_median_range_and_ratio() -> None:
    assert f"| 2,050,000 (2,000,000 to 2,100,000) **5{TIMES}** | 410,000 (400,000 to 420,000) = | not measured |  |" in text()
    assert "- known flow: haproxy was not measured: it has no UDP" in text()
    measured_meanwhile = replace(FAST, missing={"xlb": "a later line has no sample of it"})
    assert "was not measured" not in text(replace(RESULT, tables=(Table("t", (measured_meanwhile,)),)))


def test_plots_are_shown_and_readable_without_seeing_them() -> None:
    found = text(replace(RESULT, plots=(PLOT,)))
    assert "![cost over flows](plots/a.svg)" in found and "| 1,000,000 | 500 |  |" in found


def test_a_part_that_ended_early_shows_what_it_had() -> None:
    found = text(replace(RESULT, failed="OSError: no memory"))
    assert "**This part ended early:** OSError: no memory" in found and "- **part packet** ended early" in found
    assert "known flow" in found


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234567, "1,230,000"),
        (999.6, "1,000"),
        (123.4, "123"),
        (12.34, "12.3"),
        (0.01234, "0.0123"),
        (0.00001, "1.0e-05"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_an_error_of_a_part_keeps_its_finished_tables(capsys: pytest.CaptureFixture[str]) -> None:
    def tables(plan: Plan) -> Iterator[Table | Plot]:
        yield RESULT.tables[0]
        yield PLOT
        raise OSError("no memory")

    found = measured("packet", "Per packet", "", tables, Plan(quick=True), "python -m bench.packet")
    assert (found.tables, found.plots, found.failed) == (RESULT.tables, (PLOT,), "OSError: no memory")
    assert "no memory" in capsys.readouterr().err


def test_an_option_that_no_part_has_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.packet", "--quik"])
    with pytest.raises(SystemExit):
        part.part_main("packet", "Per packet", "", lambda plan: iter(()))
    assert "unrecognized arguments: --quik" in capsys.readouterr().err


def test_the_command_of_a_part_has_its_options_and_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--quick", "--match", "UDP4, new", "--faults", "kill -9"]
    monkeypatch.setattr(sys, "argv", ["bench.x", *options, "--output", str(tmp_path / "x.json")])
    monkeypatch.setattr(part, "why_not", lambda: "")
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    seen = list[Plan]()

    def tables(plan: Plan) -> Iterator[Table | Plot]:
        seen.append(plan)
        yield RESULT.tables[0]

    assert part.part_main("x", "X", "", tables, lambda parser: parser.add_argument("--faults")) == 0
    assert (seen[0].quick, seen[0].match, seen[0].options.faults) == (True, "UDP4, new", "kill -9")
    command = json.loads((tmp_path / "x.json").read_text())["command"]
    assert command == "sudo .venv/bin/python -m bench.x --quick --match 'UDP4, new' --faults 'kill -9'"


def test_what_was_not_run_keeps_its_figures(tmp_path: Path) -> None:
    part.write_json(tmp_path / "RESULTS.json", {"machine": {}, "parts": [to_json(RESULT)]})
    assert suite.earlier(tmp_path / "RESULTS.json") == {"packet": RESULT}
    (tmp_path / "RESULTS.json").write_text('{"parts": [{"name": 1}]}')
    assert suite.earlier(tmp_path / "RESULTS.json") == {}
    assert suite.earlier(tmp_path / "none") == {}


@pytest.mark.may_skip
def test_all_outputs_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with_plot = replace(RESULT, plots=(PLOT,))
    suite.write([with_plot], tmp_path)
    (picture,) = (tmp_path / "plots").iterdir()
    first = picture.read_bytes()
    assert picture.name == "packet-cost-over-flows.svg" and b"<svg" in first and b"cost over flows" in first
    assert f"](plots/{picture.name})" in (tmp_path / "RESULTS.md").read_text()
    assert suite.earlier(tmp_path / "RESULTS.json") == {"packet": with_plot}
    suite.write([with_plot], tmp_path)
    assert picture.read_bytes() == first, "the same figures draw the same picture"
    suite.write([RESULT], tmp_path)
    assert not list((tmp_path / "plots").iterdir()), "a picture outlived its plot"


def test_a_part_that_hangs_or_dies_has_a_result() -> None:
    dies, hangs = ("sh", "-c", "exit 3"), ("sh", "-c", "exec sleep 60")
    assert suite.run(suite.Part("packet", 1, 1), True, dies).failed == "its process ended with 3 and no result"
    assert suite.run(suite.Part("packet", 1, 0), True, hangs).failed == "it took longer than 0 s"


def test_an_unknown_part_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "packets"])
    with pytest.raises(SystemExit):
        suite.main()
    assert "there is no part packets; there are packet, wire" in capsys.readouterr().err


def test_json_is_for_every_reader(tmp_path: Path) -> None:
    part.write_json(tmp_path / "x.json", to_json(RESULT))
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["tables"][0]["lines"][1]["noisy"] is True
