"""The farm configuration of a pair on this node: carries out what `sync.config.config_sync` decides.

Decides no version and no winner. Turns changes into documents, documents into files and maps, and messages into events
of the machine. Effects run one after the other in a task of their own; whatever takes long (making, encoding, decoding,
fsync, planning) runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from ctl.cluster.peer_rpc import DocumentOffered, PeerLink, VersionTold
from ctl.config import diff, understood
from ctl.config.model import Config, Farm
from ctl.config.record_codec import DamagedRecord, Decoder, NewerRecord, Put, Record
from ctl.errors import Code, XlbError
from ctl.events.catalogue import CONFIG_CONFLICT
from ctl.runtime.clock import Clock, monotonic_ns
from ctl.runtime.event_hub import Report, log_only
from ctl.state.durable_files import Files
from sync.config import config_sync
from sync.config.config_sync import ConfigSync, Document, Version, Why

TICK_S = 0.1
PEER_SILENT_NS = 1_000_000_000
MAX_OFFERS_WAITING = 1
SETTLE_S = 10.0
COMPLAINT_NS = 10_000_000_000
DISK_RETRY_S = 0.2

_CODES = {
    Why.NOT_SERVING: Code.NOT_SERVING,
    Why.BUSY: Code.BUSY,
    Why.INTERRUPTED: Code.CHANGE_INTERRUPTED,
    Why.OVERTAKEN: Code.CHANGE_OVERTAKEN,
    Why.NOT_STORED: Code.STORAGE_FAILED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Discarded:
    """A configuration that lost in a split: its version, the winner's, where it is saved, and what only it had."""

    version: Version
    winner: Version
    path: str
    what: str


class Host(Protocol):
    """The node that runs with the configuration (`ctl.node.transaction.Transaction`)."""

    async def store(self, record: Record) -> None:
        """Store its bytes; raises XlbError."""

    async def adopt(self, config: Config) -> None:
        """Put in force what is stored; what cannot be is logged and tried again."""


async def _no_preparation(_: frozenset[str]) -> str:
    return ""


class ConfigReplica:
    """A pair's `ctl.node.transaction.Recorder`. Create on a running loop, `connect`, then `start`; `close` once.

    serving_epoch: the epoch in which this node is active at this moment, 0 when it is not.
    """

    def __init__(
        self,
        host: Host,
        pair_id: str,
        peer: str,
        state_dir: Path,
        serving_epoch: Callable[[], int],
        files: Files | None = None,
        now_ns: Clock = monotonic_ns,
        kept: Callable[[Discarded], None] = lambda _: None,
        prepare: Callable[[frozenset[str]], Awaitable[str]] = _no_preparation,
        report: Report = log_only,
    ) -> None:
        """kept: called on the loop when this node's configuration lost, and is saved. prepare: as `Turn.prepare`."""
        self.peer = peer
        self.pair_id = pair_id
        self._host = host
        self._state_dir, self._files, self._now_ns = state_dir, files or Files(), now_ns
        self._kept, self._report = kept, report
        self.prepare = prepare
        self._serving_epoch = serving_epoch
        self._decoder = Decoder()
        self._sync = ConfigSync(config_sync.EMPTY, peer)
        self._link: PeerLink | None = None
        self._closed = False
        self._effects: asyncio.Queue[config_sync.Effect] = asyncio.Queue()
        self._offers: asyncio.Queue[Document] = asyncio.Queue(MAX_OFFERS_WAITING)
        self._records: dict[Version, tuple[Record, Put | None]] = {}  # to be stored; put: of a change made here
        self._adopting: Config | None = None
        self._adoptions = 0  # to come
        self._asked: dict[int, asyncio.Future[config_sync.Answer]] = {}
        self._requests = 0
        self._failure: XlbError | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._understood: frozenset[str] | None = None  # by the peer; None: not known
        self._farms_understood: Mapping[str, Farm] = MappingProxyType({})
        self._heard_ns = 0
        self._complaint_ns = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def version(self) -> Version:
        """What is on disk here."""
        return self._sync.stored_version

    @property
    def document(self) -> Document:
        """The newest configuration accepted here, as it is replicated."""
        return self._sync.document

    @property
    def peer_version(self) -> Version | None:
        """What is on the peer's disk; None: it is absent."""
        return self._sync.peer_version

    def connect(self, link: PeerLink) -> None:
        """Send by this link; what the peer sends goes to `heard`."""
        self._link = link

    async def start(self, record: Record) -> None:
        """Begin with the record on this node's disk."""
        config = record.config
        assert config.pair == self.pair_id, "a configuration of another pair must not be replicated"
        self._sync = ConfigSync(Document(version_of(config), config.history, record.body), self.peer)
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(job) for job in (self._run_effects(), self._run_offers(), self._tick())]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def close(self) -> None:
        """Stop. A change in progress is completed on this node, and its caller gets CHANGE_INTERRUPTED."""
        self._closed = True
        self._settled.set()  # a change that waits to begin is refused
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request, future in self._asked.items():
            if not future.done():
                ended = "the pair ended during the change"
                future.set_result(config_sync.Answer(request, False, False, ended, Why.INTERRUPTED))

    # --- what the peer understands -------------------------------------------------------------------------------

    def peer_understands(self, names: frozenset[str]) -> None:
        """What `ctl.config.understood.names` is on the peer. It holds until the next incarnation of the peer is asked."""
        self._understood, self._farms_understood = names, MappingProxyType({})

    def lacks(self, name: str) -> bool:
        """Whether the peer is known not to understand this."""
        return self._understood is not None and name not in self._understood

    def require_understood(self, config: Config) -> None:
        """Raises XlbError for a setting that the peer does not know: it would keep its old configuration. Blocks."""
        if self._understood is None:
            return
        unknown = understood.unknown_to(self._understood, config, self._farms_understood)
        if unknown:
            raise XlbError(
                f"{unknown} is not known to {self.peer}, which runs an earlier xlb: upgrade xlb on {self.peer} first",
                Code.PEER_VERSION,
            )
        self._farms_understood = config.farms

    # --- changes -------------------------------------------------------------------------------------------------

    async def begin(self) -> _Turn:
        """A change may be made from the newest document; `record` refuses it where this node is not active. Raises XlbError."""
        try:
            await asyncio.wait_for(self._settled.wait(), SETTLE_S)
        except TimeoutError:
            late = f"the disk has not stored the last change after {SETTLE_S:g} s; try again"
            raise XlbError(late, Code.STORAGE_FAILED) from None
        if self._closed:
            raise XlbError("the pair ends at this moment; try again", Code.CHANGE_INTERRUPTED)
        return _Turn(self, self._serving_epoch(), self._sync.document)

    def is_current(self, turn: _Turn) -> bool:
        """Whether nothing has come between the turn's beginning and now."""
        unmoved = self._sync.document is turn.base and self._serving_epoch() == turn.epoch
        return unmoved and self._settled.is_set() and not self._closed

    async def record(self, record: Record, put: Put) -> str:
        """Store it here (by `put`) and on the peer. Returns where it is not; empty: it is on both disks. Raises XlbError."""
        self._requests += 1
        request, self._failure = self._requests, None
        future: asyncio.Future[config_sync.Answer] = asyncio.get_running_loop().create_future()
        self._asked[request] = future
        self._serve()
        effects = self._sync.change(request, record.body, self._now_ns())
        if self._sync.busy:
            self._records[version_of(record.config)] = record, put
        self._perform(effects)
        try:
            answer = await future
        finally:
            self._asked.pop(request, None)
        if not answer.ok:
            raise self._failure or XlbError(answer.message, _CODES[answer.why] if answer.why else Code.REFUSED)
        return "" if answer.on_peer else answer.message

    # --- the peer's messages -------------------------------------------------------------------------------------

    def heard(self, message: VersionTold | DocumentOffered) -> None:
        """Take in a message of the peer."""
        self._heard_ns = self._now_ns()
        if isinstance(message, VersionTold):
            self._serve()
            self._perform(self._sync.peer_has(message.version, self._heard_ns))
        elif not self._offers.full():  # the peer offers again
            self._offers.put_nowait(message.document)

    async def _run_offers(self) -> None:
        while True:
            document = await self._offers.get()
            if document.version > self._sync.document.version:
                try:
                    record = await asyncio.to_thread(self._read, document)
                except (DamagedRecord, NewerRecord) as error:
                    self._complain("%s offered configuration %s, which is refused: %s", self.peer, document.version, error)
                    continue
                self._records[document.version] = record, None
            self._serve()
            self._perform(self._sync.offered(document))

    def _read(self, document: Document) -> Record:
        """The record of a document. Raises DamagedRecord when its header differs from the document. Blocks."""
        config = self._decoder.decode(document.body)
        if config.pair != self.pair_id:
            raise DamagedRecord("it belongs to another pair")
        if version_of(config) != document.version or config.history != document.history:
            raise DamagedRecord("its header has another version than the message")
        return Record(config, document.body)

    async def _tick(self) -> None:
        while True:
            now_ns = self._now_ns()
            self._serve()
            if self._sync.peer_version is not None and now_ns - self._heard_ns > PEER_SILENT_NS:
                self._perform(self._sync.peer_gone())
            self._perform(self._sync.tick(now_ns))
            self._tell(VersionTold(self._sync.stored_version))
            await asyncio.sleep(TICK_S)

    # --- effects -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """The machine must know the epoch before any other event."""
        epoch = self._serving_epoch()
        if epoch != self._sync.epoch:
            self._perform(self._sync.serve(epoch))

    def _perform(self, effects: Sequence[config_sync.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, config_sync.Store):
                self._settled.clear()
            self._adoptions += isinstance(effect, config_sync.Adopt)
            self._effects.put_nowait(effect)

    async def _run_effects(self) -> None:
        while True:
            effect = await self._effects.get()
            match effect:
                case config_sync.Store(document):
                    await self._store(document)
                case config_sync.KeepConflict(document, winner):
                    while (discarded := await asyncio.to_thread(self._keep, document, winner)) is None:
                        await asyncio.sleep(DISK_RETRY_S)  # replaced it may be only when it is kept
                    self._kept(discarded)
                case config_sync.Adopt():
                    await self._adopt()
                case config_sync.SendOffer(document):
                    self._tell(DocumentOffered(document))
                case config_sync.SendVersion(version):
                    self._tell(VersionTold(version))
                case config_sync.Answer(request):
                    waiting = self._asked.get(request)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(effect)

    async def _store(self, document: Document) -> None:
        record, put = self._records.pop(document.version)
        try:
            if put is not None:  # what the kernel refuses must not reach the peer: in force first
                await put(record)
            else:
                await self._host.store(record)
                self._adopting = record.config
        except XlbError as error:
            self._failure = error
            if put is None:
                self._complain("configuration %s of %s is not stored: %s", document.version, self.peer, error)
            self._perform(self._sync.store_failed(document.version, str(error)))
        else:
            self._perform(self._sync.stored(document.version, self._now_ns()))
        self._settle()

    async def _adopt(self) -> None:
        config, self._adopting = self._adopting, None
        if config is not None:
            await self._host.adopt(config)
        self._adoptions -= 1
        self._settle()

    def _settle(self) -> None:
        """The next change may begin, unless what it must follow is not on disk, or not in force: it would be lost."""
        stored = not self._sync.busy or self._sync.stored_version == self._sync.document.version
        if stored and not self._adoptions:
            self._settled.set()

    def _keep(self, document: Document, winner: Version) -> Discarded | None:
        """Save the losing side of a split as a file next to the configuration. Blocks."""
        epoch, generation = document.version
        path, files = self._state_dir / f"farms.conflict-{epoch}-{generation}.jsonl", self._files
        try:
            files.write_synced(path, document.body)
            files.sync_directory(self._state_dir)
        except OSError as error:
            self._complain("%s cannot be written, so %s's configuration must wait: %s", path, self.peer, error.strerror)
            return None
        what = self._differences(document, winner)
        text = (
            f"split brain: this node's configuration {document.version} and {self.peer}'s {winner} have a common origin only: "
            f"{winner} is in force, this node's is saved as {path}; discarded: {what}"
        )
        lost, won = str(document.version), str(winner)
        self._report(log, CONFIG_CONFLICT(text, version=lost, winner=won, file=str(path), changes=what))
        return Discarded(document.version, winner, str(path), what)

    def _differences(self, document: Document, winner: Version) -> str:
        """What the losing configuration has and the winning one has not, in one line. Blocks."""
        record, _ = self._records.get(winner, (None, None))
        try:
            return diff.compact(record.config, Decoder().decode(document.body)) if record else "see the file"
        except (DamagedRecord, NewerRecord):
            return "see the file"

    def _tell(self, message: VersionTold | DocumentOffered) -> None:
        if self._link is not None:
            self._link.tell(message)

    def _complain(self, message: str, *arguments: object) -> None:
        """Offers are repeated several times a second; complaints are not."""
        now_ns = self._now_ns()
        if now_ns >= self._complaint_ns:
            self._complaint_ns = now_ns + COMPLAINT_NS
            log.error(message, *arguments)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A change that follows `base`, made by the active node of `epoch`."""

    replica: ConfigReplica
    epoch: int
    base: Document

    def number(self, config: Config) -> Config:
        self.replica.require_understood(config)
        stamp = self.base.successor(self.epoch, b"")
        pair = self.replica.pair_id
        return replace(config, epoch=self.epoch, generation=stamp.version[1], history=stamp.history, pair=pair)

    def is_current(self) -> bool:
        return self.replica.is_current(self)

    async def prepare(self, features: frozenset[str]) -> str:
        return await self.replica.prepare(features)

    async def record(self, record: Record, put: Put) -> str:
        return await self.replica.record(record, put)


def version_of(config: Config) -> Version:
    """A configuration's place in the pair's history."""
    return config.epoch, config.generation


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("replication of the configuration stopped: start xlbd again", exc_info=task.exception())
