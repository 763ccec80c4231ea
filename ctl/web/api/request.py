"""A request that has been let in: its route, who asks, and what it names."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from ctl.web.access.gate import Asker
from ctl.web.api.routes import Given, Route
from ctl.web.serving import problems
from ctl.web.serving.answers import Answering

_VERSION = re.compile(r'"?([0-9]{1,20}-[0-9]{1,20})"?')


@dataclass(frozen=True, slots=True)
class Request:
    """asker: None where no login is needed. text: the body of a route that takes text. receive: of ASGI."""

    route: Route
    given: Given
    headers: Headers
    source: str
    asker: Asker | None
    text: str
    receive: Callable[[], Awaitable[Any]]

    @property
    def who(self) -> Asker:
        """The one who asks, of a route that needs a login."""
        assert self.asker is not None
        return self.asker


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler of xlb-web returns: a result as those of commands. version: of the configuration that it is a part of.

    cookie: the header Set-Cookie.
    """

    result: Any
    note: str = ""
    version: str = ""
    cookie: str = ""
    status: int = 200


Handler = Callable[[Request, Answering], Awaitable[Reply | None]]
"""Returns None if it has answered itself."""


def if_version(headers: Headers) -> str:
    """The version in If-Match; empty: none, or any ("*"). Raises HttpError (400)."""
    given = headers.get("if-match", "*").strip()
    if given == "*":
        return ""
    match = _VERSION.fullmatch(given)
    if match is None:
        raise problems.malformed(f'If-Match: expected the ETag of an answer like "3-17", or *, got {given[:40]!r}')
    return match[1]
