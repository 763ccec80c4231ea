"""One log line for each change of the configuration: user, node, command, and every value before and after.

Decides what the line has and how long it may be.
"""

from __future__ import annotations

import asyncio
import logging

from ctl.api.caller import CALLER, Caller
from ctl.api.commands.dispatcher import Commit
from ctl.config import diff
from ctl.config.changes import Committed, MakeConfig

MAX_LENGTH = 2000

log = logging.getLogger(__name__)


def audited(commit: Commit, node: str) -> Commit:
    """The same commit, which logs each change that came into force. node: this one's name."""

    async def run(make: MakeConfig) -> Committed:
        done = await commit(make)
        if done.new is not done.old and log.isEnabledFor(logging.INFO):
            log.info("%s", await asyncio.to_thread(line, done, CALLER.get(), node))
        return done

    return run


def line(done: Committed, caller: Caller, node: str) -> str:
    """E.g. "configuration 12 changed by root on lb1 (farm.set): farm web scheduler maglev → source". Blocks."""
    by = f"{caller.name()} on {caller.node or node}" + (f" ({caller.command})" if caller.command else "")
    said = f"configuration {done.new.generation} changed by {by}: {diff.compact(done.old, done.new)}"
    return said if len(said) <= MAX_LENGTH else said[: MAX_LENGTH - 1] + "…"
