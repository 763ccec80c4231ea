"""The commands `capture.start` and `capture.end`: the program that records packets is put on the interfaces for a client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ctl.api.caller import CALLER
from ctl.api.commands.dispatcher import Arguments, Dispatcher, Result
from ctl.dataplane.kernel.program_capture import ProgramCapture


@dataclass(frozen=True, slots=True)
class CaptureCommands:
    """What they use of the node."""

    capture: ProgramCapture

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("capture.start", self.start, acts=True)
        dispatcher.register("capture.end", self.end)

    async def start(self, _: Arguments) -> Result:
        """{"directory"}: of the pins that the client reads from."""
        caller = CALLER.get()
        user = await asyncio.to_thread(caller.name)
        return {"directory": str(await self.capture.start(caller.pid, user))}

    async def end(self, _: Arguments) -> Result:
        """{}; of a capture that has ended too."""
        await self.capture.end(CALLER.get().pid)
        return {}
