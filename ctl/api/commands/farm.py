"""The `farm` commands. Long answers are made in slices, so that no client holds up the loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ctl.api.commands import views
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result
from ctl.api.commands.gauges import Gauges
from ctl.api.server import Noted
from ctl.config import changes
from ctl.config.model import Config, Farm
from ctl.errors import InvalidInput

FARMS_PER_SLICE = 8


@dataclass(frozen=True, slots=True)
class FarmCommands:
    """What they use of the node."""

    config: ReadConfig
    commit: Commit
    gauges: Gauges

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("farm.list", self.list)
        dispatcher.register("farm.show", self.show, ("name",))
        dispatcher.register_change("farm.add", lambda arguments: self._put(changes.farm_add, arguments))
        dispatcher.register_change("farm.set", lambda arguments: self._put(changes.farm_set, arguments))
        dispatcher.register_change("farm.delete", lambda arguments: self._change(changes.farm_delete, arguments))
        dispatcher.register_change("farm.start", lambda arguments: self._change(changes.farm_start, arguments))
        dispatcher.register_change("farm.stop", lambda arguments: self._change(changes.farm_stop, arguments))

    async def list(self, _: Arguments) -> Result:
        """Every farm, as `show` has it."""
        readings = await self.gauges.take()
        found = []
        for number, farm in enumerate(self.config().farms.values()):
            found.append(views.farm_view(farm, readings))
            if number % FARMS_PER_SLICE == FARMS_PER_SLICE - 1:
                await asyncio.sleep(0)
        return found

    async def show(self, arguments: Arguments) -> Result:
        """One farm with its backends."""
        farm = farm_named(self.config(), arguments.get("name"))
        return views.farm_view(farm, await self.gauges.take())

    async def _put(self, change: changes.Change, arguments: Arguments) -> Result:
        done = await self.commit(lambda config: change(config, arguments))
        return Noted(views.farm_view(done.new.farms[arguments["name"]], await self.gauges.take()), done.note)

    async def _change(self, change: changes.Change, arguments: Arguments) -> Result:
        done = await self.commit(lambda config: change(config, arguments))
        return Noted(None, done.note)


def farm_named(config: Config, name: object) -> Farm:
    """Raises InvalidInput naming the farm that is most like it."""
    if not isinstance(name, str):
        raise InvalidInput("expected the name of a farm", "name")
    return changes.find_farm(config, name)
