"""Measuring subjects in turns: A B A B, so that what changes on the machine meanwhile changes all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


class NotMeasured(Exception):
    """This subject cannot be measured here; the text is the reason that the report shows."""


def in_turns(
    subjects: Iterable[str],
    rounds: int,
    measure: Callable[[str], float],
    missing: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Subject to one sample per round; every other round in reverse order.

    measure: of a subject. A subject for which it raises NotMeasured has no samples any more; its reason is put into `missing`,
    without which the exception leaves this function.
    """
    measured = in_turns_of_many(subjects, rounds, lambda subject: {"": measure(subject)}, missing)
    return {subject: samples[""] for subject, samples in measured.items()}


def in_turns_of_many(
    subjects: Iterable[str],
    rounds: int,
    measure: Callable[[str], Mapping[str, float]],
    missing: dict[str, str] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Like `in_turns`, for a measurement that has several figures: subject to figure to samples."""
    order = list(subjects)
    found: dict[str, dict[str, list[float]]] = {subject: {} for subject in order}
    for number in range(rounds):
        for subject in order if number % 2 == 0 else reversed(order):
            if subject not in found:
                continue
            try:
                figures = measure(subject)
            except NotMeasured as reason:
                if missing is None:
                    raise
                missing[subject] = str(reason)
                del found[subject]
                continue
            for name, value in figures.items():
                found[subject].setdefault(name, []).append(value)
    return found
