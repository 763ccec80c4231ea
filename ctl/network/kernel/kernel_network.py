"""`KernelNetwork` implements `ctl.network.network.Network` with rtnetlink and /proc/sys.

pyroute2 reads what is asked for now and then. What is read twice a second, for each notification or during a takeover is
decoded in `ctl.network.kernel.messages`: there pyroute2 takes 50 to 100 us per message.

Does I/O only; the node decides which addresses an interface has. Methods block for milliseconds: call them in a thread.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing

from bpf.kernel.attach import driver
from ctl.errors import Advice, Code, XlbError
from ctl.network.kernel import lean_pyroute2, offloads, sysctl
from ctl.network.kernel.address_batch import AddressBatch
from ctl.network.kernel.duplicate_probe import who_answers
from ctl.network.kernel.messages import Address, Link
from ctl.network.kernel.rtnetlink import RouteSocket, kernel_manages_neighbours, resolve_routes
from ctl.network.kernel.watcher import NetlinkWatcher
from ctl.network.network import Interface, InterfaceAddress, Neighbour, NetworkEvents, Observed, Route, Setting

log = logging.getLogger(__name__)

_TABLES = ("arp_cache", "ndisc_cache")
_NOT_NOW = frozenset({errno.ENODEV, errno.ENETDOWN, errno.EINVAL})
"""The link went away or down: its neighbours are asked for again when it comes back."""


class KernelNetwork:
    """Addresses, links, routes and neighbours of the network namespace this process is in."""

    def __init__(self) -> None:
        self._watcher: NetlinkWatcher | None = None
        self._managed = True  # until the kernel refuses managed neighbours

    def interfaces(self) -> Mapping[str, Interface]:
        with RouteSocket() as sock:
            return {link.name: _interface(link) for link in sock.links()}

    def addresses(self) -> frozenset[InterfaceAddress]:
        try:
            return self._addresses_by_pyroute2()
        except Exception as error:  # 0.7 raises NetlinkDumpInterrupted, no OSError, where an address changes during the dump
            log.debug("addresses are read again: %r", error)
        with RouteSocket() as sock:
            return frozenset(_placed({link.index: link.name for link in sock.links()}, sock.addresses()))

    def _addresses_by_pyroute2(self) -> frozenset[InterfaceAddress]:
        with lean_pyroute2.iproute()() as netlink:
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
            return frozenset(
                InterfaceAddress(
                    names[each["index"]], each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS"), each["prefixlen"]
                )
                for each in netlink.get_addr()
                if each["index"] in names
            )

    def observe(self, interfaces: Sequence[str], vip_interfaces: Sequence[str], neighbours: bool = False) -> Observed:
        with RouteSocket() as sock:
            links = sock.links()
            names = {link.index: link.name for link in links}
            placed = _placed(names, sock.addresses())
            entries = sock.neighbours() if neighbours else []
        kept = frozenset((each.index, each.address) for each in entries if each.managed or (each.valid and not self._managed))
        settings = sysctl.read(interfaces, vip_interfaces)
        return Observed({link.name: _interface(link) for link in links}, placed, settings, kept if neighbours else None)

    def add_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        with closing(AddressBatch(addresses)) as batch:
            _raise_first(batch.add())

    def remove_addresses(self, addresses: Sequence[InterfaceAddress]) -> None:
        with closing(AddressBatch(addresses)) as batch:
            _raise_first(batch.remove())

    def ready(self, addresses: Sequence[InterfaceAddress]) -> AddressBatch:
        return AddressBatch(addresses)

    def announce(self, addresses: Sequence[InterfaceAddress]) -> None:
        with closing(AddressBatch(addresses)) as batch:
            _raise_first(batch.announce())

    def who_answers(self, addresses: Sequence[InterfaceAddress]) -> Mapping[InterfaceAddress, str]:
        try:
            return who_answers(addresses, self.interfaces())
        except OSError as error:
            raise XlbError(f"cannot ask whether the VIPs are free: {error.strerror}", Code.KERNEL_REFUSED) from None

    def routes(self, destinations: Sequence[str]) -> Sequence[Route | None]:
        return resolve_routes(destinations)

    def neighbour_capacity(self) -> tuple[int, int]:
        with RouteSocket() as sock:
            found = {table.name: table.capacity for table in sock.neighbour_tables()}
        return found.get(_TABLES[0], 0), found.get(_TABLES[1], 0)

    def keep_resolved(self, neighbours: Collection[tuple[int, str]]) -> Sequence[str]:
        refused = []
        with RouteSocket() as sock:
            for index, address in neighbours:
                try:
                    if self._managed:
                        self._managed = kernel_manages_neighbours(sock, index, address)
                    if not self._managed:
                        sock.use_neighbour(index, address, managed=False)
                except OSError as error:
                    if error.errno not in _NOT_NOW:
                        refused.append(f"cannot ask the kernel to resolve neighbour {address}: {error.strerror}")
        return refused

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
        with RouteSocket() as sock:
            return [Neighbour(each.index, each.address, each.valid, each.mac, each.managed) for each in sock.neighbours()]

    def correct(self, setting: Setting) -> None:
        try:
            sysctl.correct(setting)
        except OSError as error:
            message = f"cannot set {setting.name}={setting.wanted}: {error.strerror}"
            raise XlbError(message, Code.KERNEL_REFUSED) from None

    def forwarding_problems(self, interfaces: Sequence[str]) -> Sequence[Advice]:
        return sysctl.problems(interfaces)

    def keep_frames_whole(self, interfaces: Sequence[str]) -> Sequence[str]:
        return offloads.stop_joining(self._below(interfaces))

    def joining_frames(self, interfaces: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return offloads.joining(self._below(interfaces))

    def keep_tags(self, devices: Collection[str]) -> Sequence[str]:
        return offloads.stop_stripping(devices)

    def stripping_tags(self, devices: Collection[str]) -> Mapping[str, Sequence[str]]:
        return offloads.stripping(devices)

    def _below(self, interfaces: Sequence[str]) -> list[str]:
        with RouteSocket() as sock:
            links = sock.links()
        return list(dict.fromkeys(name for interface in interfaces for name in offloads.devices_below(interface, links)))

    def watch(self, events: NetworkEvents) -> None:
        self._watcher = NetlinkWatcher(events)
        with RouteSocket() as sock:
            self._watcher.learn([*sock.links(), *sock.neighbours()])

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None


def _interface(link: Link) -> Interface:
    return Interface(
        link.name,
        link.index,
        link.mac,
        link.mtu,
        link.up,
        link.carrier,
        driver(link.name),
        link.xdp_program,
        link.xdp_mode,
        link.below,
        link.kind,
        link.vlan_id,
        link.vlan_protocol,
    )


def _placed(names: Mapping[int, str], addresses: Sequence[Address]) -> dict[InterfaceAddress, bool]:
    """Each address on an interface with a name, to whether it is secondary."""
    return {
        InterfaceAddress(names[each.index], each.address, each.prefix_length): each.secondary
        for each in addresses
        if each.index in names
    }


def _raise_first(refused: Sequence[str]) -> None:
    if refused:
        raise XlbError(refused[0], Code.KERNEL_REFUSED)
