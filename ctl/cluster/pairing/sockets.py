"""The sockets of pairing: the creator listens while a token is valid, the joiner connects.

Decides no message (`ctl.cluster.pairing.exchange` does); bounds what is read and for how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

import zmq
import zmq.asyncio
from zmq.auth import CURVE_ALLOW_ANY
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import parse_monitor_message

from ctl.cluster.pairing.exchange import MAX_MESSAGE_BYTES, WORKING, Agreed, Invitation, Token
from ctl.errors import Code, XlbError
from ctl.network.kernel.own_addresses import device_towards
from ctl.state.cluster_file import ClusterSettings
from sync.transport import Keys

DOMAIN = "xlb-pairing"
HANDSHAKE_TIMEOUT_MS = 15_000
LINGER_S = 10.0
"""How long the creator listens after the pair was made, for a joiner that missed the confirmation."""

CONNECT_TIMEOUT_S = 5.0
SILENCE_S = 20.0
"""A creator that is silent for this long is given up. One that works answers each repeated message."""
ASK_AGAIN_S = 2.0
REFUSED_WITHIN_S = 5.0
"""A creator with another key ends the handshake at once, one that is too busy only after HANDSHAKE_TIMEOUT_MS."""
MAX_REFUSALS = 3
POLL_MS = 500

log = logging.getLogger(__name__)

StorePair = Callable[[ClusterSettings], Awaitable[None]]


def _socket(context: zmq.asyncio.Context, kind: int, keys: Keys, address: str) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.SNDHWM, 8),
        (zmq.RCVHWM, 8),
        (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS),
        (zmq.IPV6, int(":" in address)),
        (zmq.CURVE_PUBLICKEY, keys.public.encode()),
        (zmq.CURVE_SECRETKEY, keys.secret.encode()),
    ):
        socket.set(option, value)
    return socket


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class Listener:
    """Listens for the node that has the token. Create on a running loop, `open`, `close` once."""

    def __init__(self, invitation: Invitation, keys: Keys, store: StorePair) -> None:
        """`store` makes this node the active one of the pair; it raises XlbError when it cannot."""
        self.invitation = invitation
        self._keys, self._store = keys, store
        self._context = zmq.asyncio.Context(io_threads=1)
        self._authenticator = AsyncioAuthenticator(self._context)
        self._reader: asyncio.Task[None] | None = None
        self._storing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Raises XlbError naming the address when it cannot be bound."""
        token = self.invitation.token
        self._authenticator.start()
        # Any key may connect; without proof of the token its messages have no effect.
        self._authenticator.configure_curve(domain=DOMAIN, location=CURVE_ALLOW_ANY)
        socket = _socket(self._context, zmq.ROUTER, self._keys, token.address)
        if device := device_towards(token.address, token.address).name:
            socket.set(zmq.BINDTODEVICE, device.encode())  # not through the data network
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.ZAP_DOMAIN, DOMAIN.encode())
        try:
            socket.bind(f"tcp://{_host(token.address)}:{token.port}")
        except zmq.ZMQError as error:
            socket.close(0)
            where = f"{token.address} port {token.port}"
            raise XlbError(f"cannot listen on {where} for the other node: {error.strerror}") from None
        self._reader = asyncio.get_running_loop().create_task(self._read(socket), name="pairing")

    async def close(self) -> None:
        for task in (self._storing, self._reader):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._stop()

    def _stop(self) -> None:
        if not self._context.closed:
            self._authenticator.stop()
            self._context.destroy(linger=0)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        try:
            deadline_ns = self.invitation.expires_ns
            while (now_ns := time.monotonic_ns()) < deadline_ns or self._is_storing:
                if self.invitation.over(now_ns):
                    deadline_ns = min(deadline_ns, now_ns + int(LINGER_S * 1e9))
                if await socket.poll(_poll_ms(deadline_ns - now_ns)):
                    frames = await socket.recv_multipart()
                    if len(frames) == 2:
                        await self._received(socket, *frames)
            if not self.invitation.used:
                log.info("join token expired unused")
        finally:
            socket.close(0)
            asyncio.get_running_loop().call_soon(self._stop)

    @property
    def _is_storing(self) -> bool:
        return self._storing is not None and not self._storing.done()

    async def _received(self, socket: zmq.asyncio.Socket, client: bytes, message: bytes) -> None:
        outcome = self.invitation.received(message, time.monotonic_ns(), int(time.time()))
        if isinstance(outcome, Agreed):
            work = self._store_and_answer(socket, client, outcome.settings)
            self._storing = asyncio.get_running_loop().create_task(work, name="storing the pair")
            return
        if outcome.note:
            log.log(logging.WARNING if outcome.refused else logging.INFO, "pairing: %s", outcome.note)
        await _send(socket, client, outcome.message)

    async def _store_and_answer(self, socket: zmq.asyncio.Socket, client: bytes, settings: ClusterSettings) -> None:
        """In a task, so that the joiner, which asks again meanwhile, hears that this node works."""
        try:
            await self._store(settings)
        except XlbError as error:
            log.error("pairing with %s failed: %s", settings.peer.name, error)
            answer = self.invitation.failed(error)
        else:
            answer = self.invitation.completed()
        await _send(socket, client, answer)


def _poll_ms(left_ns: int) -> int:
    """How long to wait for a message: short enough to notice that the pair was stored meanwhile."""
    return max(1, min(left_ns // 1_000_000, POLL_MS))


async def _send(socket: zmq.asyncio.Socket, client: bytes, answer: bytes) -> None:
    """A joiner that misses an answer asks again."""
    with contextlib.suppress(zmq.ZMQError):
        await socket.send_multipart([client, answer], flags=zmq.NOBLOCK)


class JoinConnection:
    """The joiner's connection to the creator of `token`. Use as an asynchronous context manager on a running loop."""

    def __init__(self, token: Token, keys: Keys, local: str) -> None:
        self._token, self._keys, self._local = token, keys, local
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._handshake = Handshake()

    async def __aenter__(self) -> Self:
        """Raises XlbError with the cause when the creator cannot be reached."""
        await require_listener(self._local, self._token)
        self._socket = _socket(self._context, zmq.DEALER, self._keys, self._token.address)
        self._socket.set(zmq.CURVE_SERVERKEY, self._token.public_key.encode())
        self._monitor = self._socket.get_monitor_socket()
        self._socket.connect(f"tcp://{_host(self._local)}:0;{_host(self._token.address)}:{self._token.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
        self._context.destroy(linger=0)

    async def ask(self, message: bytes) -> bytes:
        """Send until an answer comes: the creator answers a repeated message as before.

        Raises XlbError once the creator has been silent for SILENCE_S, or has another key.
        """
        assert self._socket is not None
        heard_s, send_s = (now_s := time.monotonic()), now_s
        while (left_s := heard_s + SILENCE_S - now_s) > 0 and not self._handshake.refused:
            if now_s >= send_s:
                send_s = now_s + ASK_AGAIN_S
                with contextlib.suppress(zmq.Again):
                    await self._socket.send(message, flags=zmq.NOBLOCK)
            if await self._socket.poll(max(1, round(min(left_s, send_s - now_s) * 1000))):
                answer = bytes(await self._socket.recv())
                if answer != WORKING:
                    return answer
                heard_s = time.monotonic()
            await self._follow_handshake()
            now_s = time.monotonic()
        where = f"{self._token.address} port {self._token.port}"
        raise XlbError(self._handshake.why_no_answer(where, SILENCE_S), Code.CREATOR_UNREACHABLE)

    async def _follow_handshake(self) -> None:
        assert self._monitor is not None
        while await self._monitor.poll(0):
            event = parse_monitor_message(await self._monitor.recv_multipart())
            self._handshake.happened(event["event"], time.monotonic())


@dataclass(slots=True)
class Handshake:
    """What became of the encrypted connection to the creator, from the events of its socket. Times in seconds."""

    done: bool = False
    refusals: int = 0
    _connected_s: float = 0.0

    @property
    def refused(self) -> bool:
        return not self.done and self.refusals >= MAX_REFUSALS

    def happened(self, event: int, now_s: float) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._connected_s = now_s
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.done = True
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and now_s < self._connected_s + REFUSED_WITHIN_S:
            self.refusals += 1

    def why_no_answer(self, where: str, silent_s: float) -> str:
        if self.refused:
            return f"{where} has another key: the token is not the newest one of that node; make a new one"
        if self.done:
            cause = f"{where} accepted the connection, and then sent nothing for {silent_s:g} s: its xlbd hangs or was cut off"
        else:
            cause = f"{where} did not complete the encrypted connection within {silent_s:g} s: its xlbd hangs or is overloaded"
        return f"{cause}; see journalctl -u xlbd there, then repeat the command"


async def require_listener(local: str, token: Token) -> None:
    """Try a plain connect first: ZeroMQ would retry without a message, the kernel reports the cause at once."""
    where = f"{token.address} port {token.port}"
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(token.address, token.port, local_addr=(local, 0)), CONNECT_TIMEOUT_S
        )
    except TimeoutError:
        raise XlbError(
            f"{where} cannot be reached from {local}: nothing answers; check the cluster cable and firewalls",
            Code.CREATOR_UNREACHABLE,
        ) from None
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            remedy = "make a new one with xlbctl cluster create --token-only"
            message = f"no node listens at {where}: the token was used, has expired or was replaced; {remedy}"
            raise XlbError(message, Code.CREATOR_UNREACHABLE) from None
        raise XlbError(
            f"{where} cannot be reached from {local}: {os.strerror(error.errno) if error.errno else error}",
            Code.CREATOR_UNREACHABLE,
        ) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
