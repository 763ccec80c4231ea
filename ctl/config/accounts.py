"""The accounts of xlb-web, its users and API tokens: which are valid, and what a change makes of them.

Decides names, limits and which hashes are accepted; a record of the peer is checked as a request is. Must not know passwords or
tokens: clients hash them (`ctl.accounts`), and xlbd stores what it cannot turn back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from ctl.config.fields import Fields
from ctl.config.model import Role, Token, User
from ctl.config.validation import check_bounds, check_name, suggest
from ctl.errors import Code, InvalidInput

MAX_USERS = 256
MAX_TOKENS = 256
MAX_HASH = 256
"""Characters of a password hash."""
MAX_MEMORY_KIB = 64 << 10
MAX_TIME = 10
MAX_PARALLELISM = 4
MAX_MAKER = 200
"""Characters of the name of the one who made a token: `ctl.api.caller` has some with more than a user's name."""
MAX_TIME_S = (1 << 35) - 1

_PHC = re.compile(
    r"\$argon2id\$v=19\$m=(?P<memory>[1-9][0-9]{0,7}),t=(?P<time>[1-9][0-9]{0,3}),p=(?P<lanes>[1-9][0-9]{0,2})"
    r"\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)
"""Salt of 8 to 64 bytes, hash of 16 to 64 (RFC 9106 section 3.1; the string format of password-hashing.net)."""
_DIGEST = re.compile(r"[0-9a-f]{64}")

Arguments = Mapping[str, object]
Users = Mapping[str, User]
Tokens = Mapping[str, Token]
_Account = TypeVar("_Account", User, Token)


def check_hash(text: str, key: str) -> None:
    """A hash that costs who verifies it a bounded time and memory. Raises InvalidInput, without the hash."""
    match = _PHC.fullmatch(text) if len(text) <= MAX_HASH else None
    if match is None:
        raise InvalidInput("expected a password's hash, $argon2id$v=19$m=…,t=…,p=…$SALT$HASH", key)
    lanes = int(match["lanes"])
    check_bounds(lanes, 1, MAX_PARALLELISM, f"{key}.p")
    check_bounds(int(match["memory"]), 8 * lanes, MAX_MEMORY_KIB, f"{key}.m")
    check_bounds(int(match["time"]), 1, MAX_TIME, f"{key}.t")


def check_user(user: User, key: str = "user") -> None:
    """Raises InvalidInput."""
    check_name(user.name, f"{key}.name")
    check_hash(user.password_hash, f"{key}.password_hash")
    check_bounds(user.created_s, 0, MAX_TIME_S, f"{key}.created_s")


def check_token(token: Token, key: str = "token") -> None:
    """Raises InvalidInput, without the digest."""
    check_name(token.name, f"{key}.name")
    if _DIGEST.fullmatch(token.sha256) is None:
        raise InvalidInput("expected the SHA-256 of the token, 64 hexadecimal digits in lower case", f"{key}.sha256")
    check_bounds(token.created_s, 0, MAX_TIME_S, f"{key}.created_s")
    check_bounds(token.expires_s, 0, MAX_TIME_S, f"{key}.expires_s")
    if len(token.user) > MAX_MAKER or not token.user.isprintable():
        raise InvalidInput(f"expected a user's name of at most {MAX_MAKER} characters", f"{key}.user")


def check_accounts(users: Users, tokens: Tokens) -> None:
    """Check every account of an untrusted configuration. Raises InvalidInput."""
    for user in users.values():
        check_user(user)
    for token in tokens.values():
        check_token(token)
    _check_together(users, tokens)


def _check_together(users: Users, tokens: Tokens) -> None:
    for key, accounts, most in (("users", users, MAX_USERS), ("tokens", tokens, MAX_TOKENS)):
        if len(accounts) > most:
            raise InvalidInput(f"expected at most {most}, got {len(accounts)}; delete some first", key, Code.LIMIT_EXCEEDED)
    if len({token.sha256 for token in tokens.values()}) < len(tokens):
        raise InvalidInput("another token has this digest", "token.sha256", Code.TOKEN_EXISTS)


def without_operator(users: Users) -> bool:
    """Whether none of them may change anything."""
    return not any(user.role is Role.OPERATOR for user in users.values())


def made_by(user: str, tokens: Tokens) -> list[str]:
    """The names of the tokens that a user made, in order."""
    return sorted(token.name for token in tokens.values() if token.user == user)


def find_user(users: Users, name: str) -> User:
    """The user of that name. Raises InvalidInput with the closest name."""
    return _found(users, name, "user", Code.UNKNOWN_USER)


def _found(accounts: Mapping[str, _Account], name: str, kind: str, code: Code) -> _Account:
    if name not in accounts:
        remedy = suggest(name, accounts) or f"; xlbctl {kind} list shows them"
        raise InvalidInput(f'there is no {kind} "{name[:64]}"{remedy}', f"{kind}.name", code)
    return accounts[name]


def user_add(users: Users, tokens: Tokens, arguments: Arguments) -> tuple[Users, Tokens]:
    """name, password_hash, and any of: role (default viewer), created_s."""
    fields = Fields(arguments, "user", ("name", "role", "password_hash", "created_s"))
    role, password_hash = fields.choice("role", Role, Role.VIEWER), fields.text("password_hash")
    user = User(fields.text("name"), role, password_hash, fields.integer("created_s", 0))
    check_user(user)
    if user.name in users:
        remedy = f"change it with xlbctl user passwd {user.name} or user set {user.name} --role ROLE"
        raise InvalidInput(f"user {user.name} already exists; {remedy}", "user.name", Code.USER_EXISTS)
    return {**users, user.name: user}, tokens


def user_set(users: Users, tokens: Tokens, arguments: Arguments) -> tuple[Users, Tokens]:
    """name, and any of: role, password_hash."""
    fields = Fields(arguments, "user", ("name", "role", "password_hash"))
    old = find_user(users, fields.text("name"))
    role, password_hash = fields.choice("role", Role, old.role), fields.text("password_hash", old.password_hash)
    user = replace(old, role=role, password_hash=password_hash)
    check_user(user)
    return {**users, user.name: user}, tokens


def user_delete(users: Users, tokens: Tokens, arguments: Arguments) -> tuple[Users, Tokens]:
    """name. The tokens that the user made stay."""
    gone = find_user(users, Fields(arguments, "user", ("name",)).text("name"))
    return {name: user for name, user in users.items() if user is not gone}, tokens


def token_add(users: Users, tokens: Tokens, arguments: Arguments) -> tuple[Users, Tokens]:
    """name, sha256, and any of: role (default viewer), expires_s, user, created_s."""
    fields = Fields(arguments, "token", ("name", "role", "sha256", "expires_s", "user", "created_s"))
    role, sha256 = fields.choice("role", Role, Role.VIEWER), fields.text("sha256")
    created_s, expires_s = fields.integer("created_s", 0), fields.integer("expires_s", 0)
    token = Token(fields.text("name"), role, sha256, created_s, expires_s, fields.text("user", ""))
    check_token(token)
    if 0 < expires_s <= created_s:
        raise InvalidInput("expected a time to come, in seconds since 1970, or 0 for never", "token.expires_s")
    if token.name in tokens:
        remedy = f"delete it first (xlbctl token delete {token.name}) or choose another name"
        raise InvalidInput(f"token {token.name} already exists; {remedy}", "token.name", Code.TOKEN_EXISTS)
    return users, {**tokens, token.name: token}


def token_delete(users: Users, tokens: Tokens, arguments: Arguments) -> tuple[Users, Tokens]:
    """name."""
    gone = _found(tokens, Fields(arguments, "token", ("name",)).text("name"), "token", Code.UNKNOWN_TOKEN)
    return users, {name: token for name, token in tokens.items() if token is not gone}


_CHANGES: Mapping[str, Callable[[Users, Tokens, Arguments], tuple[Users, Tokens]]] = {
    "user.add": user_add,
    "user.set": user_set,
    "user.delete": user_delete,
    "token.add": token_add,
    "token.delete": token_delete,
}
NAMES = tuple(_CHANGES)
"""The commands that change accounts."""


def changed(users: Users, tokens: Tokens, command: str, arguments: Arguments) -> tuple[Users, Tokens]:
    """Users and tokens after one of NAMES. Raises InvalidInput."""
    made = _CHANGES[command](users, tokens, arguments)
    _check_together(*made)
    return made
