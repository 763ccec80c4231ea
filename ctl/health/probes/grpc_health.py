"""The gRPC health protocol, grpc.health.v1.Health/Check: bytes in, the reason of a failure out. No I/O.

h2 speaks HTTP/2 (RFC 9113). The two messages are small enough to be encoded here: a request has one string, an answer one
number. Loaded by the first gRPC check. Bounded: MAX_BYTES until the answer is complete.
"""

from __future__ import annotations

import struct

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from ctl.health.probes.http_answer import NotAnswered

MAX_BYTES = 65536
_SETTINGS = 4
_SERVING = 1
_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_STATUS = {"5": "the server does not know this service", "12": "the server has no health service"}


class GrpcHealth:
    """One call. Send `request`, then what `feed` adds to `outgoing`."""

    def __init__(self, service: str, authority: str, user_agent: str) -> None:
        self._service = service
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._connection.initiate_connection()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", authority),
            (":path", "/grpc.health.v1.Health/Check"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", user_agent),
        ]
        self._connection.send_headers(1, headers)
        name = service.encode()
        message = b"\x0a" + _varint(len(name)) + name if name else b""
        self._connection.send_data(1, struct.pack("!BI", 0, len(message)) + message, end_stream=True)
        self.outgoing: bytes = self._connection.data_to_send()
        self._body = b""
        self._bytes = 0
        self._start = b""  # of the first frame, which are settings (RFC 9113 section 3.4)

    def feed(self, data: bytes) -> bool:
        """Whether the server is serving; False: more bytes are needed. Raises NotAnswered."""
        self._bytes += len(data)
        if not data:
            raise NotAnswered("closed the connection without an answer")
        self._start = (self._start + data)[:9]
        if len(self._start) > 3 and self._start[3] != _SETTINGS:
            raise NotAnswered(f"does not speak gRPC: answered {data[:40]!r}")
        if self._bytes > MAX_BYTES:
            raise NotAnswered(f"sent more than {MAX_BYTES} bytes without a complete answer")
        try:
            events = self._connection.receive_data(data)
        except (h2.exceptions.H2Error, ValueError) as error:
            raise NotAnswered(f"does not speak gRPC: {type(error).__name__}") from None
        done = False
        for event in events:  # each of them
            done = self._take(event) or done
        self.outgoing = self._connection.data_to_send()
        return done and self._is_serving()

    def _take(self, event: h2.events.Event) -> bool:
        """Whether the answer is complete."""
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            headers = {str(name): str(value) for name, value in event.headers or ()}
            if headers.get(":status", "200") != "200":
                raise NotAnswered(f"does not speak gRPC: answered {headers[':status']}")
            status = headers.get("grpc-status", "0")
            if status != "0":
                what = _STATUS.get(status) or headers.get("grpc-message", "")[:80] or "see grpc.io/docs/guides/status-codes"
                raise NotAnswered(f"answered gRPC status {status[:8]}: {what}")
        elif isinstance(event, h2.events.DataReceived):
            self._body += event.data or b""
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
            raise NotAnswered(f"refused the call: HTTP/2 error {event.error_code}")
        return isinstance(event, h2.events.StreamEnded)

    def _is_serving(self) -> bool:
        try:
            state = _state_of(self._body)
        except (IndexError, struct.error, ValueError):
            raise NotAnswered(f"answer is not a HealthCheckResponse: {self._body[:40]!r}") from None
        if state != _SERVING:
            service = f"service {self._service}" if self._service else "the server"
            raise NotAnswered(f"{service} is {_STATES.get(state, state)}")
        return True


def _state_of(body: bytes) -> int:
    """The number of field 1 of a message; 0 where it is left out. Raises ValueError, IndexError, struct.error."""
    compressed, length = struct.unpack_from("!BI", body)
    message = body[5 : 5 + length]
    if compressed or len(message) != length:
        raise ValueError
    state = place = 0
    while place < len(message):
        field, place = _read_varint(message, place)
        if field & 7:  # only numbers are expected
            raise ValueError
        value, place = _read_varint(message, place)
        state = value if field >> 3 == 1 else state
    return state


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])  # names have 255 bytes at most


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if not byte & 128:
            return value, place
        if shift > 63:
            raise ValueError
