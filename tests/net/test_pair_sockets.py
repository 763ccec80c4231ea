"""VRRP and the gateway's vote on real raw sockets, and addresses that are moved in bulk."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ctl.cluster.gateway_probe import GatewayProbe
from ctl.cluster.vrrp_socket import VrrpSocket
from ctl.errors import XlbError
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.network.network import InterfaceAddress
from tests.rig.namespaces import Namespace
from tests.wait import wait_until_async

DEADLINE_S = 10.0
ADDRESSES = {4: ("10.7.0.1", "10.7.0.2"), 6: ("fd07::1", "fd07::2")}


@pytest.fixture
def cable() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a cable, eth0 to eth0, with both families."""
    one, two = Namespace("one"), Namespace("two")
    try:
        one.ip(f"link add eth0 type veth peer name eth0 netns {two.path}")
        for namespace, number in ((one, 1), (two, 2)):
            namespace.ip(
                "link set eth0 up", f"addr add 10.7.0.{number}/24 dev eth0", f"addr add fd07::{number}/64 dev eth0 nodad"
            )
        yield one, two
    finally:
        one.close()
        two.close()


@contextmanager
def advertised(namespace: Namespace, make: Callable[[], list[tuple[VrrpSocket, int]]]) -> Iterator[None]:
    """Advertise priorities from sockets in `namespace`, repeatedly while the test runs."""
    enough = threading.Event()

    async def send() -> None:
        sockets = make()
        while not enough.is_set():
            for each, priority in sockets:
                each.send(priority)
            await asyncio.sleep(0.005)
        for each, _ in sockets:
            each.close()

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(lambda: namespace.call(lambda: asyncio.run(send())))
        try:
            yield
        finally:
            enough.set()
            sending.result(DEADLINE_S)


@pytest.mark.parametrize("multicast", [False, True], ids=["unicast", "multicast"])
@pytest.mark.parametrize("family", [4, 6])
def test_advertisements_cross_the_cable(cable: tuple[Namespace, Namespace], family: int, multicast: bool) -> None:
    one, two = cable
    (first, second), device = ADDRESSES[family], "eth0" if multicast else ""
    virtual = ["10.7.0.100", "fd07::100"]
    heard: list[tuple[int, bool]] = []

    def speakers() -> list[tuple[VrrpSocket, int]]:
        ours = VrrpSocket(first, second, 51, 100, device, lambda: virtual, lambda *_: None)
        other_router = VrrpSocket(first, second, 52, 100, "", lambda: virtual, lambda *_: None)
        return [(ours, 100), (ours, 0), (other_router, 200)]

    async def listen() -> None:
        listener = VrrpSocket(second, first, 51, 100, device, lambda: virtual, lambda *what: heard.append(what))
        try:
            await wait_until_async(lambda: len(heard) >= 4 and listener.counts.foreign >= 4, "advertisements of both routers")
            assert set(heard) == {(100, False), (0, False)}
            assert listener.counts.malformed == 0
        finally:
            listener.close()

    with advertised(one, speakers):
        two.call(lambda: asyncio.run(listen()))


@pytest.mark.parametrize("family", [4, 6])
def test_an_advertisement_of_anybody_else_is_not_the_peers(cable: tuple[Namespace, Namespace], family: int) -> None:
    one, two = cable
    first, second = ADDRESSES[family]
    somebody = first.replace("1", "3") if family == 6 else "10.7.0.3"
    one.ip(f"addr add {somebody}/{24 if family == 4 else 64} dev eth0{' nodad' if family == 6 else ''}")

    async def listen() -> None:
        listener = VrrpSocket(second, first, 51, 100, "", list, lambda *_: pytest.fail("a stranger was heard"))
        try:
            await wait_until_async(lambda: listener.counts.foreign >= 4, "foreign advertisements")
        finally:
            listener.close()

    with advertised(one, lambda: [(VrrpSocket(somebody, second, 51, 100, "", list, lambda *_: None), 100)]):
        two.call(lambda: asyncio.run(listen()))


def test_an_address_that_is_not_there_is_named(cable: tuple[Namespace, Namespace]) -> None:
    async def scene() -> None:
        with pytest.raises(XlbError, match=r"no VRRP from 10\.9\.9\.9"):
            VrrpSocket("10.9.9.9", "10.7.0.2", 51, 100, "", list, lambda *_: None)

    cable[0].call(lambda: asyncio.run(scene()))


@pytest.mark.parametrize("family", [4, 6])
def test_the_gateway_answers_what_it_was_asked(cable: tuple[Namespace, Namespace], family: int) -> None:
    async def scene() -> None:
        answered: list[int] = []
        probe = GatewayProbe(ADDRESSES[family][1], "eth0", answered.append)
        try:
            for number in (7, 8, 9):
                probe.ask(number)
                await wait_until_async(functools.partial(answered.__contains__, number), f"answer {number}")
            assert answered == [7, 8, 9]
        finally:
            probe.close()

    cable[0].call(lambda: asyncio.run(scene()))


def test_no_reply_to_somebody_elses_question_is_a_vote(cable: tuple[Namespace, Namespace]) -> None:
    async def scene() -> None:
        ours: list[int] = []
        theirs: list[int] = []
        deaf, other = GatewayProbe("10.7.0.2", "", ours.append), GatewayProbe("10.7.0.2", "", theirs.append)
        try:
            deaf.ask(1)
            await wait_until_async(lambda: ours == [1], "our answer")
            for number in range(2, 6):
                other.ask(number)
            await wait_until_async(lambda: len(theirs) == 4, "four answers")
            deaf.drain()
            assert ours == [1]
        finally:
            deaf.close()
            other.close()

    cable[0].call(lambda: asyncio.run(scene()))


def test_a_gateway_that_is_gone_gives_no_vote_and_no_error(cable: tuple[Namespace, Namespace]) -> None:
    async def scene() -> None:
        answered: list[int] = []
        probe = GatewayProbe("10.7.0.2", "eth0", answered.append)
        try:
            one.ip("link set eth0 down")
            for number in range(200):
                probe.ask(number)
            probe.drain()
            assert answered == []
            assert len(probe._questions) <= 64
        finally:
            probe.close()

    one, _ = cable
    one.call(lambda: asyncio.run(scene()))


def test_addresses_are_moved_in_bulk_and_refusals_named(cable: tuple[Namespace, Namespace]) -> None:
    wanted = [InterfaceAddress("eth0", f"10.8.{number // 250}.{number % 250 + 1}", 24) for number in range(300)]
    wanted += [InterfaceAddress("eth0", f"fd08::{number:x}", 64) for number in range(1, 20)]

    def scene() -> None:
        network = KernelNetwork()
        batch = network.ready([*wanted, InterfaceAddress("gone0", "10.8.9.9", 24)])
        assert batch.add() == ["cannot add 10.8.9.9/24 on gone0: the interface does not exist"]
        assert network.addresses() >= set(wanted)
        assert len(batch.add()) == 1, "what is there already is no error"
        assert batch.announce() == []
        assert batch.remove() == []
        assert not network.addresses() & set(wanted)
        assert batch.remove() == [], "what is gone already is no error"
        batch.close()
        refused = network.ready([InterfaceAddress("eth0", "10.8.9.9", 33)])
        assert refused.add() == ["cannot add 10.8.9.9/33 on eth0: Invalid argument"]
        refused.close()

    cable[0].call(scene)


def test_a_vip_of_version_6_is_deprecated_from_birth(cable: tuple[Namespace, Namespace]) -> None:
    """Otherwise the kernel would prefer it as the source of the node's own packets."""
    one, _ = cable

    def scene() -> None:
        batch = KernelNetwork().ready([InterfaceAddress("eth0", "fd07::100", 64)])
        assert batch.add() == []
        batch.close()

    one.call(scene)
    line = one.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "to", "fd07::100").stdout
    assert "deprecated" in line and "nodad" in line and "tentative" not in line
