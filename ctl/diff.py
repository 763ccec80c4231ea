"""What changed between two configurations, as sentences for people and values for programs."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.model import Config


@dataclass(frozen=True, slots=True)
class Difference:
    """One change. `old` and `new` are None where the thing did not or does not exist."""

    subject: str  # "vip 10.0.0.1" | "farm web" | "farm web: backend 10.0.0.3:80"
    action: str  # "add" | "remove" | "change"
    key: str  # the field, by its contract name; empty for add and remove
    old: object
    new: object

    @property
    def sentence(self) -> str:
        """E.g. "farm web: backend 10.0.0.3:80 weight 1 → 3"."""
        ...


def differences(old: Config, new: Config) -> tuple[Difference, ...]:
    """Ordered: VIPs, then farms by name, each followed by its backends. Ids and generations do not count."""
    ...
