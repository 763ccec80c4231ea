"""`config.impact`: what a change would do to connections and clients, without making it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bpf.dataplane import DataPlane
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, Result, take_flag
from ctl.config import changes
from ctl.config.model import Config
from ctl.dataplane.kernel import flow_maps
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.errors import InvalidInput
from ctl.explanation import impact
from ctl.health.check_machine import HealthChecks

FATES = ("stay", "move", "end")


@dataclass(frozen=True, slots=True)
class ImpactCommand:
    """What it uses of the node. Either node of a pair answers: both have the connections and the configuration."""

    config: ReadConfig
    plane: DataPlane
    sweeper: Sweeper
    health: HealthChecks
    shares: Callable[[], Mapping[int, int]]

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("config.impact", self.impact, ("change", "arguments", "document"))

    async def impact(self, arguments: Arguments) -> Result:
        """change: the command that would make it, with its arguments; or document: that of `config.apply`."""
        at_once = _at_once(arguments)
        make, old = _change(arguments), self.config()
        new = await asyncio.to_thread(make, old)
        connections = await self.sweeper.ask(lambda: flow_maps.count_by_backend(self.plane))
        down = self.health.unusable(old)
        return await asyncio.to_thread(lambda: _answer(impact.of_change(old, new, down, self.shares(), connections, at_once)))


def _at_once(arguments: Arguments) -> bool:
    """Takes the flag `now` out of the arguments of `backend.remove`: it is no part of the configuration."""
    given = arguments.get("arguments")
    return arguments.get("change") == "backend.remove" and isinstance(given, dict) and take_flag(given, "now")


def _change(arguments: Arguments) -> changes.MakeConfig:
    document, command, given = arguments.get("document"), arguments.get("change"), arguments.get("arguments", {})
    if isinstance(document, dict):
        return lambda config: changes.replace_from_document(config, document)
    if not isinstance(command, str) or command not in changes.CHANGES:
        raise InvalidInput("expected a command that changes farms, like backend.remove", "change")
    if not isinstance(given, dict):
        raise InvalidInput("expected the arguments of the command as a map", "arguments")
    if isinstance(deadline := given.pop("deadline", None), int):
        given["drain_until"] = math.ceil(time.time()) + deadline

    def make(config: Config) -> Config:
        return changes.change(config, command, given)

    return make


def _answer(farms: list[impact.FarmImpact]) -> dict[str, Any]:
    rows = [each for farm in farms for each in farm.backends]
    totals = {fate: sum(each.connections for each in rows if each.fate == fate) for fate in FATES}
    return {"connections": totals, "farms": [asdict(farm) for farm in farms]}
