"""The gateway as tie-breaker: one ICMP echo request per question, and which question a reply answers.

Does I/O and matches numbers; what a vote is worth is decided in `sync.failover`. The reply to a question must come while the
question is among the last MAX_QUESTIONS, and carry this incarnation's random identity: an old reply, or one to another
program's ping, is no vote. RFC 792, RFC 4443.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable

from ctl.network.kernel.announcements import internet_checksum
from ctl.network.kernel.own_addresses import index_of, source_towards

MAX_QUESTIONS = 64
READS_PER_TURN = 64
NONCE_BYTES = 8

_ECHO = struct.Struct("!BBHHH")
_ECHO4, _REPLY4, _ECHO6, _REPLY6 = 8, 0, 128, 129
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1


class GatewayProbe:
    """Asks one address. Create on a running loop; `answered(asked_ns)` is called for each reply.

    device: the only egress interface; empty: as the routing table decides. Raises OSError when the socket is refused.
    """

    def __init__(self, address: str, device: str, answered: Callable[[int], None]) -> None:
        self._address, self._device = address, device
        self._six = ":" in address
        self._answered = answered
        self._questions: dict[int, int] = {}
        self._sequence = 0
        self._identity, self._nonce = secrets.randbits(16), secrets.token_bytes(NONCE_BYTES)
        self._loop = asyncio.get_running_loop()
        self.answered_ns = 0
        """When the last question that was answered had been asked; 0: none was."""
        self.problem = ""
        """Why no question can be sent at this moment; empty if one can."""
        self._open()

    def _open(self) -> None:
        family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if self._six else (socket.AF_INET, socket.IPPROTO_ICMP)
        self._index = index_of(self._device)
        self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        try:
            if self._six:
                passing = bytearray(b"\xff" * 32)  # a set bit blocks (RFC 3542, section 3.2)
                passing[_REPLY6 // 32 * 4 : _REPLY6 // 32 * 4 + 4] = struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY6 % 32))
                self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(passing))
            else:
                self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY4)))
            if self._device:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device.encode() + b"\0")
            self._socket.connect((self._address, 0))
        except OSError:
            self._socket.close()
            raise
        self._source = str(self._socket.getsockname()[0]).partition("%")[0]
        self._loop.add_reader(self._socket.fileno(), self.drain)

    def follow(self) -> None:
        """Open the socket again if the kernel would use another source address or interface now: a socket keeps its first."""
        try:
            source = source_towards(self._address, self._device)
            if self._socket.fileno() < 0 or (source, index_of(self._device)) != (self._source, self._index):
                self.close()
                self._open()
        except OSError as error:
            self.problem = f"gateway {self._address} cannot be asked: {error.strerror}"
        else:
            self.problem = ""

    def ask(self, asked_ns: int) -> None:
        """Send one question; a gateway that cannot be reached gives no answer, and neither does an error here."""
        if self._socket.fileno() < 0:
            return
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._questions.pop(self._sequence, None)
        while len(self._questions) >= MAX_QUESTIONS:
            del self._questions[next(iter(self._questions))]
        self._questions[self._sequence] = asked_ns
        kind = _ECHO6 if self._six else _ECHO4
        head = _ECHO.pack(kind, 0, 0, self._identity, self._sequence)
        checksum = 0 if self._six else internet_checksum(head + self._nonce)  # ICMPv6: the kernel fills it in
        try:
            self._socket.send(_ECHO.pack(kind, 0, checksum, self._identity, self._sequence) + self._nonce)
        except BlockingIOError:
            return
        except OSError as error:
            self.problem = f"gateway {self._address} cannot be asked: {error.strerror or error}"
        else:
            self.problem = ""

    def drain(self) -> None:
        """Hand over the replies that have arrived."""
        for _ in range(READS_PER_TURN):
            if self._socket.fileno() < 0:
                return
            try:
                data = self._socket.recv(512)
            except BlockingIOError:
                return
            except OSError:
                continue  # e.g. host unreachable, reported on the socket: no answer
            asked_ns = self._questions.pop(self._question_of(data), None)
            if asked_ns is not None:
                self.answered_ns = asked_ns
                self._answered(asked_ns)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _question_of(self, data: bytes) -> int:
        """The number a reply answers; -1 if it answers none of ours."""
        start = 0 if self._six else (data[0] & 0xF) * 4 if data else 0
        message = data[start:]
        if len(message) < _ECHO.size + NONCE_BYTES:
            return -1
        kind, _, _, identity, sequence = _ECHO.unpack_from(message)
        ours = identity == self._identity and message[_ECHO.size : _ECHO.size + NONCE_BYTES] == self._nonce
        return int(sequence) if ours and kind == (_REPLY6 if self._six else _REPLY4) else -1
