"""Answers requests below /api/v1: finds the route, lets in who may, runs the command, and puts the answer into JSON.

Generic: what a route does is in `ctl.web.api.table`. A change names the user for xlbd's log and events.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers

from ctl.api.async_client import AsyncClient
from ctl.errors import Code, XlbError
from ctl.web.access import requests
from ctl.web.access.accounts import may
from ctl.web.access.gate import Asker, Gate
from ctl.web.api import arguments, statuses
from ctl.web.api.request import Handler, Reply, Request, if_version
from ctl.web.api.routes import PREFIX, SMALL_BODY, Given, Route, Router
from ctl.web.serving import body, problems
from ctl.web.serving.answers import Answering
from ctl.web.serving.json_text import dump, dump_list, parse_object
from ctl.web.serving.problems import HttpError

JSON = "application/json"
MAX_QUERY = 4096
MAX_BIG = 2
"""Requests with big bodies that are read and answered at once: each may take 50 MB."""


class Api:
    """own: the handlers of xlb-web by name."""

    def __init__(self, router: Router, client: AsyncClient, gate: Gate, own: Mapping[str, Handler]) -> None:
        self._router, self._client, self._gate, self._own = router, client, gate, own
        self._big = asyncio.Semaphore(MAX_BIG)

    async def handle(self, scope: Mapping[str, Any], receive: Any, answering: Answering) -> None:
        """Answer one request. Raises XlbError for what is refused, Disconnected."""
        method, headers = scope["method"], Headers(raw=scope["headers"])
        route, path = self._router.find(method, scope["raw_path"].decode("ascii", "replace").removeprefix(PREFIX))
        asker = self._let_in(route, method, headers)
        if asker is not None:
            scope["xlb.connection"].prove()
        async with self._big if route.limit > SMALL_BODY else contextlib.nullcontext():
            given, text = await self._given(route, path, scope["query_string"], headers, receive)
            request = Request(route, given, headers, _source(scope), asker, text, receive)
            try:
                await self._answer(request, answering)
            except XlbError as error:
                if answering.started:
                    raise
                await refuse(answering, error, statuses.status_of(error, conditional=bool(if_version(headers))))

    def _let_in(self, route: Route, method: str, headers: Headers) -> Asker | None:
        if route.open:
            requests.check_origin(method, headers)
            return None
        asker = self._gate.identify(method, headers)
        if not may(asker.role, route.needs):
            raise HttpError(403, f"{asker.name} is a {asker.role}; this needs an {route.needs}", Code.NOT_PERMITTED)
        return asker

    async def _given(
        self, route: Route, path: Mapping[str, str], query: bytes, headers: Headers, receive: Any
    ) -> tuple[Given, str]:
        if len(query) > MAX_QUERY:
            raise problems.malformed(f"the query is longer than {MAX_QUERY} bytes", 414)
        pairs = urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace")
        values = arguments.read_query(route.query, pairs)
        content = await body.read(headers, receive, route.limit)
        if route.body == "text":
            return Given(path, values, {}), content.decode(errors="replace")
        if not content:
            return Given(path, values, {}), ""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise problems.malformed(f"the body must be {JSON} (header Content-Type)", 415)
        return Given(path, values, parse_object(content)), ""

    async def _answer(self, request: Request, answering: Answering) -> None:
        route = request.route
        handler = self._own.get(route.own)
        if handler is not None:
            reply = await handler(request, answering)
            if reply is not None:
                await self._send(request, reply, answering)
        elif route.own:
            raise problems.unknown_path(PREFIX + route.path)
        elif route.listed is not None:
            await self._list(request, answering)
        else:
            version = await self.version() if route.method == "GET" and route.versioned else ""
            await self._send(request, replace(await self.run(request), version=version), answering)

    async def run(self, request: Request, more: Mapping[str, Any] | None = None) -> Reply:
        """Run the command of the route with what the request names, or with `more` in place of it."""
        route = request.route
        given = arguments.of(route, request.given) if more is None else dict(more)
        if route.change and (version := if_version(request.headers)):
            given["if_version"] = version
        on_behalf = request.who.on_behalf if route.method != "GET" else ""
        answer = await self._client.call(route.command, given, on_behalf)
        return Reply(answer.result if route.result is None else route.result(answer.result), answer.note)

    async def version(self) -> str:
        """Of the configuration, asked before it is read: a change in between makes the version old, never the content."""
        found = (await self._client.call("config.version")).result
        return f"{found['epoch']}-{found['generation']}"

    async def _list(self, request: Request, answering: Answering) -> None:
        route = request.route
        version = await self.version() if route.versioned else ""
        found = await self._client.listed(route.command, arguments.of(route, request.given), route.listed or "")
        before = b'{"result":{' + dump(route.listed) + b":" if route.listed else b'{"result":'

        def after() -> bytes:
            rest = b"".join(b"," + dump(name) + b":" + dump(value) for name, value in found.rest.items())
            return rest + (b"}" if route.listed else b"") + (b',"version":' + dump(version) if version else b"") + b"}"

        headers = {"etag": f'"{version}"'} if version else {}
        await answering.pieces(200, dump_list(before, found.items, after), JSON, headers)

    async def _send(self, request: Request, reply: Reply, answering: Answering) -> None:
        document: dict[str, Any] = {"result": reply.result}
        headers = {"set-cookie": reply.cookie} if reply.cookie else {}
        if request.route.method != "GET":
            document["note"] = reply.note
        if reply.version:
            document["version"] = reply.version
            headers["etag"] = f'"{reply.version}"'
        await answering.whole(reply.status, dump(document), JSON, headers)


async def refuse(answering: Answering, error: XlbError, status: int | None = None) -> None:
    """Answer with an error."""
    headers = statuses.headers_of(error)
    await answering.whole(status or statuses.status_of(error), dump(statuses.body_of(error)), JSON, headers)


def _source(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return client[0] if client else "::"
