"""Who is logged in: sessions by the digest of their id, with their end. Pure; `ctl.web.access.session_file` keeps them.

A session ends at logout, at its time, after a time without a request, and when the user's password or role changes or the
user is deleted: it carries the stamp of both (see `ctl.web.access.accounts`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MAX_SESSIONS = 256
MAX_PER_USER = 16
IDLE_S = 30 * 60
ID_BYTES = 32
CLOCK_S = 300.0
"""A clock that is set back by less makes no session invalid; by more, it would make sessions longer."""


@dataclass(frozen=True, slots=True)
class Session:
    """Times are seconds since 1970."""

    key: str  # digest of its id
    user: str
    stamp: str
    ends_s: float
    used_s: float


def key_of(session_id: str) -> str:
    """Under which a session is kept: an id cannot be had from the file of the sessions."""
    return hashlib.sha256(session_id.encode()).hexdigest()


def csrf_of(session_id: str) -> str:
    """The token that each request of a session has to name if it changes something: only the page itself can read it."""
    digest = hmac.digest(session_id.encode(), b"csrf", "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


@dataclass(slots=True)
class Sessions:
    """idle_s: a session ends after this time without a request."""

    lasts_s: float
    idle_s: float = IDLE_S
    _by_key: dict[str, Session] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_key)

    def open(self, session_id: str, user: str, stamp: str, now_s: float) -> list[Session]:
        """Begin a session; returns those that end for it, the oldest of the user or of all."""
        ended = self.sweep(now_s)
        own = sorted((each for each in self._by_key.values() if each.user == user), key=lambda each: each.used_s)
        if len(own) >= MAX_PER_USER:
            ended += self._end(own[:1])
        elif len(self._by_key) >= MAX_SESSIONS:
            ended += self._end([min(self._by_key.values(), key=lambda each: each.used_s)])
        key = key_of(session_id)
        self._by_key[key] = Session(key, user, stamp, now_s + self.lasts_s, now_s)
        return ended

    def use(self, session_id: str, now_s: float) -> Session | None:
        """The session with this id, which is used now; None: there is none, or it has ended."""
        return self.use_key(key_of(session_id), now_s)

    def use_key(self, key: str, now_s: float) -> Session | None:
        """As `use`."""
        session = self._by_key.get(key)
        if session is None or not self._alive(session, now_s):
            return None
        self._by_key[key] = used = replace(session, used_s=now_s)
        return used

    def close(self, key: str) -> list[Session]:
        """End a session, if there is one."""
        return self._end([self._by_key[key]] if key in self._by_key else [])

    def close_others(self, user: str, key: str, stamp: str) -> list[Session]:
        """End the user's sessions but one, which gets the new stamp."""
        ended = self._end([each for each in self._by_key.values() if each.user == user and each.key != key])
        if key in self._by_key:
            self._by_key[key] = replace(self._by_key[key], stamp=stamp)
        return ended

    def restamp(self, user: str, old: str, new: str) -> None:
        """The hash of a user's password was made again from the same password."""
        for key, each in self._by_key.items():
            if each.user == user and each.stamp == old:
                self._by_key[key] = replace(each, stamp=new)

    def sweep(self, now_s: float, stamps: Mapping[str, str] | None = None) -> list[Session]:
        """End what has ended. stamps: those of the users there are; None: not known."""
        return self._end(
            [
                each
                for each in self._by_key.values()
                if not self._alive(each, now_s) or (stamps is not None and stamps.get(each.user) != each.stamp)
            ]
        )

    def _alive(self, session: Session, now_s: float) -> bool:
        return now_s < session.ends_s <= now_s + self.lasts_s + CLOCK_S and now_s - session.used_s < self.idle_s

    def _end(self, sessions: Iterable[Session]) -> list[Session]:
        ended = list(sessions)
        for each in ended:
            del self._by_key[each.key]
        return ended

    def stored(self) -> list[dict[str, Any]]:
        """For a file."""
        return [
            {"key": each.key, "user": each.user, "stamp": each.stamp, "ends_s": each.ends_s, "used_s": each.used_s}
            for each in self._by_key.values()
        ]

    def restore(self, stored: Any, now_s: float) -> None:
        """Those of a file; what is none of ours is left out. The time while xlb-web did not run is no time without requests."""
        for each in stored if isinstance(stored, list) else []:
            try:
                session = Session(str(each["key"]), str(each["user"]), str(each["stamp"]), float(each["ends_s"]), now_s)
            except (KeyError, TypeError, ValueError):
                continue
            if len(session.key) == 64 and self._alive(session, now_s) and len(self._by_key) < MAX_SESSIONS:
                self._by_key[session.key] = session
