"""What each control command does: arguments from the wire in, a result for the wire out; see docs/CONTROL.md.

Decides the shape of questions and answers. Changes go through `Node.commit`; what is a valid change is decided in
`ctl.config.changes`. Long answers are made in slices, so that no client holds the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctl.api.commands import status, views
from ctl.api.commands.conn import ConnectionCommands
from ctl.api.commands.gauges import Gauges
from ctl.api.server import Noted
from ctl.config import changes, diff, farms_file, validation
from ctl.config.model import Backend, Config, Farm
from ctl.errors import Code, InvalidInput, XlbError

if TYPE_CHECKING:
    from ctl.cluster.member import PairMember
    from ctl.node.node import Node

FARMS_PER_SLICE = 8

Arguments = dict[str, Any]
Result = Any


@dataclass(frozen=True, slots=True)
class Question:
    """A command that changes no configuration, and the arguments it takes."""

    answer: Callable[[Arguments], Awaitable[Result]]
    arguments: frozenset[str] = frozenset()
    at_once: bool = False  # may be answered before the node has started


class Dispatcher:
    """Runs the commands of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._gauges = Gauges(node)
        connections = ConnectionCommands(node)
        self._questions: Mapping[str, Question] = {
            "vip.list": Question(self._vip_list),
            "farm.list": Question(self._farm_list),
            "farm.show": Question(self._farm_show, frozenset({"name"})),
            "config.apply": Question(self._config_apply, frozenset({"document", "dry_run"})),
            "config.diff": Question(self._config_diff, frozenset({"document"})),
            "config.export": Question(self._config_export),
            "conn.list": Question(connections.list, frozenset({"farm", "limit"})),
            "conn.count": Question(connections.count, frozenset({"farm"})),
            "conn.show": Question(connections.show, connections.SHOW_ARGUMENTS),
            "conn.flush": Question(connections.flush, frozenset({"farm", "backend"})),
            "stats": Question(self._stats),
            "status": Question(self._status, at_once=True),
            "cluster.status": Question(self._cluster_status, at_once=True),
            "doctor": Question(self._doctor),
            "cluster.create": Question(node.cluster.create, frozenset({"local", "peer"})),
            "cluster.cancel": Question(node.cluster.cancel),
            "cluster.preview": Question(node.cluster.preview),
            "cluster.join": Question(node.cluster.join, frozenset({"local", "token"})),
            "cluster.destroy": Question(node.cluster.destroy),
            "cluster.check": Question(node.cluster.check),
            "cluster.switchover": Question(self._cluster_switchover),
            "cluster.failback": Question(self._cluster_failback),
            "cluster.maintenance": Question(self._cluster_maintenance, frozenset({"on", "force"})),
        }

    async def dispatch(self, command: str, arguments: Arguments, forwarded: bool = False) -> Result:
        """Run one command. Raises InvalidInput for what makes no sense, XlbError for what is refused or fails.

        forwarded: the peer asks, so it is not passed back to it.
        """
        question = self._questions.get(command)
        if question is None and command not in changes.CHANGES:
            raise InvalidInput(
                f"unknown command {command!r}; this xlbd may be older than your xlbctl", code=Code.UNKNOWN_COMMAND
            )
        if question is None or not question.at_once:
            await self._node.started.wait()
        changing = question is None or (command == "config.apply" and arguments.get("dry_run", False) is False)
        pair = self._node.pair_config
        if changing and pair is not None and not pair.serving and not forwarded:
            return await pair.forward(command, arguments)
        if question is None:
            return await self._change(command, arguments)
        unknown = arguments.keys() - question.arguments
        if unknown:
            names = ", ".join(sorted(question.arguments)) or "no arguments"
            raise InvalidInput(f"{command} takes {names}", min(unknown)[:64], Code.UNKNOWN_ARGUMENT)
        return await question.answer(arguments)

    # --- configuration ---------------------------------------------------------------------------------------

    async def _change(self, command: str, arguments: Arguments) -> Result:
        done = await self._node.configuration.commit(lambda config: changes.change(config, command, arguments))
        return Noted(await self._changed(command, arguments, done.new), done.note)

    async def _changed(self, command: str, arguments: Arguments, config: Config) -> Result:
        """What was added or set, as it is shown; None after other changes."""
        noun, verb = command.split(".")
        if verb not in ("add", "set"):
            return None
        if noun == "vip":
            address = str(arguments["address"]).partition("/")[0]
            return views.vip_view(config.vips[validation.canonical_address(address, "address")])
        readings = await self._gauges.take()
        if noun == "farm":
            return views.farm_view(config.farms[arguments["name"]], readings)
        return views.backend_view(_backend_of(config.farms[arguments["farm"]], arguments), readings)

    async def _vip_list(self, _: Arguments) -> Result:
        return [views.vip_view(vip) for vip in self._node.config.vips.values()]

    async def _farm_list(self, _: Arguments) -> Result:
        readings = await self._gauges.take()
        found = []
        for number, farm in enumerate(self._node.config.farms.values()):
            found.append(views.farm_view(farm, readings))
            if number % FARMS_PER_SLICE == FARMS_PER_SLICE - 1:
                await asyncio.sleep(0)
        return found

    async def _farm_show(self, arguments: Arguments) -> Result:
        farm = farm_named(self._node.config, arguments.get("name"))
        return views.farm_view(farm, await self._gauges.take())

    async def _config_apply(self, arguments: Arguments) -> Result:
        dry_run = arguments.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise InvalidInput("expected true or false", "dry_run")
        if dry_run:
            return await self._config_diff(arguments)
        wanted = await _wanted(arguments)
        done = await self._node.configuration.commit(lambda config: changes.replace_all(config, wanted))
        return Noted(await asyncio.to_thread(diff.sentences, done.old, done.new), done.note)

    async def _config_diff(self, arguments: Arguments) -> Result:
        wanted, config = await _wanted(arguments), self._node.config
        return await asyncio.to_thread(lambda: diff.sentences(config, changes.replace_all(config, wanted)))

    async def _config_export(self, _: Arguments) -> Result:
        return await asyncio.to_thread(farms_file.to_document, self._node.config)

    # --- the node --------------------------------------------------------------------------------------------

    async def _stats(self, _: Arguments) -> Result:
        return await status.stats(self._node)

    async def _status(self, _: Arguments) -> Result:
        return await status.status(self._node)

    async def _cluster_status(self, _: Arguments) -> Result:
        return status.cluster_status(self._node)

    async def _cluster_switchover(self, _: Arguments) -> Result:
        await self._member().switchover()
        return status.cluster_status(self._node)

    async def _cluster_failback(self, _: Arguments) -> Result:
        await self._member().failback()
        return status.cluster_status(self._node)

    async def _cluster_maintenance(self, arguments: Arguments) -> Result:
        on, force = arguments.get("on"), arguments.get("force", False)
        if not isinstance(on, bool):
            raise InvalidInput("expected true or false", "on")
        if not isinstance(force, bool):
            raise InvalidInput("expected true or false", "force")
        await self._member().maintenance(on, force)
        return status.cluster_status(self._node)

    def _member(self) -> PairMember:
        if self._node.member is None:
            raise XlbError("this node is single; make a pair with xlbctl cluster create", Code.NOT_IN_PAIR)
        return self._node.member

    async def _doctor(self, _: Arguments) -> Result:
        from ctl.api.commands import doctor  # asked for rarely, and by people

        return await asyncio.to_thread(doctor.examine, self._node)


def farm_named(config: Config, name: object) -> Farm:
    """Raises InvalidInput or XlbError saying which farms there are."""
    if not isinstance(name, str):
        raise InvalidInput("expected the name of a farm", "name")
    return changes.find_farm(config, name)


def _backend_of(farm: Farm, arguments: Arguments) -> Backend:
    address = validation.canonical_address(arguments["address"], "address")
    return next(each for each in farm.backends if (each.address, each.port) == (address, arguments["port"]))


async def _wanted(arguments: Arguments) -> farms_file.Document:
    """What the document says. It is taken out of the arguments: a big one need not stay in memory while it is put in force."""
    if not isinstance(arguments.get("document"), dict):
        raise InvalidInput("expected a farms file as a map", "document")
    return await asyncio.to_thread(_parse, arguments.pop("document"))


def _parse(document: dict[str, Any]) -> farms_file.Document:
    wanted = farms_file.parse(document)
    farms = document.get("farm")
    while farms:  # one by one: to free all at once would keep the interpreter for milliseconds
        farms.pop()
    return wanted
