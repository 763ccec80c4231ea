"""What was measured: samples of subjects taken in turns, their ratios, their noise and their targets. Pure.

Knows nothing of how a figure is measured or printed. Two subjects are compared by the ratios of samples of the same round:
whatever slows the machine for longer than a round slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"
NOISY = 0.15
"""A relative spread above this marks a line: its median is not to be relied on to less than that."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the samples of one subject, or of ratios. spread: (third quartile - first) / median; of fewer than 4, the range."""

    minimum: float
    median: float
    maximum: float
    spread: float

    @property
    def is_noisy(self) -> bool:
        return self.spread > NOISY


def summary(values: Sequence[float]) -> Summary:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("no sample to summarize")
    median = statistics.median(values)
    if len(values) < 4:
        width = max(values) - min(values)
    else:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        width = third - first
    return Summary(min(values), median, max(values), abs(width / median) if median else 0.0)


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for the median of `subject`: of its ratio to `against`, or with against "" of the value itself.

    gap: why it was missed and what was tried; the report shows it only if it was missed.
    """

    subject: str
    limit: float
    at_least: bool = True
    against: str = ""
    gap: str = ""

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def wanted(self, unit: str) -> str:
        """For a person: the sign, the limit and its unit, or what it is compared with."""
        of = f"{TIMES} {self.against}" if self.against else unit
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {of}".rstrip()


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was measured, of one or more subjects.

    samples: subject to one value per round, the rounds in the same order for all. better: "higher" or "lower". against: the
    subject that the others are compared with, or "". missing: subject to the reason why it has no sample. note: for the reader.
    """

    name: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    better: str = "lower"
    against: str = ""
    targets: tuple[Target, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f'{self.name}: better is "higher" or "lower", not "{self.better}"')

    def values(self, subject: str) -> Summary | None:
        found = self.samples.get(subject)
        return summary(found) if found else None

    def ratios(self, subject: str, against: str) -> list[float]:
        """Round by round; a round in which one of both has no sample or the other is 0 is left out."""
        pairs = zip(self.samples.get(subject, ()), self.samples.get(against, ()), strict=False)
        return [value / other for value, other in pairs if other]

    def ratio(self, subject: str, against: str = "") -> Summary | None:
        found = self.ratios(subject, against or self.against)
        return summary(found) if found else None

    def reached(self, target: Target) -> float | None:
        """The median that the target limits; None if it was not measured."""
        found = self.ratio(target.subject, target.against) if target.against else self.values(target.subject)
        return None if found is None else found.median

    @property
    def is_noisy(self) -> bool:
        """Whether what the reader compares varied too much: ratios where there are any, else values."""
        if self.against:
            ratios = [self.ratio(subject) for subject in self.samples if subject != self.against]
            return any(each.is_noisy for each in ratios if each is not None)
        return any(each.is_noisy for each in map(self.values, self.samples) if each is not None)


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of one kind. method: one paragraph, Markdown: how, and what the figures do not show."""

    title: str
    lines: tuple[Line, ...]
    method: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Growth: series name to points (x, y). log: which axes are logarithmic, of "x", "y" and "xy"."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log: str = "x"


@dataclass(frozen=True, slots=True)
class PartResult:
    """All that a part of the suite found. failed: the error that ended it early, or "". command: what measures it again."""

    name: str
    title: str
    method: str
    command: str
    quick: bool
    seconds: float
    measured: Mapping[str, str]
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    failed: str = ""


def to_json(result: PartResult) -> dict[str, Any]:
    """For json.dump, with the summaries that a reader without this module would compute."""
    document = asdict(result)
    for table, shown in zip(result.tables, document["tables"], strict=True):
        for line, fields in zip(table.lines, shown["lines"], strict=True):
            fields["summary"] = {name: asdict(found) for name in line.samples if (found := line.values(name))}
            fields["ratio"] = {
                name: asdict(found) for name in line.samples if line.against not in ("", name) and (found := line.ratio(name))
            }
            fields["noisy"] = line.is_noisy
            for target, each in zip(line.targets, fields["targets"], strict=True):
                reached = line.reached(target)
                each |= {"reached": reached, "met": reached is not None and target.is_met(reached)}
    return document


def from_json(document: Mapping[str, Any]) -> PartResult:
    """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""
    tables = tuple(
        Table(table["title"], tuple(_line(line) for line in table["lines"]), table["method"]) for table in document["tables"]
    )
    plots = tuple(
        Plot(**(plot | {"series": {name: [(x, y) for x, y in points] for name, points in plot["series"].items()}}))
        for plot in document["plots"]
    )
    return PartResult(**(dict(document) | {"tables": tables, "plots": plots}))


def _line(fields: Mapping[str, Any]) -> Line:
    computed = {"summary", "ratio", "noisy", "targets"}
    kept = {name: value for name, value in fields.items() if name not in computed}
    targets = (
        Target(**{name: value for name, value in each.items() if name not in ("reached", "met")}) for each in fields["targets"]
    )
    return Line(**kept, targets=tuple(targets))
