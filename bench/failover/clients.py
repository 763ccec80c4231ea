"""The clients of a pair: connections that are held with checked payload, old ones and ones opened just before a fault.

Decides only how connections are opened and when one counts as broken: it was reset or closed, or it did not complete two more
round trips in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from bench.failover.subject import HELD_PORT, VIPS
from bench.failover.verdict import Connection
from tests.rig import Client, HeldConnections
from tests.rig.client import Holding
from tests.rig.namespaces import Namespace

SPREAD_S = 0.4
"""Between two messages of an old connection."""
CONFIRMED_WITHIN_S = 4.0
"""A connection that does not complete two more round trips in this time is broken. A lost segment is sent again after 0.2 s."""
_FRESH = str(Path(__file__).with_name("fresh_process.py"))


class OldConnections:
    """Opened once, and held from fault to fault."""

    def __init__(self, client: Client, count: int) -> None:
        self._client, self._count = client, count
        self._held = HeldConnections(VIPS[4], HELD_PORT, 0)

    def open(self) -> None:
        """Those of before are closed."""
        self._client.run(self._open())

    async def _open(self) -> None:
        await self._held.close()
        self._held = HeldConnections(VIPS[4], HELD_PORT, self._count, pause_s=SPREAD_S)
        await self._held.open()
        await unconfirmed(self._held.connections)

    def confirm(self) -> tuple[list[Connection], int]:
        """Every connection, and how many bytes were wrong since the last time."""
        return self._client.run(self._confirm())

    async def _confirm(self) -> tuple[list[Connection], int]:
        held = self._held
        silent = await unconfirmed(held.connections)
        wrong, held.wrong_bytes = held.wrong_bytes, 0
        return [_seen(each, each in silent) for each in held.connections], wrong

    @property
    def is_whole(self) -> bool:
        """Whether none broke."""
        return len(self._held.connections) == self._count and not self._held.broken

    def close(self) -> None:
        self._client.run(self._held.close())


def _seen(held: Holding, silent: bool) -> Connection:
    return Connection(round(held.born_s * 1e9), held.lost or ("no answer" if silent else ""))


async def unconfirmed(connections: Iterable[Holding], within_s: float = CONFIRMED_WITHIN_S) -> set[Holding]:
    """Those that did not complete two more round trips in time; the second one began after the call."""
    goals = {held: held.rounds + 2 for held in connections if not held.lost}

    def behind() -> set[Holding]:
        return {held for held, goal in goals.items() if held.lost or held.rounds < goal}

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            for owner in {held.owner for held in goals}:
                await owner.until(lambda: all(held.lost or held.rounds >= goal for held, goal in goals.items()))
    return behind()


class FreshConnections:
    """Opened every millisecond, from construction until `confirm`, by a process of their own. `close` in any case."""

    def __init__(self, namespace: Namespace, interval_ms: float = 1.0) -> None:
        words = [VIPS[4], str(HELD_PORT), str(round(interval_ms * 1000)), str(round(CONFIRMED_WITHIN_S * 1000))]
        self._process = namespace.popen(
            [sys.executable, "-S", _FRESH, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout
        self.count = 0
        """How many there are."""
        self._found: list[tuple[int, str, int]] = []
        self._reader = threading.Thread(target=self._read, name="fresh connections", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._out:
            document = json.loads(line)
            if isinstance(document, int):
                self.count = document
            else:
                self._found.append(document)

    def confirm(self) -> tuple[list[Connection], int]:
        """Open no more; every connection, and how many bytes were wrong."""
        self._in.close()
        self._process.wait(CONFIRMED_WITHIN_S + 10)
        self._reader.join(5)
        return [Connection(born_ns, broken) for born_ns, broken, _ in self._found], sum(each[2] for each in self._found)

    def close(self) -> None:
        """Whatever is in progress."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        self._process.wait(10)
        self._reader.join(5)
        self._out.close()
