"""The daemon's part of `xlbctl cluster create | join | destroy`: from single node to one of a pair and back.

Decides the order of the steps, so that after a failure both nodes are as they were, or the message names what is left to do.
The messages between the nodes are decided in `ctl.cluster.pairing.exchange`; what a pair does in `ctl.cluster.driver`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bpf.constants import ABI_VERSION
from ctl.cluster.membership import Membership
from ctl.cluster.pair_configuration import PairConfiguration, config_for_pair, set_aside
from ctl.cluster.pairing.exchange import (
    PROTOCOL_VERSION,
    SECRET_BYTES,
    TOKEN_LIFE_S,
    Application,
    Candidate,
    Fitting,
    Invitation,
    Token,
    check_own_address,
)
from ctl.cluster.pairing.sockets import JoinConnection, Listener, require_listener
from ctl.cluster.parts import Changes
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.fields import Fields
from ctl.config.model import Config
from ctl.config.record_codec import FORMAT_VERSION
from ctl.errors import Code, InvalidInput, XlbError, code_of, storage_code
from ctl.network.network import Network
from ctl.network.vip_addresses import wanted
from ctl.runtime.progress import working
from ctl.state.cluster_file import PAIRING_PORT, ClusterFile, ClusterSettings, Member
from ctl.state.epoch_file import EpochFile
from ctl.state.node_file import NodeSettings
from ctl.version import package_version
from sync.transport import Keys

LEAVE_TIMEOUT_S = 10.0
ANSWER_LEAVES_S = 0.2

log = logging.getLogger(__name__)


class Pairing:
    """Pairing of one node. One step at a time: they exclude each other."""

    def __init__(self, settings: NodeSettings, network: Network, changes: Changes, membership: Membership) -> None:
        self._settings, self._network, self._changes, self._membership = settings, network, changes, membership
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def answer(self, questions: PeerQuestions) -> None:
        """Register what the peer may ask."""
        questions.register("cluster.leave", self._peer_leaves)

    # --- create --------------------------------------------------------------------------------------------------

    async def create(self, arguments: dict[str, Any]) -> Any:
        """local, peer: the addresses on the cluster network. Starts to listen and returns the token for it."""
        fields = Fields(arguments, "", ("local", "peer"))
        async with self._lock:
            self._membership.require_single()
            local, peer = await self._addresses(fields)
            await self._stop_listening()
            await self._membership.prepare()
            keys = Keys.generate()
            token = Token(local, PAIRING_PORT, keys.public, secrets.token_bytes(SECRET_BYTES))
            own = await self._candidate(local, keys)
            expires_ns = time.monotonic_ns() + TOKEN_LIFE_S * 1_000_000_000
            invitation = Invitation(token, keys, own, secrets.token_hex(16), expires_ns, peer)
            listener = Listener(invitation, keys, self._found)
            try:
                listener.open()
            except XlbError:
                await listener.close()
                raise
            self._listener = listener
        log.info("waiting %d min at %s port %d for %s to join", TOKEN_LIFE_S // 60, local, PAIRING_PORT, peer)
        return {"token": token.text(), "expires_s": TOKEN_LIFE_S, "node": own.member.name, "version": package_version()}

    async def _addresses(self, fields: Fields) -> tuple[str, str]:
        """local and peer of a creation. Raises InvalidInput."""
        local = await self._own_address(fields.text("local"))
        peer = check_own_address(fields.text("peer"), "--peer")
        if peer == local:
            raise InvalidInput(f"{peer} is this node's own address; give the other node's", "--peer")
        if (":" in peer) != (":" in local):
            raise InvalidInput(f"{local} and {peer} are of different families; use IPv4 or IPv6 for both", "--peer")
        return local, peer

    async def cancel(self, _: dict[str, Any]) -> Any:
        """Void the token that is outstanding, if any. One that was used keeps its listener for the joiner that asks again."""
        async with self._lock:
            if self._listener is not None and not self._listener.invitation.used:
                await self._stop_listening()

    async def _found(self, settings: ClusterSettings) -> None:
        """The other node has stored the pair: this one stores it too and stays active."""
        async with self._lock:
            self._membership.require_single()
            await self._enter(settings)

    async def _enter(self, settings: ClusterSettings) -> None:
        await asyncio.to_thread(self._store, settings)
        try:
            await self._changes.commit(lambda config: config_for_pair(config, settings))
            await self._membership.enter(settings)
        except (XlbError, OSError) as error:
            await asyncio.to_thread(self._file.remove)
            raise XlbError(
                f"{settings.own.name} cannot enter the pair: {error}", code_of(error, Code.KERNEL_REFUSED)
            ) from error

    # --- join ----------------------------------------------------------------------------------------------------

    async def join(self, arguments: dict[str, Any]) -> Any:
        """local: own address on the cluster network; token. Returns once this node is the pair's backup."""
        fields = Fields(arguments, "", ("local", "token"))
        token = Token.parse(fields.text("token"))
        async with self._lock:
            self._membership.require_single()
            local = await self._own_address(fields.text("local"))
            if token.address == local:
                raise InvalidInput(f"{local} is the address of the node that made the token; give this node's own", "--local")
            if (":" in token.address) != (":" in local):
                raise InvalidInput(f"expected an address of the same family as {token.address}", "--local")
            await require_listener(local, token)
            await self._membership.prepare()
            keys = Keys.generate()
            application = Application(token, keys, await self._candidate(local, keys))
            return await self._apply(token, keys, local, application)

    async def _apply(self, token: Token, keys: Keys, local: str, application: Application) -> dict[str, Any]:
        own_config = self._changes.config
        async with JoinConnection(token, keys, local) as connection:
            settings, stored = application.accepted(await connection.ask(application.join), int(time.time()))
            await asyncio.to_thread(self._store, settings)
            peer = settings.peer.name
            try:
                with working(f"{peer} stores the pair"):
                    application.done(await connection.ask(stored))
            except XlbError as error:
                await asyncio.to_thread(self._file.remove)
                look = f"if xlbctl cluster status on {peer} names this node as its peer, run xlbctl cluster destroy there"
                raise XlbError(
                    f"{peer} did not confirm the pair: {error}; nothing was changed here; {look}", Code.PAIR_UNCONFIRMED
                ) from None
        kept = await asyncio.to_thread(set_aside, own_config, self._state_dir, "before-join")
        try:
            await self._changes.commit(lambda config: config_for_pair(config, settings))
            await self._membership.enter(settings)
        except (XlbError, OSError) as error:
            raise XlbError(
                f"the pair exists, but this node cannot take part yet: {error}; correct that, then restart xlbd",
                code_of(error, Code.KERNEL_REFUSED),
            ) from error
        return {"node": settings.own.name, "peer": peer, "kept": str(kept) if kept else None, **contents(own_config)}

    async def preview(self, arguments: dict[str, Any]) -> Any:
        """What joining would remove from this node. local, peer: optional, checked as for `create`."""
        self._membership.require_single()
        if arguments:
            await self._addresses(Fields(arguments, "", ("local", "peer")))
        config = self._changes.config
        accounts = [*config.users, *config.tokens]
        return {"node": self._settings.node.name, "version": package_version(), **contents(config), "accounts": accounts}

    # --- destroy -------------------------------------------------------------------------------------------------

    async def destroy(self, _: dict[str, Any]) -> Any:
        """End the pair on both nodes: the active one becomes a single node, the other keeps a backup copy of its farms."""
        async with self._lock:
            if why := self._membership.orphaned:
                log.warning("serving alone from now on: %s", why)
                await self._leave()
                warning = "its other node still has the pair: run xlbctl cluster destroy there, or both will want the VIPs"
                return {"peer": "its peer", "serves": True, "kept": None, "warning": warning, **contents(Config())}
            pair = self._membership.required_configuration()
            peer, serves, before = pair.settings.peer.name, pair.serving, self._changes.config
            # The node that does not keep the VIPs gives them up first: until then it could take over.
            kept = None if serves else await self._give_up(pair)
            warning = await self._end_on_peer(pair, serves)
            await self._leave()
            removed = Config() if serves else before
            return {"peer": peer, "serves": serves, "kept": kept, "warning": warning, **contents(removed)}

    async def _peer_leaves(self, arguments: dict[str, Any]) -> Any:
        """The peer ends the pair. `serves`: it stays active, so this node gives up the VIPs."""
        serves = arguments.get("serves") is True
        async with self._lock:
            pair = self._membership.required_configuration()
            own, peer = pair.settings.own.name, pair.settings.peer.name
            if serves and pair.serving:
                # A peer of version 0.1.0 has no codes: it searches this message for "serves too", and keeps the pair then.
                raise XlbError(
                    f"{own} serves too at this moment; try again when xlbctl cluster status shows one active node",
                    Code.PEER_SERVES,
                )
            log.warning("%s ends the pair", peer)
            kept = await self._give_up(pair) if serves else None
            self._task = asyncio.get_running_loop().create_task(self._leave_after_answer(), name="leaving the pair")
            return {"kept": kept}

    async def _end_on_peer(self, pair: PairConfiguration, serves: bool) -> str:
        """Returns a warning when the peer did not confirm."""
        peer = pair.settings.peer.name
        try:
            await pair.ask("cluster.leave", {"serves": serves}, LEAVE_TIMEOUT_S)
        except XlbError as error:
            if error.code in (Code.PEER_SERVES, Code.UNCODED):  # a peer of version 0.1.0 gives no cause
                raise
            remedy = f"run xlbctl cluster destroy on {peer} before it is connected again"
            if serves:
                remedy += ", or it will take over the same virtual addresses"
            return f"{peer} did not confirm the end of the pair ({error}): {remedy}"
        return ""

    async def _give_up(self, pair: PairConfiguration) -> str | None:
        """Keep a copy of the farms and have none. Returns where the copy is."""
        await pair.stop_replicating()
        config = self._changes.config
        kept = await asyncio.to_thread(set_aside, config, self._state_dir, "before-leave")
        await self._changes.commit(without_farms)
        await asyncio.to_thread(self._file.remove)
        return str(kept) if kept else None

    async def _leave_after_answer(self) -> None:
        """Leaving closes the link that carries the answer."""
        await asyncio.sleep(ANSWER_LEAVES_S)
        async with self._lock:
            if self._membership.member is not None:
                await self._leave()

    async def _leave(self) -> None:
        """The pair file goes first: a node that crashes in between serves nothing until the command is repeated."""
        await asyncio.to_thread(self._file.remove)
        if self._membership.orphaned:
            await self._membership.serve_alone()
        else:
            await self._membership.leave()
        await self._changes.commit(without_pair)
        await asyncio.to_thread(self._forget_epochs)

    async def close(self) -> None:
        """The daemon stops."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._stop_listening()

    # --- what the steps share ------------------------------------------------------------------------------------

    @property
    def _state_dir(self) -> Path:
        return self._settings.node.state_dir

    @property
    def _file(self) -> ClusterFile:
        return ClusterFile(self._state_dir)

    def _store(self, settings: ClusterSettings) -> None:
        """Store the pair, and forget the epochs and the maintenance mode of an earlier one. Blocks."""
        self._forget_epochs()
        self._file.save(settings)

    def _forget_epochs(self) -> None:
        terms = EpochFile(self._state_dir)
        try:
            terms.remove()
        except OSError as error:
            raise XlbError(
                f"cannot remove {terms.path}: {error.strerror}; check the disk and repeat the command", storage_code(error)
            ) from error

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def _own_address(self, text: str) -> str:
        """Raises InvalidInput naming the addresses there are, when this node does not have the one given."""
        address = check_own_address(text, "--local")
        present = await asyncio.to_thread(self._network.addresses)
        if any(each.address == address for each in wanted(self._changes.config)):
            raise InvalidInput(f"{address} is a virtual address; give one that stays on this node", "--local")
        if not any(each.address == address for each in present):
            names = ", ".join(sorted(each.address for each in present if each.device != "lo")) or "none"
            raise InvalidInput(f"this node has no address {address}; it has: {names}", "--local")
        return address

    async def _candidate(self, local: str, keys: Keys) -> Candidate:
        settings = self._settings
        section = settings.cluster
        data_address = await asyncio.to_thread(self._data_address)
        member = Member(settings.node.name, local, data_address, section.priority, keys.public)
        times = (section.heartbeat_ms, section.lease_ms, section.takeover_ms)
        return Candidate(
            member, section.priority_given, Fitting(package_version(), ABI_VERSION, FORMAT_VERSION, PROTOCOL_VERSION, *times)
        )

    def _data_address(self) -> str:
        """Source of VRRP: the first address of the first data interface that is no VIP, IPv4 if there is one. Blocks."""
        device = self._settings.data.interfaces[0]
        vips = {each.address for each in wanted(self._changes.config)}
        found = [each.address for each in self._network.addresses() if each.device == device and each.address not in vips]
        usable = [address for address in map(ip_address, found) if not address.is_link_local]
        usable.sort(key=lambda address: (address.version, int(address)))
        return str(usable[0]) if usable else ""


def without_pair(config: Config) -> Config:
    """A single node's configuration."""
    return replace(config, pair="", epoch=0, history=(), generation=config.generation + 1) if config.pair else config


def without_farms(config: Config) -> Config:
    """What a node has that leaves its pair: the accounts, so that its operators can still log in, and nothing to serve."""
    generation = config.generation + 1
    return Config(hash_seed=config.hash_seed, generation=generation, users=config.users, tokens=config.tokens)


def contents(config: Config) -> dict[str, Any]:
    """What a configuration has, by name, for people to confirm its removal."""
    return {"vips": list(config.vips), "farms": list(config.farms)}
