"""The `backend` commands."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.api.commands import views
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, Result
from ctl.api.commands.gauges import Gauges
from ctl.api.commands.own_addresses import OwnAddresses
from ctl.api.server import Noted
from ctl.config import changes, validation
from ctl.config.model import Backend, Farm


@dataclass(frozen=True, slots=True)
class BackendCommands:
    """What they use of the node."""

    commit: Commit
    gauges: Gauges
    own: OwnAddresses

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register_change("backend.add", lambda arguments: self._put(changes.backend_add, arguments))
        dispatcher.register_change("backend.set", lambda arguments: self._put(changes.backend_set, arguments))
        dispatcher.register_change("backend.drain", lambda arguments: self._change(changes.backend_drain, arguments))
        dispatcher.register_change("backend.remove", lambda arguments: self._change(changes.backend_remove, arguments))

    async def _put(self, change: changes.Change, arguments: Arguments) -> Result:
        done = await self.commit(await self.own.checked(lambda config: change(config, arguments)))
        backend = _backend_of(done.new.farms[arguments["farm"]], arguments)
        return Noted(views.backend_view(backend, await self.gauges.take()), done.note)

    async def _change(self, change: changes.Change, arguments: Arguments) -> Result:
        done = await self.commit(lambda config: change(config, arguments))
        return Noted(None, done.note)


def _backend_of(farm: Farm, arguments: Arguments) -> Backend:
    address = validation.canonical_address(arguments["address"], "address")
    port = arguments.get("port", farm.port)
    return next(each for each in farm.backends if (each.address, each.port) == (address, port))
