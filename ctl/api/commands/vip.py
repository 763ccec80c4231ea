"""The `vip` commands."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.api.commands import views
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result
from ctl.api.server import Noted
from ctl.config import changes, validation


@dataclass(frozen=True, slots=True)
class VipCommands:
    """What they use of the node."""

    config: ReadConfig
    commit: Commit

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("vip.list", self.list)
        dispatcher.register_change("vip.add", self.add)
        dispatcher.register_change("vip.delete", self.delete)

    async def list(self, _: Arguments) -> Result:
        """Every virtual address."""
        return [views.vip_view(vip) for vip in self.config().vips.values()]

    async def add(self, arguments: Arguments) -> Result:
        """The address that was added."""
        done = await self.commit(lambda config: changes.vip_add(config, arguments))
        address = str(arguments["address"]).partition("/")[0]
        return Noted(views.vip_view(done.new.vips[validation.canonical_address(address, "address")]), done.note)

    async def delete(self, arguments: Arguments) -> Result:
        """Nothing."""
        done = await self.commit(lambda config: changes.vip_delete(config, arguments))
        return Noted(None, done.note)
