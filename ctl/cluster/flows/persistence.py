"""Which backend each client keeps, replicated: the active node's entries go to its peer, the changed ones twice per second.

Entries are not derived from flows alone, because a client may come back after its last connection has ended. They travel as
questions on the channel of the configuration, so that a peer of version 0.1.0, which knows no such question, is not disturbed.
An entry counts as changed if it was used since the last pass; a new peer, and a new epoch, get all of them. The peer keeps of
each client the entry that was used last. Must not know what a backend is, or who answers for the VIPs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from bpf.constants import MAX_BACKENDS, MAX_FARMS, MAX_PERSISTENT
from bpf.dataplane import PERSISTENT, Array, PlaneError
from ctl.cluster.flows.source import FAMILIES, ReplicatedPlane
from ctl.errors import Code, InvalidInput, XlbError

QUESTION = "persistence"
PAUSE_S = 0.5
REST_PER_WORK = 20
"""A pass over a full map takes some 50 ms; the pause after it is this many times as long."""
BATCH_ROWS = 8192
TIMEOUT_S = 5.0
OVERLAP_TICKS = 2
"""A packet that is handled during a pass carries the time at which it began to be handled."""

log = logging.getLogger(__name__)

Ask = Callable[[str, dict[str, Any], float], Awaitable[Any]]


class PersistenceReplica:
    """One per pair. Create and `run` on a running loop; register `take` for QUESTION.

    serving_epoch: the epoch in which this node is active at this moment, 0 when it is not. wanted: whether a farm has
    persistence.
    """

    def __init__(self, plane: ReplicatedPlane, ask: Ask, serving_epoch: Callable[[], int], wanted: Callable[[], bool]) -> None:
        self._plane, self._ask, self._serving_epoch, self._wanted = plane, ask, serving_epoch, wanted
        self._epoch = 0  # of the last pass
        self._since: int | None = None  # entries used since this tick are sent; None: all
        self._peer_knows = True
        self._failed = False
        self._held: dict[str, list[Array]] = {}  # by family, until the program has the map; last_used in this node's ticks
        self.sent_rows = self.taken_rows = 0

    def new_peer(self) -> None:
        """Another incarnation of the peer is heard: it may have lost what it had, and be of another version."""
        self._since, self._peer_knows = None, True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            started = time.monotonic()
            try:
                await self.run_once()
                self._failed = False
            except (PlaneError, OSError) as error:
                if not self._failed:
                    log.error("the backends that clients keep cannot be replicated: %s", error)
                self._failed = True
            await asyncio.sleep(max(PAUSE_S, REST_PER_WORK * (time.monotonic() - started)))

    async def run_once(self) -> None:
        """One pass. The first one after this node has left service is its last. Raises PlaneError."""
        epoch, before = self._serving_epoch(), self._epoch
        self._epoch = epoch
        if not (epoch or before) or not self._wanted() or not self._peer_knows:
            return
        if epoch and epoch != before:
            self._since = None
        since, began = self._since, self._plane.now_tick() - OVERLAP_TICKS
        try:
            for family in FAMILIES:
                for rows in await asyncio.to_thread(self._changed, family, since):
                    await self._ask(QUESTION, {"family": family, "entries": rows.tobytes()}, TIMEOUT_S)
                    self.sent_rows += len(rows)
        except XlbError as error:
            if error.code in (Code.PEER_VERSION, Code.UNCODED):
                self._peer_knows = False
                log.info("the peer's version has no persistence: after a takeover by it clients may get other backends")
            return
        if self._since == since:
            self._since = began

    def _changed(self, family: str, since: int | None) -> list[Array]:
        """Entries used since a tick, with their age in place of the time, in batches."""
        now = np.uint32(self._plane.now_tick() & 0xFFFFFFFF)
        found = [np.zeros(0, PERSISTENT[family])]
        for rows in self._plane.persistent_batches(family, BATCH_ROWS):
            chosen = rows if since is None else rows[now - rows["last_used"] <= (now - np.uint32(since & 0xFFFFFFFF))]
            chosen = chosen.copy()
            chosen["last_used"] = _age(now, chosen["last_used"])
            found.append(chosen)
        joined = np.concatenate(found)
        return [joined[at : at + BATCH_ROWS] for at in range(0, len(joined), BATCH_ROWS)]

    async def take(self, arguments: dict[str, Any]) -> int:
        """Entries of the peer: {"family", "entries"}. Returns how many were written. Raises InvalidInput for anything else."""
        family, entries = arguments.get("family"), arguments.get("entries")
        if family not in FAMILIES or not isinstance(entries, bytes) or len(entries) % PERSISTENT[family].itemsize:
            raise InvalidInput("expected the entries of an address family", "entries")
        rows = np.frombuffer(entries, PERSISTENT[family])
        if len(rows) > BATCH_ROWS:
            raise InvalidInput(f"expected at most {BATCH_ROWS} entries, got {len(rows)}", "entries")
        if not self._plane.keeps_clients():
            return self._hold(family, rows)
        written = await asyncio.to_thread(self._write, family, rows)
        self.taken_rows += written
        return written

    def _hold(self, family: str, rows: Array) -> int:
        """A takeover may come before the compiler has ended. Beyond the limit the peer sends them again."""
        held = self._held.setdefault(family, [])
        if sum(map(len, held)) + len(rows) > MAX_PERSISTENT:
            raise XlbError("the program of this node has no persistence yet", Code.BUSY)
        rows = rows.copy()
        rows["last_used"] = np.uint32(self._plane.now_tick() & 0xFFFFFFFF) - rows["last_used"]
        held.append(rows)
        return len(rows)

    async def release(self) -> None:
        """Write what was held back, if the program has the map now. Raises PlaneError."""
        if not self._plane.keeps_clients():
            return
        held, self._held = self._held, {}
        for family, batches in held.items():
            for rows in batches:
                rows["last_used"] = _age(np.uint32(self._plane.now_tick() & 0xFFFFFFFF), rows["last_used"])
                self.taken_rows += await asyncio.to_thread(self._write, family, rows)

    def _write(self, family: str, rows: Array) -> int:
        now = np.uint32(self._plane.now_tick() & 0xFFFFFFFF)
        sane = (rows["farm"] < MAX_FARMS) & (rows["home"] < MAX_BACKENDS) & (rows["backend"] < MAX_BACKENDS)
        rows = rows[sane].copy()
        known, present = self._plane.find_persistent(family, rows)
        newer = ~known | (rows["last_used"] <= _age(now, present["last_used"]))
        rows["last_used"] = now - rows["last_used"]
        return self._plane.update_persistent(family, rows[newer])


def _age(now: Any, last_used: Array) -> Array:
    """Ticks since; 0 for an entry that was used after the clock was read."""
    age = (now - last_used).astype(np.uint32)
    return np.where(age < 1 << 31, age, np.uint32(0)).astype(np.uint32)
