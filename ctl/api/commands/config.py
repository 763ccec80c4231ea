"""The `config` commands: a whole farms file in, changes and documents out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result, take_flag
from ctl.api.peer.own_addresses import OwnAddresses
from ctl.api.server import Noted
from ctl.config import changes, diff, farms_file
from ctl.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ConfigCommands:
    """What they use of the node."""

    config: ReadConfig
    commit: Commit
    foresee: Commit
    """The same checks, and nothing done."""
    own: OwnAddresses

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register_change(
            "config.apply",
            self.apply,
            ("document", "dry_run", "force"),
            changes=lambda arguments: arguments.get("dry_run", False) is False,
        )
        dispatcher.register("config.diff", self.diff, ("document",))
        dispatcher.register("config.removals", self.removals, ("document",))
        dispatcher.register("config.export", self.export)
        dispatcher.register("config.version", self.version)

    async def apply(self, arguments: Arguments) -> Result:
        """Replace the configuration by the document. Returns what it changed, one string per change."""
        dry_run, forced = take_flag(arguments, "dry_run"), take_flag(arguments, "force")
        wanted = await _wanted(arguments)
        change = await self.own.checked(lambda config: changes.replace_all(config, wanted), forced)
        if dry_run:
            foreseen = await self.foresee(change)
            return await asyncio.to_thread(diff.summaries, foreseen.old, foreseen.new)
        done = await self.commit(change)
        return Noted(await asyncio.to_thread(diff.summaries, done.old, done.new), done.note)

    async def diff(self, arguments: Arguments) -> Result:
        """What `apply` would change."""
        wanted, config = await _wanted(arguments), self.config()
        return await asyncio.to_thread(lambda: diff.summaries(config, changes.replace_all(config, wanted)))

    async def removals(self, arguments: Arguments) -> Result:
        """What `apply` would remove, of that what `diff` returns."""
        wanted, config = await _wanted(arguments), self.config()
        return await asyncio.to_thread(lambda: diff.removals(config, changes.replace_all(config, wanted)))

    async def version(self, _: Arguments) -> Result:
        """The version of the configuration in force, which `if_version` of a change names as EPOCH-GENERATION."""
        config = self.config()
        return {"epoch": config.epoch, "generation": config.generation}

    async def export(self, _: Arguments) -> Result:
        """The configuration as a document that `apply` takes."""
        return await asyncio.to_thread(farms_file.to_document, self.config())


async def _wanted(arguments: Arguments) -> farms_file.Document:
    """The document, checked. It is taken out of the arguments: a big one need not stay in memory while it is put in force."""
    if not isinstance(arguments.get("document"), dict):
        raise InvalidInput("expected a farms file as a map", "document")
    return await asyncio.to_thread(_parse, arguments.pop("document"))


def _parse(document: dict[str, Any]) -> farms_file.Document:
    wanted = farms_file.parse(document)
    farms = document.get("farm")
    while farms:  # one by one: to free all at once would keep the interpreter for milliseconds
        farms.pop()
    return wanted
