"""The `vip` commands."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.api.commands import views
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result, take_flag
from ctl.api.peer.own_addresses import OwnAddresses
from ctl.api.server import Noted
from ctl.config import changes, validation
from ctl.config.changes import Committed


@dataclass(frozen=True, slots=True)
class VipCommands:
    """What they use of the node."""

    config: ReadConfig
    commit: Commit
    own: OwnAddresses

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("vip.list", self.list)
        dispatcher.register_change("vip.add", self.add)
        dispatcher.register_change("vip.set", self.set)
        dispatcher.register_change("vip.delete", self.delete)

    async def list(self, _: Arguments) -> Result:
        """Every virtual address."""
        return [views.vip_view(vip) for vip in self.config().vips.values()]

    async def add(self, arguments: Arguments) -> Result:
        """The address that was added."""
        forced = take_flag(arguments, "force")
        change = await self.own.checked(lambda config: changes.vip_add(config, arguments), forced)
        return _answer(await self.commit(change), str(arguments["address"]).partition("/")[0])

    async def set(self, arguments: Arguments) -> Result:
        """The address that was changed."""
        done = await self.commit(lambda config: changes.vip_set(config, arguments))
        return _answer(done, arguments["address"])

    async def delete(self, arguments: Arguments) -> Result:
        """Nothing."""
        done = await self.commit(lambda config: changes.vip_delete(config, arguments))
        return Noted(None, done.note)


def _answer(done: Committed, address: str) -> Noted:
    return Noted(views.vip_view(done.new.vips[validation.canonical_address(address, "address")]), done.note)
