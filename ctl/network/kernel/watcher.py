"""Watches netlink notifications of neighbours, routes, links, addresses and settings, and reports changes that matter.

`ChangeFilter` decides, without I/O: a reconfirmed neighbour (REACHABLE to STALE and back) has no effect, a changed or deleted
MAC invalidates cached next hops. `NetlinkWatcher` reads the notifications on the event loop. A notification is a hint for
speed only: what must hold is compared with the kernel by `ctl.network.reconcile`, also when the kernel drops notifications.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from ctl.network.kernel.messages import Address, Link, Message, NeighbourEntry, RouteChanged, SettingChanged, decode
from ctl.network.network import NetworkEvents

MAX_KNOWN_NEIGHBOURS = 65536
COALESCE_S = 0.003
READS_PER_TURN = 64
RECEIVE_BYTES = 65536
SOCKET_BUFFER_BYTES = 8 * 1024 * 1024
"""More than net.core.rmem_max permits, if this process has CAP_NET_ADMIN."""

_SO_RCVBUFFORCE = 33
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_GROUPS = (1, 3, 5, 7, 9, 11, 8, 19, 24, 25, 32)
"""link, neigh, ipv4 addr and route, ipv6 addr and route, rules of both, settings (netconf) of both, next hops."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The effect of one notification."""

    next_hops: bool = False  # cached next hops may be invalid
    routes: bool = False  # the route to a backend may have changed
    compare: bool = False  # what xlb set may be gone: links, addresses, settings
    lost_neighbour: tuple[int, str] | None = None
    link: tuple[str, str] | None = None  # (name, "up"|"down"|"gone"|"new")


_NOTHING, _ROUTE = Verdict(), Verdict(next_hops=True, routes=True)
_Known = tuple[str, bool, str, int, int, str]


class ChangeFilter:
    """Remembers MACs and link states to detect changes."""

    def __init__(self) -> None:
        self._macs: dict[tuple[int, str], str] = {}
        self._links: dict[int, _Known] = {}

    def judge(self, message: Message) -> Verdict:
        """The effect of this message."""
        if isinstance(message, RouteChanged):
            return _ROUTE
        if isinstance(message, NeighbourEntry):
            return self._neighbour(message)
        if isinstance(message, Link):
            return self._link(message)
        if isinstance(message, Address):
            return Verdict(next_hops=True, routes=True, compare=True)
        return Verdict(compare=True) if isinstance(message, SettingChanged) else _NOTHING

    def _neighbour(self, entry: NeighbourEntry) -> Verdict:
        key = (entry.index, entry.address)
        known = self._macs.get(key, "")
        if entry.mac:
            if len(self._macs) >= MAX_KNOWN_NEIGHBOURS and key not in self._macs:
                self._macs.clear()  # costs a few additional invalidations, never a wrong next hop
            self._macs[key] = entry.mac
        elif entry.gone:
            # A failed entry keeps its last MAC here: recovery with the same MAC is no change.
            self._macs.pop(key, None)
        return Verdict(next_hops=bool(entry.mac) and entry.mac != known, lost_neighbour=key if entry.gone else None)

    def _link(self, link: Link) -> Verdict:
        if link.gone:
            self._links.pop(link.index, None)
            return Verdict(next_hops=True, routes=True, compare=True, link=(link.name, "gone"))
        up = link.up and link.carrier
        before = self._links.get(link.index)
        now = (link.name, up, link.mac, link.mtu, link.xdp_program, link.xdp_mode)
        self._links[link.index] = now
        if before is None or before[0] != link.name:
            return Verdict(next_hops=True, routes=True, compare=True, link=(link.name, "new"))
        if before[1] != up:
            return Verdict(next_hops=True, routes=True, compare=True, link=(link.name, "up" if up else "down"))
        # A cached next hop holds the MAC of the egress interface, and the MTU of the route.
        return _NOTHING if before == now else Verdict(next_hops=before[2:4] != now[2:4], compare=True)


class NetlinkWatcher:
    """A netlink socket on the running loop; calls `events`, next-hop changes at most once per COALESCE_S."""

    def __init__(self, events: NetworkEvents) -> None:
        self._events = events
        self._filter = ChangeFilter()
        self._loop = asyncio.get_running_loop()
        self._bump_pending = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def learn(self, messages: Iterable[Message]) -> None:
        """Learn links or neighbours from a dump, so that their next notification is no change."""
        for message in messages:
            self._filter.judge(message)

    def _readable(self) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # the kernel dropped notifications
                    self._bump_soon()
                    self._events.overrun()
                    continue  # the others that wait are read as usual
                log.error("cannot read netlink notifications: %s; changes are noticed late, restart xlbd", error.strerror)
                self.close()
                return
            for message in decode(data):
                self._act(self._filter.judge(message))

    def _act(self, verdict: Verdict) -> None:
        if verdict is _NOTHING:
            return
        if verdict.next_hops:
            self._bump_soon()
        if verdict.routes:
            self._events.routes_changed()
        if verdict.compare:
            self._events.changed()
        if verdict.lost_neighbour is not None:
            self._events.neighbour_lost(*verdict.lost_neighbour)
        if verdict.link is not None:
            self._events.link_changed(*verdict.link)

    def _bump_soon(self) -> None:
        if not self._bump_pending:
            self._bump_pending = True
            self._loop.call_later(COALESCE_S, self._bump)

    def _bump(self) -> None:
        self._bump_pending = False
        self._events.next_hops_changed()
