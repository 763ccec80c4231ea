"""Sends answers: the headers that each has, and long ones in pieces that wait for a slow reader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Any

Send = Callable[[Any], Awaitable[None]]

PIECE_BYTES = 16384
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
ALWAYS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "server": "xlb-web",
}
NO_STORE = {"cache-control": "no-store"}


class Answering:
    """The answer to one request. started: its head is sent, so that no other answer can be given."""

    def __init__(self, send: Send, method: str) -> None:
        self._send, self._body_wanted = send, method != "HEAD"
        self.started = False

    async def whole(self, status: int, body: bytes, media_type: str = "", headers: Mapping[str, str] | None = None) -> None:
        """An answer that is there."""
        given = {"content-type": media_type} if media_type else {}
        await self._begin(status, {**given, "content-length": str(len(body)), **(headers or {})})
        for at in range(0, max(len(body), 1), PIECE_BYTES) if self._body_wanted else ():
            await self.piece(body[at : at + PIECE_BYTES])
        await self.end()

    async def pieces(
        self, status: int, pieces: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """An answer that is made while it is sent."""
        await self._begin(status, {"content-type": media_type, **(headers or {})})
        if self._body_wanted:
            async for each in pieces:
                await self.piece(each)
        await self.end()

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        every = {**ALWAYS, **NO_STORE, "date": formatdate(usegmt=True), **headers}
        encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def piece(self, body: bytes) -> None:
        """Send a piece; waits while the client has not taken those before."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """The answer is complete."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
