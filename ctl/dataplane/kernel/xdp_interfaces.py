"""The data interfaces of a running node: which of them carry the program, and that one which comes back carries it again.

Decides when the program is put on an interface. Must not know how (`bpf.kernel.attach`), nor what the node serves.
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
    """Puts the program on interfaces and takes it off. All raise PlaneError with the remedy."""

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]: ...

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Returns those that had it; one that is gone, or carries another program, is left as it is."""

    def report_flows(self) -> None:
        """Have the program report flow changes for a peer. It is replaced in place if need be; tables stay."""


class DataInterfaces:
    """`attachments`: how the program sits on each interface that is there. came_back: what else one that returns needs."""

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
        """Put the program on all of them. Raises XlbError when one cannot have it."""
        await asyncio.to_thread(self._attach, self._names)

    async def detach(self) -> None:
        """Take it off. Raises PlaneError."""
        for name in await asyncio.to_thread(self._attacher.detach, self._names):
            log.info("XDP detached from %s", name)

    async def report_flows(self) -> None:
        """See that the program reports flow changes. Raises XlbError."""
        try:
            await asyncio.to_thread(self._attacher.report_flows)
        except PlaneError as error:
            raise XlbError(str(error), Code.KERNEL_REFUSED) from error

    def changed(self, name: str, state: str) -> None:
        """One of them went up, down or away, or came back (as `NetworkEvents.link_changed` says)."""
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
        for sentence in self._network.keep_frames_whole([name for name, each in attached.items() if each.mode == "generic"]):
            log.info("%s", sentence)
