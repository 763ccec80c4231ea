"""The `backend` commands."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ctl.api.commands import views
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, Result, take_flag
from ctl.api.commands.gauges import Gauges
from ctl.api.peer.own_addresses import OwnAddresses
from ctl.api.server import Noted
from ctl.config import changes, validation
from ctl.config.model import Backend, Config, Farm
from ctl.dataplane.flow_selection import FlowSelection
from ctl.errors import InvalidInput

MAX_DEADLINE_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class BackendCommands:
    """What they use of the node."""

    commit: Commit
    gauges: Gauges
    own: OwnAddresses
    flush: Callable[[FlowSelection], Awaitable[int]]

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register_change("backend.add", lambda arguments: self._put(changes.backend_add, arguments))
        dispatcher.register_change("backend.set", lambda arguments: self._put(changes.backend_set, arguments))
        dispatcher.register_change("backend.drain", self.drain)
        dispatcher.register_change("backend.remove", self.remove)

    async def drain(self, arguments: Arguments) -> Result:
        """deadline: seconds from now, which is recorded as the time of day by this node's clock."""
        deadline = arguments.pop("deadline", None)
        if deadline is not None:
            if not isinstance(deadline, int) or isinstance(deadline, bool) or not 1 <= deadline <= MAX_DEADLINE_S:
                raise InvalidInput(f"expected an integer from 1 to {MAX_DEADLINE_S}", "deadline")
            if "drain_until" in arguments:
                raise InvalidInput("expected deadline or drain_until, got both", "deadline")
            arguments["drain_until"] = math.ceil(time.time()) + deadline
        return await self._change(changes.backend_drain, arguments)

    async def remove(self, arguments: Arguments) -> Result:
        """now: its connections end, also in a farm that keeps those of removed backends."""
        now, gone = take_flag(arguments, "now"), frozenset[int]()

        def change(config: Config, arguments: Mapping[str, object]) -> Config:
            nonlocal gone
            new = changes.backend_remove(config, arguments)
            farm = str(arguments["farm"])
            gone = frozenset(each.id for each in config.farms[farm].backends) - {each.id for each in new.farms[farm].backends}
            return new

        done = await self._change(change, arguments)
        if now:
            await self.flush(FlowSelection(backends=gone))
        return done

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
