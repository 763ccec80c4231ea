"""Keeps the VIPs' addresses on their interfaces, and takes away only those it put there.

`ctl.network.reconcile` decides what is missing, stale or in the place of the node's own address; this module carries it out.

An address that was there before, e.g. the node's own used as a VIP, is left when the VIP is deleted. Which ones are ours
is written to run_dir/addresses.json before they are added: run_dir is as short-lived as the addresses are (a reboot loses
both), so the two cannot disagree for long.

A node of a pair has them on its interfaces only while it is active. What that takes is prepared beforehand, so that `serve` and
`stop_serving` may run on the event loop; all other methods block: call them in a thread, one at a time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ctl.config.model import Config
from ctl.errors import Code, InvalidInput, XlbError, storage_code
from ctl.network.network import InterfaceAddress, Network, Observed, ReadyAddresses
from ctl.network.reconcile import (
    AddVip,
    DemoteVips,
    DesiredVips,
    RemoveVip,
    RestoreAddress,
    VipRepair,
    at_risk,
    has_carrier,
    vip_repairs,
)
from ctl.state.durable_files import Files

FILE_NAME = "addresses.json"
BATCH = 64
"""So many addresses are added and announced in one turn of the event loop: about a millisecond."""
MAX_ROUNDS = 8

log = logging.getLogger(__name__)


class VipAddresses:
    """The addresses of the VIPs of one node."""

    def __init__(
        self,
        network: Network,
        run_dir: Path,
        files: Files | None = None,
        lease_open: Callable[[], bool] = lambda: True,
        probe: bool = True,
    ) -> None:
        """lease_open: whether the kernel serves VIPs now. In a pair nothing is added or announced otherwise: the lease may have
        expired before the event loop notices, and the peer may have the VIPs. probe: whether a single node asks first.
        """
        self._probe = probe
        self._network, self._files, self._lease_open = network, files or Files(), lease_open
        self._path = run_dir / FILE_NAME
        self._ours = self._read()
        self._serving = self._alone = True
        self._followed: frozenset[InterfaceAddress] | None = None  # the VIPs of the configuration that was followed last
        self._taken: dict[InterfaceAddress, str] = {}
        self._batches: list[ReadyAddresses] = []
        self._own: ReadyAddresses | None = None  # VIPs that are the node's own addresses: announced only
        self._made_for: object = None
        self._batches_lock = threading.Lock()
        self._moves = self._moving = 0  # VIPs being added or removed on the loop: since the start, and now
        self._at_risk: frozenset[InterfaceAddress] = frozenset()  # by the last observation
        self._vanished: frozenset[InterfaceAddress] = frozenset()
        self._announced: dict[str, str] = {}

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

    # --- reconciling -----------------------------------------------------------------------------------------

    def desired(self, config: Config) -> DesiredVips | None:
        """Which VIPs should be here now; None while they are being moved, and while a lease must be opened first."""
        if self._moving or (self._serving and not self._lease_open()):
            return None
        here = wanted(config) if self._serving else frozenset()
        return DesiredVips(here, frozenset(self._ours), self._vanished)

    @property
    def moves(self) -> int:
        """How often VIPs were moved on the loop since the start."""
        return self._moves

    def look(self, desired: DesiredVips, observed: Observed) -> None:
        """Note which addresses of the node a VIP may take with it: there is no time for that when the VIPs are removed."""
        self._at_risk = frozenset(at_risk(desired, observed))
        for device in {each.device for each in desired.here} & observed.interfaces.keys():
            if has_carrier(observed.interfaces[device]):
                self._announced.setdefault(device, observed.interfaces[device].mac)  # VIPs were here when this daemon started
            else:
                self._announced[device] = ""  # no neighbour hears it: the network that comes back may be another one

    @property
    def announced(self) -> dict[str, str] | None:
        """The MAC of each interface as announced last, while this node serves; None: it does not. "": it had no carrier."""
        return dict(self._announced) if self._serving else None

    def follow(self, config: Config) -> list[VipRepair]:
        """Make the interfaces carry the VIPs of `config`, announce those that were added, remove ours that went.

        On a backup: remove ours, and prepare a takeover. Returns what was done, unless the event loop moved VIPs meanwhile.
        Raises XlbError when the kernel refuses one.
        """
        done: list[VipRepair] = []
        for _ in range(MAX_ROUNDS):
            serving, moves = self._serving, self._moves
            done = self._follow(config, serving)
            self._make_ready(wanted(config))
            if moves != self._moves or self._moving:
                done = []
            if serving is self._serving:  # else the node's role changed meanwhile
                break
        return done

    def _follow(self, config: Config, serving: bool) -> list[VipRepair]:
        desired = wanted(config)
        vips = DesiredVips(desired if serving else frozenset(), frozenset(self._ours), self._vanished)
        devices = sorted({each.device for each in vips.here | vips.ours})
        observed = self._network.observe((), devices)
        repairs = list(vip_repairs(vips, observed))
        self.look(vips, observed)
        present = set(observed.addresses)
        missing = desired - present
        self._remove_unless_changed(serving, [each.address for each in repairs if isinstance(each, RemoveVip)], self._at_risk)
        # On a backup too: what is missing will be ours once this node is active, and there is no time to record it then.
        self._record((self._ours & desired) | missing)
        self._vanished = frozenset()
        self._restore([each.address for each in repairs if isinstance(each, RestoreAddress)])
        for each in repairs:
            if isinstance(each, DemoteVips):
                self._demote(each)
        added = [each.address for each in repairs if isinstance(each, AddVip)]
        taken = self._find_taken(added, desired)
        repairs = [each for each in repairs if not (isinstance(each, AddVip) and each.address in taken)]
        if free := [each for each in added if each not in taken]:
            self._add_unless_changed(free)
        return repairs if self._lease_open() or not serving else []

    @property
    def taken(self) -> Mapping[InterfaceAddress, str]:
        """VIPs that another machine answers for, to its MAC: they are not added before it stops."""
        return dict(self._taken)

    def _find_taken(
        self, added: Sequence[InterfaceAddress], desired: frozenset[InterfaceAddress]
    ) -> Mapping[InterfaceAddress, str]:
        """Which of these another machine has. Raises XlbError if one of them is new in the configuration.

        In a pair the lease decides: there the peer may still answer when it should not, and clients must not wait for that.
        """
        before, self._followed = self._followed, desired
        found = dict(self._network.who_answers(added)) if added and self._alone and self._probe else {}
        for each, mac in found.items():
            message = f"vip {each.address} is in use: {mac} answers for it on {each.device}"
            if before is not None and each not in before:
                self._followed = before
                raise XlbError(f"{message}; give it up there first, or choose another address", Code.ADDRESS_IN_USE)
            if each not in self._taken:
                log.error("%s; it stays off this node until that ends", message)
        for each in self._taken.keys() - found.keys():
            log.info("vip %s is free again", each.address)
        self._taken = found
        return found

    def _add_unless_changed(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Add and announce; nothing if this node does not serve any more. Raises XlbError."""
        with closing(self._network.ready(addresses)) as batch, self._batches_lock:
            refused = self._add(batch) if self._serving else []
            if self._serving and not refused:
                self._announce(batch)  # not heard is not fatal: clients ask
        _raise_first(refused)

    def _remove_unless_changed(
        self, serving: bool, addresses: Sequence[InterfaceAddress], risk: frozenset[InterfaceAddress]
    ) -> None:
        """Remove VIPs, and put back what the kernel removed with them; nothing if the role changed. Raises XlbError."""
        if not addresses:
            return
        with closing(self._network.ready(addresses)) as batch, self._batches_lock:
            refused = batch.remove() if serving is self._serving else []
        if risk:
            self._restore(sorted(risk - self._network.addresses(), key=_order))
        _raise_first(refused)

    def _restore(self, addresses: Sequence[InterfaceAddress]) -> None:
        if addresses:
            self._network.add_addresses(addresses)

    def _demote(self, repair: DemoteVips) -> None:
        """For microseconds the VIPs are not addresses of this node; the program serves their farms all the same."""
        with closing(self._network.ready(sorted(repair.addresses, key=_order))) as batch, self._batches_lock:
            if self._serving and self._lease_open():
                _raise_first(batch.remove() + batch.add())

    def _add(self, batch: ReadyAddresses) -> list[str]:
        return batch.add() if self._lease_open() else []

    def _announce(self, batch: ReadyAddresses) -> list[str]:
        if not self._lease_open():
            return []
        self._announced |= batch.macs
        return batch.announce()

    # --- a node of a pair ------------------------------------------------------------------------------------

    def pair(self, serving: bool) -> None:
        """From now on the VIPs are here only while this node is active; `follow` makes it so."""
        self._serving, self._alone = serving, False

    def unpair(self) -> None:
        """A single node again, which carries its VIPs always; `follow` makes it so."""
        self._serving = self._alone = True

    def serve(self) -> Iterator[list[str]]:
        """Add and announce, a batch per step; each step yields one message per address that was refused."""
        self._serving = True
        yield from self._moved(self._each(lambda batch: self._add(batch) + self._announce(batch)))

    def announce(self) -> Iterator[list[str]]:
        """Announce all again, a batch per step."""
        yield from self._each(self._announce)

    def stop_serving(self) -> Iterator[list[str]]:
        """Remove ours, a batch per step. What the kernel removes with them, `follow` puts back."""
        self._serving = False
        self._vanished |= self._at_risk
        yield from self._moved(self._each(lambda batch: batch.remove(), own=False))

    def _moved(self, steps: Iterator[list[str]]) -> Iterator[list[str]]:
        """While steps are left, nothing can be said about which VIPs should be here."""
        self._moves += 1
        self._moving += 1
        try:
            yield from steps
        finally:
            self._moving -= 1

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
        made_for = (self._ours, desired)
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
        """Remove every address that is ours, and put back what the kernel removes with them."""
        ours = DesiredVips(frozenset(), frozenset(self._ours))
        risk = at_risk(ours, self._network.observe((), ())) if self._ours else {}
        self._network.remove_addresses(sorted(self._ours, key=_order))
        if risk:
            self._restore(sorted(set(risk) - self._network.addresses(), key=_order))
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


def _raise_first(refused: Sequence[str]) -> None:
    if refused:
        raise XlbError(refused[0], Code.KERNEL_REFUSED)


def _order(address: InterfaceAddress) -> tuple[str, str, int]:
    return address.device, address.address, address.prefix_length
