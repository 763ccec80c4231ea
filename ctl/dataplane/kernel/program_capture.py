"""The capture of this node: puts the program that records packets on the interfaces, and the usual one back.

Decides that there is one capture at a time, and that it ends with the process of its client, which the kernel reports. The
client reads the records by itself (`ctl.capture`); this must not know what they hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from bpf.dataplane import PlaneError
from ctl.dataplane.kernel.program_features import ProgramFeatures
from ctl.dataplane.kernel.xdp_interfaces import Attacher
from ctl.errors import Code, XlbError
from ctl.runtime.progress import working

log = logging.getLogger(__name__)

DOING = "the program is compiled to record packets, which takes seconds, or a minute on a slow machine"


@dataclass(frozen=True, slots=True)
class _Client:
    pid: int
    user: str
    ended: int  # descriptor, readable once the process has ended


class ProgramCapture:
    """Create on a running loop; `stop` before the loop ends."""

    def __init__(self, program: ProgramFeatures, attacher: Attacher) -> None:
        self._program, self._attacher = program, attacher
        self._client: _Client | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self, pid: int, user: str) -> Path:
        """Returns the directory of the pins from which the client `pid` reads. Raises XlbError."""
        if self._client is not None:
            raise XlbError(
                f"a capture of {self._client.user} runs already (process {self._client.pid}): end it first", Code.CAPTURE_RUNS
            )
        self._client = client = _Client(pid, user, _watched(pid))
        try:
            with working(DOING):
                directory = await self._program.alone(self._attacher.start_capture)
        except (PlaneError, OSError) as error:
            self._forget(client)
            raise XlbError(f"the capture cannot start: {error}", Code.KERNEL_REFUSED) from error
        except BaseException:  # the request was cancelled, and the program was put on the interfaces all the same
            await self.stop()
            raise
        if self._client is not client:
            raise XlbError("the capture ended before it began: xlbd stops", Code.CAPTURE_ENDED)
        asyncio.get_running_loop().add_reader(client.ended, self._client_ended, client)
        log.info("capture started by %s: the program that records packets is on the interfaces", user)
        return directory

    async def end(self, pid: int) -> None:
        """Its client has what it wanted."""
        if self._client is not None and self._client.pid == pid:
            await self.stop()

    async def stop(self) -> None:
        """Put the usual program back, if a capture runs."""
        client, self._client = self._client, None
        if client is None:
            return
        asyncio.get_running_loop().remove_reader(client.ended)
        os.close(client.ended)
        try:
            if await self._program.alone(self._attacher.end_capture):
                log.info("capture ended: the usual program is on the interfaces")
        except (PlaneError, OSError) as error:
            log.error("the usual program could not be put back after a capture: %s", error)

    def _client_ended(self, client: _Client) -> None:
        if self._client is not client:
            return
        asyncio.get_running_loop().remove_reader(client.ended)
        task = asyncio.get_running_loop().create_task(self.stop(), name="end of a capture")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _forget(self, client: _Client) -> None:
        if self._client is client:
            os.close(client.ended)
            self._client = None


def _watched(pid: int) -> int:
    """A descriptor that is readable once the process has ended. Raises XlbError."""
    try:
        return os.pidfd_open(pid)
    except (OSError, ValueError) as error:
        raise XlbError(
            "xlbd cannot see the process of this client, and would not notice its end: run xlbctl outside of the container, "
            "in the same PID namespace as xlbd"
        ) from error
