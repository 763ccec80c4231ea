"""The `user` and `token` commands, and `web.accounts`. Clients make the hashes; only xlb-web gets them back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctl.api.caller import CALLER
from ctl.api.commands.dispatcher import Arguments, Commit, Dispatcher, ReadConfig, Result
from ctl.api.server import Noted
from ctl.config import accounts, changes
from ctl.config.changes import Committed
from ctl.config.model import Config, Token, User
from ctl.errors import Code, XlbError

NO_OPERATOR = (
    "no user is an operator any more, so nothing can be changed with xlb-web until there is one: xlbctl user add NAME --role "
    "operator, or user set NAME --role operator"
)


@dataclass(frozen=True, slots=True)
class AccountCommands:
    """What they use of the node. now_s: seconds since 1970."""

    config: ReadConfig
    commit: Commit
    now_s: Callable[[], float] = time.time

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("user.list", self.users)
        dispatcher.register_change("user.add", self.add_user, ("name", "role", "password_hash"))
        dispatcher.register_change("user.set", self.set_user, ("name", "role", "password_hash"))
        dispatcher.register_change("user.delete", self.delete_user, ("name",))
        dispatcher.register("token.list", self.tokens)
        dispatcher.register_change("token.add", self.add_token, ("name", "role", "sha256", "expires_s", "user"))
        dispatcher.register_change("token.delete", self.delete_token, ("name",))
        dispatcher.register("web.accounts", self.of_web)

    async def users(self, _: Arguments) -> Result:
        """Every user, without the hash."""
        return [_user_view(each) for each in self.config().users.values()]

    async def add_user(self, arguments: Arguments) -> Result:
        """The user that was added."""
        done = await self._change("user.add", {**arguments, "created_s": int(self.now_s())})
        return Noted(_user_view(done.new.users[arguments["name"]]), done.note)

    async def set_user(self, arguments: Arguments) -> Result:
        """The user that was changed."""
        done = await self._change("user.set", arguments)
        return Noted(_user_view(done.new.users[arguments["name"]]), _noted(done))

    async def delete_user(self, arguments: Arguments) -> Result:
        """Nothing."""
        done = await self._change("user.delete", arguments)
        left = accounts.made_by(arguments["name"], done.new.tokens)
        what = f"tokens of {arguments['name']} stay valid: {', '.join(left[:10])}; see xlbctl token list" if left else ""
        return Noted(None, _noted(done, what))

    async def tokens(self, _: Arguments) -> Result:
        """Every token, without the digest."""
        return [_token_view(each) for each in self.config().tokens.values()]

    async def add_token(self, arguments: Arguments) -> Result:
        """The token that was added. Without `user`, the one who asks made it."""
        maker = arguments.get("user") or await asyncio.to_thread(CALLER.get().name)
        done = await self._change("token.add", {**arguments, "user": maker, "created_s": int(self.now_s())})
        return Noted(_token_view(done.new.tokens[arguments["name"]]), done.note)

    async def delete_token(self, arguments: Arguments) -> Result:
        """Nothing."""
        return Noted(None, (await self._change("token.delete", arguments)).note)

    async def of_web(self, _: Arguments) -> Result:
        """Every account with what verifies it, and the version of the configuration. Raises XlbError for other clients."""
        if not await asyncio.to_thread(CALLER.get().is_web):
            raise XlbError(
                "only xlb-web and root get the hashes of passwords; see xlbctl user list and token list", Code.NOT_PERMITTED
            )
        config = self.config()
        users = [
            {"name": each.name, "role": str(each.role), "password_hash": each.password_hash} for each in config.users.values()
        ]
        tokens = [_token_view(each) | {"sha256": each.sha256} for each in config.tokens.values()]
        return {"users": users, "tokens": tokens, "epoch": config.epoch, "generation": config.generation}

    async def _change(self, command: str, arguments: Arguments) -> Committed:
        return await self.commit(lambda config: changes.change(config, command, arguments))


def _noted(done: Committed, more: str = "") -> str:
    operator = NO_OPERATOR if _without_operator(done.new) and not _without_operator(done.old) else ""
    return "; ".join(filter(None, (done.note, more, operator)))


def _without_operator(config: Config) -> bool:
    return accounts.without_operator(config.users)


def _user_view(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": str(user.role), "created_s": user.created_s}


def _token_view(token: Token) -> dict[str, Any]:
    times = {"created_s": token.created_s, "expires_s": token.expires_s}
    return {"name": token.name, "role": str(token.role), **times, "user": token.user}
