"""The commands of the history: its generations, what one changed, and the way back to it.

Going back is a change like any other: `config.apply` of the old content. It is made where changes are made, with the same
checks, and gets a generation of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from ctl.api import condition
from ctl.api.caller import CALLER
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, Result, take_flag
from ctl.api.server import Noted
from ctl.config import diff, farms_file
from ctl.config.model import Config
from ctl.errors import Code, InvalidInput
from ctl.state.history import MOST, Entry, History

Apply = Callable[[Arguments], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class HistoryCommands:
    """What they use of the node. Files are read in threads."""

    config: ReadConfig
    history: History

    def register(self, dispatcher: Dispatcher) -> None:
        async def apply(arguments: Arguments) -> Result:
            return await dispatcher.dispatch("config.apply", arguments)

        async def rollback(arguments: Arguments) -> Result:
            return await self.rollback(arguments, apply)

        dispatcher.register("config.history", self.list)
        dispatcher.register("config.generation", self.generation, ("generation",))
        dispatcher.register("config.rollback", rollback, ("generation", "dry_run", "force", condition.ARGUMENT))

    async def list(self, _: Arguments) -> Result:
        """The generations that were in force on this node, newest first, then the configurations that lost in a split."""
        entries = await asyncio.to_thread(self.history.entries)
        current = self.config()
        return [entry_view(each, current) for each in entries if each.conflict or each.number > entries[0].number - MOST]

    async def generation(self, arguments: Arguments) -> Result:
        """One of them: what it changed against the one before (`before`), and its document.

        What lost in a split is compared with the configuration in force: going back to it would change that.
        """
        name, current = _name(arguments), self.config()

        def look() -> dict[str, Any]:
            entry = self.history.find(name)
            config = self.history.read(entry)
            older = self.history.before(entry)
            before, base = ("", current) if entry.conflict else (older[0].name, older[1]) if older else ("", Config())
            if entry.conflict:  # going back to it leaves the accounts as they are
                config = replace(config, users=current.users, tokens=current.tokens)
            view = entry_view(entry, current) | {"before": before, "changes": diff.summaries(base, config)}
            return view | {"document": farms_file.to_document(config)}

        return await asyncio.to_thread(look)

    async def rollback(self, arguments: Arguments, apply: Apply) -> Result:
        """Put the content of a generation in force again. {"changes", "generation": the one in force after that}."""
        name, dry_run, force = _name(arguments), take_flag(arguments, "dry_run"), take_flag(arguments, "force")
        wanted = {condition.ARGUMENT: arguments[condition.ARGUMENT]} if condition.ARGUMENT in arguments else {}

        def look() -> dict[str, object]:
            document = farms_file.to_document(self.history.read(self.history.find(name)))
            if not document["prefixes"] and not self.config().prefixes:
                del document["prefixes"]  # an active node of version 0.1.0 does not know the section
            return document

        given: Arguments = {"document": await asyncio.to_thread(look)}
        given |= {flag: True for flag, is_set in (("dry_run", dry_run), ("force", force)) if is_set} | wanted
        CALLER.set(replace(CALLER.get(), purpose=f"rollback to {name}"))
        outcome = await apply(given)
        changes, note = (outcome.result, outcome.note) if isinstance(outcome, Noted) else (outcome, "")
        return Noted({"changes": changes, "generation": self.config().generation}, note)


def entry_view(entry: Entry, current: Config) -> dict[str, Any]:
    """One line of `xlbctl history`. What is not known of it is empty, numbers are null."""
    header = entry.header
    made = header.provenance if header is not None else None
    return {
        "name": entry.name,
        "generation": header.generation if header is not None else None,
        "epoch": header.epoch if header is not None else None,
        "time": _iso(made.time_s) if made is not None else "",
        "user": made.user if made is not None else "",
        "node": made.node if made is not None else "",
        "command": made.command if made is not None else "",
        "summary": made.changes if made is not None else "",
        "bytes": entry.size,
        "in_force": bool(header and not entry.conflict and _version(header) == _version(current)),
        "conflict": entry.conflict,
        "problem": entry.problem,
    }


def _version(config: Config) -> tuple[str, int, int]:
    return config.pair, config.epoch, config.generation


def _iso(time_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def _name(arguments: Arguments) -> str:
    name = arguments.pop("generation", None)
    if name is None:
        raise InvalidInput("is missing", "generation", Code.MISSING_ARGUMENT)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InvalidInput("expected a generation as 'xlbctl history' names it", "generation")
    return str(name)
