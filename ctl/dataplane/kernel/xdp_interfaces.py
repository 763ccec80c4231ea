"""The program on the data interfaces: attaches it, and reads from an observation how it is attached now.

Decides nothing: `ctl.network.reconcile` decides when to attach the program again. Must not know how (`bpf.kernel.attach`), nor
the configuration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, cast

from bpf.dataplane import PlaneError
from bpf.kernel.attach import Attachment
from ctl.dataplane.features import VLANS
from ctl.diagnosis import interfaces as examination
from ctl.diagnosis.finding import Finding
from ctl.errors import Code, XlbError
from ctl.network import vlans
from ctl.network.network import Interface, Network

log = logging.getLogger(__name__)


class Attacher(Protocol):
    """Attaches the program to interfaces and detaches it. All raise PlaneError with the remedy."""

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]: ...

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Returns the detached interfaces; ignores one that is gone or has another program."""

    def follow(self, interfaces: Sequence[str], observed: Mapping[str, Interface], programs: Collection[int]) -> None:
        """Make what the program knows of VLAN devices among `interfaces` follow an observation; programs: those of xlb."""

    def program(self) -> int:
        """Id of the program that belongs on the interfaces: the pinned one, or that of a capture. 0: there is none."""

    def replacements(self) -> int:
        """A number that changes when the program begins and ends to be replaced, and is odd in between: what was observed of
        the interfaces meanwhile has no meaning."""

    def name_of(self, program: int) -> tuple[str, bool]:
        """The name of a loaded program, and whether it is a build of xlb; empty once it is unloaded."""

    def features(self) -> frozenset[str]:
        """Those of the program (`ctl.dataplane.features`)."""

    def add_features(self, features: frozenset[str]) -> None:
        """Make the program have these too. Replaces it in place if necessary; maps are kept. Ends a capture."""

    def start_capture(self) -> Path:
        """Put a build on the interfaces that records packets; returns the directory of its pins."""

    def end_capture(self) -> bool:
        """Put the usual program back; False: it was there."""


class DataInterfaces:
    """The data interfaces of the node file. `names`: all of them, present or not."""

    def __init__(self, names: Sequence[str], attacher: Attacher, network: Network) -> None:
        self.names = tuple(names)
        self._attacher, self._network = attacher, network
        self._reasons: dict[str, Attachment] = {}  # why the program was attached in that mode
        self._seen: Mapping[str, Interface] = {}

    async def attach(self) -> None:
        """Attach the program to all of them. Raises XlbError if one refuses it."""
        await asyncio.to_thread(self.attach_to, self.names)

    async def detach(self) -> None:
        """Detach the program. Raises PlaneError."""
        for name in await asyncio.to_thread(self._attacher.detach, self.names):
            log.info("XDP detached from %s", name)

    def attach_to(self, names: Sequence[str]) -> None:
        """Attach the program to these, where it is not yet. Blocks. Raises XlbError."""
        try:
            attached = self._attacher.attach(names)
        except PlaneError as error:
            raise XlbError(str(error), Code.KERNEL_REFUSED) from error
        for name, attachment in attached.items():
            if self._reasons.get(name) != attachment or name not in self.attachments():
                reason = f": {attachment.reason}" if attachment.reason else ""
                below = f" on {attachment.device}" if attachment.device else ""
                log.info("XDP attached to %s, mode %s%s%s", name, attachment.mode, below, reason)
        self._reasons |= attached
        for message in self._network.keep_frames_whole([name for name, each in attached.items() if each.mode == "generic"]):
            log.info("%s", message)
        self.seen(self._network.interfaces())

    def follow(self, interfaces: Mapping[str, Interface]) -> None:
        """Make what the program knows of VLAN devices follow an observation. Blocks. Raises PlaneError."""
        self._attacher.follow(self.names, interfaces, self._programs(interfaces))

    # --- what is there ---------------------------------------------------------------------------------------

    def program(self) -> int:
        """Id of the pinned program; 0: unknown. Blocks for microseconds."""
        try:
            return self._attacher.program()
        except (PlaneError, OSError):
            return 0

    def replacements(self) -> int:
        """As `Attacher.replacements`."""
        return self._attacher.replacements()

    def as_handled(self, interfaces: Mapping[str, Interface]) -> Mapping[str, Interface]:
        """An observation in which each VLAN device that the program handles on the interface below it has the program."""
        if VLANS not in self._attacher.features():
            return interfaces
        return vlans.as_handled(self.names, interfaces, self._programs(interfaces))

    def _programs(self, interfaces: Mapping[str, Interface]) -> frozenset[int]:
        """Those on the data interfaces, or below them, that are builds of xlb."""
        devices = vlans.plan(self.names, interfaces).devices
        own, found = self.program(), {interfaces[each].xdp_program for each in (*devices, *devices.values())} - {0}
        return frozenset(number for number in found if number == own or self._attacher.name_of(number)[1])

    def other_builds(self, interfaces: Mapping[str, Interface]) -> frozenset[int]:
        """Programs on data interfaces that are other builds of xlb, for example while the program is replaced."""
        present = {interfaces[name].xdp_program for name in self.names if name in interfaces}
        return frozenset(number for number in present if number and self._attacher.name_of(number)[1])

    def described(self, program: int) -> str:
        """A program for people: its id and its name."""
        return f"{program} ({self._attacher.name_of(program)[0] or 'unnamed'})"

    def seen(self, interfaces: Mapping[str, Interface]) -> None:
        """Take up an observation, for `attachments` to be answered from."""
        self._seen = interfaces

    def attachments(self, interfaces: Mapping[str, Interface] | None = None) -> dict[str, Attachment]:
        """How the program is attached, by `interfaces` or by the last observation; without those that do not have it."""
        found = {}
        program, interfaces = self.program(), self._seen if interfaces is None else interfaces
        handled, devices = self.as_handled(interfaces), vlans.plan(self.names, interfaces).devices
        for name in self.names:
            link = handled.get(name)
            if link is not None and link.xdp_program and link.xdp_program == program and link.xdp_mode != "other":
                known = self._reasons.get(name)
                reason = known.reason if known is not None and known.mode == link.xdp_mode else ""
                mode = cast("Literal['native', 'generic']", link.xdp_mode)
                device = devices[name] if not interfaces[name].xdp_program else ""
                found[name] = Attachment(name, mode, link.driver, reason, device)
        return found

    def examined(self, links: Mapping[str, Interface], generic: bool) -> dict[str, Finding]:
        """What is wrong with each of them, or how the program is attached. generic: that mode is no fault."""
        attachments, found = self.attachments(links), {}
        for name in self.names:
            link, attachment = links.get(name), attachments.get(name)
            seen = None
            if link is not None and attachment is not None:
                seen = examination.Seen(attachment.mode, attachment.driver, attachment.reason, link.carrier, attachment.device)
            found[name] = examination.examine(name, seen, generic, self.why_not(link))
        return found

    def why_not(self, link: Interface | None) -> str:
        """Why the program is not attached to a data interface."""
        if link is None:
            return "the interface does not exist"
        return f"it has another XDP program: {self.described(link.xdp_program)}" if link.xdp_program else "not attached"
