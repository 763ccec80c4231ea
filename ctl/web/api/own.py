"""What xlb-web answers itself: sessions, accounts, imports, metrics, and what is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctl.accounts import passwords
from ctl.errors import Code, InvalidInput
from ctl.version import package_version
from ctl.web.access import requests
from ctl.web.access.gate import Asker, Gate
from ctl.web.api.request import Handler, Reply, Request
from ctl.web.creation.job import CreationJob
from ctl.web.serving.answers import Answering
from ctl.web.serving.problems import HttpError


def text(body: Mapping[str, Any], name: str, most: int = 256) -> str:
    """A string of a body. Raises InvalidInput."""
    value = body.get(name)
    if value is None:
        raise InvalidInput("is missing; expected a string", name, Code.MISSING_ARGUMENT)
    if not isinstance(value, str) or len(value.encode()) > most:
        raise InvalidInput(f"expected a string of at most {most} bytes", name)
    return value


def password(body: Mapping[str, Any], name: str) -> str:
    """A password as it was typed, of any length that can be one. Raises InvalidInput."""
    return text(body, name, 2 * passwords.MAX_BYTES)


def only(body: Mapping[str, Any], *names: str) -> None:
    """Raises InvalidInput for a key of a body that is none of these."""
    for each in body:
        if each not in names:
            raise InvalidInput(f"no such setting; expected {', '.join(names)}", each[:64], Code.UNKNOWN_ARGUMENT)


class SessionHandlers:
    """Login, logout, and the own password."""

    def __init__(self, gate: Gate, lasts_s: float) -> None:
        self._gate, self._lasts_s = gate, lasts_s

    def handlers(self) -> dict[str, Handler]:
        """By the name in the table."""
        return {"session.open": self.open, "session.show": self.show, "session.close": self.close}

    async def open(self, request: Request, _: Answering) -> Reply:
        """The session, with its cookie."""
        body = request.given.body
        only(body, "name", "password")
        session_id, asker = await self._gate.login(text(body, "name"), password(body, "password"), request.source)
        return Reply(_session(asker), cookie=requests.cookie(session_id, self._lasts_s))

    async def show(self, request: Request, _: Answering) -> Reply:
        """Who asks."""
        return Reply(_session(request.who))

    async def close(self, request: Request, _: Answering) -> Reply:
        """Nothing; the cookie is removed."""
        of_session(request.who)
        await self._gate.logout(request.who, request.source)
        return Reply(None, cookie=requests.cookie("", 0))


class CreationHandlers:
    """Creating a pair over SSH."""

    def __init__(self, job: CreationJob) -> None:
        self._job = job

    def handlers(self) -> dict[str, Handler]:
        """By the name in the table."""
        return {
            "creation.start": self.start,
            "creation.show": self.show,
            "creation.answer": self.answer,
            "creation.cancel": self.cancel,
        }

    async def start(self, request: Request, _: Answering) -> Reply:
        """The job, which runs from now on."""
        return Reply(await self._job.start(request.given.body, request.who.on_behalf), status=202)

    async def show(self, _: Request, __: Answering) -> Reply:
        """The job, or null."""
        return Reply(self._job.view())

    async def answer(self, request: Request, _: Answering) -> Reply:
        """The job, which continues."""
        return Reply(self._job.answer(request.given.body, request.who.on_behalf))

    async def cancel(self, request: Request, _: Answering) -> Reply:
        """The job, which ends; null if it had ended."""
        return Reply(await self._job.cancel(request.who.on_behalf))


def of_session(asker: Asker) -> None:
    """Raises HttpError (403) for a token."""
    if not asker.key:
        raise HttpError(403, f'the request has the token "{asker.token}", and needs a session', Code.NOT_PERMITTED)


def _session(asker: Asker) -> dict[str, Any]:
    return {"name": asker.name, "role": asker.role.value, "csrf": asker.csrf, "expires_s": round(asker.ends_s)}


async def version(_: Request, __: Answering) -> Reply:
    """Of xlb-web."""
    return Reply({"version": package_version(), "api": "v1"})
