"""Finds status and text of a server's answer to one GET: bytes in, a status or the reason of a failure out. No I/O.

h11 parses (RFC 9112). Interim responses (1xx, RFC 9110 section 15.2: 100, 102, 103 and unknown ones) are skipped. 101 ends HTTP
on a connection, so it is the answer. The body is only waited for where it is searched. Bounded: MAX_BYTES until the headers of
the answer end, and as many of the body.
"""

from __future__ import annotations

import re

import h11

MAX_BYTES = 65536
"""Of all responses together, up to the end of the last one's headers."""
_SHOWN_BYTES = 40
_PREFIX = b"HTTP/1."
_SWITCHING = re.compile(rb"HTTP/1\.[0-9] 101[ \r\n]")


class NotAnswered(Exception):
    """The peer's bytes are no answer; the message is short."""


class HttpAnswer:
    """One request and the bytes that answer it."""

    def __init__(self, path: str, host: str, user_agent: str) -> None:
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
        headers = [("Host", host), ("User-Agent", user_agent), ("Accept", "*/*"), ("Connection", "close")]
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        request = h11.Request(method="GET", target=path.encode("latin-1", "replace"), headers=encoded)
        self.request = (self._parser.send(request) or b"") + (self._parser.send(h11.EndOfMessage()) or b"")
        self._unread = b""  # of the response that is not complete yet
        self._bytes = 0
        self._body = b""

    def feed(self, data: bytes) -> int | None:
        """The status of the final response; None: more bytes are needed. Empty `data`: the server closed the connection.

        Raises NotAnswered.
        """
        self._bytes += len(data)
        self._unread += data
        if not data:
            raise NotAnswered(self._closed())
        try:
            self._parser.receive_data(data)
            return self._status()
        except h11.RemoteProtocolError as error:
            if _SWITCHING.match(self._unread):
                return 101
            raise NotAnswered(self._not_http(error)) from None

    def search(self, text: bytes, data: bytes | None = None) -> bool | None:
        """After the status: whether the first MAX_BYTES of the body contain `text`; None: more bytes are needed.

        data: what came since the last call; empty: the server closed the connection. Raises NotAnswered.
        """
        try:
            if data is not None:
                self._parser.receive_data(data)
            while isinstance(event := self._parser.next_event(), h11.Data):
                seen = max(0, len(self._body) - len(text))
                self._body = (self._body + event.data)[:MAX_BYTES]
                if self._body.find(text, seen) >= 0:
                    return True
        except h11.RemoteProtocolError as error:
            raise NotAnswered(f"answer is not valid HTTP/1.1: {error}") from None
        return None if event is h11.NEED_DATA and len(self._body) < MAX_BYTES else False

    def _status(self) -> int | None:
        while True:
            if not self._unread.startswith(_PREFIX[: len(self._unread)]):
                raise NotAnswered(self._not_http(None))
            event = self._parser.next_event()
            if isinstance(event, h11.Response):
                return int(event.status_code)
            if event is h11.NEED_DATA:
                if self._bytes > MAX_BYTES:
                    raise NotAnswered(f"sent more than {MAX_BYTES} bytes without the headers of an answer")
                return None
            self._unread = self._parser.trailing_data[0]  # after an interim response

    def _closed(self) -> str:
        if self._unread:
            return f"closed the connection before a complete HTTP answer: {self._unread[:_SHOWN_BYTES]!r}"
        return "closed the connection without an answer"

    def _not_http(self, error: Exception | None) -> str:
        if self._unread.startswith(_PREFIX) and error is not None:
            return f"answer is not valid HTTP/1.1: {error}"
        return f"does not speak HTTP: answered {self._unread[:_SHOWN_BYTES]!r}"
