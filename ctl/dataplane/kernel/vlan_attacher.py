"""Attaches the program for data interfaces among which are VLAN devices: in native mode to the interfaces below these.

Decides between the two ways, all or nothing, because frames pass between the data interfaces: in native mode everywhere, or
in generic mode on each interface that the node file names. `ctl.network.vlans` decides which VLAN devices can be handled below.
Blocks. Must not know how a program is attached (`bpf.kernel.attach`), nor when.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from bpf.dataplane import DataPlane, PlaneError, Vlan
from bpf.kernel.attach import Attachment, Mode
from ctl.network import vlans
from ctl.network.network import Interface, Network
from ctl.network.vlans import Plan

Attach = Callable[[Sequence[str], Mode], Mapping[str, Attachment]]
Detach = Callable[[Sequence[str]], Sequence[str]]

log = logging.getLogger(__name__)


class VlanAttacher:
    """attach, detach: as `bpf.kernel.attach` does for the interfaces themselves. compiled: is the program built for VLANs?"""

    def __init__(
        self,
        plane: DataPlane,
        network: Network,
        attach: Attach,
        detach: Detach,
        mode: Mode,
        compiled: Callable[[], bool],
    ) -> None:
        self._plane, self._network = plane, network
        self._attach, self._detach = attach, detach
        self._mode, self._compiled = mode, compiled
        self._written: tuple[frozenset[Vlan], frozenset[int]] | None = None
        self._messages: Sequence[str] = ()

    def attach(self, names: Sequence[str]) -> Mapping[str, Attachment]:
        """Attach the program for each of these. Raises PlaneError as `bpf.kernel.attach.attach` does."""
        interfaces = self._network.interfaces()
        planned = vlans.plan(names, interfaces)
        if not planned.vlans and not planned.why:
            return self._attach(names, self._mode)
        why = self._why_generic(planned, interfaces)
        if not why:
            try:
                return self._attach_below(names, planned, interfaces)
            except PlaneError as error:
                if self._mode == "native":
                    raise
                why = dict.fromkeys(planned.vlans, str(error))
        elif self._mode == "native":
            raise PlaneError(_refusal(why))
        self._leave(names, planned, interfaces)
        attached = self._attach(names, self._mode)
        fresh = {name for name in why if not interfaces[name].xdp_program}
        return {name: replace(each, reason=why[name]) if name in fresh else each for name, each in attached.items()}

    def detach(self, names: Sequence[str]) -> Sequence[str]:
        """Detach the program from all of them. Returns the detached interfaces."""
        planned = vlans.plan(names, self._network.interfaces())
        return self._detach(tuple(dict.fromkeys((*names, *planned.devices.values()))))

    def follow(self, names: Sequence[str], interfaces: Mapping[str, Interface], programs: Collection[int]) -> None:
        """Make the maps, and the offloads of the devices that have the program, follow an observation.

        programs: ids of xlb's builds. Raises PlaneError.
        """
        below = vlans.handled_below(names, interfaces, programs) if self._compiled() else {}
        self._write(*vlans.maps(names, interfaces, below))
        devices = {each.name for each in below.values()}
        devices |= {name for name in names if name in interfaces and interfaces[name].xdp_program in programs}
        self._keep_tags(vlans.need_tags(devices, interfaces))

    def _why_generic(self, planned: Plan, interfaces: Mapping[str, Interface]) -> dict[str, str]:
        """VLAN devices to why they are not handled below; empty: they are."""
        if self._mode == "generic":
            return dict.fromkeys(planned.vlans | planned.why.keys(), "the node file sets generic mode")
        if planned.why:
            return dict(planned.why)
        if not self._compiled():
            return dict.fromkeys(planned.vlans, "the program is not compiled for VLANs, restart xlbd")
        if self._mode == "auto":
            generic = sorted(name for name in planned.devices if interfaces[name].xdp_mode == "generic")
            if generic:
                return dict.fromkeys(planned.vlans, f"{generic[0]} is in generic mode, and packets pass between them")
        below = {planned.devices[name] for name in planned.vlans}
        self._keep_tags(sorted(below))
        stripping = self._network.stripping_tags(sorted(below))
        return {
            name: f"the driver of {device} takes VLAN tags out of frames and keeps {', '.join(stripping[device])} on"
            for name, device in planned.devices.items()
            if name != device and device in stripping
        }

    def _attach_below(
        self, names: Sequence[str], planned: Plan, interfaces: Mapping[str, Interface]
    ) -> Mapping[str, Attachment]:
        self._write(*vlans.maps(names, interfaces, planned.vlans))
        attached = self._attach(tuple(dict.fromkeys(planned.devices.values())), "native")
        self._detach(sorted(planned.vlans))
        return {
            name: replace(attached[device], interface=name, device="" if name == device else device)
            for name, device in planned.devices.items()
        }

    def _leave(self, names: Sequence[str], planned: Plan, interfaces: Mapping[str, Interface]) -> None:
        """No VLAN is handled below its device any more."""
        self._write(*vlans.maps(names, interfaces, ()))
        below = {planned.devices[name] for name in planned.vlans} - set(names)
        if below:
            self._detach(sorted(below))

    def _write(self, wanted: frozenset[Vlan], untagged: frozenset[int]) -> None:
        if not self._compiled() or self._written == (wanted, untagged):
            return
        self._plane.set_vlans(wanted, untagged)
        self._written = wanted, untagged

    def _keep_tags(self, devices: Collection[str]) -> None:
        """Log a message once, not in every pass."""
        messages = self._network.keep_tags(devices)
        for message in messages:
            if message not in self._messages:
                log.info("%s", message)
        self._messages = messages


def _refusal(why: Mapping[str, str]) -> str:
    name, reason = next(iter(why.items()))
    return (
        f"native XDP for VLAN device {name} is not possible: {reason}; "
        'set data.xdp_mode = "auto" or "generic" in the node file, or remove the cause'
    )
