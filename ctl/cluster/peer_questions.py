"""The questions the peer may ask of this node, and the handler of each.

Must not know what any question means; the parts register what they answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ctl.errors import Code, XlbError

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


class PeerQuestions:
    """The registered handlers of one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._answers: dict[str, Answer] = {}

    def register(self, question: str, answer: Answer) -> None:
        """A later registration of the same question replaces the earlier one."""
        self._answers[question] = answer

    def withdraw(self, question: str) -> None:
        """The question is not answered any more."""
        self._answers.pop(question, None)

    async def answer(self, question: str, arguments: dict[str, Any]) -> Any:
        """Raises XlbError when nothing answers it, which happens between different versions."""
        answer = self._answers.get(question)
        if answer is None:
            raise XlbError(
                f"{self._node} does not know {question[:64]!r}: install the same version of xlb on both", Code.PEER_VERSION
            )
        return await answer(arguments)
