"""The sessions on disk, so that they survive a restart of xlb-web."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from ctl.state.durable_files import Files

log = logging.getLogger(__name__)

NAME = "sessions.json"
MAX_BYTES = 1 << 20


class SessionFile:
    """One writer at a time; what is written last is the newest."""

    def __init__(self, directory: Path, files: Files | None = None) -> None:
        self._path, self._files = directory / NAME, files or Files()
        self._lock = asyncio.Lock()

    def load(self) -> Any:
        """What was stored; None: nothing that can be read. Blocks."""
        try:
            return json.loads(self._files.read(self._path, MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("sessions of %s are not read, so users log in again: %s", self._path, error)
            return None

    async def store(self, sessions: list[dict[str, Any]]) -> None:
        """Write them; a failure is logged, and costs a login after a restart."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._files.replace, self._path, json.dumps(sessions).encode())
            except OSError as error:
                log.warning("sessions cannot be written to %s: %s", self._path, error.strerror)
