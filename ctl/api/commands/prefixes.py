"""The `prefixes` commands: named lists of clients that farms allow or deny. Lists travel packed; see ctl/config/prefixes.py."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result
from ctl.api.server import Noted
from ctl.config import changes
from ctl.config.model import Config, PrefixList
from ctl.config.prefixes import ROW_BYTES, packed, users_of
from ctl.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class PrefixCommands:
    """What they use of the node."""

    config: ReadConfig
    commit: Commit

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("prefixes.list", self.list)
        dispatcher.register("prefixes.show", self.show, ("name",))
        dispatcher.register_change("prefixes.set", self.set)
        dispatcher.register_change("prefixes.delete", self.delete)

    async def list(self, _: Arguments) -> Result:
        """Every list: its name, how many prefixes it has, and the farms that use it."""
        config = self.config()
        return [_view(config, each) for each in config.prefixes.values()]

    async def show(self, arguments: Arguments) -> Result:
        """One list with its prefixes, packed."""
        name, config = arguments.get("name"), self.config()
        if not isinstance(name, str):
            raise InvalidInput("expected the name of a prefix list", "name")
        found = changes.find_prefixes(config, name)
        return _view(config, found) | await asyncio.to_thread(packed, found)

    async def set(self, arguments: Arguments) -> Result:
        """The list as `list` has it."""
        done = await self.commit(lambda config: changes.prefixes_set(config, arguments))
        return Noted(_view(done.new, done.new.prefixes[arguments["name"]]), done.note)

    async def delete(self, arguments: Arguments) -> Result:
        """Nothing."""
        done = await self.commit(lambda config: changes.prefixes_delete(config, arguments))
        return Noted(None, done.note)


def _view(config: Config, of: PrefixList) -> dict[str, Any]:
    counts = {"prefixes_v4": len(of.v4) // ROW_BYTES["v4"], "prefixes_v6": len(of.v6) // ROW_BYTES["v6"]}
    return {"name": of.name, **counts, "farms": users_of(of.name, config.farms.values())}
