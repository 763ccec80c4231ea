"""After a join: the wait until the pair is in step.

Decides how long: as long as the pair makes progress.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ctl.creation.steps import Control

IN_STEP_S = 20.0
POLL_S = 0.2


async def until_in_step(
    control: Control,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Whether the nodes are in step; waits not longer than IN_STEP_S without any progress. Raises XlbError."""
    seen, since_s = None, now_s()
    while now_s() < since_s + IN_STEP_S:
        status = await control.call("cluster.status")
        peer, sync = status.get("peer") or {}, status.get("sync") or {}
        if peer.get("alive") and sync.get("in_step"):
            return True
        state = (status["role"], peer.get("role"), peer.get("alive"), peer.get("generation"), sync.get("protected"))
        if state != seen:
            seen, since_s = state, now_s()
        await sleep(POLL_S)
    return False
