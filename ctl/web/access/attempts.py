"""Slows down who guesses passwords: a delay after failed logins, by source and by user name. Pure.

An attempt counts as failed until it succeeds, so attempts made at once do not escape. The delay of a user name is short, and
not for a source from which the user has logged in before: others cannot lock a user out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ctl.web.serving.admission import LOOPBACK

FREE = 5
"""Failures without a delay."""
LONGEST_S = 900.0
LONGEST_FOR_NAME_S = 30.0
LONGEST_SHARED_S = 30.0
"""Behind a tunnel or a proxy on the node everybody comes from the loopback: one who guesses must not lock the others out."""
SHARED = (LOOPBACK,)
FORGET_S = 1800.0
MAX_ENTRIES = 4096


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_s: float = 0.0


@dataclass(slots=True)
class Attempts:
    """The failed logins of late."""

    _failures: OrderedDict[tuple[str, str], _Failures] = field(default_factory=OrderedDict)
    _welcome: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    def begin(self, source: str, name: str, now_s: float) -> float:
        """An attempt is made. Returns 0, or the seconds until one is allowed; this one is not made then.

        source: see `ctl.web.serving.admission.prefix_of`.
        """
        wait_s = self._wait_s(("source", source), LONGEST_SHARED_S if source in SHARED else LONGEST_S, now_s)
        if (source, name) not in self._welcome:
            wait_s = max(wait_s, self._wait_s(("name", name), LONGEST_FOR_NAME_S, now_s))
        if wait_s <= 0:
            self._count(("source", source), now_s)
            self._count(("name", name), now_s)
        return wait_s

    def succeed(self, source: str, name: str) -> None:
        """The attempt succeeded: it is no failure of the source, and what others tried on the name is forgotten."""
        failures = self._failures.get(("source", source))
        if failures is not None:
            failures.count -= 1
        self._failures.pop(("name", name), None)
        self._welcome[source, name] = None
        self._welcome.move_to_end((source, name))
        if len(self._welcome) > MAX_ENTRIES:
            self._welcome.popitem(last=False)

    def withdraw(self, source: str, name: str) -> None:
        """The attempt could not be judged."""
        for key in (("source", source), ("name", name)):
            if (failures := self._failures.get(key)) is not None:
                failures.count -= 1

    def _wait_s(self, key: tuple[str, str], longest_s: float, now_s: float) -> float:
        failures = self._failures.get(key)
        if failures is None or failures.count < FREE:
            return 0.0
        delay_s = min(longest_s, 2.0 ** min(failures.count - FREE, 20))
        return max(0.0, failures.last_s + delay_s - now_s)

    def _count(self, key: tuple[str, str], now_s: float) -> None:
        failures = self._failures.setdefault(key, _Failures())
        if now_s - failures.last_s > FORGET_S:
            failures.count = 0
        failures.count += 1
        failures.last_s = now_s
        self._failures.move_to_end(key)
        if len(self._failures) > MAX_ENTRIES:
            self._failures.popitem(last=False)
