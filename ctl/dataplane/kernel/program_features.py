"""Ensures that the program on the interfaces has the features that the configuration needs.

Decides when a program is compiled, and when a failure is tried again. Features are only added: the program of the next start
has those of its configuration, and those that entries in its maps may need. Must not know a configuration, nor how a program
is built and attached (`Attacher`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bpf.dataplane import PlaneError
from ctl.dataplane.features import in_words
from ctl.dataplane.kernel.xdp_interfaces import Attacher
from ctl.errors import Code, XlbError
from ctl.runtime.clock import Clock, monotonic_ns
from ctl.runtime.progress import working

T = TypeVar("T")

RETRY_NS = 60_000_000_000
"""The compiler needs all of a core, so that what failed is not tried again at once unless an operator asks for it."""


async def _nothing() -> None: ...


class ProgramFeatures:
    """Create on a running loop. node: its name, for messages."""

    def __init__(
        self,
        node: str,
        attacher: Attacher,
        now_ns: Clock = monotonic_ns,
        replaced: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """replaced: called when the program has more features than before, and before they are used: what was held back for
        it must be in the maps first.
        """
        self._node, self._attacher, self._now_ns = node, attacher, now_ns
        self._replaced = replaced
        self._usable = attacher.features()
        self._lock = asyncio.Lock()
        self._failure: tuple[int, frozenset[str], XlbError] | None = None  # when, what was missing, why

    def missing(self, wanted: frozenset[str]) -> frozenset[str]:
        """What the program on the interfaces does not have, or what may not be used yet."""
        return wanted - self._usable

    async def require(self, wanted: frozenset[str], patiently: bool = False) -> str:
        """Have the program compiled and replaced, unless it has these features. Maps, and so connections, are kept.

        patiently: what failed in the last RETRY_NS is not tried again. Returns what was done, for people; empty: nothing.
        Raises XlbError, with the program as it was.
        """
        async with self._lock:
            missing = self.missing(wanted)
            if not missing:
                return ""
            if patiently and self._failure is not None:
                failed_ns, of, error = self._failure
                if missing == of and self._now_ns() - failed_ns < RETRY_NS:
                    raise error
            began_s, names = time.monotonic(), in_words(missing)
            doing = f"{self._node} compiles the program for {names}, which takes seconds, or a minute on a slow machine"
            try:
                with working(doing):
                    await _to_its_end(functools.partial(self._attacher.add_features, wanted))
                await self._replaced()
            except (PlaneError, OSError) as error:
                refusal = XlbError(f"the program for {names} cannot be used on {self._node}: {error}", Code.KERNEL_REFUSED)
                self._failure = self._now_ns(), missing, refusal
                raise refusal from error
            self._failure, self._usable = None, self._attacher.features()
            return f"compiled the program for {names}: {time.monotonic() - began_s:.1f} s"

    async def alone(self, function: Callable[[], T]) -> T:
        """Run what replaces the program, in a thread, while nothing else does."""
        async with self._lock:
            return await _to_its_end(function)


async def _to_its_end(function: Callable[[], T]) -> T:
    """Even when the asker goes away: two builds at once would remove each other's files."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
