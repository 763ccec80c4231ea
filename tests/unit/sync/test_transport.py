"""The cluster link over loopback: peers receive each other's messages, strangers receive nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest
import zmq

from sync.transport import ChannelBounds, Keys, Link
from tests.tree import TREE
from tests.wait import wait_until_async

BOUNDS = ChannelBounds(queued_messages=16, message_bytes=4096)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pair:
    """Two links on two loopback addresses, and what each has heard."""

    def __init__(self, one: Keys, two: Keys, two_expects: str) -> None:
        self.heard_one: list[bytes] = []
        self.heard_two: list[bytes] = []
        self.port = free_port()
        self.links = (Link(one, two.public), Link(two, two_expects))
        self.one = self.links[0].open("127.0.0.1", "127.0.0.2", self.port, BOUNDS, self.heard_one.append)
        self.two = self.links[1].open("127.0.0.2", "127.0.0.1", self.port, BOUNDS, self.heard_two.append)

    async def __aenter__(self) -> Pair:
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self.links:
            await link.close()


def test_messages_pass_in_both_directions() -> None:
    async def scene() -> None:
        one, two = Keys.generate(), Keys.generate()
        async with Pair(one, two, one.public) as pair:
            await wait_until_async(lambda: pair.one.send(b"from one") and pair.heard_two, "a message to arrive at two")
            await wait_until_async(lambda: pair.two.send(b"from two") and pair.heard_one, "a message to arrive at one")
            assert set(pair.heard_two) == {b"from one"} and set(pair.heard_one) == {b"from two"}

    asyncio.run(scene())


def test_an_unknown_key_receives_nothing() -> None:
    async def scene() -> None:
        one, two, stranger = Keys.generate(), Keys.generate(), Keys.generate()
        async with contextlib.AsyncExitStack() as stack, Pair(one, two, one.public) as pair:
            await wait_until_async(lambda: pair.one.send(b"friend") and pair.heard_two, "the peer to be heard")
            before = len(pair.heard_two)
            # The stranger knows two's public key and address, but its own key is not the one two expects.
            other = Link(stranger, two.public)
            stack.push_async_callback(other.close)
            intruder = other.open("127.0.0.3", "127.0.0.2", pair.port, BOUNDS, lambda _: None)
            friend_sent = 0
            for _ in range(200):
                intruder.send(b"stranger")
                friend_sent += pair.one.send(b"friend")
                await asyncio.sleep(0.002)
            await wait_until_async(lambda: len(pair.heard_two) >= before + 10, "the peer to be heard despite the stranger")
            assert set(pair.heard_two) == {b"friend"}

    asyncio.run(scene())


def test_an_unencrypted_socket_receives_nothing() -> None:
    async def scene() -> None:
        one, two = Keys.generate(), Keys.generate()
        async with Pair(one, two, one.public) as pair:
            plain: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
            plain.set(zmq.LINGER, 0)
            plain.connect(f"tcp://127.0.0.2:{pair.port}")
            plain.send(b"plain")
            await wait_until_async(lambda: pair.one.send(b"friend") and len(pair.heard_two) > 20, "the peer to be heard")
            assert set(pair.heard_two) == {b"friend"}
            plain.close()

    asyncio.run(scene())


def test_sending_without_a_peer_is_detected_and_queues_nothing() -> None:
    async def scene() -> None:
        keys = Keys.generate()
        link = Link(keys, Keys.generate().public)
        channel = link.open("127.0.0.1", "127.0.0.9", free_port(), BOUNDS, lambda _: None)
        assert not channel.send(b"anyone?")
        assert channel.counts.unsent == 1 and channel.counts.sent == 0
        await link.close()

    asyncio.run(scene())


def test_a_message_over_the_bound_is_not_delivered() -> None:
    async def scene() -> None:
        one, two = Keys.generate(), Keys.generate()
        async with Pair(one, two, one.public) as pair:
            await wait_until_async(lambda: pair.one.send(b"small") and pair.heard_two, "the peer to be heard")
            pair.one.send(bytes(BOUNDS.message_bytes + 1))
            before = len(pair.heard_two)
            await wait_until_async(lambda: pair.one.send(b"small") and len(pair.heard_two) > before + 1, "the link to recover")
            assert set(pair.heard_two) == {b"small"}

    asyncio.run(scene())


def test_connections_reset_while_the_queue_is_full_do_not_abort_the_process() -> None:
    child = [sys.executable, "-m", "tests.unit.sync.resets"]
    done = subprocess.run(child, cwd=TREE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_an_address_in_use_is_named() -> None:
    async def scene() -> None:
        one, two = Keys.generate(), Keys.generate()
        async with contextlib.AsyncExitStack() as stack, Pair(one, two, one.public) as pair:
            other = Link(one, two.public)
            stack.push_async_callback(other.close)
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {pair.port}"):
                other.open("127.0.0.1", "127.0.0.2", pair.port, BOUNDS, lambda _: None)

    asyncio.run(scene())


@pytest.mark.parametrize("key", ["", "short", "x" * 41])
def test_a_damaged_key_is_refused(key: str) -> None:
    async def scene() -> None:
        with pytest.raises(ValueError, match="peer key"):
            Link(Keys.generate(), key)

    asyncio.run(scene())
