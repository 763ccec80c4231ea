"""The cluster link: authenticated, encrypted ZeroMQ channels between the two nodes.

One channel is one direction-less pipe of messages: this node binds a ROUTER for what the peer sends and connects a
DEALER for what it sends itself. Heartbeats and bulk flow blocks use separate channels, so that neither waits behind the
other. Every socket speaks CURVE (CurveZMQ, RFC 26); the authenticator knows exactly one client key, the peer's, and
anybody else gets no answer. Decides nothing about messages: they are bytes, bounded in size and number.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

ZAP_DOMAIN = "xlb"
PEER_SILENT_MS = 1000
"""A TCP connection whose peer acknowledges nothing for this long is closed and made again. An idle one is probed after
KEEPALIVE_S, and closed when its second probe falls due."""
KEEPALIVE_S = 1  # the shortest that tcp(7) has
KEEPALIVE_PROBES = 2
READS_PER_TURN = 256  # then the loop gets a turn
RECONNECT_MS = 20
RECONNECT_MAX_MS = 200
HANDSHAKE_TIMEOUT_MS = 2000
TOS_NETWORK_CONTROL = 0xC0  # class selector 6 (RFC 2474): what routers use for their own protocols

log = logging.getLogger(__name__)


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

    keys: this node's; peer_public: the peer's public key in Z85. realtime_priority: SCHED_FIFO priority of the thread that
    moves the bytes, 0 for an ordinary thread; only a process that may set it must ask for it, ZeroMQ aborts otherwise.
    """

    def __init__(self, keys: Keys, peer_public: str, realtime_priority: int = 0) -> None:
        for name, key in (("public", keys.public), ("secret", keys.secret), ("peer", peer_public)):
            if len(key) != 40 or len(z85.decode(key.encode())) != 32:
                raise ValueError(f"the {name} key is not 40 characters of Z85")
        self.keys, self.peer_public = keys, peer_public
        self._context = zmq.asyncio.Context(io_threads=1)
        if realtime_priority:
            self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
            self._context.set(zmq.THREAD_PRIORITY, realtime_priority)
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=_PeerKeyOnly(peer_public))
        self._channels: list[Channel] = []

    def open(
        self,
        local: str,
        peer: str,
        port: int,
        bounds: ChannelBounds,
        received: Callable[[bytes], None],
        device: str = "",
    ) -> Channel:
        """Bind `local`:port and connect to `peer`:port (both addresses, no names); `received` gets each message.

        device: the only interface that connections are taken from and made through: an address answers on every interface of
        a Linux host; empty for any. Raises OSError naming the address when it cannot be bound.
        """
        channel = Channel(self._context, self.keys, self.peer_public, bounds, received, device)
        try:
            channel.start(local, peer, port)
        except OSError:
            channel.close()
            raise
        self._channels.append(channel)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Close one channel; another one may then take its place."""
        channel.close()
        self._channels.remove(channel)

    async def close(self) -> None:
        for channel in self._channels:
            channel.close()
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
        device: str,
    ) -> None:
        self.counts = ChannelCounts()
        self._received = received
        # Plain sockets: an asyncio socket would wait where a full queue has to be noticed, and cannot be emptied at once.
        plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
        self._inward, self._outward = plain.socket(zmq.ROUTER), plain.socket(zmq.DEALER)
        self._loop = asyncio.get_running_loop()
        self._watched = -1  # descriptor the loop watches
        for socket in (self._inward, self._outward):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, bounds.queued_messages)
            socket.set(zmq.RCVHWM, bounds.queued_messages)
            socket.set(zmq.MAXMSGSIZE, bounds.message_bytes)
            _find_dead_connections(socket)
            socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
            socket.set(zmq.TOS, bounds.tos)
            if device:
                socket.set(zmq.BINDTODEVICE, device.encode())
            socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._inward.set(zmq.CURVE_SERVER, 1)
        self._inward.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
        self._inward.set(zmq.ROUTER_HANDOVER, 1)  # a peer that reconnects is the same peer
        self._outward.set(zmq.CURVE_SERVERKEY, peer_public.encode())
        self._outward.set(zmq.IMMEDIATE, 1)  # nothing is queued for a peer that is not there
        self._outward.set(zmq.CONNECT_TIMEOUT, PEER_SILENT_MS)  # else the kernel waits longer after each SYN without an answer
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
        self._watched = int(self._inward.get(zmq.FD))
        self._loop.add_reader(self._watched, self.drain)
        self.drain()

    def send(self, message: bytes) -> bool:
        """Queue a message without waiting; False if the queue is full or there is no connection."""
        try:
            self._outward.send(message, zmq.NOBLOCK, copy=True)  # else pyzmq starts a thread that takes the interpreter
        except zmq.Again:
            self.counts.unsent += 1
            return False
        self.counts.sent += 1
        return True

    def drain(self) -> None:
        """Hand over what has arrived, now and not when the loop comes round to it."""
        for _ in range(READS_PER_TURN):
            if self._watched < 0:  # closed by what a message led to
                return
            try:
                parts = self._inward.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 2:  # routing id, message: the DEALER at the other end sends single frames
                self.counts.received += 1
                try:
                    self._received(parts[1])
                except Exception:  # a bug met by one message must not stop the others
                    log.exception("cannot process a message of the peer")
        self._loop.call_soon(self.drain)  # the descriptor signals new messages only, not those that are left

    def close(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1
        self._inward.close()
        self._outward.close()


def _find_dead_connections(socket: zmq.Socket[bytes]) -> None:
    """Have the kernel close a connection whose other end is gone without a word.

    Not by ZMTP heartbeats (ZMQ_HEARTBEAT_IVL): libzmq aborts the process when one is due on a connection that was reset while
    its queue of received messages was full, as after a pause of the daemon (zeromq/libzmq issues 3937, 4364 and 4767).
    """
    socket.set(zmq.TCP_MAXRT, PEER_SILENT_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.set(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)


def _endpoint(address: str, port: int) -> str:
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
