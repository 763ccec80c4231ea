"""The one path of a configuration change, on a single node and in a pair, and of a health transition into the maps.

    validate → plan → record → apply → addresses → answer

Decides the order and what undoing means. A `Recorder` numbers a change and decides when its record is stored and confirmed:
`OneNode` here, `ctl.cluster.config_replication.ConfigReplica` in a pair. A change is encoded once; these bytes are stored, and
replicated. What a change does is decided in `ctl.config.changes`, what the maps hold in `ctl.dataplane.planner`. Changes are
serialised with a bounded queue, and run in threads: neither planning a big farm nor an fsync holds up the loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from bpf.dataplane import DataPlane, PlaneError
from ctl.config import diff
from ctl.config.changes import Committed, MakeConfig
from ctl.config.model import Config, Provenance
from ctl.config.record_codec import Encoder, Put, Record
from ctl.dataplane import planner
from ctl.dataplane.features import features_of, runnable
from ctl.errors import Code, XlbError, code_of
from ctl.events.catalogue import CONFIG_ADOPTED, Event
from ctl.network.reconcile import VipRepair
from ctl.network.vip_addresses import VipAddresses
from ctl.runtime.event_hub import Report, log_only
from ctl.state.store import Store

MAX_WAITING_CHANGES = 256
MAX_PLANNING_ROUNDS = 64
MAX_ATTEMPTS = 8

T = TypeVar("T")
log = logging.getLogger(__name__)


class Turn(Protocol):
    """One change's place in the sequence of changes."""

    def number(self, config: Config) -> Config:
        """The configuration with its version. Called in a thread."""

    def is_current(self) -> bool:
        """Whether the change may still be recorded under this number."""

    async def prepare(self, features: frozenset[str]) -> str:
        """Have the peer's program compiled at the same time as this node's, so that it can take over with the change.

        Returns what the asker should know.
        """

    async def record(self, record: Record, put: Put) -> str:
        """Have the record put in force and stored wherever it belongs.

        Returns what the asker should know, empty when there is nothing. Raises XlbError.
        """


class Recorder(Protocol):
    """Where changes are numbered and recorded: on one node or on two."""

    async def begin(self) -> Turn:
        """Raises XlbError when this node accepts no changes."""


class Program(Protocol):
    """The program on the interfaces (`ctl.dataplane.kernel.program_features.ProgramFeatures`)."""

    def missing(self, wanted: frozenset[str]) -> frozenset[str]:
        """Which of these features it does not have."""

    async def require(self, wanted: frozenset[str], patiently: bool = False) -> str:
        """Replace it by one that has them, where it does not. Returns what was done. Raises XlbError."""


class WholeProgram:
    """One that has every feature."""

    def missing(self, wanted: frozenset[str]) -> frozenset[str]:
        return frozenset()

    async def require(self, wanted: frozenset[str], patiently: bool = False) -> str:
        return ""


WHOLE_PROGRAM = WholeProgram()


class Generations(Protocol):
    """The history of the configuration (`ctl.state.history.History`). Its methods raise nothing, and block."""

    def keep(self) -> None:
        """Keep what is on disk, and in force."""

    def free(self, size: int) -> bool:
        """Make space on a full disk. Returns whether there is any now."""


class NoHistory:
    """Keeps nothing."""

    def keep(self) -> None:
        pass

    def free(self, size: int) -> bool:
        return False


NO_HISTORY = NoHistory()


class OneNode:
    """The recorder of a single node, and its turns: every change is numbered by `ctl.config.changes` and stored here."""

    async def begin(self) -> OneNode:
        return self

    def number(self, config: Config) -> Config:
        return config

    def is_current(self) -> bool:
        return True

    async def prepare(self, features: frozenset[str]) -> str:
        return ""

    async def record(self, record: Record, put: Put) -> str:
        await put(record)
        return ""


class Transaction:
    """Holds the configuration in force and what the kernel's maps hold. Create on a running loop, `load` once.

    down: ids of the backends that must get no connections under a configuration; called in threads. in_force: called after each
    configuration that came into force here.
    refused: called when the kernel refused a configuration that is in force all the same, for `replan` to be tried again.
    advise: what the one who makes a change should know about it, and what it logs; called in a thread.
    shares: of `ctl.dataplane.slow_start`, under a configuration and with these ids down; called in threads.
    fault: called with why the program cannot follow a configuration that is in force; empty: it can.
    history: keeps each configuration that was in force. provenance: who changes one configuration into another; called in a
    thread, in the context of the request.
    """

    def __init__(
        self,
        store: Store,
        plane: DataPlane,
        addresses: VipAddresses,
        down: Callable[[Config], frozenset[int]],
        in_force: Callable[[Committed], Awaitable[None]],
        refused: Callable[[], None],
        advise: Callable[[Config, Config], str] = lambda old, new: "",
        shares: Callable[[Config, frozenset[int]], Mapping[int, int]] = lambda config, down: {},
        program: Program = WHOLE_PROGRAM,
        fault: Callable[[str], None] = lambda message: None,
        history: Generations = NO_HISTORY,
        provenance: Callable[[Config, Config], Provenance | None] = lambda old, new: None,
        report: Report = log_only,
    ) -> None:
        self._config = Config()
        self._store, self._plane, self._addresses = store, plane, addresses
        self._down, self._in_force, self._refused, self._advise = down, in_force, refused, advise
        self._program, self._fault, self._report = program, fault, report
        self._needed: tuple[Config, frozenset[str]] = self._config, frozenset()
        self._run: tuple[Config, frozenset[str], Config] = self._config, frozenset(), self._config
        self._shares = shares
        self._history, self._provenance = history, provenance
        self._encoder = Encoder()
        self._recorder: Recorder = OneNode()
        self._state = planner.PlannerState()
        self._known = False  # whether _state is what the kernel holds
        self._changes = asyncio.Lock()  # one change at a time, until it is answered
        self._kernel = asyncio.Lock()  # disk, maps and addresses
        self._waiting = 0

    @property
    def config(self) -> Config:
        return self._config

    @property
    def shares(self) -> Mapping[int, int]:
        """Of `ctl.dataplane.slow_start`, as the maps have them."""
        return self._state.shares

    @property
    def waiting(self) -> int:
        """Changes that wait for their turn."""
        return self._waiting

    async def load(self) -> None:
        """Take up what is on disk, where a new node's gets its hash seed. Raises XlbError."""
        self._config = await asyncio.to_thread(self._load)
        self._plane.set_hash_seed(self._config.hash_seed)

    def _load(self) -> Config:
        report = self._store.load()
        if report.message:
            log.warning("%s", report.message)
        config = report.config
        if not config.hash_seed:
            seeded = replace(config, hash_seed=1 + secrets.randbelow(2**32 - 1))
            config = replace(seeded, provenance=self._provenance(config, seeded))
            self._store.save(self._encoder.encode(config))
        self._history.keep()
        return config

    # --- a change ------------------------------------------------------------------------------------------------

    async def commit(self, make: MakeConfig) -> Committed:
        """Put in force what `make` makes of the present configuration, and answer once it is recorded.

        Raises InvalidInput or XlbError, with everything as it was.
        """
        if self._waiting >= MAX_WAITING_CHANGES:
            raise XlbError(f"{self._waiting} changes are waiting already; try again in a moment", Code.BUSY)
        self._waiting += 1
        try:
            async with self._changes:
                return await self._commit(make)
        finally:
            self._waiting -= 1

    async def _commit(self, make: MakeConfig) -> Committed:
        compiled = ""
        for _ in range(MAX_ATTEMPTS):
            turn, old = await self._recorder.begin(), self._config
            record = await asyncio.to_thread(self._make, make, old, turn)
            if record is None:
                return Committed(old, old)
            needed = await asyncio.to_thread(self._needs, record.config)
            if self._program.missing(needed):
                done = await asyncio.gather(self._program.require(needed), turn.prepare(needed))
                compiled = "; ".join(filter(None, (compiled, *done)))
            if turn.is_current() and self._config is old:
                recorded = await turn.record(record, self.put)
                notes = (compiled, recorded, await asyncio.to_thread(self._advice, old, record.config))
                return Committed(old, record.config, "; ".join(filter(None, notes)))
        raise XlbError("the configuration changes faster than this change could be made; try again", Code.CHANGE_OVERTAKEN)

    def _advice(self, old: Config, new: Config) -> str:
        try:
            return self._advise(old, new)
        except (XlbError, OSError):
            return ""  # the change is in force

    async def foresee(self, make: MakeConfig) -> Committed:
        """What `commit` would put in force at this moment, checked as there, and nothing done. Raises as `commit`."""
        turn, old = await self._recorder.begin(), self._config
        return Committed(old, await asyncio.to_thread(self._checked, make, old, turn))

    def _make(self, make: MakeConfig, old: Config, turn: Turn) -> Record | None:
        """The validated, numbered and encoded change; None: it changes nothing. Blocks."""
        new = self._checked(make, old, turn)
        if new is old:
            return None
        new = replace(new, provenance=self._provenance(old, new))
        return Record(new, self._encoder.encode(new))

    def _checked(self, make: MakeConfig, old: Config, turn: Turn) -> Config:
        new = make(old)
        if new is old:
            return old
        self._addresses.check_devices(old, new)
        return turn.number(new)

    async def put(self, record: Record) -> None:
        """Plan, store, apply and move addresses on this node. Raises XlbError, with everything as it was."""
        async with self._kernel:
            old = self._config
            await uninterrupted(lambda: self._put(record))
        await self._in_force(Committed(old, record.config))

    def _put(self, record: Record) -> None:
        old, new = self._config, record.config
        down = self._down(new)
        plan = planner.plan(self._state, new, down, self._shares(new, down)) if self._known else None
        self._save(record.body)
        try:
            if plan is not None:
                self._execute(plan)
            if plan is None or not plan.complete:
                self._replan(new, down)
            self._addresses.follow(new)
        except (XlbError, PlaneError, OSError) as error:
            self._undo(old, error)
            raise XlbError(f"{error}; nothing was changed", code_of(error, Code.KERNEL_REFUSED)) from error
        self._config = new
        self._history.keep()

    def _save(self, body: bytes) -> None:
        """On a full disk in place of the oldest generations of the history."""
        try:
            self._store.save(body)
        except XlbError as error:
            if error.code != Code.DISK_FULL or not self._history.free(len(body)):
                raise
            self._store.save(body)

    # --- a record of the peer ------------------------------------------------------------------------------------

    async def store(self, record: Record) -> None:
        """Write what the peer sent, byte for byte; `adopt` puts it in force. Raises XlbError."""
        async with self._kernel:
            await uninterrupted(lambda: self._store_of_peer(record.body))

    def _store_of_peer(self, body: bytes) -> None:
        self._save(body)
        self._history.keep()

    def _needs(self, config: Config) -> frozenset[str]:
        """Remembered for the last configuration: a big one takes milliseconds."""
        of, features = self._needed
        if of is not config:
            features = features_of(config)
            self._needed = config, features
        return features

    async def prepare(self, features: frozenset[str]) -> None:
        """The peer is about to send a configuration that needs these features. Raises XlbError."""
        await self._program.require(features)

    @property
    def missing(self) -> frozenset[str]:
        """Features that the program lacks for the configuration in force."""
        return self._program.missing(self._needs(self._config))

    @property
    def awaits_program(self) -> bool:
        """Whether the configuration in force needs a program that is not compiled yet; `complete_program` has it compiled."""
        return bool(self.missing)

    def _runnable(self, config: Config) -> Config:
        """What the program can run of a configuration; the same object while neither changes."""
        missing = self._program.missing(self._needs(config))
        of, without, found = self._run
        if of is not config or without != missing:
            found = runnable(config, missing)
            self._run = config, missing, found
        return found

    async def adopt(self, config: Config) -> None:
        """Run with a configuration of the peer that is on disk. What this kernel refuses is logged and tried again.

        Where the program lacks a feature for it, the maps follow as far as they can: the peer waits for no compiler.
        """
        async with self._kernel:
            old, self._config = self._config, config
            try:
                await uninterrupted(lambda: self._follow(old, config))
            except (XlbError, PlaneError, OSError) as error:
                log.error("the peer's configuration %d is not in force here, trying again: %s", config.generation, error)
                self._refused()
        if not self.awaits_program:
            self._fault("")  # of an earlier attempt
        await self._in_force(Committed(old, config))
        if _sizes(old) != _sizes(config):  # a peer of 0.1.0 stores none
            await asyncio.to_thread(self._advice, old, config)
        self._report(log, await asyncio.to_thread(_adopted, old, config))

    def _follow(self, old: Config, config: Config) -> None:
        if config.hash_seed != old.hash_seed:
            self._plane.set_hash_seed(config.hash_seed)
        self._replan(config, self._down(config))
        self._addresses.follow(config)

    # --- single node or pair -------------------------------------------------------------------------------------

    async def record_with(self, recorder: Recorder, start: Callable[[Record], Awaitable[None]]) -> None:
        """Give changes to `recorder` from here on; it starts with the record on disk, between two changes."""
        async with self._changes:
            async with self._kernel:
                record = await asyncio.to_thread(self._stored)
            await start(record)
            self._recorder = recorder

    async def record_alone(self, recorder: Recorder) -> None:
        """Changes are this node's own from here on, if they went to `recorder` until now."""
        async with self._changes:
            if self._recorder is recorder:
                self._recorder = OneNode()

    def _stored(self) -> Record:
        body = self._store.stored()
        if body is None:  # the node runs with farms.jsonl.previous
            body = self._encoder.encode(self._config)
            self._store.save(body)
        return Record(self._config, body)

    # --- the kernel follows --------------------------------------------------------------------------------------

    async def complete_program(self) -> None:
        """Have the program compiled, where it lacks a feature for the configuration; `replan` then uses it. Raises XlbError."""
        try:
            await self._program.require(await asyncio.to_thread(self._needs, self._config), patiently=True)
        except XlbError as error:
            self._fault(str(error))
            raise
        self._fault("")

    async def replan(self) -> None:
        """Make the maps follow the configuration and the backends' health; they are read first when they are not known.

        As far as the program can: see `awaits_program`. Raises XlbError when the kernel refuses.
        """
        async with self._kernel:
            await uninterrupted(lambda: self._replan(self._config, self._down(self._config)))
        if not self.awaits_program:
            self._fault("")  # of an earlier attempt

    async def follow_addresses(self) -> list[VipRepair]:
        """Make the interfaces carry the VIPs; returns what was done, which no change or move of VIPs had asked for."""
        async with self._kernel:
            return await uninterrupted(lambda: self._addresses.follow(self._config))

    def _replan(self, config: Config, down: frozenset[int]) -> None:
        plane, shares, config = self._plane, self._shares(config, down), self._runnable(config)
        for _ in range(MAX_PLANNING_ROUNDS):
            if self._known:
                plan = planner.plan(self._state, config, down, shares)
            else:
                plan = planner.replan_everything(config, down, plane.vips(), plane.services(), plane.servers(), shares)
            self._execute(plan)
            if plan.complete:
                return
        raise XlbError(
            f"the slot map cannot hold every farm after {MAX_PLANNING_ROUNDS} rounds; use fewer backends per farm",
            Code.LIMIT_EXCEEDED,
        )

    def _execute(self, plan: planner.Plan) -> None:
        self._known = False  # until all of it succeeded
        try:
            self._plane.apply(plan.operations)
        except PlaneError as error:
            raise XlbError(f"the kernel's maps refused the change: {error}", Code.KERNEL_REFUSED) from error
        self._state = plan.state
        self._known = True

    def _undo(self, old: Config, cause: Exception) -> None:
        """Back to `old` on disk, in the maps and on the interfaces; a step that fails does not prevent the next."""
        log.error("configuration change failed, restoring the previous one: %s", cause)
        self._known = False
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("state file", self._store.take_back),
            ("maps", lambda: self._replan(old, self._down(old))),
            ("addresses", lambda: self._addresses.follow(old)),
        )
        for what, step in steps:
            try:
                step()
            except (XlbError, PlaneError, OSError) as error:
                log.error("%s not restored, restart xlbd when the cause is removed: %s", what, error)


def _adopted(old: Config, new: Config) -> Event:
    """Blocks. By whom is known of the last change only, where several came at once."""
    generation, changes, made = new.generation, diff.compact(old, new), new.provenance
    text = f"configuration {generation} of the peer is in force: {changes}"
    user, node, command = (made.user, made.node, made.command) if made is not None else ("", "", "")
    return CONFIG_ADOPTED(text, generation=generation, user=user, node=node, command=command, changes=changes)


def _sizes(config: Config) -> dict[str, int]:
    return {name: farm.kept_size for name, farm in config.farms.items()}


async def uninterrupted(work: Callable[[], T]) -> T:
    """Run in a thread, to its end even when the asking task is cancelled: a change is never left half done."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
