"""Keeps the VIPs' addresses on their interfaces, and takes away only those it put there.

An address that was there before, e.g. the node's own used as a VIP, is left when the VIP is deleted. Which ones are ours
is written to run_dir/addresses.json before they are added: run_dir is as short-lived as the addresses are (a reboot loses
both), so the two cannot disagree for long.

A node of a pair has them on its interfaces only while it is active. What that takes is prepared beforehand, so that `serve` and
`stop_serving` may run on the event loop; all other methods block: call them in a thread, one at a time.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from ctl.config.model import Config
from ctl.errors import Code, InvalidInput, XlbError, storage_code
from ctl.network.network import InterfaceAddress, Network, ReadyAddresses
from ctl.state.durable_files import Files

FILE_NAME = "addresses.json"
BATCH = 64
"""So many addresses are added and announced in one turn of the event loop: about a millisecond."""
MAX_ROUNDS = 8


class VipAddresses:
    """The addresses of the VIPs of one node."""

    def __init__(
        self,
        network: Network,
        run_dir: Path,
        files: Files | None = None,
        lease_open: Callable[[], bool] = lambda: True,
    ) -> None:
        """lease_open: whether the kernel serves VIPs now. In a pair nothing is added or announced otherwise: the lease may have
        expired before the event loop notices, and the peer may have the VIPs.
        """
        self._network, self._files, self._lease_open = network, files or Files(), lease_open
        self._path = run_dir / FILE_NAME
        self._ours = self._read()
        self._paired = False
        self._serving = True
        self._batches: list[ReadyAddresses] = []
        self._own: ReadyAddresses | None = None  # VIPs that are the node's own addresses: announced only
        self._made_for: object = None
        self._batches_lock = threading.Lock()

    @property
    def serving(self) -> bool:
        """Whether the interfaces are to carry the VIPs: always on a single node."""
        return self._serving

    @property
    def ours(self) -> frozenset[InterfaceAddress]:
        return frozenset(self._ours)

    def check_devices(self, old: Config, new: Config) -> None:
        """Raise InvalidInput naming the interfaces there are, when a VIP that is new or moved names one there is not."""
        added = wanted(new) - wanted(old)
        if not added:
            return
        existing = self._network.interfaces()
        for each in sorted(added, key=lambda address: address.address):
            if each.device not in existing:
                names = ", ".join(sorted(existing)) or "none"
                message = f"there is no interface {each.device!r} on this node; it has: {names}"
                raise InvalidInput(message, f"vip.{each.address}.device", Code.UNKNOWN_INTERFACE)

    def follow(self, config: Config) -> None:
        """Make the interfaces carry the VIPs of `config`, announce those that were added, remove ours that went.

        On a backup: remove ours, and prepare a takeover. Raises XlbError when the kernel refuses one.
        """
        for _ in range(MAX_ROUNDS):
            serving = self._serving
            self._carry(config) if serving else self._remove(config)
            if self._paired:
                self._make_ready(wanted(config))
            if serving is self._serving:  # else the node's role changed meanwhile
                return

    def _carry(self, config: Config) -> None:
        desired = wanted(config)
        stale = self._ours - desired
        if stale:
            self._network.remove_addresses(sorted(stale, key=_order))
        missing = desired - self._network.addresses() if desired else frozenset()
        self._record((self._ours - stale) | missing)
        if missing and self._paired:
            self._batch_unless_changed(True, missing)
        elif missing:
            added = sorted(missing, key=_order)
            self._network.add_addresses(added)
            with contextlib.suppress(XlbError):  # not heard is not fatal: clients ask
                self._network.announce(added)

    def _remove(self, config: Config) -> None:
        desired, present = wanted(config), self._network.addresses()
        here = self._ours & present
        if here:
            self._batch_unless_changed(False, here)
        # What is missing now will be ours once this node is active: there is no time to record it then.
        self._record((self._ours & desired) | (desired - present))

    def _batch_unless_changed(self, serving: bool, addresses: Collection[InterfaceAddress]) -> None:
        """Add and announce, or remove; nothing if the event loop has decided otherwise since. Raises XlbError."""
        batch = self._network.ready(sorted(addresses, key=_order))
        with self._batches_lock:
            refused: list[str] = []
            if serving is self._serving:
                refused = self._add(batch) or self._announce(batch) if serving else batch.remove()
        batch.close()
        if refused:
            raise XlbError(refused[0], Code.KERNEL_REFUSED)

    def _add(self, batch: ReadyAddresses) -> list[str]:
        return batch.add() if self._lease_open() else []

    def _announce(self, batch: ReadyAddresses) -> list[str]:
        return batch.announce() if self._lease_open() else []

    # --- a node of a pair ------------------------------------------------------------------------------------

    def pair(self, serving: bool) -> None:
        """From now on the VIPs are here only while this node is active; `follow` makes it so."""
        self._paired, self._serving = True, serving

    def unpair(self) -> None:
        """A single node again, which carries its VIPs always; `follow` makes it so."""
        self._paired, self._serving = False, True
        self._replace((), None)
        self._made_for = None

    def serve(self) -> Iterator[list[str]]:
        """Add and announce, a batch per step; each step yields one message per address that was refused."""
        self._serving = True
        yield from self._each(lambda batch: self._add(batch) + self._announce(batch))

    def announce(self) -> Iterator[list[str]]:
        """Announce all again, a batch per step."""
        yield from self._each(self._announce)

    def stop_serving(self) -> Iterator[list[str]]:
        """Remove ours, a batch per step."""
        self._serving = False
        yield from self._each(lambda batch: batch.remove(), own=False)

    def _each(self, act: Callable[[ReadyAddresses], list[str]], own: bool = True) -> Iterator[list[str]]:
        number = 0
        while True:
            with self._batches_lock:
                batches = self._batches
                if number < len(batches):
                    refused = act(batches[number])
                elif own and number == len(batches) and self._own is not None:
                    refused = self._announce(self._own)
                else:
                    return
            number += 1
            yield refused

    def _make_ready(self, desired: frozenset[InterfaceAddress]) -> None:
        links = sorted((each.name, each.index, each.mac) for each in self._network.interfaces().values())
        made_for = (self._ours, desired, links)
        if made_for == self._made_for:
            return
        ours = sorted(self._ours & desired, key=_order)
        batches = [self._network.ready(ours[start : start + BATCH]) for start in range(0, len(ours), BATCH)]
        own = sorted(desired - self._ours, key=_order)
        self._replace(batches, self._network.ready(own) if own else None)
        self._made_for = made_for

    def _replace(self, batches: Sequence[ReadyAddresses], own: ReadyAddresses | None) -> None:
        with self._batches_lock:
            old = [*self._batches, *([self._own] if self._own else [])]
            self._batches, self._own = list(batches), own
            for batch in old:
                batch.close()

    # --- what is ours ----------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """Remove every address that is ours."""
        self._network.remove_addresses(sorted(self._ours, key=_order))
        self._record(set())

    def _record(self, addresses: Collection[InterfaceAddress]) -> None:
        new = set(addresses)
        if new == self._ours:
            return
        rows = sorted([each.device, each.address, each.prefix_length] for each in new)
        try:
            self._files.publish(self._path, json.dumps(rows).encode())
        except OSError as error:
            raise XlbError(f"cannot write {self._path}: {error.strerror}", storage_code(error)) from None
        self._ours = new

    def _read(self) -> set[InterfaceAddress]:
        """What a daemon before us put there; a damaged file means that its addresses stay when their VIP goes."""
        try:
            rows = json.loads(self._files.read(self._path))
            return {InterfaceAddress(str(device), str(address), int(length)) for device, address, length in rows}
        except (OSError, ValueError, TypeError):
            return set()


def wanted(config: Config) -> frozenset[InterfaceAddress]:
    """The addresses a configuration needs on the node."""
    return frozenset(InterfaceAddress(vip.device, vip.address, vip.prefix_length) for vip in config.vips.values())


def _order(address: InterfaceAddress) -> tuple[str, str, int]:
    return address.device, address.address, address.prefix_length
