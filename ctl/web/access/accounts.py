"""The users and tokens of the replicated configuration, as `web.accounts` has them. Pure.

Must not know how they are asked for, nor how a password is verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctl.accounts.tokens import digest
from ctl.config.model import Role


def may(role: Role, needed: Role) -> bool:
    """Whether an account of this role may do what needs another."""
    return role is Role.OPERATOR or needed is Role.VIEWER


@dataclass(frozen=True, slots=True)
class User:
    """password_hash: in PHC form."""

    name: str
    role: Role
    password_hash: str

    @property
    def stamp(self) -> str:
        """Changes with password and role."""
        return stamp_of(self.role, self.password_hash)


@dataclass(frozen=True, slots=True)
class Token:
    """expires_s: seconds since 1970; 0: never. user: who made it."""

    name: str
    role: Role
    expires_s: float
    user: str


@dataclass(frozen=True, slots=True)
class Accounts:
    """tokens: by their digest. version: of the configuration that has them."""

    users: Mapping[str, User] = field(default_factory=dict)
    tokens: Mapping[str, Token] = field(default_factory=dict)
    version: str = ""

    @property
    def stamps(self) -> Mapping[str, str]:
        """The stamp of each user."""
        return {name: user.stamp for name, user in self.users.items()}

    def token(self, text: str, now_s: float) -> Token | None:
        """The token of which this is the text; None: there is none, or it has expired."""
        found = self.tokens.get(digest(text))
        return found if found is not None and (not found.expires_s or now_s < found.expires_s) else None


def stamp_of(role: str, password_hash: str) -> str:
    """See `User.stamp`."""
    return hashlib.sha256(f"{role} {password_hash}".encode()).hexdigest()[:32]


def read(answer: Mapping[str, Any]) -> Accounts:
    """Of the answer of `web.accounts`. A role of a later version is a viewer's."""
    return Accounts(
        {each["name"]: User(each["name"], _role(each["role"]), each["password_hash"]) for each in answer["users"]},
        {
            each["sha256"]: Token(each["name"], _role(each["role"]), float(each["expires_s"]), each["user"])
            for each in answer["tokens"]
        },
        f"{answer['epoch']}-{answer['generation']}",
    )


def _role(name: str) -> Role:
    return Role.OPERATOR if name == Role.OPERATOR else Role.VIEWER
