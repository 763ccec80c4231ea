"""`KernelNetwork` implements `ctl.network.network.Network` with pyroute2 and, for what pyroute2 lacks,
`ctl.network.kernel.rtnetlink`.

Does I/O only; the node decides which addresses an interface has. Methods block for milliseconds: call them in a thread.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from bpf.kernel.attach import driver
from ctl.errors import Code, XlbError
from ctl.network.kernel import lean_pyroute2, offloads, sysctl
from ctl.network.kernel.address_batch import AddressBatch
from ctl.network.kernel.announcements import announcement, send_frame
from ctl.network.kernel.rtnetlink import RouteSocket, kernel_manages_neighbours, resolve_routes
from ctl.network.kernel.watcher import NetlinkWatcher, attribute
from ctl.network.network import Interface, InterfaceAddress, Neighbour, NetworkEvents, Route

_IFA_F_NODAD = 0x02
_FOREVER = 0xFFFFFFFF
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80


class KernelNetwork:
    """Addresses, links, routes and neighbours of the network namespace this process is in."""

    def __init__(self) -> None:
        self._watcher: NetlinkWatcher | None = None
        self._managed = True  # until the kernel refuses managed neighbours

    def interfaces(self) -> Mapping[str, Interface]:
        with _netlink() as netlink:
            links = list(netlink.get_links())
        found = {}
        for link in links:
            name, flags = attribute(link, "IFLA_IFNAME"), link["flags"]
            found[name] = Interface(
                name=name,
                index=link["index"],
                mac=attribute(link, "IFLA_ADDRESS") or "",
                mtu=attribute(link, "IFLA_MTU") or 0,
                up=bool(flags & _IFF_UP),
                carrier=bool(flags & _IFF_LOWER_UP),
                driver=driver(name),
            )
        return found

    def addresses(self) -> frozenset[InterfaceAddress]:
        names = {interface.index: interface.name for interface in self.interfaces().values()}
        with _netlink() as netlink:
            return frozenset(
                InterfaceAddress(
                    names[each["index"]], attribute(each, "IFA_LOCAL") or attribute(each, "IFA_ADDRESS"), each["prefixlen"]
                )
                for each in netlink.get_addr()
                if each["index"] in names
            )

    def add_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        with _netlink() as netlink:
            for each in addresses:
                # A VIP moves between nodes: duplicate address detection would find the peer's and disable the address. It is
                # deprecated from the start, because the kernel prefers the newest address as source of the node's own
                # packets, such as health checks, and the VIP's guard would drop the answers (RFC 6724, rule 3).
                flags = {"flags": _IFA_F_NODAD, "preferred_lft": 0, "valid_lft": _FOREVER} if ":" in each.address else {}
                try:
                    netlink.addr("add", index=_index(each.device), address=each.address, prefixlen=each.prefix_length, **flags)
                except Exception as error:  # pyroute2's NetlinkError is no OSError
                    if _code(error) != errno.EEXIST:
                        raise _refused("add", each, error) from None

    def remove_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        with _netlink() as netlink:
            for each in addresses:
                try:
                    netlink.addr("del", index=_index(each.device), address=each.address, prefixlen=each.prefix_length)
                except Exception as error:
                    if _code(error) not in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO):
                        raise _refused("remove", each, error) from None

    def ready(self, addresses: Sequence[InterfaceAddress]) -> AddressBatch:
        return AddressBatch(addresses, self.interfaces())

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        interfaces = self.interfaces()
        for each in addresses:
            interface = interfaces.get(each.device)
            if interface is None or not interface.carrier or interface.mac in ("", "00:00:00:00:00:00"):
                continue
            try:
                send_frame(each.device, announcement(each.address, interface.mac))
            except OSError as error:
                raise _refused("announce", each, error) from None

    def routes(self, destinations: Sequence[str]) -> Sequence[Route | None]:
        return resolve_routes(destinations)

    def keep_resolved(self, neighbours: Collection[tuple[int, str]]) -> None:
        with RouteSocket() as sock:
            for index, address in neighbours:
                try:
                    if self._managed:
                        self._managed = kernel_manages_neighbours(sock, index, address)
                    if not self._managed:
                        sock.use_neighbour(index, address, managed=False)
                except OSError as error:
                    if error.errno not in (errno.ENODEV, errno.ENETDOWN, errno.EINVAL):
                        raise XlbError(
                            f"cannot ask the kernel to resolve neighbour {address}: {error.strerror}", Code.KERNEL_REFUSED
                        ) from None

    def release(self, neighbours: Collection[tuple[int, str]]) -> None:
        if not self._managed:
            return
        with RouteSocket() as sock:
            for index, address in neighbours:
                try:
                    sock.use_neighbour(index, address, managed=False)
                except OSError:
                    continue  # the link or the entry no longer exists

    @property
    def needs_repeating(self) -> bool:
        """Whether keep_resolved must be called repeatedly, because this kernel has no managed neighbours."""
        return not self._managed

    def neighbours(self) -> Sequence[Neighbour]:
        with _netlink() as netlink:
            entries = list(netlink.get_neighbours())
        return [
            Neighbour(
                each["ifindex"],
                attribute(each, "NDA_DST"),
                bool(each["state"] & _NUD_VALID),
                attribute(each, "NDA_LLADDR") or "",
            )
            for each in entries
            if isinstance(attribute(each, "NDA_DST"), str)
        ]

    def enable_forwarding(self, interfaces: Sequence[str]) -> Sequence[str]:
        return sysctl.enable(interfaces)

    def forwarding_problems(self, interfaces: Sequence[str]) -> Sequence[str]:
        return sysctl.problems(interfaces)

    def keep_frames_whole(self, interfaces: Sequence[str]) -> Sequence[str]:
        return offloads.stop_joining(self._below(interfaces))

    def joining_frames(self, interfaces: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return offloads.joining(self._below(interfaces))

    def _below(self, interfaces: Sequence[str]) -> list[str]:
        with _netlink() as netlink:
            links = [_stacked(link) for link in netlink.get_links()]
        return list(dict.fromkeys(name for interface in interfaces for name in offloads.devices_below(interface, links)))

    def watch(self, events: NetworkEvents) -> None:
        self._watcher = NetlinkWatcher(events)
        with ThreadPoolExecutor(1) as thread:  # pyroute2 0.9 runs its own event loop, which cannot run inside another
            self._watcher.learn(thread.submit(_links_and_neighbours).result())

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None


@contextmanager
def _netlink() -> Iterator[Any]:
    with lean_pyroute2.classes().IPRoute() as netlink:
        yield netlink


def _links_and_neighbours() -> list[Any]:
    with _netlink() as netlink:
        return [*_as_events("RTM_NEWLINK", netlink.get_links()), *_as_events("RTM_NEWNEIGH", netlink.get_neighbours())]


def _as_events(event: str, messages: Any) -> list[Any]:
    """Dumps have the same messages as events, but no or another event name, depending on the version."""
    found = []
    for message in messages:
        message["event"] = event
        found.append(message)
    return found


def _stacked(link: Any) -> offloads.Stacked:
    """A veth's IFLA_LINK is its peer, and an index of another namespace is meaningless here: neither is a lower device."""
    information = attribute(link, "IFLA_LINKINFO")
    kind = attribute(information, "IFLA_INFO_KIND") if information else ""
    is_port = kind != "veth" and attribute(link, "IFLA_LINK_NETNSID") is None
    below = attribute(link, "IFLA_LINK") or 0
    return offloads.Stacked(
        attribute(link, "IFLA_IFNAME"), link["index"], below if is_port else 0, attribute(link, "IFLA_MASTER") or 0
    )


def _index(device: str) -> int:
    return socket.if_nametoindex(device)


def _code(error: Exception) -> int:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return code if isinstance(code, int) else 0


def _refused(verb: str, address: InterfaceAddress, error: Exception) -> XlbError:
    code = _code(error)
    reason = os.strerror(code) if code else str(error)
    return XlbError(
        f"cannot {verb} {address.address}/{address.prefix_length} on {address.device}: {reason}", Code.KERNEL_REFUSED
    )
