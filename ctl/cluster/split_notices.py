"""What the two nodes tell each other after a split brain, so that the journals of both name what was discarded.

The node that gives way knows it and tells the peer, and tries again a few times. The journal of a peer of version 0.1.0, which
does not know the question, lacks the line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ctl.cluster.peer_questions import PeerQuestions
from ctl.errors import Code, XlbError
from ctl.events import catalogue
from ctl.runtime.event_hub import Report, log_only

QUESTION = "pair.split"
TRIES = 10
PAUSE_S = 1.0
MAX_TEXT = 2500

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]

log = logging.getLogger(__name__)


class SplitNotices:
    """Create on a running loop; `close` once. ask: puts a question to the peer."""

    def __init__(self, node: str, peer: str, questions: PeerQuestions, ask: Ask, report: Report = log_only) -> None:
        self._report = report
        self._node, self._peer, self._questions, self._ask = node, peer, questions, ask
        self._tasks: set[asyncio.Task[None]] = set()
        questions.register(QUESTION, self._told)

    @property
    def pending(self) -> bool:
        """Whether something is still being told."""
        return bool(self._tasks)

    def tell(self, notice: dict[str, Any]) -> None:
        """Have the peer log it."""
        task = asyncio.get_running_loop().create_task(self._send(notice), name="telling the peer of a split")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop."""
        self._questions.withdraw(QUESTION)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, notice: dict[str, Any]) -> None:
        for _ in range(TRIES):
            try:
                await self._ask(QUESTION, notice)
                return
            except XlbError as error:
                if error.code in (Code.PEER_VERSION, Code.UNCODED):
                    return
            await asyncio.sleep(PAUSE_S)

    async def _told(self, notice: dict[str, Any]) -> None:
        """The peer gave way to this node."""
        if notice.get("kind") == "role":
            text = f"split brain: {self._peer} was active too until now; {self._node} stays active"
            self._report(log, catalogue.SPLIT_BRAIN(text, peer=self._peer))
            return
        version, winner, path, what = self._texts(notice, "version", "winner", "path", "what")
        peer = self._peer
        text = (
            f"split brain: {peer}'s configuration {version} and this node's {winner} have a common origin only: this node's is "
            f"in force, {peer} saved its own as {path} on {peer}; discarded: {what}"
        )
        self._report(log, catalogue.CONFIG_CONFLICT(text, version=version, winner=winner, file=path, changes=what))

    def _texts(self, notice: dict[str, Any], *keys: str) -> list[str]:
        """The peer's values, fit for one line of the log."""
        values = (tuple(value) if isinstance(value := notice.get(key, ""), list) else value for key in keys)
        return ["".join(c if c.isprintable() else "?" for c in str(value)[:MAX_TEXT]) for value in values]
