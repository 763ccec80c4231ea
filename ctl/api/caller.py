"""The user of a request, and the node where it was entered: known while the request runs, for the log of changes.

The control socket's kernel gives process and user of each connection (SO_PEERCRED, unix(7)); libzmq hands them over as
the message's "Peer-Address". The user that xlbctl found in SUDO_USER is a claim: it is shown as one, after the user that the
kernel names. So is the user of xlb-web for whom a client asks, unless the client is of the account xlb-web, of root or of the
user of xlbd: xlb-web verifies who logs in. Of a command that the peer forwards, the peer names the user: the channel between
the nodes is authenticated.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_LOGIN = 2**32 - 1  # loginuid of a process that no login started
_MAX_NAME = 64
WEB_ACCOUNT = "xlb-web"
"""The account that xlb-web runs as."""
_ON_BEHALF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")
"""A user's name, maybe with what xlb-web adds: "token ci"."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. uid None: not a client of the control socket; `user` is its name then. node: empty, this one.

    claim: the user before sudo, as the client claims. purpose: what a command is part of, e.g. "rollback to 12". on_behalf: the
    user of xlb-web for whom it asks.
    """

    uid: int | None = None
    pid: int = 0
    user: str = "xlbd"
    node: str = ""
    command: str = ""
    claim: str = ""
    purpose: str = ""
    on_behalf: str = ""

    def is_web(self) -> bool:
        """Whether it is believed for whom it asks. Blocks."""
        return self.uid is not None and self.uid in {0, os.geteuid(), _uid(WEB_ACCOUNT)}

    def name(self) -> str:
        """The user's name, and of a session with another login its name too: "root (login alice)". Blocks.

        Where the kernel knows of no login, a claim is shown: "root (SUDO_USER alice, not verified)". Of a user of xlb-web
        "alice (web)", or "bob (for alice of xlb-web, not verified)" if any other client than xlb-web claims it.
        """
        if self.on_behalf and self.is_web():
            return f"{self.on_behalf} (web)"
        if self.on_behalf:
            return f"{self._account()} (for {self.on_behalf} of xlb-web, not verified)"
        return self._account()

    def _account(self) -> str:
        if self.uid is None:
            return self.user
        name, login = _user_name(self.uid), _login(self.pid)
        if login is not None and login != self.uid:
            return f"{name} (login {_user_name(login)})"
        return f"{name} (SUDO_USER {self.claim}, not verified)" if self.claim and self.claim != name else name


CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 (it is frozen)


def from_peer_address(address: object) -> Caller:
    """The caller of libzmq's "Peer-Address" of an ipc connection, "…:UID:GID:PID"."""
    fields = str(address).split(":")
    if len(fields) < 4 or not (fields[-3].isdigit() and fields[-1].isdigit()):
        return Caller(user="unknown user")
    return Caller(int(fields[-3]), int(fields[-1]))


def from_peer(given: Any, node: str) -> Caller:
    """The caller that the peer `node` names; a peer of version 0.1.0 names none."""
    values = given if isinstance(given, dict) else {}
    purpose = values.get("purpose", "")
    return Caller(
        user=values["user"] if _is_name(values.get("user")) else "unknown user",
        node=node,
        purpose=purpose if _is_name(purpose) else "",
    )


def claimed(value: Any) -> str:
    """The user before sudo, as a client sends it; empty for what is no user's name."""
    return str(value) if _is_name(value) and len(value) <= _MAX_NAME else ""


def on_behalf_of(value: Any) -> str | None:
    """The user of xlb-web for whom a client asks; empty for none, None for what is no name."""
    if value is None:
        return ""
    return value if isinstance(value, str) and _ON_BEHALF.fullmatch(value) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 3 * _MAX_NAME and value.isprintable()


def _uid(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name[:_MAX_NAME]
    except KeyError:
        return f"uid {uid}"


def _login(pid: int) -> int | None:
    """The user that logged in, which sudo does not change (proc(5), loginuid); None: unknown."""
    with contextlib.suppress(OSError, ValueError):
        uid = int(Path(f"/proc/{pid}/loginuid").read_text()) if pid else _NO_LOGIN
        return None if uid == _NO_LOGIN else uid
    return None
