"""The peer's answer to one question: asked at most once a second, however many ask here, and never waited for long.

Decides how fresh an answer must be, and which of the causes is named where there is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctl.cluster.membership import Membership
from ctl.cluster.pair_configuration import PairConfiguration
from ctl.errors import Code, XlbError

FRESH_S = 1.0
WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Answered:
    """fields: None where there is no answer, for the reason `why_not`. earlier: an earlier version without this question."""

    fields: Mapping[str, Any] | None
    why_not: str = ""
    earlier: bool = False


class FreshAnswer:
    """Create on a running loop."""

    def __init__(self, membership: Membership, question: str) -> None:
        self._membership, self._question = membership, question
        self._lock = asyncio.Lock()
        self._last = Answered(None)
        self._asked_s = float("-inf")
        self._of: PairConfiguration | None = None

    async def take(self, alive: bool) -> Answered:
        """The answer, no older than FRESH_S. alive: whether the peer is heard."""
        pair = self._membership.configuration
        if pair is None:
            return Answered(None, "this node is single")
        if not alive:
            return Answered(None, f"{pair.settings.peer.name} is silent")
        async with self._lock:
            if self._of is not pair or time.monotonic() - self._asked_s > FRESH_S:
                self._last = await self._ask(pair)
                self._of, self._asked_s = pair, time.monotonic()
            return self._last

    async def _ask(self, pair: PairConfiguration) -> Answered:
        name = pair.settings.peer.name
        try:
            async with asyncio.timeout(WAIT_S):
                answer = await pair.ask(self._question, {}, WAIT_S)
        except TimeoutError:
            return Answered(None, f"{name} did not answer within {WAIT_S:g} s")
        except XlbError as error:
            if error.code in (Code.PEER_VERSION, Code.UNCODED):
                return Answered(None, f"{name} runs an earlier version of xlb; upgrade it", earlier=True)
            return Answered(None, str(error))
        if not isinstance(answer, dict):
            return Answered(None, f"{name} gave an answer that is no map")
        return Answered(answer)
