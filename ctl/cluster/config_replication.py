"""The farm configuration of a pair on this node: carries out what `sync.config.config_sync` decides.

Decides no version and no winner. Turns changes into documents, documents into files and tables, and messages into events
of the machine. Effects run one after the other in a task of their own; whatever takes long (making, encoding, decoding,
fsync, planning) runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ctl.cluster.peer_rpc import DocumentOffered, PeerLink, VersionTold
from ctl.config.model import Config
from ctl.config.record_codec import DamagedRecord, Decoder, Encoder, NewerRecord
from ctl.errors import Code, XlbError
from ctl.node.transaction import Committed
from ctl.state.durable_files import Files
from sync.config import config_sync
from sync.config.config_sync import ConfigSync, Document, Version, Why

TICK_S = 0.1
PEER_SILENT_NS = 1_000_000_000
MAX_OFFERS_WAITING = 1
MAX_ATTEMPTS = 8
SETTLE_S = 10.0
COMPLAINT_NS = 10_000_000_000
DISK_RETRY_S = 1.0

_CODES = {
    Why.NOT_SERVING: Code.NOT_SERVING,
    Why.BUSY: Code.BUSY,
    Why.INTERRUPTED: Code.CHANGE_INTERRUPTED,
    Why.OVERTAKEN: Code.CHANGE_OVERTAKEN,
    Why.NOT_STORED: Code.STORAGE_FAILED,
}

log = logging.getLogger(__name__)


class Host(Protocol):
    """The node that runs with the configuration."""

    @property
    def config(self) -> Config: ...

    async def put(self, config: Config) -> Committed:
        """Store it and put it in force; raises InvalidInput or XlbError with everything as it was."""

    async def store(self, config: Config) -> None:
        """Store it; raises XlbError."""

    async def adopt(self, config: Config) -> None:
        """Put in force what is stored; what cannot be is logged and tried again."""


class ConfigReplica:
    """Create on a running loop, give `heard` to the PeerLink, then `start`; `close` once.

    serving_epoch: the term this node serves in at this moment, 0 when it does not serve.
    """

    def __init__(self, host: Host, pair_id: str, peer: str, state_dir: Path, serving_epoch: Callable[[], int]) -> None:
        self.peer = peer
        self.pair_id = pair_id
        self._host = host
        self._state_dir = state_dir
        self._serving_epoch = serving_epoch
        self._encoder, self._decoder = Encoder(), Decoder()
        self._sync = ConfigSync(config_sync.EMPTY, peer)
        self._link: PeerLink | None = None
        self._lock = asyncio.Lock()
        self._effects: asyncio.Queue[config_sync.Effect] = asyncio.Queue()
        self._offers: asyncio.Queue[Document] = asyncio.Queue(MAX_OFFERS_WAITING)
        self._configs: dict[Version, tuple[Config, bool]] = {}  # of the documents to be stored; whether made here
        self._adopting: Config | None = None
        self._asked: dict[int, asyncio.Future[config_sync.Answer]] = {}
        self._requests = 0
        self._failure: XlbError | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._heard_ns = 0
        self._complaint_ns = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def version(self) -> Version:
        """What is on disk here."""
        return self._sync.stored_version

    @property
    def peer_version(self) -> Version | None:
        """What is on the peer's disk; None: it is absent."""
        return self._sync.peer_version

    async def start(self, link: PeerLink) -> None:
        """Begin with the node's present configuration, which is on disk."""
        config = self._host.config
        assert config.pair == self.pair_id, "a configuration of another pair must not be replicated"
        body = await asyncio.to_thread(self._encoder.encode, config)
        self._sync = ConfigSync(Document(version_of(config), config.history, body), self.peer)
        self._link = link
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(job) for job in (self._run_effects(), self._run_offers(), self._tick())]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def close(self) -> None:
        """Stop. A change under way is carried out to its end on this node and its asker told so."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request, future in self._asked.items():
            if not future.done():
                ended = "the pair ended while the change was under way"
                future.set_result(config_sync.Answer(request, False, False, ended, Why.INTERRUPTED))

    # --- changes -------------------------------------------------------------------------------------------------

    async def change(self, make: Callable[[Config], Config]) -> Committed:
        """Put in force, here and on the peer, what `make` makes of the present configuration.

        Returns once it is on both disks, or with a note that says where it is not. Raises InvalidInput or XlbError.
        """
        async with self._lock:
            for _ in range(MAX_ATTEMPTS):
                try:
                    await asyncio.wait_for(self._settled.wait(), SETTLE_S)
                except TimeoutError:
                    raise XlbError(
                        f"the disk has not stored the last change after {SETTLE_S:g} s; try again", Code.STORAGE_FAILED
                    ) from None
                epoch, old = self._serving_epoch(), self._host.config
                if not epoch:
                    raise XlbError(f"this node does not serve; {self.peer} accepts changes", Code.NOT_SERVING)
                base = self._sync.document
                new = await asyncio.to_thread(make, old)
                if new is old:
                    return Committed(old, old)
                stamp = base.successor(epoch, b"")
                new = replace(new, epoch=epoch, generation=stamp.version[1], history=stamp.history, pair=self.pair_id)
                body = await asyncio.to_thread(self._encoder.encode, new)
                unmoved = self._sync.document is base and self._host.config is old and self._serving_epoch() == epoch
                if unmoved and self._settled.is_set():
                    return Committed(old, new, await self._store_and_wait(new, body))
            raise XlbError("the configuration changes faster than this change could be made; try again", Code.CHANGE_OVERTAKEN)

    async def _store_and_wait(self, new: Config, body: bytes) -> str:
        self._requests += 1
        request, self._failure = self._requests, None
        future: asyncio.Future[config_sync.Answer] = asyncio.get_running_loop().create_future()
        self._asked[request] = future
        self._serve()
        effects = self._sync.change(request, body, time.monotonic_ns())
        if self._sync.busy:
            self._configs[version_of(new)] = new, True
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
        self._heard_ns = time.monotonic_ns()
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
                    config = await asyncio.to_thread(self._read, document)
                except (DamagedRecord, NewerRecord) as error:
                    self._complain("%s offered configuration %s, which is refused: %s", self.peer, document.version, error)
                    continue
                self._configs[document.version] = config, False
            self._serve()
            self._perform(self._sync.offered(document))

    def _read(self, document: Document) -> Config:
        """The configuration of a document. Raises DamagedRecord for one that is not what the document says. Blocks."""
        config = self._decoder.decode(document.body)
        if config.pair != self.pair_id:
            raise DamagedRecord("it belongs to another pair")
        if version_of(config) != document.version or config.history != document.history:
            raise DamagedRecord("its header has another version than the message")
        return config

    async def _tick(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            self._serve()
            if self._sync.peer_version is not None and now_ns - self._heard_ns > PEER_SILENT_NS:
                self._perform(self._sync.peer_gone())
            self._perform(self._sync.tick(now_ns))
            self._tell(VersionTold(self._sync.stored_version))
            await asyncio.sleep(TICK_S)

    # --- effects -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """The machine must know the term before anything else it is told."""
        epoch = self._serving_epoch()
        if epoch != self._sync.epoch:
            self._perform(self._sync.serve(epoch))

    def _perform(self, effects: Sequence[config_sync.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, config_sync.Store):
                self._settled.clear()
            self._effects.put_nowait(effect)

    async def _run_effects(self) -> None:
        while True:
            effect = await self._effects.get()
            match effect:
                case config_sync.Store(document):
                    await self._store(document)
                case config_sync.KeepConflict(document, winner):
                    while not await asyncio.to_thread(self._keep, document, winner):
                        await asyncio.sleep(DISK_RETRY_S)  # replaced it may be only when it is kept
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
        config, own = self._configs.pop(document.version)
        try:
            if own:  # refused by the kernel, it must not reach the peer: in force first
                await self._host.put(config)
            else:
                await self._host.store(config)
                self._adopting = config
        except XlbError as error:
            self._failure = error
            if not own:
                self._complain("configuration %s of %s is not stored: %s", document.version, self.peer, error)
            self._perform(self._sync.store_failed(document.version, str(error)))
        else:
            self._perform(self._sync.stored(document.version, time.monotonic_ns()))
        if not self._sync.busy or self._sync.stored_version == self._sync.document.version:
            self._settled.set()

    async def _adopt(self) -> None:
        config, self._adopting = self._adopting, None
        if config is not None:
            await self._host.adopt(config)

    def _keep(self, document: Document, winner: Version) -> bool:
        """Blocking. The other side of a split stays beside the configuration."""
        epoch, generation = document.version
        path, files = self._state_dir / f"farms.conflict-{epoch}-{generation}.jsonl", Files()
        text = "this node's configuration %s and %s's %s have a common origin only: %s is in force, this node's is kept as %s"
        try:
            files.write_synced(path, document.body)
            files.sync_directory(self._state_dir)
        except OSError as error:
            self._complain("%s cannot be written, so %s's configuration must wait: %s", path, self.peer, error.strerror)
            return False
        log.warning(text, document.version, self.peer, winner, winner, path)
        return True

    def _tell(self, message: VersionTold | DocumentOffered) -> None:
        if self._link is not None:
            self._link.tell(message)

    def _complain(self, message: str, *arguments: object) -> None:
        """Offers are repeated several times a second; complaints are not."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._complaint_ns:
            self._complaint_ns = now_ns + COMPLAINT_NS
            log.error(message, *arguments)


def version_of(config: Config) -> Version:
    """A configuration's place in the pair's history."""
    return config.epoch, config.generation


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("replication of the configuration stopped: start xlbd again", exc_info=task.exception())
