"""A process whose incoming connections are reset while its queue of received messages is full; exits 0 if it survives.

Run as `python -m tests.unit.sync.resets`. With ZMTP heartbeats on the channel's sockets libzmq ends it by SIGABRT: the next
heartbeat is due on a connection that failed while it was not read (zeromq/libzmq issues 3937, 4364 and 4767).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time

import zmq

from sync.transport import ChannelBounds, Keys, Link
from tests.wait import wait_until, wait_until_async

CONNECTIONS = 10
MESSAGES = 2000
HEARTBEATS_S = 0.7
"""More than twice the interval of the ZMTP heartbeats that there were."""


class Relay:
    """Passes on what a client sends to a local port, and what comes back, until it resets the connection."""

    def __init__(self, port: int) -> None:
        self.relayed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = port
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._server = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._pass_on, args=(self._server, client), daemon=True).start()
        self._pass_on(client, self._server)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                self.relayed += len(data)

    def reset(self) -> None:
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self._server.detach())


def dealer(context: zmq.Context[zmq.Socket[bytes]], keys: Keys, server: Keys, port: int) -> zmq.Socket[bytes]:
    one = context.socket(zmq.DEALER)
    one.set(zmq.LINGER, 0)
    one.set(zmq.RECONNECT_IVL, -1)
    one.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
    one.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
    one.set(zmq.CURVE_SERVERKEY, server.public.encode())
    one.connect(f"tcp://127.0.0.1:{port}")
    return one


async def scene() -> None:
    server, peer = Keys.generate(), Keys.generate()
    heard: list[bytes] = []
    link = Link(server, peer.public)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    link.open("127.0.0.1", "127.0.0.2", port, ChannelBounds(queued_messages=4, message_bytes=4096), heard.append)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    relays = [Relay(port) for _ in range(CONNECTIONS)]
    dealers = [dealer(context, peer, server, relay.port) for relay in relays]
    for each in dealers:
        each.send(b"first")
    await wait_until_async(lambda: len(heard) == CONNECTIONS, "one message of each connection")
    # From here on this thread does not read, like a process that was paused.
    for each in dealers:
        for _ in range(MESSAGES):
            each.send(bytes(1000))
    before: list[int] = []

    def settled() -> bool:
        before.append(sum(relay.relayed for relay in relays))
        return len(before) > 3 and before[-1] == before[-3]

    wait_until(settled, "the queues to be full")
    for relay in relays:
        relay.reset()
    time.sleep(HEARTBEATS_S)
    await wait_until_async(lambda: len(heard) > 2 * CONNECTIONS, "what was queued to be read")
    context.destroy(linger=0)
    await link.close()


if __name__ == "__main__":
    asyncio.run(scene())
