"""The cluster link: authenticated, encrypted ZeroMQ channels between the two nodes.

One channel is one direction-less pipe of messages: this node binds a ROUTER for what the peer sends and connects a
DEALER for what it sends itself. Heartbeats and bulk flow blocks use separate channels, so that neither waits behind the
other. Every socket speaks CURVE (CurveZMQ, RFC 26); the authenticator knows exactly one client key, the peer's, and
anybody else gets no answer. Decides nothing about messages: they are bytes, bounded in size and number.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

ZAP_DOMAIN = "xlb"
PEER_SILENT_MS = 1000  # a TCP connection that answers no ping for so long is given up and made anew
PING_INTERVAL_MS = 300
RECONNECT_MS = 20
RECONNECT_MAX_MS = 200
HANDSHAKE_TIMEOUT_MS = 2000
TOS_NETWORK_CONTROL = 0xC0  # class selector 6 (RFC 2474): what routers use for their own protocols


@dataclass(frozen=True, slots=True)
class Keys:
    """A CURVE key pair, Z85 text of 40 characters each."""

    public: str
    secret: str

    @staticmethod
    def generate() -> Keys:
        public, secret = zmq.curve_keypair()
        return Keys(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class ChannelBounds:
    """How much a channel holds and takes."""

    queued_messages: int
    message_bytes: int
    tos: int = 0


@dataclass(slots=True)
class ChannelCounts:
    """What a channel has seen since it was opened."""

    sent: int = 0
    unsent: int = 0  # the queue was full or the peer not connected
    received: int = 0


class _PeerKeyOnly:
    """Credentials provider for the ZAP handler: one key, and nothing else."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == ZAP_DOMAIN and key == self._public


class Link:
    """All channels to one peer. Create on a running loop; `close` once.

    keys: this node's; peer_public: the peer's public key in Z85.
    """

    def __init__(self, keys: Keys, peer_public: str) -> None:
        for name, key in (("public", keys.public), ("secret", keys.secret), ("peer", peer_public)):
            if len(key) != 40 or len(z85.decode(key.encode())) != 32:
                raise ValueError(f"the {name} key is not 40 characters of Z85")
        self.keys, self.peer_public = keys, peer_public
        self._context = zmq.asyncio.Context(io_threads=1)
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=_PeerKeyOnly(peer_public))
        self._channels: list[Channel] = []

    def open(self, local: str, peer: str, port: int, bounds: ChannelBounds, received: Callable[[bytes], None]) -> Channel:
        """Bind `local`:port and connect to `peer`:port (both addresses, no names); `received` gets each message.

        Raises OSError naming the address when it cannot be bound.
        """
        channel = Channel(self._context, self.keys, self.peer_public, bounds, received)
        channel.start(local, peer, port)
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels.clear()
        self._authenticator.stop()
        self._context.destroy(linger=0)


class Channel:
    """One pipe of messages to the peer; made by `Link.open`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        keys: Keys,
        peer_public: str,
        bounds: ChannelBounds,
        received: Callable[[bytes], None],
    ) -> None:
        self.counts = ChannelCounts()
        self._received = received
        self._inward = context.socket(zmq.ROUTER)
        # Plain sending: an asyncio socket would wait where a full queue has to be noticed.
        self._outward = zmq.Context(context).socket(zmq.DEALER)
        self._reader: asyncio.Task[None] | None = None
        for socket in (self._inward, self._outward):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, bounds.queued_messages)
            socket.set(zmq.RCVHWM, bounds.queued_messages)
            socket.set(zmq.MAXMSGSIZE, bounds.message_bytes)
            socket.set(zmq.HEARTBEAT_IVL, PING_INTERVAL_MS)
            socket.set(zmq.HEARTBEAT_TIMEOUT, PEER_SILENT_MS)
            socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
            socket.set(zmq.TOS, bounds.tos)
            socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._inward.set(zmq.CURVE_SERVER, 1)
        self._inward.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
        self._inward.set(zmq.ROUTER_HANDOVER, 1)  # a peer that reconnects is the same peer
        self._outward.set(zmq.CURVE_SERVERKEY, peer_public.encode())
        self._outward.set(zmq.IMMEDIATE, 1)  # nothing is queued for a peer that is not there
        self._outward.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._outward.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)

    def start(self, local: str, peer: str, port: int) -> None:
        for address in (local, peer):
            if ":" in address:
                self._inward.set(zmq.IPV6, 1)
                self._outward.set(zmq.IPV6, 1)
        try:
            self._inward.bind(_endpoint(local, port))
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {local} port {port}: {error.strerror}") from None
        self._outward.connect(_endpoint(peer, port))
        self._reader = asyncio.get_running_loop().create_task(self._read())

    def send(self, message: bytes) -> bool:
        """Queue a message without waiting; False if there is no room or no connection."""
        try:
            self._outward.send(message, zmq.NOBLOCK, copy=len(message) < 65536)
        except zmq.Again:
            self.counts.unsent += 1
            return False
        self.counts.sent += 1
        return True

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self._inward.close()
        self._outward.close()

    async def _read(self) -> None:
        while True:
            parts = await self._inward.recv_multipart()
            if len(parts) == 2:  # routing id, message: the DEALER at the other end sends single frames
                self.counts.received += 1
                self._received(parts[1])


def _endpoint(address: str, port: int) -> str:
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
