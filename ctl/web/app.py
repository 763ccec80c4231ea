"""The application: answers each request with the page, a file or the API, and each failure with a message."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from ctl.errors import Code, XlbError
from ctl.web.api.handler import JSON, Api, refuse
from ctl.web.api.routes import PREFIX
from ctl.web.serving import body, problems
from ctl.web.serving.answers import Answering
from ctl.web.serving.files import Directory
from ctl.web.serving.hosts import Hosts
from ctl.web.serving.problems import HttpError

log = logging.getLogger(__name__)

SAFE = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Application:
    """An ASGI application. files: directories by the path they are served under, longest first; open: answers without login."""

    api: Api
    hosts: Hosts
    files: Mapping[str, Directory]
    open: Mapping[str, bytes]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        answering = Answering(send, scope["method"])
        try:
            await self._answer(scope, receive, answering)
        except body.Disconnected:
            return
        except XlbError as error:
            if answering.started:  # the end of an answer that breaks off must be seen
                scope["xlb.connection"].abort()
            else:
                await refuse(answering, error)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"][:200])
            if answering.started:
                scope["xlb.connection"].abort()
            else:
                await refuse(answering, HttpError(500, "xlb-web failed at this request; see its log", Code.INTERNAL))

    async def _answer(self, scope: Any, receive: Any, answering: Answering) -> None:
        headers, path = Headers(raw=scope["headers"]), scope["path"]
        if problem := self.hosts.problem(headers.get("host", "")):
            raise HttpError(421, problem, Code.MALFORMED_REQUEST)
        if path in self.open:
            _only_safe(scope["method"])
            await answering.whole(200, self.open[path], JSON)
        elif path == "/metrics":
            await self.api.handle(scope | {"raw_path": f"{PREFIX}/metrics".encode()}, receive, answering)
        elif path == PREFIX or path.startswith(f"{PREFIX}/"):
            await self.api.handle(scope, receive, answering)
        else:
            _only_safe(scope["method"])
            await self._file(path, headers, answering)

    async def _file(self, path: str, headers: Headers, answering: Answering) -> None:
        prefix = next((each for each in self.files if path.startswith(each)), None)
        found = await self.files[prefix].read(path.removeprefix(prefix)) if prefix is not None else None
        if found is None:
            raise problems.unknown_path(path)
        known = {"etag": found.tag, "cache-control": "no-cache"}
        if found.tag in [each.strip() for each in headers.get("if-none-match", "").split(",")]:
            await answering.whole(304, b"", headers=known)
        else:
            await answering.whole(200, found.content, found.media_type, known)


def _only_safe(method: str) -> None:
    if method not in SAFE:
        raise problems.wrong_method(method, ", ".join(SAFE))
