"""Keeps the VIPs' addresses on their interfaces, and takes away only those it put there.

An address that was there before, e.g. the node's own used as a VIP, is left when the VIP is deleted. Which ones are ours
is written to run_dir/addresses.json before they are added: run_dir is as short-lived as the addresses are (a reboot loses
both), so the two cannot disagree for long. All methods block: call them in a thread, one at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

from ctl.errors import XlbError
from ctl.model import Config
from ctl.network import InterfaceAddress, Network

FILE_NAME = "addresses.json"


class VipAddresses:
    """The addresses of the VIPs of one node."""

    def __init__(self, network: Network, run_dir: Path) -> None:
        self._network = network
        self._path = run_dir / FILE_NAME
        self._ours = self._read()

    @property
    def ours(self) -> frozenset[InterfaceAddress]:
        return frozenset(self._ours)

    def check_devices(self, old: Config, new: Config) -> None:
        """Raise XlbError naming the interfaces there are, when a VIP that is new or moved names one there is not."""
        added = wanted(new) - wanted(old)
        if not added:
            return
        existing = self._network.interfaces()
        for each in sorted(added, key=lambda address: address.address):
            if each.device not in existing:
                names = ", ".join(sorted(existing)) or "none"
                raise XlbError(f"vip {each.address}: there is no interface {each.device!r} on this node; it has: {names}")

    def follow(self, config: Config) -> None:
        """Make the interfaces carry the VIPs of `config`, announce those that were added, remove ours that went.

        Raises XlbError when the kernel refuses one.
        """
        desired = wanted(config)
        stale = self._ours - desired
        if stale:
            self._network.remove_addresses(sorted(stale, key=_order))
        missing = desired - self._network.addresses() if desired else frozenset()
        self._record((self._ours - stale) | missing)
        if missing:
            added = sorted(missing, key=_order)
            self._network.add_addresses(added)
            with contextlib.suppress(XlbError):  # not heard is not fatal: clients ask
                self._network.announce(added)

    def withdraw(self) -> None:
        """Remove every address that is ours."""
        self._network.remove_addresses(sorted(self._ours, key=_order))
        self._record(set())

    def _record(self, addresses: Collection[InterfaceAddress]) -> None:
        new = set(addresses)
        if new == self._ours:
            return
        rows = sorted([each.device, each.address, each.prefix_length] for each in new)
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(rows))
            temporary.replace(self._path)
        except OSError as error:
            raise XlbError(f"cannot write {self._path}: {error.strerror}") from None
        self._ours = new

    def _read(self) -> set[InterfaceAddress]:
        """What a daemon before us put there; a damaged file means that its addresses stay when their VIP goes."""
        try:
            rows = json.loads(self._path.read_text())
            return {InterfaceAddress(str(device), str(address), int(length)) for device, address, length in rows}
        except (OSError, ValueError, TypeError):
            return set()


def wanted(config: Config) -> frozenset[InterfaceAddress]:
    """The addresses a configuration needs on the node."""
    return frozenset(InterfaceAddress(vip.device, vip.address, vip.prefix_length) for vip in config.vips.values())


def _order(address: InterfaceAddress) -> tuple[str, str, int]:
    return address.device, address.address, address.prefix_length
