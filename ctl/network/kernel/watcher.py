"""Watches netlink notifications of neighbours, routes, links and addresses, and reports changes that affect the data plane.

`ChangeFilter` decides, without I/O: a reconfirmed neighbour (REACHABLE to STALE and back) has no effect, a changed or deleted
MAC invalidates cached next hops. `NetlinkWatcher` reads the notifications on the event loop; pyroute2 parses them (0.7 and
0.9 have the same parser, but different socket classes).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass
from typing import Any

from ctl.network.kernel import lean_pyroute2
from ctl.network.network import NetworkEvents

MAX_KNOWN_NEIGHBOURS = 65536
COALESCE_S = 0.003
READS_PER_TURN = 4
RECEIVE_BYTES = 65536
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024

_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_AF_BRIDGE = 7
_RTM_NEWROUTE, _RTM_DELROUTE = "RTM_NEWROUTE", "RTM_DELROUTE"
_RTM_F_CLONED = 0x200
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_GROUPS = (1, 3, 5, 7, 9, 11, 8, 19, 32)  # link, neigh, ipv4 addr and route, ipv6 addr and route, rules, next hops

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The effect of one notification."""

    next_hops: bool = False  # cached next hops may be invalid
    routes: bool = False  # the route to a backend may have changed
    lost_neighbour: tuple[int, str] | None = None
    link: tuple[str, str] | None = None  # (name, "up"|"down"|"gone"|"new")
    lost_address: tuple[int, str] | None = None


_NOTHING = Verdict()


class ChangeFilter:
    """Remembers MACs and link states to detect changes."""

    def __init__(self) -> None:
        self._macs: dict[tuple[int, str], str] = {}
        self._links: dict[int, tuple[str, bool]] = {}

    def judge(self, message: Any) -> Verdict:
        """`message` is a decoded rtnetlink message of pyroute2 (or a dict of the same shape)."""
        event = message.get("event", "")
        if event in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
            return self._neighbour(message, event == "RTM_DELNEIGH")
        if event in ("RTM_NEWLINK", "RTM_DELLINK"):
            return self._link(message, event == "RTM_DELLINK")
        if event in (_RTM_NEWROUTE, _RTM_DELROUTE):
            return _NOTHING if message.get("flags", 0) & _RTM_F_CLONED else Verdict(next_hops=True, routes=True)
        if event in ("RTM_NEWADDR", "RTM_DELADDR"):
            return self._address(message, event == "RTM_DELADDR")
        return Verdict(next_hops=True, routes=True)  # rules and next-hop objects: rare, and any may move a route

    def _neighbour(self, message: Any, deleted: bool) -> Verdict:
        address = attribute(message, "NDA_DST")
        if not isinstance(address, str) or message.get("family") == _AF_BRIDGE:
            return _NOTHING
        key = (message["ifindex"], address)
        valid = not deleted and bool(message["state"] & _NUD_VALID)
        mac = (attribute(message, "NDA_LLADDR") or "") if valid else ""
        known = self._macs.get(key, "")
        if mac:
            if len(self._macs) >= MAX_KNOWN_NEIGHBOURS and key not in self._macs:
                self._macs.clear()  # costs a few additional invalidations, never a wrong next hop
            self._macs[key] = mac
        elif deleted:
            # A failed entry keeps its last MAC here: recovery with the same MAC is no change.
            self._macs.pop(key, None)
        return Verdict(next_hops=bool(mac) and mac != known, lost_neighbour=key if deleted else None)

    def _link(self, message: Any, deleted: bool) -> Verdict:
        index, name = message["index"], attribute(message, "IFLA_IFNAME") or str(message["index"])
        if message.get("family") == _AF_BRIDGE:
            return _NOTHING
        if deleted:
            self._links.pop(index, None)
            return Verdict(next_hops=True, routes=True, link=(name, "gone"))
        up = message["flags"] & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP
        before = self._links.get(index)
        self._links[index] = (name, up)
        if before is None or before[0] != name:
            return Verdict(next_hops=True, routes=True, link=(name, "new"))
        if before[1] != up:
            return Verdict(next_hops=True, routes=True, link=(name, "up" if up else "down"))
        return _NOTHING

    def _address(self, message: Any, deleted: bool) -> Verdict:
        address = attribute(message, "IFA_LOCAL") or attribute(message, "IFA_ADDRESS")
        lost = (message["index"], address) if deleted and isinstance(address, str) else None
        return Verdict(next_hops=True, routes=True, lost_address=lost)


def attribute(message: Any, name: str) -> Any:
    """The first attribute of that name, of a pyroute2 message or of a dict of the same structure."""
    return next((pair[1] for pair in message.get("attrs", ()) if pair[0] == name), None)


class NetlinkWatcher:
    """A netlink socket on the running loop; calls `events`, next-hop changes at most once per COALESCE_S."""

    def __init__(self, events: NetworkEvents) -> None:
        self._events = events
        self._filter = ChangeFilter()
        self._marshal = lean_pyroute2.classes().MarshalRtnl()
        self._loop = asyncio.get_running_loop()
        self._bump_pending = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def learn(self, messages: list[Any]) -> None:
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
                if error.errno == errno.ENOBUFS:  # the kernel dropped notifications: invalidate everything
                    self._bump_soon()
                    self._events.routes_changed()
                    return
                log.error(
                    "cannot read netlink notifications: %s; next hops are no longer updated, restart xlbd", error.strerror
                )
                self.close()
                return
            for message in self._marshal.parse(data):
                self._act(self._filter.judge(message))

    def _act(self, verdict: Verdict) -> None:
        if verdict.next_hops:
            self._bump_soon()
        if verdict.routes:
            self._events.routes_changed()
        if verdict.lost_neighbour is not None:
            self._events.neighbour_lost(*verdict.lost_neighbour)
        if verdict.link is not None:
            self._events.link_changed(*verdict.link)
        if verdict.lost_address is not None:
            self._events.address_lost(*verdict.lost_address)

    def _bump_soon(self) -> None:
        if not self._bump_pending:
            self._bump_pending = True
            self._loop.call_later(COALESCE_S, self._bump)

    def _bump(self) -> None:
        self._bump_pending = False
        self._events.next_hops_changed()
