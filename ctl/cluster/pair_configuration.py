"""A pair's configuration on this node: its start, the peer's questions, and changes forwarded to the active node.

Decides which commands the peer may ask for and where a change goes. How a change is stored twice is decided in
`ctl.cluster.config_replication` and `sync.config.config_sync`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctl.api.caller import CALLER, from_peer
from ctl.api.server import Noted
from ctl.cluster.config_replication import ConfigReplica, Discarded, version_of
from ctl.cluster.parts import PairParts
from ctl.cluster.peer_rpc import PeerLink, Send
from ctl.config import changes, farms_file, understood
from ctl.config.model import Config
from ctl.dataplane.features import WORDS
from ctl.errors import Code, XlbError, storage_code
from ctl.state.cluster_file import ClusterSettings
from ctl.state.durable_files import Files, utc_stamp

FORWARD_TIMEOUT_S = 25.0  # below what xlbctl waits
FOLLOW_S = 2.0
FOLLOW_POLL_S = 0.005
ASK_AGAIN_S = 1.0
COMPILE_S = 20.0
"""So long a change waits for the peer's compiler."""
COMPILES = "program.compile"
"""The request to have the program compiled with features that a change is about to need."""
UNDERSTANDS = "config.understands"
"""The question which settings a node understands; version 0.1.0 does not know it."""

log = logging.getLogger(__name__)


class PairConfiguration:
    """Create on a running loop, `prepare` and `start` once, `close` once; give `received` to the configuration's channel.

    serving_epoch: the epoch in which this node is active, 0 when it is not. send: the channel's.
    """

    def __init__(
        self,
        parts: PairParts,
        settings: ClusterSettings,
        serving_epoch: Callable[[], int],
        send: Send,
        notices: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """notices: has the peer's log name what this node discarded."""
        self.settings = settings
        self._changes, self._run_change, self._questions = parts.changes, parts.run_change, parts.questions
        self._state_dir = parts.settings.node.state_dir
        self._serving_epoch = serving_epoch
        peer = settings.peer.name
        self.replica = ConfigReplica(
            parts.changes,
            settings.pair_id,
            peer,
            self._state_dir,
            serving_epoch,
            kept=self._conflict_kept,
            prepare=self._prepare_peer,
            report=parts.report,
        )
        self._notices = notices
        self._questions.register(UNDERSTANDS, self._understands)
        self._questions.register(COMPILES, self._compiles)
        self.link = PeerLink(peer, send, self._answer, self.replica.heard)

    @property
    def serving(self) -> bool:
        """Whether changes are accepted here."""
        return self._serving_epoch() != 0

    async def prepare(self) -> None:
        """Make the node's configuration the pair's: the creator's becomes it, the joiner's is set aside.

        Also after a crash between the two: the configuration names its pair. Raises XlbError.
        """
        config = self._changes.config
        if config.pair == self.settings.pair_id:
            return
        if not self.settings.creator:
            await asyncio.to_thread(set_aside, config, self._state_dir, "before-join")
        await self._changes.commit(lambda config: config_for_pair(config, self.settings))

    async def start(self) -> None:
        """Start replication: from here on the node's changes are the pair's."""
        self.replica.connect(self.link)
        await self._changes.record_with(self.replica, self.replica.start)

    async def stop_replicating(self) -> None:
        """From here on changes are this node's own affair; the peer can still be asked, and ask."""
        await self.replica.close()
        await self._changes.record_alone(self.replica)

    async def close(self) -> None:
        """End everything; may be called again."""
        await self.stop_replicating()
        await self.link.close()

    def received(self, data: bytes) -> None:
        """A message of the authenticated peer."""
        self.link.received(data)

    async def ask(self, command: str, arguments: dict[str, Any], timeout_s: float = 10.0) -> Any:
        """What the peer answers. Raises what it raised there, or XlbError when it is not reachable."""
        return await self.link.ask(command, arguments, timeout_s)

    async def learn(self) -> None:
        """Ask another incarnation of the peer which settings it understands, until it answers."""
        while True:
            try:
                names = frozenset(map(str, await self.ask(UNDERSTANDS, {})))
                break
            except XlbError as error:
                if error.code in (Code.PEER_VERSION, Code.UNCODED):
                    names = understood.OF_0_1_0
                    break
                await asyncio.sleep(ASK_AGAIN_S)
        self.replica.peer_understands(names)
        try:
            await asyncio.to_thread(self.replica.require_understood, self._changes.config)
        except XlbError as error:
            log.warning("the configuration is not replicated: %s", error)

    async def _prepare_peer(self, features: frozenset[str]) -> str:
        """An absent or earlier peer compiles what it needs when it gets the configuration; so does one that is too slow."""
        peer = self.settings.peer.name
        try:
            await self.ask(COMPILES, {"features": sorted(features)}, COMPILE_S)
        except XlbError as error:
            if error.code in (Code.PEER_UNREACHABLE, Code.PEER_VERSION, Code.UNCODED):
                return ""
            return f"{peer} is not ready to take over with it: {error}"
        return ""

    async def _compiles(self, asked: dict[str, Any]) -> None:
        wanted = asked.get("features")
        if not isinstance(wanted, list) or not set(map(str, wanted)) <= WORDS.keys():
            raise XlbError("the peer asked for an unknown feature: install the same version of xlb on both", Code.PEER_VERSION)
        await self._changes.prepare(frozenset(map(str, wanted)))

    async def _understands(self, _: dict[str, Any]) -> list[str]:
        return sorted(understood.names())

    def _foreseen(self, command: str, arguments: dict[str, Any]) -> None:
        """Raises XlbError for a change with a setting that the peer does not know. Blocks."""
        old = self._changes.config
        if self.replica.lacks(understood.CONDITION) and arguments.get(understood.CONDITION):
            raise XlbError(
                f"{self.settings.peer.name}, which accepts changes at this moment, runs an earlier xlb and cannot compare "
                f"versions ({understood.CONDITION}): upgrade xlb there first, or make the change with xlbctl",
                Code.PEER_VERSION,
            )
        arguments = {name: value for name, value in arguments.items() if name != understood.CONDITION}
        try:
            make = changes.replace_from_document if command == "config.apply" else changes.CHANGES[command]
            new = make(old, arguments["document"] if command == "config.apply" else arguments)
        except (XlbError, KeyError):
            return  # the peer says what is wrong
        if new is not old:
            self.replica.require_understood(new)

    async def forward(self, command: str, arguments: dict[str, Any]) -> Any:
        """Have the active node make a change, and wait until it is in force here too."""
        own, peer = self.settings.own.name, self.settings.peer.name
        await asyncio.to_thread(self._foreseen, command, arguments)
        caller = CALLER.get()
        named = {"user": await asyncio.to_thread(caller.name), "purpose": caller.purpose}
        asked = {"command": command, "arguments": arguments, "caller": named}
        try:
            answer = await self.ask("change", asked, FORWARD_TIMEOUT_S)
        except XlbError as error:
            if error.code != Code.PEER_UNREACHABLE:
                raise
            why = f"{own} is not active, and {peer}, which accepts changes then, is not connected"
            raise XlbError(f"{why}: nothing was changed; see xlbctl cluster status", Code.PEER_UNREACHABLE) from None
        epoch, generation = answer["version"]
        await self._follow((epoch, generation))
        return Noted(answer["result"], answer["note"])

    async def _follow(self, version: tuple[int, int]) -> None:
        deadline_s = time.monotonic() + FOLLOW_S
        while version_of(self._changes.config) < version and time.monotonic() < deadline_s:
            await asyncio.sleep(FOLLOW_POLL_S)

    def _conflict_kept(self, discarded: Discarded) -> None:
        self._notices({"kind": "configuration", **asdict(discarded)})

    async def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "change":
            return await self._change(arguments)
        return await self._questions.answer(command, arguments)

    async def _change(self, asked: dict[str, Any]) -> Any:
        command, arguments = asked.get("command"), asked.get("arguments")
        if command not in (*changes.CHANGES, "config.apply") or not isinstance(arguments, dict):
            raise XlbError(
                "the peer asked for something that is no change: install the same version of xlb on both", Code.PEER_VERSION
            )
        if not self.serving:
            names = f"{self.settings.own.name} nor {self.settings.peer.name}"
            raise XlbError(
                f"neither {names} is active at this moment; try again in a second, or see xlbctl cluster status",
                Code.NO_ACTIVE_NODE,
            )
        CALLER.set(from_peer(asked.get("caller"), self.settings.peer.name))
        outcome = await self._run_change(str(command), arguments)
        noted = outcome if isinstance(outcome, Noted) else Noted(outcome, "")
        return {"result": noted.result, "note": noted.note, "version": self.replica.version}


def config_for_pair(config: Config, settings: ClusterSettings) -> Config:
    """A node's first configuration in the pair: the creator's own, as the pair's first version; the joiner's is empty."""
    if settings.creator:
        return replace(config, pair=settings.pair_id, epoch=0, history=(), generation=config.generation + 1)
    return Config(hash_seed=config.hash_seed, pair=settings.pair_id)


def set_aside(config: Config, state_dir: Path, occasion: str) -> Path | None:
    """Write a configuration as a farms file that `xlbctl apply` takes; None if there is nothing in it. Blocks.

    Raises XlbError: what cannot be kept must not be removed.
    """
    if not config.vips and not config.farms:
        return None
    path = state_dir / f"{occasion}-{utc_stamp()}.farms.toml"
    files = Files()
    try:
        files.write_synced(path, farms_file.to_text(farms_file.to_document(config)).encode())
        files.sync_directory(state_dir)
    except OSError as error:
        raise XlbError(
            f"cannot keep a copy of this node's farms in {path}: {error.strerror}; nothing was changed", storage_code(error)
        ) from None
    log.info("this node's own farms are kept as %s", path)
    return path
