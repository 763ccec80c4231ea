"""`KernelNetwork` on a real kernel: two namespaces joined by a veth pair, no daemon and no XDP."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ctl.config.model import Backend, Config, Farm
from ctl.errors import XlbError
from ctl.network.kernel.rtnetlink import RouteSocket
from ctl.network.neighbours import NextHopKeeper
from ctl.network.network import InterfaceAddress, NetworkEvents, Route
from tests.net.cable import Cable, joined
from tests.rig import why_not
from tests.wait import wait_until, wait_until_async

PEERS = ("10.66.0.2", "fd66::2")

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")


@pytest.fixture
def cable() -> Iterator[Cable]:
    with joined() as made:
        yield made


def test_addresses_come_and_go(cable: Cable) -> None:
    ours = [InterfaceAddress("eth0", "10.66.0.100", 24), InterfaceAddress("eth0", "fd66::100", 64)]

    def scenario() -> None:
        cable.network.add_addresses(ours)
        cable.network.add_addresses(ours)  # exists already: no error
        assert cable.network.addresses() >= set(ours)
        cable.network.remove_addresses(ours)
        cable.network.remove_addresses(ours)
        assert not cable.network.addresses() & set(ours)
        with pytest.raises(XlbError, match=r"cannot add 10\.66\.0\.100/24 on nothing0"):
            cable.network.add_addresses([InterfaceAddress("nothing0", "10.66.0.100", 24)])

    cable.here.call(scenario)


def test_ipv6_addresses_are_usable_at_once(cable: Cable) -> None:
    cable.here.sysctl({"net.ipv6.conf.eth0.accept_dad": 1, "net.ipv6.conf.all.accept_dad": 1})

    def scenario() -> None:
        cable.network.add_addresses([InterfaceAddress("eth0", "fd66::100", 64)])
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("fd66::100", 0))  # EADDRNOTAVAIL while tentative

    cable.here.call(scenario)


def test_interfaces_are_described(cable: Cable) -> None:
    eth0 = cable.here.call(cable.network.interfaces)["eth0"]
    assert (eth0.up, eth0.carrier, eth0.driver, eth0.mtu) == (True, True, "veth", 1500)
    cable.there.ip("link set eth0 down")
    assert not cable.here.call(cable.network.interfaces)["eth0"].carrier


def test_routes_are_found_in_bulk(cable: Cable) -> None:
    index = cable.here.interface_index("eth0")
    routes = cable.here.call(lambda: cable.network.routes(["10.66.0.7", "10.99.1.1", "fd99::5", "192.0.2.1", "10.66.0.1"]))
    assert routes == [Route(index, ""), Route(index, "10.66.0.2"), Route(index, "fd66::2"), None, None]


def test_announcements_are_heard(cable: Cable) -> None:
    """The neighbour cache of the remote host follows a gratuitous ARP and an unsolicited advertisement."""
    ours = [InterfaceAddress("eth0", "10.66.0.100", 24), InterfaceAddress("eth0", "fd66::100", 64)]
    stale = "02:00:00:00:00:99"
    cable.there.ip(*(f"neigh replace {each.address} lladdr {stale} dev eth0 nud stale" for each in ours))
    mac = cable.here.call(cable.network.interfaces)["eth0"].mac

    def known() -> dict[str, str]:
        return {each.address: each.mac for each in cable.there.call(cable.network.neighbours)}

    assert known()["10.66.0.100"] == stale
    cable.here.call(lambda: cable.network.add_addresses(ours))
    cable.here.call(lambda: cable.network.announce(ours))
    wait_until(lambda: all(known()[each.address] == mac for each in ours), "the caches to follow")


def resolved(cable: Cable) -> set[str]:
    return {each.address for each in cable.here.call(cable.network.neighbours) if each.resolved and each.mac}


def test_neighbours_are_resolved_without_traffic_and_stay_so(cable: Cable) -> None:
    index = cable.here.interface_index("eth0")
    kept = [(index, peer) for peer in PEERS]
    assert not resolved(cable) & set(PEERS)
    cable.here.call(lambda: cable.network.keep_resolved(kept))
    wait_until(lambda: resolved(cable) >= set(PEERS), "both to be resolved")
    assert not cable.network.needs_repeating, "this kernel probes managed neighbours by itself"
    shown = cable.here.run("ip", "-d", "neigh", "show", "dev", "eth0").stdout
    assert shown.count("managed") == 2, shown
    cable.here.call(lambda: cable.network.release(kept))
    assert "managed" not in cable.here.run("ip", "-d", "neigh", "show", "dev", "eth0").stdout


def test_the_capacity_of_the_neighbour_tables_is_known(cable: Cable) -> None:
    """All namespaces share the tables, and only the first one has the sysctl."""
    here = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    capacity4, capacity6 = cable.here.call(cable.network.neighbour_capacity)
    assert capacity4 > 0 and capacity6 > 0
    assert not here.exists() or capacity4 == int(here.read_text())


def test_a_neighbour_that_is_refused_does_not_stop_the_others(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    index = cable.here.interface_index("eth0")
    ask = RouteSocket.use_neighbour

    def full(sock: RouteSocket, index: int, address: str, managed: bool) -> None:
        if address == "10.66.0.9":
            raise OSError(errno.ENOBUFS, "No buffer space available")
        ask(sock, index, address, managed)

    monkeypatch.setattr(RouteSocket, "use_neighbour", full)
    wanted = [(index, address) for address in ("10.66.0.9", *PEERS)]
    refused = cable.here.call(lambda: cable.network.keep_resolved(wanted))
    assert refused == ["cannot ask the kernel to resolve neighbour 10.66.0.9: No buffer space available"]
    wait_until(lambda: resolved(cable) >= set(PEERS), "the others to be resolved")


def test_a_flushed_neighbour_is_resolved_again_by_itself(cable: Cable) -> None:
    """The gateway of a backend behind it, and a backend on the link: flushed, and no host sends a packet."""
    servers = (Backend(id=1, address="10.99.0.1", port=80), Backend(id=2, address="fd66::2", port=80))
    farms = {"web": Farm(id=1, name="web", vip="10.66.0.100", port=80, port_last=80, backends=servers)}
    mac = "02:00:00:00:00:55"

    def macs() -> dict[str, str]:
        return {each.address: each.mac for each in cable.network.neighbours() if each.resolved}

    async def until(condition: Callable[[dict[str, str]], bool], what: str) -> None:
        await asyncio.to_thread(wait_until, lambda: condition(macs()), what)

    async def scenario() -> None:
        keeper = NextHopKeeper(cable.network, lambda: Config(farms=farms))
        heard = Heard()
        cable.network.watch(replace(heard.events(), neighbour_lost=keeper.lost))
        running = asyncio.ensure_future(keeper.run())
        keeper.wake()
        await until(lambda known: known.keys() >= set(PEERS), "the peers to be resolved")
        cable.there.ip(f"link set eth0 address {mac}")
        cable.here.ip("neigh flush dev eth0")
        await until(lambda known: all(known.get(peer) == mac for peer in PEERS), "the new MAC address")
        running.cancel()
        cable.network.close()

    # Threads the loop starts stay in the namespace of the thread that starts them.
    cable.here.call(lambda: asyncio.run(scenario()))


class Heard:
    """Records the watcher's calls."""

    def __init__(self) -> None:
        self.bumps = 0
        self.lost: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.changes = 0
        self.routes = 0

    def events(self) -> NetworkEvents:
        return NetworkEvents(
            next_hops_changed=self._bump,
            neighbour_lost=lambda _, address: self.lost.append(address),
            routes_changed=self._route,
            link_changed=lambda name, state: self.links.append((name, state)),
            changed=self._change,
            overrun=lambda: None,
        )

    def _bump(self) -> None:
        self.bumps += 1

    def _change(self) -> None:
        self.changes += 1

    def _route(self) -> None:
        self.routes += 1


Step = tuple[Callable[[], object], str]  # condition, and what is awaited


def watching(cable: Cable, steps: Callable[[Heard], Iterator[Step]]) -> None:
    """Run the watcher in `here` and wait for each condition of the generator `steps`."""

    async def scenario() -> None:
        heard = Heard()
        cable.network.watch(heard.events())
        try:
            for condition, what in steps(heard):
                await wait_until_async(condition, what)
        finally:
            cable.network.close()

    cable.here.call(lambda: asyncio.run(scenario()))


def test_the_watcher_hears_what_matters(cable: Cable) -> None:
    index = cable.here.interface_index("eth0")
    cable.here.ip(*(f"neigh replace 10.66.0.{each} lladdr 02:00:00:00:00:55 dev eth0 nud reachable" for each in (2, 9)))

    def steps(heard: Heard) -> Iterator[tuple[Callable[[], bool], str]]:
        # Confirmed repeatedly; the loss of another one, which changes no next hop, shows that all was read.
        for state in ("stale", "reachable", "delay", "stale"):
            cable.here.ip(f"neigh replace 10.66.0.2 lladdr 02:00:00:00:00:55 dev eth0 nud {state}")
        cable.here.ip("neigh del 10.66.0.9 dev eth0")
        yield lambda: "10.66.0.9" in heard.lost, "a lost neighbour"
        watcher = cable.network._watcher
        assert watcher is not None and not watcher._bump_pending and heard.bumps == 0
        cable.here.ip("route add 10.98.0.0/16 via 10.66.0.2")
        yield lambda: heard.routes == 1 and heard.bumps == 1, "a route"
        cable.here.ip("neigh replace 10.66.0.2 lladdr 02:00:00:00:00:56 dev eth0 nud reachable")
        yield lambda: heard.bumps == 2, "a new MAC"
        cable.here.ip("neigh del 10.66.0.2 dev eth0")
        yield lambda: "10.66.0.2" in heard.lost, "another lost neighbour"
        for change in ("addr del 10.66.0.1/24 dev eth0", "link set eth0 address 02:00:00:00:00:77", "link set eth0 mtu 1400"):
            heard.changes = 0
            cable.here.ip(change)
            yield lambda: heard.changes > 0, change
        for setting in ("net.ipv4.conf.eth0.forwarding", "net.ipv6.conf.eth0.forwarding"):
            heard.changes = 0
            cable.here.sysctl({setting: 1})
            yield lambda: heard.changes > 0, setting
        cable.there.ip("link set eth0 down")
        yield lambda: ("eth0", "down") in heard.links, "a lost carrier"
        cable.there.ip("link set eth0 up")
        yield lambda: ("eth0", "up") in heard.links, "a carrier that came back"
        cable.here.ip("link del eth0")
        yield lambda: ("eth0", "gone") in heard.links, "an interface that went"
        cable.here.ip("link add eth0 type veth peer name peer0")
        yield lambda: ("eth0", "new") in heard.links, "and one that came"

    watching(cable, steps)
    assert cable.here.interface_index("eth0") != index


def test_forwarding_is_set_and_reported(cable: Cable) -> None:
    cable.here.sysctl({"net.ipv4.ip_forward": 0, "net.ipv6.conf.all.forwarding": 0})
    assert cable.here.call(lambda: cable.network.forwarding_problems(["eth0"]))

    def correct() -> None:
        for setting, value in cable.network.observe(["eth0"], []).settings.items():
            if setting.is_wrong(value):
                cable.network.correct(setting)

    cable.here.call(correct)
    assert cable.here.call(lambda: cable.network.forwarding_problems(["eth0"])) == []


def test_pyroute2_and_the_own_decoder_see_the_same_addresses(cable: Cable) -> None:
    cable.here.ip(
        "addr add 10.9.0.1/24 dev eth0",
        "addr add 10.9.0.2/24 dev eth0",
        "addr add fd99::1/64 dev eth0 nodad",
        "addr add 10.9.9.9/32 dev lo",
    )
    asked = cable.here.call(cable.network.addresses)
    observed = cable.here.call(lambda: cable.network.observe((), ()))
    assert asked == frozenset(observed.addresses) and InterfaceAddress("eth0", "10.9.0.2", 24) in asked


def test_a_dump_that_pyroute2_gives_up_is_read_again(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        """As NetlinkDumpInterrupted of 0.7: no OSError."""

    def interrupted() -> None:
        raise Interrupted

    before = cable.here.call(cable.network.addresses)
    monkeypatch.setattr("ctl.network.kernel.lean_pyroute2.iproute", interrupted)
    assert before and cable.here.call(cable.network.addresses) == before
