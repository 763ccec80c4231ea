"""The condition of a change: the version of the configuration that it is made for, so that no writer overwrites another.

Each command that changes something takes it as the argument `if_version`, "EPOCH-GENERATION". It is compared where the change
is committed, with the configuration that the change starts from. Must not know any command.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from ctl.config import understood
from ctl.config.changes import Committed, MakeConfig
from ctl.config.model import Config
from ctl.errors import Code, InvalidInput, XlbError

ARGUMENT = understood.CONDITION

_VERSION = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")
_CONDITION: ContextVar[str] = ContextVar("condition", default="")

Commit = Callable[[MakeConfig], Awaitable[Committed]]


def version(config: Config) -> str:
    """What `if_version` of a change must be that is made for this configuration."""
    return f"{config.epoch}-{config.generation}"


def take(arguments: dict[str, Any]) -> None:
    """Take the condition out of a command's arguments; it holds for this task and those it starts. Raises InvalidInput."""
    given = arguments.pop(ARGUMENT, "")
    if not isinstance(given, str) or (given and _VERSION.fullmatch(given) is None):
        raise InvalidInput(
            'expected a version of the configuration, "EPOCH-GENERATION", as xlbctl status -o json has it', ARGUMENT
        )
    _CONDITION.set(given)


def conditional(commit: Commit) -> Commit:
    """The same commit, which refuses a change for another version than the present one with CHANGE_OVERTAKEN."""

    async def run(make: MakeConfig) -> Committed:
        wanted = _CONDITION.get()

        def checked(config: Config) -> Config:
            present = version(config)
            if wanted and wanted != present:
                raise XlbError(
                    f"the configuration is {present} by now, and the change was made for {wanted}; nothing was changed: look at"
                    " the present one and try again",
                    Code.CHANGE_OVERTAKEN,
                )
            return make(config)

        return await commit(checked)

    return run
