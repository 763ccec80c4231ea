"""A real keepalived as VRRPv3 peer, on the network of an active node with xlb's program attached, in both directions.

keepalived runs in the client's namespace; the node's half is the pair's socket class, driven in the node's namespace. It has no
keys here, and neither has keepalived 2.2: what is tested is that both speak RFC 9568. With keys, as in a pair, nothing that
keepalived sends has an effect; the trailer is tested against the packets of its draft (tests/unit/sync/vrrp).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.vrrp import VRRPv3
from scapy.utils import rdpcap

from ctl.cluster.vrrp_socket import VrrpSocket
from sync.transport import TOS_NETWORK_CONTROL
from sync.vrrp import codec
from sync.vrrp.authentication import Session
from sync.vrrp.endpoint import VrrpCounts
from tests.net.serving import Serving, serving
from tests.rig import CLIENT4, CLIENT6, Client, Layout, Rig
from tests.wait import wait_until

ROUTER_ID = 51
THEIR_PRIORITY = 100
GREATER, SMALLER = 150, 50
INTERVAL_MS = 100
SLOW_INTERVAL_MS = 2000
NODE = {4: "10.77.0.1", 6: "fd77::1"}
PEER = {4: CLIENT4, 6: CLIENT6}
# What only keepalived carries when it is master. RFC 9568 (5.2.9) wants a link-local one first in IPv6.
FLOATING = {4: ("10.77.0.150",), 6: ("fe80::150", "fd77::150")}

both_modes = pytest.mark.parametrize("multicast", [False, True], ids=["unicast", "multicast"])
both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    if shutil.which("keepalived") is None:
        pytest.skip("no keepalived: apt-get install keepalived")
    with serving(Layout(backends=0)) as serve:
        yield serve


# --- keepalived --------------------------------------------------------------------------------------------------


class Keepalived:
    """One keepalived with one VRRPv3 instance on the client's eth0."""

    def __init__(self, rig: Rig, family: int, multicast: bool, interval_ms: int) -> None:
        self._namespace = rig.client.namespace
        self._directory = rig.directory / f"keepalived-{time.monotonic_ns()}"
        self._directory.mkdir()
        self._floating = FLOATING[family][-1]
        self.states = self._directory / "states"
        config = self._directory / "keepalived.conf"
        config.write_text(self._config(family, multicast, interval_ms))
        pids = ["--pid", str(self._directory / "all.pid"), "--vrrp_pid", str(self._directory / "vrrp.pid")]
        self.log = self._directory / "log"
        with self.log.open("wb") as log:
            self.process = self._namespace.popen(
                ["keepalived", "--vrrp", "--dont-fork", "--log-console", "--log-detail", "--use-file", str(config), *pids],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _config(self, family: int, multicast: bool, interval_ms: int) -> str:
        mode = (
            f"mcast_src_ip {PEER[family]}"
            if multicast
            else f"unicast_src_ip {PEER[family]}\n unicast_ttl 255\n unicast_peer {{\n  {NODE[family]}\n }}"
        )
        addresses = "\n  ".join(FLOATING[family])
        return (
            "global_defs {\n vrrp_version 3\n script_user root\n}\n"
            f"vrrp_instance pair {{\n state BACKUP\n interface eth0\n virtual_router_id {ROUTER_ID}\n"
            f" priority {THEIR_PRIORITY}\n advert_int {interval_ms / 1000}\n {mode}\n"
            f' virtual_ipaddress {{\n  {addresses}\n }}\n notify "/bin/sh {self._script()}"\n}}\n'
        )

    def _script(self) -> Path:
        script = self._directory / "notify.sh"
        script.write_text(f'echo "$3" >> {self.states}\n')  # keepalived appends: type, name, state, priority
        return script

    @property
    def history(self) -> list[str]:
        """The states it has entered, in their order."""
        return self.states.read_text().split() if self.states.exists() else []

    @property
    def carries_the_address(self) -> bool:
        shown = self._namespace.run("ip", "-o", "address", "show", "dev", "eth0").stdout
        return f" {self._floating}/" in shown

    def wait_for(self, state: str, deadline_s: float = 10) -> None:
        """Wait until the state it entered last is this one, and its address matches."""
        try:
            wait_until(
                lambda: self.history[-1:] == [state] and self.carries_the_address is (state == "MASTER"),
                f"keepalived in state {state}",
                deadline_s,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; it was in {self.history}\n{self.log.read_text()}") from None

    def stop(self) -> None:
        """SIGTERM: it resigns if it is master, and takes its address away."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)


@contextmanager
def keepalived(site: Serving, family: int, multicast: bool, interval_ms: int = INTERVAL_MS) -> Iterator[Keepalived]:
    one = Keepalived(site.rig, family, multicast, interval_ms)
    try:
        yield one
    finally:
        one.stop()


# --- the node's half ---------------------------------------------------------------------------------------------


class Advertiser:
    """The pair's VRRP socket in the node's namespace, on its own loop; sends at `priority` while it is not None."""

    def __init__(
        self, site: Serving, family: int, multicast: bool, interval_ms: int = INTERVAL_MS, session: Session | None = None
    ) -> None:
        self.heard: list[int] = []
        self.greater: set[bool] = set()
        self._loop = Client(site.node.namespace)
        self._interval_s = interval_ms / 1000
        self._priority: int | None = None
        self._next: asyncio.TimerHandle | None = None

        async def make() -> VrrpSocket:
            return VrrpSocket(
                NODE[family],
                PEER[family],
                ROUTER_ID,
                interval_ms,
                "eth0" if multicast else "",
                lambda: FLOATING[family],
                self._hear,
                session,
            )

        self._socket = self._loop.run(make())

    def _hear(self, priority: int, sender_is_greater: bool) -> None:
        self.heard.append(priority)
        self.greater.add(sender_is_greater)

    def advertise(self, priority: int | None) -> None:
        """From now on at this priority; None: no more. One is sent at once."""

        async def change() -> None:
            if self._next is not None:
                self._next.cancel()
            self._priority = priority
            self._tick()

        self._loop.run(change())

    def _tick(self) -> None:
        if self._priority is not None:
            self._socket.send(self._priority)
            self._next = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def resign(self) -> None:
        """Priority 0, once, and silence."""

        async def send() -> None:
            self._socket.send(codec.RESIGN_PRIORITY)

        self.advertise(None)
        self._loop.run(send())

    @property
    def counts(self) -> VrrpCounts:
        return self._socket.counts

    def close(self) -> None:
        async def end() -> None:
            self._socket.close()

        self.advertise(None)
        self._loop.run(end())
        self._loop.close()


@contextmanager
def advertiser(
    site: Serving, family: int, multicast: bool, interval_ms: int = INTERVAL_MS, session: Session | None = None
) -> Iterator[Advertiser]:
    one = Advertiser(site, family, multicast, interval_ms, session)
    try:
        yield one
    finally:
        one.close()


# --- it understands us -------------------------------------------------------------------------------------------


@both_families
@both_modes
def test_keepalived_follows_our_advertisements(site: Serving, family: int, multicast: bool) -> None:
    with advertiser(site, family, multicast) as ours:
        ours.advertise(GREATER)
        with keepalived(site, family, multicast) as theirs:
            theirs.wait_for("BACKUP")
            before = ours.counts.sent
            wait_until(lambda: ours.counts.sent >= before + 20, "twenty of our advertisements")  # it would wait for three
            assert theirs.history == ["BACKUP"], theirs.log.read_text()
            ours.advertise(None)
            theirs.wait_for("MASTER")
            ours.advertise(GREATER)
            theirs.wait_for("BACKUP")
            assert ours.counts.unsent == 0
            assert "invalid" not in theirs.log.read_text().lower()


@both_families
def test_keepalived_takes_over_at_once_when_we_resign(site: Serving, family: int) -> None:
    with advertiser(site, family, False, SLOW_INTERVAL_MS) as ours:
        ours.advertise(GREATER)
        with keepalived(site, family, False, SLOW_INTERVAL_MS) as theirs:
            theirs.wait_for("BACKUP")
            began = time.monotonic()
            ours.resign()
            theirs.wait_for("MASTER")
            # Its skew is (256 - 100) / 256 intervals; without the resignation it would wait three intervals more.
            assert time.monotonic() - began < 2 * SLOW_INTERVAL_MS / 1000


@both_families
def test_keepalived_stays_master_against_a_smaller_priority(site: Serving, family: int) -> None:
    with advertiser(site, family, False) as ours, keepalived(site, family, False) as theirs:
        theirs.wait_for("MASTER")
        ours.advertise(SMALLER)
        before = len(ours.heard)
        wait_until(lambda: len(ours.heard) >= before + 10, "ten of its advertisements while we send too")
        assert theirs.history[-1] == "MASTER"


# --- we understand it --------------------------------------------------------------------------------------------


@both_families
@both_modes
def test_we_hear_keepalived_and_its_resignation(site: Serving, family: int, multicast: bool) -> None:
    with advertiser(site, family, multicast) as ours:
        with keepalived(site, family, multicast) as theirs:
            theirs.wait_for("MASTER")
            wait_until(lambda: len(ours.heard) >= 5, "five of its advertisements")
            assert set(ours.heard) == {THEIR_PRIORITY}
        wait_until(lambda: ours.heard[-1] == codec.RESIGN_PRIORITY, "its resignation")
        assert ours.greater == {True}, ".10 is greater than .1, which decides between equal priorities"
        assert (ours.counts.malformed, ours.counts.foreign) == (0, 0)


@both_families
def test_a_socket_with_keys_counts_keepalived_and_does_not_believe_it(site: Serving, family: int) -> None:
    session = Session(bytes(32), 1)
    session.lives(2)
    with advertiser(site, family, False, session=session) as ours, keepalived(site, family, False) as theirs:
        theirs.wait_for("MASTER")
        wait_until(lambda: ours.counts.unsigned >= 5, "five of its advertisements")
        assert (ours.heard, ours.counts.received, ours.counts.malformed) == ([], 0, 0)


# --- what other hosts see ---------------------------------------------------------------------------------


@both_families
@both_modes
def test_scapy_and_tcpdump_read_our_advertisements(site: Serving, family: int, multicast: bool) -> None:
    targets = {PEER[family], *([codec.GROUP_V6 if family == 6 else codec.GROUP_V4] if multicast else [])}
    file = site.rig.directory / f"{family}{multicast}.pcap"
    with advertiser(site, family, multicast) as ours:
        ours.advertise(GREATER)
        wanted = f"ip proto {codec.PROTOCOL} or ip6 proto {codec.PROTOCOL}"
        count = str(2 * len(targets))
        site.rig.client.namespace.run(
            "tcpdump", "-Z", "root", "-i", "eth0", "-Q", "in", "-c", count, "-w", str(file), wanted, timeout_s=20
        )
    seen = site.rig.client.namespace.run("tcpdump", "-Z", "root", "-n", "-vv", "-r", str(file)).stdout
    frames = list(rdpcap(str(file)))
    assert {frame[IPv6 if family == 6 else IP].dst for frame in frames} == targets
    for frame in frames:
        outer = frame[IPv6 if family == 6 else IP]
        advert = outer[VRRPv3]
        assert (outer.src, outer.hlim if family == 6 else outer.ttl) == (NODE[family], 255)
        assert (outer.tc if family == 6 else outer.tos) == TOS_NETWORK_CONTROL
        assert (advert.version, advert.type, advert.vrid, advert.priority) == (3, 1, ROUTER_ID, GREATER)
        assert advert.adv * 10 == INTERVAL_MS
        assert tuple(advert.addrlist) == FLOATING[family]
        was = advert.chksum
        del advert.chksum
        assert type(outer)(bytes(outer))[VRRPv3].chksum == was
    assert "VRRPv3, Advertisement" in seen
    assert f"vrid {ROUTER_ID}, prio {GREATER}" in seen
    assert "intvl 10cs" in seen
    assert FLOATING[family][-1] in seen
    assert "bad" not in seen, seen
