"""The value of every check: `doctor`, `cluster check` and `cluster status` print it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ctl.errors import Advice


class Severity(StrEnum):
    """What a finding asks of an operator: nothing (ok, info), a look (warn), an action (fail)."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report; `remedy` is empty when all is well."""

    name: str
    status: Severity
    message: str
    remedy: str = ""

    def view(self) -> dict[str, Any]:
        """As it is sent and printed. `ok` is false only for what fails a report."""
        return {
            "name": self.name,
            "ok": self.status is not Severity.FAIL,
            "status": self.status.value,
            "message": self.message,
            "remedy": self.remedy,
        }

    def of(self, node: str) -> Finding:
        """The same finding, seen from the peer: its name starts with the node's."""
        return replace(self, name=f"{node} {self.name}")


def ok(name: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Severity.OK, message)


def judged(name: str, good: bool, message: str, remedy: str) -> Finding:
    """OK, or FAIL with its remedy."""
    return ok(name, message) if good else Finding(name, Severity.FAIL, message, remedy)


def from_problem(name: str, problem: str, otherwise: str = "the message says what to do") -> Finding:
    """A problem that another part found. otherwise: the remedy of a message that has none apart from it."""
    if isinstance(problem, Advice):
        return Finding(name, Severity.FAIL, problem.message, problem.remedy)
    return Finding(name, Severity.FAIL, problem, otherwise)


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity; OK without findings."""
    return max((each.status for each in findings), key=_ORDER.index, default=Severity.OK)


def from_view(view: Any) -> Finding | None:
    """The finding of a peer's `view`; None for anything that is not one."""
    if not isinstance(view, dict) or view.get("status") not in _ORDER:
        return None
    name, message, remedy = (str(view.get(key, ""))[:500] for key in ("name", "message", "remedy"))
    return Finding(name, Severity(view["status"]), message, remedy)
