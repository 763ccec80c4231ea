"""The data interfaces of a running node: attaches the program to them, and again to an interface that is re-created.

Decides when to attach the program to an interface. Must not know how (`bpf.kernel.attach`), nor the configuration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from bpf.dataplane import PlaneError
from bpf.kernel.attach import Attachment
from ctl.errors import Code, XlbError
from ctl.network.network import Network
from ctl.runtime.supervisor import Supervisor

log = logging.getLogger(__name__)


class Attacher(Protocol):
    """Attaches the program to interfaces and detaches it. All raise PlaneError with the remedy."""

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]: ...

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Returns the detached interfaces; ignores one that is gone or has another program."""

    def report_flows(self) -> None:
        """Make the program report flow changes for a peer. Replaces it in place if necessary; maps are kept."""


class DataInterfaces:
    """`attachments`: how the program is attached to each interface. came_back: called after an interface is re-created."""

    def __init__(
        self,
        names: Sequence[str],
        attacher: Attacher,
        network: Network,
        supervisor: Supervisor,
        came_back: Callable[[], Awaitable[None]],
    ) -> None:
        self.attachments: dict[str, Attachment] = {}
        self._names, self._attacher, self._network = names, attacher, network
        self._supervisor, self._came_back = supervisor, came_back

    async def attach(self) -> None:
        """Attach the program to all of them. Raises XlbError if one refuses it."""
        await asyncio.to_thread(self._attach, self._names)

    async def detach(self) -> None:
        """Detach the program. Raises PlaneError."""
        for name in await asyncio.to_thread(self._attacher.detach, self._names):
            log.info("XDP detached from %s", name)

    async def report_flows(self) -> None:
        """Ensure that the program reports flow changes. Raises XlbError."""
        try:
            await asyncio.to_thread(self._attacher.report_flows)
        except PlaneError as error:
            raise XlbError(str(error), Code.KERNEL_REFUSED) from error

    def changed(self, name: str, state: str) -> None:
        """An interface changed its state (see `NetworkEvents.link_changed`)."""
        log.log(logging.INFO if state in ("up", "new") else logging.WARNING, "interface %s is %s", name, state)
        if state == "gone":
            self.attachments.pop(name, None)
        elif state == "new":
            self._supervisor.run(self._attach_again(name), f"attaching {name}")

    async def _attach_again(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._attach, (name,))
        except XlbError as error:
            log.error("cannot attach XDP again to %s: %s", name, error)
        await self._came_back()

    def _attach(self, names: Sequence[str]) -> None:
        try:
            attached = self._attacher.attach(names)
        except PlaneError as error:
            raise XlbError(str(error), Code.KERNEL_REFUSED) from error
        self.attachments.update(attached)
        for name, attachment in attached.items():
            log.info(
                "XDP attached to %s, mode %s%s", name, attachment.mode, f": {attachment.reason}" if attachment.reason else ""
            )
        for message in self._network.keep_frames_whole([name for name, each in attached.items() if each.mode == "generic"]):
            log.info("%s", message)
