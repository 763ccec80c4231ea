"""The steps of a creation, the questions in it, and who is shown them.

Decides the words. Must not know how a step is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

SHOWN = 10


class Step(StrEnum):
    """In the order in which they are taken. Nothing is changed on either node before `JOIN`."""

    label: str

    def __new__(cls, value: str, label: str) -> Step:
        """label: for people."""
        step = str.__new__(cls, value)
        step._value_ = value
        step.label = label
        return step

    SSH = "ssh", "Reach the peer's SSH server"
    HOST_KEY = "host_key", "Check its host key and log in"
    PREVIEW = "preview", "Look at the peer's configuration"
    KEYS = "keys", "Make the keys and the join token"
    JOIN = "join", "The peer joins"
    SETTLE = "settle", "Wait until the nodes are in step"
    CHECKS = "checks", "Check the pair"


class State(StrEnum):
    """Of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Kind(StrEnum):
    """Of a question."""

    HOST_KEY = "host_key"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Question:
    """What a person must confirm. fingerprint: of an unknown host key. farms, vips, accounts: what would be replaced."""

    kind: Kind
    text: str
    fingerprint: str = ""
    farms: Sequence[str] = ()
    vips: Sequence[str] = ()
    accounts: Sequence[str] = ()


class Observer(Protocol):
    """Who is shown the steps, and is asked."""

    def step(self, step: Step, state: State, text: str) -> None:
        """A step changed, or has something new to show. An empty text leaves the one before."""

    def note(self, text: str) -> None:
        """Something an operator should know, of no step."""

    async def ask(self, question: Question) -> bool:
        """Whether the person agrees. May raise XlbError; then nothing is changed on either node."""


class Control(Protocol):
    """A client of this node's daemon."""

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        """The result of a control command. Raises XlbError."""


def removal(node: str, farms: Sequence[str], vips: Sequence[str], accounts: Sequence[str] = ()) -> str:
    """The confirmation for what joining removes; empty if nothing is removed. accounts: users and tokens of xlb-web."""
    removed = f"{_counted(farms, 'farm')} and {_counted(vips, 'VIP')} of {node} will be removed, a backup copy is saved there"
    replaced = f"{_counted(accounts, 'account')} of xlb-web on {node} will be replaced by those of the pair"
    return "; ".join(
        f"{what}: {_named(names)}" for what, names in ((removed, [*farms, *vips]), (replaced, list(accounts))) if names
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"
