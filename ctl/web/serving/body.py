"""Reads the body of a request, at most so many bytes of it. The time it may take is that of `ctl.web.serving.connection`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers

from ctl.web.serving import problems

Receive = Callable[[], Awaitable[Any]]


class Disconnected(Exception):
    """The client is gone; nothing can be answered."""


async def read(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The body. Raises HttpError (413) as soon as it is known to be longer than `limit`, Disconnected."""
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:20]) > limit:
        raise problems.too_long(limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise problems.too_long(limit)
        if not message.get("more_body", False):
            return bytes(body)
