"""The prefix lists in the kernels of both nodes: those of this node as they are, those of the peer as it answers.

A peer that is silent, of an earlier version, or with another configuration at this moment is not compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bpf.dataplane import DataPlane
from ctl.cluster.config_replication import version_of
from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.model import Config
from ctl.config.prefixes import MAX_LISTS, ROW_BYTES
from ctl.dataplane.limits import lists_in_use
from ctl.diagnosis.limits import Lists, Loaded
from ctl.errors import XlbError

QUESTION = "prefixes.loaded"
WAIT_S = 1.0


class LoadedLists:
    """Create on a running loop."""

    def __init__(self, plane: DataPlane, config: Callable[[], Config], membership: Callable[[], Membership]) -> None:
        self._plane, self._config, self._membership = plane, config, membership

    def answer(self, questions: PeerQuestions) -> None:
        """Register what the peer may ask."""

        async def loaded(_: dict[str, Any]) -> dict[str, Any]:
            version, found = version_of(self._config()), await asyncio.to_thread(self._plane.loaded_prefixes)
            return {"version": list(version), "lists": [[number, *counts] for number, counts in found.items()]}

        questions.register(QUESTION, loaded)

    async def of_both(self) -> Lists:
        """Lists that no farm uses are in no kernel."""
        config = self._config()
        in_use = await asyncio.to_thread(lists_in_use, config)
        if not in_use:
            return Lists({}, {})
        expected = {
            name: (each.id, (len(each.prefixes.v4) // ROW_BYTES["v4"], len(each.prefixes.v6) // ROW_BYTES["v6"]))
            for name, each in in_use.items()
        }
        here = await asyncio.to_thread(self._plane.loaded_prefixes)
        pair = self._membership().configuration
        if pair is None:
            return Lists(expected, here)
        return Lists(expected, here, pair.settings.peer.name, await self._of_peer(version_of(config)))

    async def _of_peer(self, version: tuple[int, int]) -> Loaded | None:
        pair = self._membership().configuration
        if pair is None:
            return None
        try:
            async with asyncio.timeout(WAIT_S):
                answer = await pair.ask(QUESTION, {}, WAIT_S)
            if tuple(answer["version"]) != version:
                return None
            return {int(number): (int(v4), int(v6)) for number, v4, v6 in answer["lists"][: 2 * MAX_LISTS]}
        except (XlbError, TimeoutError, TypeError, ValueError, KeyError):
            return None
