"""Who changed the configuration, and what: recorded with each generation, and one event for each.

Decides what the record and the line have and how long they may be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ctl.api.caller import CALLER
from ctl.api.commands.dispatcher import Commit
from ctl.config import diff
from ctl.config.changes import Committed, MakeConfig
from ctl.config.model import Config, Provenance
from ctl.events.catalogue import CONFIG_CHANGED, Event
from ctl.runtime.event_hub import Report, log_only

MAX_LENGTH = 2000
MAX_NAME = 200

log = logging.getLogger(__name__)


def provenance_on(node: str, now_s: Callable[[], float] = time.time) -> Callable[[Config, Config], Provenance]:
    """What records who changes one configuration into another; it is called while the request runs, and blocks."""

    def provenance(old: Config, new: Config) -> Provenance:
        caller = CALLER.get()
        return Provenance(
            user=_plain(caller.name(), MAX_NAME),
            node=_plain(caller.node or node, MAX_NAME),
            command=_plain(caller.purpose or caller.command, MAX_NAME),
            time_s=max(0, int(now_s())),
            changes=_plain(diff.compact(old, new), MAX_LENGTH),
        )

    return provenance


def audited(commit: Commit, report: Report = log_only) -> Commit:
    """The same commit, which reports each change that came into force."""

    async def run(make: MakeConfig) -> Committed:
        done = await commit(make)
        if done.new is not done.old and done.new.provenance is not None:
            report(log, event(done.new.generation, done.new.provenance))
        return done

    return run


def event(generation: int, made: Provenance) -> Event:
    """E.g. "configuration 12 changed by root on lb1 (farm.set): farm web scheduler maglev → source"."""
    by = f"{made.user} on {made.node}" + (f" ({made.command})" if made.command else "")
    text = f"configuration {generation} changed by {by}: {made.changes}"
    user, node, command, changes = made.user, made.node, made.command, made.changes
    return CONFIG_CHANGED(text, generation=generation, user=user, node=node, command=command, changes=changes)


def _plain(text: str, most: int) -> str:
    """In one line of limited length, and without what cannot be printed: it is stored, sent to the peer and shown."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return plain if len(text) <= most and len(plain) <= most else plain[: most - 1] + "…"
