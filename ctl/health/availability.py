"""Which farms have no backend that is up, by the checks. Pure.

Decides what is news: a farm goes down with the last of its backends, and comes up with the first. What an operator does, to
drain or remove the last backend, is no news to him.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from ctl.config.model import Config, Farm


class Availability:
    """Remembers the farms that are down."""

    def __init__(self) -> None:
        self.down: set[str] = set()

    def judge(self, config: Config, unusable: AbstractSet[int], name: str = "") -> Iterator[tuple[str, bool]]:
        """(farm, whether a backend is up) for each farm of which that is news, after a backend of farm `name` changed.

        name: empty after another change, which brings no farm down. unusable: ids of backends that get no connections.
        """
        for each in sorted(self.down):
            farm = config.farms.get(each)
            if farm is None or not farm.enabled:
                self.down.discard(each)
            elif _has_one(farm, unusable):
                self.down.discard(each)
                yield each, True
        farm = config.farms.get(name)
        if farm is not None and farm.enabled and name not in self.down and not _has_one(farm, unusable):
            self.down.add(name)
            yield name, False


def _has_one(farm: Farm, unusable: AbstractSet[int]) -> bool:
    return any(each.id not in unusable for each in farm.backends)
