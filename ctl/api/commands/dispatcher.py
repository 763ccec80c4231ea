"""Finds the command of a request and runs it: here, or in a pair on the active node when it changes the configuration.

Decides which arguments reach a command and where it runs. Must not know what any command does: the modules of this package
register theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from ctl.api import condition
from ctl.api.caller import CALLER
from ctl.config.changes import Committed, MakeConfig
from ctl.config.model import Config
from ctl.errors import Code, InvalidInput
from ctl.events import catalogue
from ctl.runtime.event_hub import Report, log_only
from ctl.runtime.startup import Startup

log = logging.getLogger(__name__)

Arguments = dict[str, Any]
Result = Any
Run = Callable[[Arguments], Awaitable[Result]]

Commit = Callable[[MakeConfig], Awaitable[Committed]]
"""Puts a change in force; raises InvalidInput or XlbError with everything as it was."""
ReadConfig = Callable[[], Config]
"""The configuration in force at this moment."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command runs and takes. `arguments` None: the command checks its arguments itself."""

    run: Run
    arguments: frozenset[str] | None
    at_once: bool = False  # may be answered before the node has started
    acts: bool = False  # does something other than changing the configuration: its caller is logged
    changes: Callable[[Arguments], bool] = lambda _: False
    conditional: bool = False  # takes `if_version`


class Pair(Protocol):
    """The pair, as far as changes must be made on its active node."""

    @property
    def serving(self) -> bool: ...

    async def forward(self, command: str, arguments: Arguments) -> Result: ...


class Dispatcher:
    """Runs the commands of one node. pair: None on a single node."""

    def __init__(self, startup: Startup, pair: Callable[[], Pair | None], report: Report = log_only) -> None:
        self._report = report
        self._startup, self._pair = startup, pair
        self._commands: dict[str, Command] = {}

    @property
    def commands(self) -> Mapping[str, Command]:
        """Every command by its name."""
        return MappingProxyType(self._commands)

    def register(self, name: str, run: Run, arguments: Iterable[str] = (), at_once: bool = False, acts: bool = False) -> None:
        """A command that changes no configuration. See `Command`."""
        self._commands[name] = Command(run, frozenset(arguments), at_once, acts)

    def register_change(
        self,
        name: str,
        run: Run,
        arguments: Iterable[str] | None = None,
        changes: Callable[[Arguments], bool] = lambda _: True,
    ) -> None:
        """A command that changes the configuration when `changes` of its arguments is true."""
        known = None if arguments is None else frozenset(arguments)
        self._commands[name] = Command(run, known, changes=changes, conditional=True)

    async def dispatch(self, name: str, arguments: Arguments, forwarded: bool = False) -> Result:
        """Run one command. Raises InvalidInput for what makes no sense, XlbError for what is refused or fails.

        forwarded: the peer asks, so the command is not passed back to it.
        """
        command = self._commands.get(name)
        if command is None:
            raise InvalidInput(f"unknown command {name!r}; this xlbd may be older than your xlbctl", code=Code.UNKNOWN_COMMAND)
        CALLER.set(replace(CALLER.get(), command=name))
        if not command.at_once:
            await self._startup.wait()
        pair = None if forwarded else self._pair()
        if pair is not None and not pair.serving and command.changes(arguments):
            return await pair.forward(name, arguments)
        if command.conditional:
            condition.take(arguments)
        unknown = set() if command.arguments is None else arguments.keys() - command.arguments
        if unknown:
            names = ", ".join(sorted(command.arguments or ())) or "no arguments"
            raise InvalidInput(f"{name} takes {names}", min(unknown)[:64], Code.UNKNOWN_ARGUMENT)
        if command.acts:
            user = await asyncio.to_thread(CALLER.get().name)
            self._report(log, catalogue.REQUESTED(f"{name} requested by {user}", command=name, user=user))
        return await command.run(arguments)


def take_flag(arguments: Arguments, name: str) -> bool:
    """Take an optional argument, true or false, out of the arguments. Raises InvalidInput."""
    flag = arguments.pop(name, False)
    if not isinstance(flag, bool):
        raise InvalidInput("expected true or false", name)
    return flag
