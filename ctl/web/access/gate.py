"""Lets users in: knows the accounts, opens and ends sessions, names who asks. Every login and its refusal is logged.

Decides nothing about what a request does. Passwords, tokens and session ids are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import TypeVar

from ctl.accounts import passwords
from ctl.api.async_client import AsyncClient
from ctl.config.model import Role
from ctl.errors import Code, XlbError
from ctl.web.access import accounts, requests
from ctl.web.access.accounts import Accounts, User
from ctl.web.access.attempts import Attempts
from ctl.web.access.session_file import SessionFile
from ctl.web.access.sessions import ID_BYTES, Session, Sessions, csrf_of
from ctl.web.access.turns import Turns
from ctl.web.serving.admission import prefix_of
from ctl.web.serving.problems import HttpError

log = logging.getLogger(__name__)

T = TypeVar("T")

REFRESH_S = 5.0
STORE_S = 60.0
"""At most so old are the times of use in the file of the sessions."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks. key: of the session, empty for a token. ends_s: seconds since 1970, 0: never."""

    name: str
    role: Role
    key: str = ""
    csrf: str = ""
    token: str = ""
    ends_s: float = 0.0

    @property
    def on_behalf(self) -> str:
        """For the log of changes."""
        return f"token {self.token}" if self.token else self.name


class Gate:
    """Create on a running loop; `run` keeps the accounts current."""

    def __init__(
        self, client: AsyncClient, directory: Path, lasts_s: float, ended: Callable[[Iterable[Session]], None] = lambda _: None
    ) -> None:
        """ended: called with the sessions that ended without a request of their own."""
        self.accounts: Accounts | None = None
        self._client, self._ended = client, ended
        self._sessions, self._file = Sessions(lasts_s), SessionFile(directory)
        self._attempts, self._turns = Attempts(), Turns()
        self._changing = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._unsaved = False

    async def load(self) -> None:
        """The sessions of the last run."""
        self._sessions.restore(await asyncio.to_thread(self._file.load), time())

    async def run(self) -> None:
        """Keep the accounts current until cancelled."""
        stored_s = time()
        while True:
            await self._refresh_quietly()
            if self._unsaved or time() - stored_s > STORE_S:
                stored_s = time()
                await self.store()
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()

    def refresh_soon(self) -> None:
        """The accounts may have changed."""
        self._wanted.set()

    async def refresh(self) -> None:
        """Ask for the accounts, and end the sessions of which the user has changed. Raises XlbError."""
        async with self._changing:
            self.accounts = accounts.read((await self._client.call("web.accounts")).result)
            self._end(self._sessions.sweep(time(), self.accounts.stamps), "password, role or user changed, or its time ended")

    async def store(self) -> None:
        """Write the sessions to their file."""
        self._unsaved = False
        await self._file.store(self._sessions.stored())

    def identify(self, method: str, headers: Mapping[str, str]) -> Asker:
        """Who asks, and may as far as the request alone decides. Raises HttpError (401, 403, 503)."""
        requests.check_origin(method, headers)
        token = requests.bearer(headers)
        if token is not None:
            return self._of_token(token)
        session_id = requests.session_id(headers)
        session = self._sessions.use(session_id, time()) if session_id else None
        if session is None:
            raise requests.not_logged_in("the session has ended" if session_id else "the request has no session")
        csrf = csrf_of(session_id)
        requests.check_csrf(method, headers, csrf)
        return Asker(session.user, self._role_of(session), session.key, csrf, ends_s=session.ends_s)

    def _role_of(self, session: Session) -> Role:
        """Without accounts, as long as xlbd has not been heard of, a session may look: at what needs no xlbd."""
        user = self.accounts.users.get(session.user) if self.accounts is not None else None
        if self.accounts is not None and (user is None or user.stamp != session.stamp):
            self._sessions.close(session.key)
            raise requests.not_logged_in("the session has ended")
        return user.role if user is not None else Role.VIEWER

    def _of_token(self, text: str) -> Asker:
        found = self._known().token(text, time())
        if found is None:
            raise requests.not_logged_in("the token is wrong or has expired")
        return Asker(found.user, found.role, token=found.name, ends_s=found.expires_s)

    def still(self, asker: Asker) -> bool:
        """Whether somebody who asked may still have answers: of a stream of events. Such a session is in use."""
        if asker.key:
            return self._sessions.use_key(asker.key, time()) is not None
        if self.accounts is not None and asker.token not in {each.name for each in self.accounts.tokens.values()}:
            return False
        return not asker.ends_s or time() < asker.ends_s

    def _known(self) -> Accounts:
        if self.accounts is None:
            raise HttpError(
                503, "xlbd has not been reached yet, so no account is known: start it with 'systemctl start xlbd'",
                Code.DAEMON_NOT_RUNNING, retry_after="2",
            )  # fmt: skip
        return self.accounts

    async def login(self, name: str, password: str, source: str) -> tuple[str, Asker]:
        """Open a session; returns its id. Raises HttpError (401, 429, 503)."""
        if self.accounts is None:
            await self.refresh()
        user = self._known().users.get(name)
        prefix = prefix_of(source)
        wait_s = self._attempts.begin(prefix, name, time())
        if wait_s > 0:
            log.warning("login refused: %s from %s, too many failed; next attempt in %.0f s", _shown(name), source, wait_s)
            raise _too_many(wait_s)
        try:
            correct = await self._turns.run(passwords.matches, user.password_hash if user else "", password)
        except HttpError:
            self._attempts.withdraw(prefix, name)
            raise
        if user is None or not correct:
            log.warning("login refused: %s from %s, wrong user name or password", _shown(name), source)
            raise HttpError(401, "user name or password is wrong", Code.LOGIN_REFUSED)
        self._attempts.succeed(prefix, name)
        if passwords.is_outdated(user.password_hash):
            user = await self._hash_again(user, password)
        return await self._open(user, source)

    async def _hash_again(self, user: User, password: str) -> User:
        """The user with a hash of the present cost, unless the configuration has changed meanwhile; its sessions continue."""
        new_hash = await self._turns.run(passwords.hash_password, password)
        given = {"name": user.name, "password_hash": new_hash, "if_version": self._known().version}
        async with self._changing:
            try:
                await self._client.call("user.set", given, user.name)
            except XlbError as error:
                log.info("the password of %s keeps its old hash: %s", user.name, error)
                return user
            made = replace(user, password_hash=new_hash)
            self._sessions.restamp(user.name, user.stamp, made.stamp)
        await self._refresh_quietly()
        return made

    async def _open(self, user: User, source: str) -> tuple[str, Asker]:
        session_id = secrets.token_urlsafe(ID_BYTES)
        self._end(self._sessions.open(session_id, user.name, user.stamp, time()), "another one of the user began")
        log.info("login: %s (%s) from %s", user.name, user.role, source)
        await self.store()
        session = self._sessions.use(session_id, time())
        assert session is not None
        return session_id, Asker(user.name, user.role, session.key, csrf_of(session_id), ends_s=session.ends_s)

    async def logout(self, asker: Asker, source: str) -> None:
        """End the session of a request."""
        self._ended(self._sessions.close(asker.key))
        log.info("logout: %s from %s", asker.name, source)
        await self.store()

    async def check_own_password(self, asker: Asker, password: str, source: str) -> None:
        """Raises HttpError (403, 429, 503) unless it is that of the one who asks."""
        user, prefix = self._known().users.get(asker.name), prefix_of(source)
        wait_s = self._attempts.begin(prefix, asker.name, time())
        if wait_s > 0:
            raise _too_many(wait_s)
        try:
            correct = await self._turns.run(passwords.matches, user.password_hash if user else "", password)
        except HttpError:
            self._attempts.withdraw(prefix, asker.name)
            raise
        if not correct:
            log.warning("password not changed: %s from %s, the old one is wrong", _shown(asker.name), source)
            raise HttpError(403, "the old password is wrong", Code.LOGIN_REFUSED)
        self._attempts.succeed(prefix, asker.name)

    async def hash(self, password: str, key: str) -> str:
        """The hash of a new password. Raises InvalidInput, HttpError (503)."""
        passwords.check(password, key)
        return await self._turns.run(passwords.hash_password, password)

    async def change_account(
        self, asker: Asker, name: str, change: Callable[[], Awaitable[T]], role: str = "", password_hash: str = ""
    ) -> T:
        """Have `change` change an account; of the own one, the session of this request continues and the others end."""
        async with self._changing:
            result = await change()
            user = self._known().users.get(name)
            if user is not None and asker.key and asker.name == name:
                stamp = accounts.stamp_of(role or user.role, password_hash or user.password_hash)
                self._end(self._sessions.close_others(name, asker.key, stamp), "password or role was changed")
        await self._refresh_quietly()
        await self.store()
        return result

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except XlbError as error:
            log.debug("accounts are not refreshed: %s", error)

    def _end(self, sessions: list[Session], why: str) -> None:
        for each in sessions:
            log.info("session of %s ended: %s", each.user, why)
        if sessions:
            self._unsaved = True
            self._ended(sessions)


def _too_many(wait_s: float) -> HttpError:
    seconds = math.ceil(wait_s)
    return HttpError(429, f"too many passwords were wrong; wait {seconds} s", Code.TOO_MANY_LOGINS, retry_after=str(seconds))


def _shown(name: str) -> str:
    """A name as anybody may have sent it, for the log."""
    return "".join(each if each.isprintable() else "?" for each in name[:64]) or '""'
