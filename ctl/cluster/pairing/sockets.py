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
from typing import Self

import zmq
import zmq.asyncio
from zmq.auth import CURVE_ALLOW_ANY
from zmq.auth.asyncio import AsyncioAuthenticator

from ctl.cluster.pairing.exchange import MAX_MESSAGE_BYTES, Agreed, Invitation, Token
from ctl.errors import Code, XlbError
from ctl.network.kernel.own_addresses import device_towards
from ctl.state.cluster_file import ClusterSettings
from sync.transport import Keys

DOMAIN = "xlb-pairing"
HANDSHAKE_TIMEOUT_MS = 2000
LINGER_S = 10.0
"""How long the creator listens after the pair was made, for a joiner that missed the confirmation."""

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
ASK_AGAIN_S = 2.0

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
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._stop()

    def _stop(self) -> None:
        if not self._context.closed:
            self._authenticator.stop()
            self._context.destroy(linger=0)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        try:
            deadline_ns = self.invitation.expires_ns
            while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
                try:
                    frames = await asyncio.wait_for(socket.recv_multipart(), left_ns / 1e9)
                except TimeoutError:
                    break
                if len(frames) != 2:
                    continue
                answer = await self._answer(frames[1])
                if answer:
                    with contextlib.suppress(zmq.ZMQError):
                        await socket.send_multipart([frames[0], answer], flags=zmq.NOBLOCK)
                if self.invitation.over(time.monotonic_ns()):
                    deadline_ns = min(deadline_ns, time.monotonic_ns() + int(LINGER_S * 1e9))
            if not self.invitation.used:
                log.info("join token expired unused")
        finally:
            socket.close(0)
            asyncio.get_running_loop().call_soon(self._stop)

    async def _answer(self, message: bytes) -> bytes:
        outcome = self.invitation.received(message, time.monotonic_ns(), int(time.time()))
        if not isinstance(outcome, Agreed):
            if outcome.note:
                log.log(logging.WARNING if outcome.refused else logging.INFO, "pairing: %s", outcome.note)
            return outcome.message
        try:
            await self._store(outcome.settings)
        except XlbError as error:
            log.error("pairing with %s failed: %s", outcome.settings.peer.name, error)
            return self.invitation.failed(error)
        return self.invitation.completed()


class JoinConnection:
    """The joiner's connection to the creator of `token`. Use as an asynchronous context manager on a running loop."""

    def __init__(self, token: Token, keys: Keys, local: str) -> None:
        self._token, self._keys, self._local = token, keys, local
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket: zmq.asyncio.Socket | None = None

    async def __aenter__(self) -> Self:
        """Raises XlbError with the cause when the creator cannot be reached."""
        await _require_listener(self._local, self._token)
        self._socket = _socket(self._context, zmq.DEALER, self._keys, self._token.address)
        self._socket.set(zmq.CURVE_SERVERKEY, self._token.public_key.encode())
        self._socket.connect(f"tcp://{_host(self._local)}:0;{_host(self._token.address)}:{self._token.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close(0)
        self._context.destroy(linger=0)

    async def ask(self, message: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """Send until an answer comes: the creator answers a repeated message as before. Raises XlbError."""
        assert self._socket is not None
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            with contextlib.suppress(zmq.Again):
                await self._socket.send(message, flags=zmq.NOBLOCK)
            if await self._socket.poll(round(min(left_s, ASK_AGAIN_S) * 1000)):
                return bytes(await self._socket.recv())
        where = f"{self._token.address} port {self._token.port}"
        raise XlbError(
            f"{where} did not answer within {timeout_s:g} s: the token is not the newest one of that node; make a new one",
            Code.CREATOR_UNREACHABLE,
        )


async def _require_listener(local: str, token: Token) -> None:
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
