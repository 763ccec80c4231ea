"""The `cluster` commands: role, switchover, failback, maintenance; making and ending a pair is in `ctl.cluster.pairing`."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.api.commands.dispatcher import Arguments, Dispatcher, Result
from ctl.api.commands.status import StatusCommands
from ctl.api.peer.both_views import BothViews
from ctl.cluster.membership import Membership
from ctl.cluster.pairing.check import ClusterCheck
from ctl.cluster.pairing.create_join import Pairing
from ctl.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ClusterCommands:
    """What they use of the node."""

    membership: Membership
    pairing: Pairing
    check: ClusterCheck
    status: StatusCommands
    views: BothViews

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("cluster.status", self.status.cluster, at_once=True)
        dispatcher.register("cluster.nodes", self.nodes, at_once=True)
        dispatcher.register("cluster.switchover", self.switchover, acts=True)
        dispatcher.register("cluster.failback", self.failback, acts=True)
        dispatcher.register("cluster.maintenance", self.maintenance, ("on", "force"), acts=True)
        dispatcher.register("cluster.create", self.pairing.create, ("local", "peer"), acts=True)
        dispatcher.register("cluster.cancel", self.pairing.cancel)
        dispatcher.register("cluster.preview", self.pairing.preview, ("local", "peer"))
        dispatcher.register("cluster.join", self.pairing.join, ("local", "token"), acts=True)
        dispatcher.register("cluster.destroy", self.pairing.destroy, acts=True)
        dispatcher.register("cluster.check", self.check.run)

    async def nodes(self, _: Arguments) -> Result:
        """Both nodes as each sees the pair."""
        return {"nodes": await self.views.nodes()}

    async def switchover(self, arguments: Arguments) -> Result:
        """Make the other node active. Returns the status after it."""
        await self.membership.required().switchover()
        return await self.status.cluster(arguments)

    async def failback(self, arguments: Arguments) -> Result:
        """Make the preferred node active. Returns the status after it."""
        await self.membership.required().failback()
        return await self.status.cluster(arguments)

    async def maintenance(self, arguments: Arguments) -> Result:
        """Take this node out of service, or put it back. Returns the status after it."""
        on, force = arguments.get("on"), arguments.get("force", False)
        if not isinstance(on, bool):
            raise InvalidInput("expected true or false", "on")
        if not isinstance(force, bool):
            raise InvalidInput("expected true or false", "force")
        await self.membership.required().maintenance(on, force)
        return await self.status.cluster(arguments)
