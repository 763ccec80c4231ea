"""RESULTS.md: what was measured, as Markdown. Pure: results in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.suite.figures import TIMES, Line, PartResult, Plot, Summary, Table, Target

NOISY_MARK = "noisy"
INTRODUCTION = """\
Written by `make bench`; do not edit. The same figures with every sample are in `RESULTS.json`.

Every comparison was taken in turns (A B A B, every other round in reverse order) in one run on one
machine, and is a ratio of samples of the same round. A cell shows the median, then the least and
the greatest sample, and the median ratio to the subject that the line compares with, which is
marked with "=". A line is marked *noisy* where the ratios of its rounds (where nothing is compared,
the values) spread by more than 15 % of their median: the distance between the quartiles, of fewer
than four rounds the range. What could not be measured is named with its reason. Absolute figures
are of this machine; ratios carry further."""


def report(results: Sequence[PartResult], machine: Mapping[str, str], plots: Mapping[str, Sequence[str]]) -> str:
    """plots: part name to paths of its pictures, relative to the report, in the order of the part's plots."""
    blocks = ["# Measured against the field", INTRODUCTION, _machine(machine), "## Targets", _targets(results)]
    gaps = list(_gaps(results))
    if gaps:
        blocks += ["## Gaps", "\n".join(gaps)]
    for result in results:
        blocks += _part(result, plots.get(result.name, ()))
    return "\n\n".join(blocks) + "\n"


def number(value: float) -> str:
    """Three significant digits, thousands grouped: 1,230,000; 12.3; 0.0123."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = len(str(int(abs(value))))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.0001 else f"{value:.1e}"


def _machine(machine: Mapping[str, str]) -> str:
    return "\n".join(["| machine | |", "|---|---|", *(f"| {name} | {text} |" for name, text in machine.items())])


def _lines(results: Sequence[PartResult]) -> Iterable[tuple[PartResult, Table, Line]]:
    return ((result, table, line) for result in results for table in result.tables for line in table.lines)


def _targets(results: Sequence[PartResult]) -> str:
    rows = []
    for result, _, line in _lines(results):
        for target in line.targets:
            cells = (result.name, _limited(line, target), target.wanted(line.unit), _reached(line, target), met(line, target))
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return "No part with targets was measured."
    count = sum(row.endswith((" yes |", f" yes, {NOISY_MARK} |")) for row in rows)
    head = ["| part | target | wanted | reached (median) | met |", "|---|---|---:|---:|---|"]
    return f"{count} of {len(rows)} are met.\n\n" + "\n".join([*head, *rows])


def _limited(line: Line, target: Target) -> str:
    return f"{line.name}: {target.subject}"


def _reached(line: Line, target: Target) -> str:
    reached = line.reached(target)
    if reached is None:
        return "not measured"
    return f"{number(reached)} {TIMES}" if target.against else f"{number(reached)} {line.unit}"


def met(line: Line, target: Target) -> str:
    reached = line.reached(target)
    if reached is None:
        return "not measured"
    answer = "yes" if target.is_met(reached) else "**no**"
    return f"{answer}, {NOISY_MARK}" if line.is_noisy else answer


def _gaps(results: Sequence[PartResult]) -> Iterable[str]:
    """One item per target that was missed or not measured."""
    for _, _, line in _lines(results):
        for target in line.targets:
            reached = line.reached(target)
            if reached is not None and target.is_met(reached):
                continue
            why = target.gap or "no reason is known yet"
            if reached is None:
                why = line.missing.get(target.subject) or line.missing.get(target.against) or "no sample"
            missed = f"{_limited(line, target)}**: {_reached(line, target)}, wanted {target.wanted(line.unit)}"
            yield f"- **{missed}. {why[:1].upper()}{why[1:].rstrip('.')}."
    for result in results:
        if result.failed:
            yield f"- **part {result.name}** ended early: {result.failed}"


def _part(result: PartResult, plots: Sequence[str]) -> Iterable[str]:
    yield f"## {result.title}"
    kind = "a quick run: few rounds" if result.quick else "a full run"
    commit = result.measured.get("commit", "unknown")
    when = f"this was {kind} of {result.seconds:.0f} s, {result.measured.get('date', 'at an unknown time')}, commit {commit}"
    yield f"{result.method}\n\n`{result.command}` measures this part again; {when}."
    if result.failed:
        yield f"**This part ended early:** {result.failed}"
    for table in result.tables:
        yield f"### {table.title}"
        if table.method:
            yield table.method
        yield _table(table)
        notes = [f"- {line.name}: {line.note}" for line in table.lines if line.note]
        notes += [
            f"- {line.name}: {subject} was not measured: {why}"
            for line in table.lines
            for subject, why in line.missing.items()
            if subject not in line.samples
        ]
        if notes:
            yield "\n".join(dict.fromkeys(notes))
    for plot, path in zip(result.plots, plots, strict=True):
        yield f"![{plot.title}]({path})"
        yield _points(plot)


def _table(table: Table) -> str:
    subjects = list(dict.fromkeys(subject for line in table.lines for subject in (*line.samples, *line.missing)))
    rows = [f"| | unit | {' | '.join(subjects)} | |", f"|---|---|{'---:|' * len(subjects)}---|"]
    for line in table.lines:
        cells = " | ".join(cell(line, subject) for subject in subjects)
        rows.append(f"| {line.name} | {line.unit} | {cells} | {NOISY_MARK if line.is_noisy else ''} |")
    return "\n".join(rows)


def cell(line: Line, subject: str) -> str:
    found = line.values(subject)
    if found is None:
        return "not measured" if subject in line.missing else ""
    text = _summary(found, len(line.samples[subject]))
    if subject == line.against:
        return f"{text} ="
    ratio = line.ratio(subject) if line.against else None
    return text if ratio is None else f"{text} **{number(ratio.median)}{TIMES}**"


def _summary(found: Summary, count: int) -> str:
    if count == 1 or found.minimum == found.maximum:
        return number(found.median)
    return f"{number(found.median)} ({number(found.minimum)} to {number(found.maximum)})"


def _points(plot: Plot) -> str:
    """The plot as a folded table, for readers who cannot see the picture."""
    steps = sorted({x for points in plot.series.values() for x, _ in points})
    rows = [f"| {plot.x} | {' | '.join(plot.series)} |", f"|---:|{'---:|' * len(plot.series)}"]
    for step in steps:
        values = (dict(points).get(step) for points in plot.series.values())
        rows.append(f"| {step:,.10g} | {' | '.join('' if value is None else number(value) for value in values)} |")
    table = "\n".join(rows)
    return f"<details><summary>{plot.title}, {plot.y}</summary>\n\n{table}\n\n</details>"
