"""Users, tokens and the own password: xlb-web hashes what is entered, so that xlbd never has it."""

from __future__ import annotations

from time import time
from typing import Any

from ctl.accounts import tokens
from ctl.config.model import Role
from ctl.errors import InvalidInput
from ctl.web.access.gate import Gate
from ctl.web.api import own
from ctl.web.api.handler import Api
from ctl.web.api.request import Handler, Reply, Request
from ctl.web.serving.answers import Answering

DAY_S = 86400
MAX_DAYS = 36500


class AccountHandlers:
    """What needs a hash before the command runs."""

    def __init__(self, api: Api, gate: Gate) -> None:
        self._api, self._gate = api, gate

    def handlers(self) -> dict[str, Handler]:
        """By the name in the table."""
        return {
            "user.add": self.add_user,
            "user.set": self.set_user,
            "token.add": self.add_token,
            "session.password": self.own_password,
        }

    async def add_user(self, request: Request, _: Answering) -> Reply:
        """The user."""
        body = request.given.body
        own.only(body, "name", "role", "password")
        given = {"name": own.text(body, "name"), "role": body.get("role", Role.VIEWER.value)}
        given["password_hash"] = await self._gate.hash(own.password(body, "password"), "password")
        return await self._gate.change_account(request.who, given["name"], lambda: self._api.run(request, given))

    async def set_user(self, request: Request, _: Answering) -> Reply:
        """The user."""
        body, name = request.given.body, request.given.path["name"]
        own.only(body, "role", "password")
        given: dict[str, Any] = {"name": name, **({"role": body["role"]} if "role" in body else {})}
        if "password" in body:
            given["password_hash"] = await self._gate.hash(own.password(body, "password"), "password")
        return await self._gate.change_account(
            request.who, name, lambda: self._api.run(request, given), str(given.get("role", "")), given.get("password_hash", "")
        )

    async def own_password(self, request: Request, _: Answering) -> Reply:
        """Nothing; the other sessions of the user end."""
        asker, body = request.who, request.given.body
        own.of_session(asker)
        own.only(body, "old", "new")
        old, new = own.password(body, "old"), own.password(body, "new")
        await self._gate.check_own_password(asker, old, request.source)
        given = {"name": asker.name, "password_hash": await self._gate.hash(new, "new")}
        reply = await self._gate.change_account(
            asker, asker.name, lambda: self._api.run(request, given), password_hash=given["password_hash"]
        )
        return Reply(None, reply.note)

    async def add_token(self, request: Request, _: Answering) -> Reply:
        """The token, the only time."""
        body = request.given.body
        own.only(body, "name", "role", "expires_days")
        days = body.get("expires_days", 0)
        if not isinstance(days, int) or isinstance(days, bool) or not 0 <= days <= MAX_DAYS:
            raise InvalidInput(f"expected an integer from 0 to {MAX_DAYS}", "expires_days")
        token, digest = tokens.make()
        given = {
            "name": own.text(body, "name"),
            "role": body.get("role", Role.VIEWER.value),
            "sha256": digest,
            "expires_s": int(time()) + days * DAY_S if days else 0,
            "user": request.who.name,
        }
        reply = await self._gate.change_account(request.who, "", lambda: self._api.run(request, given))
        return Reply(reply.result | {"token": token}, reply.note)
