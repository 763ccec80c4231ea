"""The cluster link's TCP connections on a real cable: what is found dead, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sync.transport import ChannelBounds, Keys, Link
from tests.net.cable import Cable, joined
from tests.rig.namespaces import Namespace
from tests.wait import wait_until_async

PORT = 7100
IDLE_PORT = 7101
BOUNDS = ChannelBounds(queued_messages=16, message_bytes=4096)
ADDRESSES = {4: ("10.66.0.1", "10.66.0.2"), 6: ("fd66::1", "fd66::2")}
FOUND_S = 5.0  # a second without an acknowledgement, or the second probe of an idle connection; not the kernel's 15 minutes


@pytest.fixture
def cable() -> Iterator[Cable]:
    with joined() as cable:
        yield cable


def connections(namespace: Namespace, port: int) -> list[str]:
    shown = namespace.run("ss", "-Htn", "state", "established", f"( sport = :{port} or dport = :{port} )").stdout
    return shown.splitlines()


@pytest.mark.parametrize("family", [4, 6])
def test_connections_of_a_peer_that_is_gone_are_closed_within_seconds_and_made_again(cable: Cable, family: int) -> None:
    """One channel in use and an idle one; the peer's end of the cable is taken down, which this end is not told of by TCP."""
    here, there = ADDRESSES[family]
    one, two = Keys.generate(), Keys.generate()
    beacon = asyncio.Event()

    async def far_end() -> None:
        link = Link(two, one.public)
        for port in (PORT, IDLE_PORT):
            link.open(there, here, port, BOUNDS, lambda _: None)
        await beacon.wait()
        await link.close()

    async def scene() -> None:
        link = Link(one, two.public)
        try:
            busy = link.open(here, there, PORT, BOUNDS, lambda _: None)
            link.open(here, there, IDLE_PORT, BOUNDS, lambda _: None)
            await wait_until_async(lambda: busy.send(b"heard"), "the channel to connect")
            await wait_until_async(lambda: len(connections(cable.here, IDLE_PORT)) == 2, "the idle channel, both directions")
            cable.there.ip("link set eth0 down")
            await wait_until_async(lambda: not busy.send(b"lost"), "the channel in use to be found dead", FOUND_S)
            await wait_until_async(lambda: not connections(cable.here, IDLE_PORT), "the idle channel to be found dead", FOUND_S)
            cable.there.ip("link set eth0 up", f"addr replace {there}/{24 if family == 4 else 64} dev eth0")
            await wait_until_async(lambda: busy.send(b"heard again"), "the channel to connect again", FOUND_S)
        finally:
            await link.close()

    def far_thread() -> None:
        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await far_end()

        cable.there.call(lambda: asyncio.run(run()))

    loops: list[asyncio.AbstractEventLoop] = []
    with ThreadPoolExecutor(1) as thread:
        far = thread.submit(far_thread)
        try:
            cable.here.call(lambda: asyncio.run(scene()))
        finally:
            loops[0].call_soon_threadsafe(beacon.set)
            far.result(20)
