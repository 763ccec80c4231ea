"""This node as one of a pair, composed: failover machine, links to the peer, flow and configuration replication.

Decides the order in which the parts start and stop, and what `cluster status` shows of them. A node has one of these while it
is in a pair and none while it is single; it enters and leaves a pair in a running daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bpf.clock import coarse_step_ns
from ctl.cluster.after_takeover import AnnounceAgain, Arrival, Arrived
from ctl.cluster.driver import FailoverDriver, Standing, new_boot
from ctl.cluster.effects import Sinks
from ctl.cluster.epoch_writer import EpochWriter
from ctl.cluster.flows import persistence
from ctl.cluster.flows.persistence import PersistenceReplica
from ctl.cluster.flows.service import Replicator
from ctl.cluster.links import Heard, PeerLinks
from ctl.cluster.pair_configuration import PairConfiguration
from ctl.cluster.parts import PairParts
from ctl.cluster.split_notices import SplitNotices
from ctl.errors import Code, InvalidInput, XlbError
from ctl.events import catalogue
from ctl.events.catalogue import Severity
from ctl.health.probes.replication import QUESTION as CHECK_RESULTS
from ctl.runtime import realtime_scheduling
from ctl.runtime.clock import monotonic_ns
from ctl.state.cluster_file import ClusterSettings
from ctl.state.epoch_file import EpochFile, EpochState
from ctl.state.node_file import NodeSettings
from sync.errors import TimingError
from sync.failover.timing import Timing, check_timing
from sync.failover.types import FailoverConfig, FaultChanged, MaintenanceRequested, Role, SwitchoverRequested, Vote
from sync.vrrp.endpoint import VrrpCounts

REQUEST_BOUND_S = 10.0
VERIFIES = "vrrp.verifies"
"""The question whether the peer verifies advertisements; version 0.1.0 does not know it."""
ASK_AGAIN_S = 1.0

log = logging.getLogger(__name__)


class PairMember:
    """Create on a running loop, `begin` once, `end` once."""

    def __init__(self, parts: PairParts, cluster: ClusterSettings) -> None:
        """Raises InvalidInput when the node file's times or the pair's names do not fit."""
        self.cluster = cluster
        self.config = failover_config(parts.settings, cluster)
        self._parts = parts
        self._refused: list[str] = []
        self._arrival: asyncio.Task[None] | None = None
        self._shown, self._since_ns = Role.BACKUP, monotonic_ns()  # the role others see, and since when
        self._asking: asyncio.Task[None] | None = None
        self.carriers = dict.fromkeys(parts.settings.cluster.track, True)  # of tracked interfaces, as the machine knows them
        self._undo: list[Callable[[], object]] = []  # what `end` must undo, in reverse

    async def begin(self, founding: bool) -> None:
        """Become half of the pair: fenced; or `founding` it as the active node, without a pause.

        Raises XlbError with nothing left open.
        """
        try:
            await self._prepare()
            if founding:
                await self.pair.found()
            else:
                self.pair.start()
            await self._begin_hearing()
        except BaseException:
            await self.end()
            raise

    async def _prepare(self) -> None:
        """Create the parts, in the order in which they need each other; `_undo` has their ends."""
        parts, boot = self._parts, new_boot()
        file = EpochFile(parts.settings.node.state_dir)
        stored, warning = await asyncio.to_thread(file.load)
        if warning:
            log.warning("%s", warning)
        priority = self._run_in_time()
        epochs = self._write_epochs(file, stored)
        self.links = PeerLinks(
            self.cluster, parts.settings, boot, lambda: parts.changes.config.vips, self._ask_about_trailers, priority
        )
        self._undo.append(self.links.close)
        self._replicate_flows(boot)
        notices = self._replicate_configuration()
        self._answer_peer()
        sinks = Sinks(
            plane=parts.plane,
            addresses=parts.addresses,
            links=self.links,
            flows=self.replicator,
            epochs=epochs,
            role_changed=self._role_changed,
            served=self._served,
            split_ended=lambda: notices.tell({"kind": "role"}),
            report=parts.report,
        )
        self.pair = FailoverDriver(self.config, sinks, self._standing, parts.give_up, boot)
        self._undo.append(self.pair.stop)
        parts.check_results.begin(self.configuration.ask, lambda: bool(self.serving_epoch()))
        self._undo.append(parts.check_results.end)
        await self.configuration.prepare()

    def _run_in_time(self) -> int:
        """Have the loop scheduled before other work, where that is permitted; returns its priority, 0: ordinary."""
        granted, self._refused = realtime_scheduling.run_in_time()
        self._undo.append(realtime_scheduling.run_ordinarily)
        for message in self._refused:
            log.warning("%s", message)
        if not granted:
            return 0
        resting = asyncio.get_running_loop().create_task(realtime_scheduling.rest_when_busy(), name="rests")
        self._undo.append(resting.cancel)
        return realtime_scheduling.PRIORITY

    def _write_epochs(self, file: EpochFile, stored: EpochState) -> EpochWriter:
        """No epoch is lower than one that the configuration has been changed in."""
        known, names = max(stored.epoch, self._parts.changes.config.epoch), f"{self.cluster.own.name}/{self.cluster.peer.name}"
        epochs = EpochWriter(file, replace(stored, epoch=known, nodes=names))
        self._undo.append(epochs.close)
        return epochs

    def _replicate_flows(self, boot: int) -> None:
        parts = self._parts
        self.replicator = Replicator(
            parts.plane,
            self.links.send_flows,
            boot,
            lambda: self.pair.clock.offset_ns,
            self._connections,
            self._step_changed,
            unreplicated=lambda: parts.sweeper.result.unreplicated,
            unreadable=parts.unreadable_flags,
        )
        self._undo.append(lambda: asyncio.to_thread(self.replicator.close))
        parts.sweeper.follow_with(self.replicator)
        self._undo.append(parts.sweeper.unfollow)

    def _replicate_configuration(self) -> SplitNotices:
        """And the backends that clients keep, by the same channel; it starts later."""
        parts = self._parts
        self.configuration = PairConfiguration(
            parts, self.cluster, self.serving_epoch, self.links.send_configuration, lambda notice: notices.tell(notice)
        )
        notices = SplitNotices(self.config.node, self.config.peer, parts.questions, self.configuration.ask, parts.report)
        self._undo.append(self.configuration.close)
        self._undo.append(notices.close)
        self.persistence = PersistenceReplica(
            parts.plane,
            self.configuration.ask,
            self.serving_epoch,
            lambda: any(farm.persistence_s for farm in parts.changes.config.farms.values()),
        )
        return notices

    def _answer_peer(self) -> None:
        questions = self._parts.questions
        for question, answer in (
            ("switchover", self._switchover_asked),
            (VERIFIES, self._verifies),
            (persistence.QUESTION, self.persistence.take),
            (CHECK_RESULTS, self._parts.check_results.receive),
        ):
            questions.register(question, answer)
            self._undo.append(partial(questions.withdraw, question))

    async def _begin_hearing(self) -> None:
        for name in await asyncio.to_thread(self._without_carrier):
            self.link_changed(name, "down")
        await self.configuration.start()
        self._undo.append(asyncio.get_running_loop().create_task(self.persistence.run(), name="persistence").cancel)
        pair, received = self.pair, self.configuration.received
        self.links.open(Heard(pair.heartbeat_heard, pair.advert_heard, pair.vote_answered, self.replicator.message, received))

    async def end(self) -> None:
        """Stop every part; the lease and the addresses are left as they are."""
        for task in (self._arrival, self._asking):
            if task is not None:
                task.cancel()
        while self._undo:
            outcome = self._undo.pop()()
            if asyncio.iscoroutine(outcome):
                await outcome

    def _without_carrier(self) -> list[str]:
        links = self._parts.network.interfaces()
        return [name for name in self._parts.settings.cluster.track if name not in links or not links[name].carrier]

    # --- notifications from the node ---------------------------------------------------------------------------------

    def network_changed(self) -> None:
        """A route, an address or an interface is another one."""
        self.links.network_changed()

    def link_changed(self, name: str, state: str) -> None:
        """An interface went up, down or away, or came back (see `NetworkEvents.link_changed`)."""
        if name in self._parts.settings.cluster.track:
            self.carriers[name] = state in ("up", "new")
            self.fault_changed(f"carrier {name}", "" if self.carriers[name] else f"no carrier on {name}", disables=True)

    async def program_replaced(self) -> None:
        """The program has more features than before: what was held back for it goes into the maps."""
        await self.replicator.release()
        await self.persistence.release()

    def fault_changed(self, name: str, message: str, disables: bool) -> None:
        """See `FaultChanged`. The caller has logged it."""
        self.pair.fault_changed(FaultChanged(name, message, disables))

    # --- what operators ask ----------------------------------------------------------------------------------

    async def switchover(self) -> None:
        """Make the peer active; on the backup, this node. Raises XlbError with the cause of a refusal."""
        if self.pair.machine.serving:
            await self._asked("switchover", lambda: self.pair.handle(SwitchoverRequested()))
        elif self.pair.machine.role is Role.BACKUP:
            await self.configuration.ask("switchover", {}, REQUEST_BOUND_S)
        else:
            raise XlbError(
                f"{self.config.node} is in {self.pair.machine.role.value} and cannot take over: {self.pair.machine.why}",
                Code.FAILOVER_REFUSED,
            )

    async def failback(self) -> None:
        """Make the node with the higher priority active, if it is not. Raises XlbError with the cause of a refusal."""
        machine, heard = self.pair.machine, self.pair.heard
        if heard is None:
            raise XlbError(
                f"{self.config.peer} has not been heard since this daemon started; see xlbctl cluster status",
                Code.PEER_UNREACHABLE,
            )
        if machine.serving is not (self.config.priority > heard.priority):
            await self.switchover()

    async def _switchover_asked(self, _: dict[str, Any]) -> None:
        """An operator on the peer asks for a switchover to it."""
        await self._asked("switchover", lambda: self.pair.handle(SwitchoverRequested()))

    async def maintenance(self, on: bool, force: bool) -> None:
        """Take this node out of service, or put it back. Raises XlbError with the cause of a refusal."""
        await self._asked("maintenance", lambda: self.pair.handle(MaintenanceRequested(on, force)))
        await self.pair.stored()

    async def shut_down(self) -> None:
        """Hand over if the peer can take over, else close the lease; returns in any case."""
        try:
            await asyncio.wait_for(self.pair.shut_down(), REQUEST_BOUND_S)
        except (XlbError, TimeoutError) as error:
            log.warning("stopping without a hand-over: %s", error)

    async def _asked(self, request: str, put: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self.pair.requests.ask(request, put), REQUEST_BOUND_S)
        except TimeoutError:
            raise XlbError(f"no answer within {REQUEST_BOUND_S:g} s; see the outcome with xlbctl cluster status") from None

    # --- what the peer can verify --------------------------------------------------------------------------------

    async def _verifies(self, _: dict[str, Any]) -> bool:
        return True

    def _ask_about_trailers(self) -> None:
        """Another incarnation of the peer is heard: it may be of another version than the last."""
        self.persistence.new_peer()
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._learn(), name="peer's version")

    async def _learn(self) -> None:
        await asyncio.gather(self.configuration.learn(), self._learn_about_trailers())

    async def _learn_about_trailers(self) -> None:
        while True:
            try:
                await self.configuration.ask(VERIFIES, {})
            except XlbError as error:
                if error.code not in (Code.PEER_VERSION, Code.UNCODED):
                    await asyncio.sleep(ASK_AGAIN_S)
                    continue
                log.info("%s sends and takes advertisements without a trailer only, being of version 0.1.0", self.config.peer)
                self.links.peer_is_old()
            return

    # --- what others see -------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """This node's role. One that has left service for good counts as backup."""
        role = self.pair.machine.role
        return Role.BACKUP if role is Role.LEFT else role

    def serving_epoch(self) -> int:
        """The epoch in which this node is active; 0: it is not."""
        return self.pair.machine.epoch if self.pair.machine.serving else 0

    @property
    def lag_ms(self) -> float:
        """Age of the oldest flow change that the peer has not applied."""
        return self.replicator.status().lag_ms

    def status(self) -> dict[str, Any]:
        """The pair's part of `cluster status`."""
        seen, flows = self.pair.machine.status(monotonic_ns()), self.replicator.status()
        deadline_ns, _ = self._parts.plane.lease()
        vrrp, takeover_ns = self.links.vrrp, self.pair.machine.timing.takeover_ns
        counts = vrrp.counts if vrrp is not None else VrrpCounts()
        gateway, problem = self._parts.settings.cluster.gateway, self.links.vote_problem(monotonic_ns(), takeover_ns)
        return {
            "role": self.role.value,
            "since_s": round((monotonic_ns() - self._since_ns) / 1e9, 1),
            "epoch": seen.epoch,
            "lease_ms_left": max(0, deadline_ns - monotonic_ns()) // 1_000_000,
            "why": seen.why,
            "paths": seen.paths | ({"data": True} if vrrp is not None and vrrp.shows(takeover_ns) else {}),
            "vote": {"gateway": gateway, "can_be_asked": not problem, "why": problem} if gateway else None,
            "advertisements": {
                "received": counts.received,
                "rejected": {"unsigned": counts.unsigned, "forged": counts.forged, "replayed": counts.replayed},
            },
            "peer": {
                "name": seen.peer,
                "role": seen.peer_role or "unknown",
                "alive": seen.peer_alive,
                "last_heard_ms": None if seen.peer_silent_ns < 0 else seen.peer_silent_ns // 1_000_000,
                "in_step": seen.peer_alive and self.pair.heard is not None and self.pair.heard.in_step,
                "can_serve": None if self.pair.heard is None else self.pair.heard.can_serve,
                "epoch": None if self.pair.heard is None else self.pair.heard.epoch,
                "generation": None if self.pair.heard is None else self.pair.heard.version[1],
            },
            "sync": {
                "in_step": flows.in_step,
                "protected": round(flows.protected, 4),
                "lag_ms": round(flows.lag_ms, 1),
                "resyncs": flows.resyncs,
                "held": flows.held_flows,
            },
            "can_serve": seen.can_serve,
            "faults": list(seen.faults),
            "hold_down_ms": seen.hold_down_ns // 1_000_000,
            "refused": self._refused,
        }

    # --- what happens ----------------------------------------------------------------------------------------

    def _connections(self) -> int:
        return sum(self._parts.sweeper.result.connections.values())

    def _step_changed(self, in_step: bool, why: str) -> None:
        text = f"flow maps {'in step' if in_step else 'not in step'}: {why}"
        self._parts.report(log, catalogue.SYNC_CHANGED(text, in_step=in_step, why=why))
        self.pair.update_standing()

    def _standing(self) -> Standing:
        version, heard = self.configuration.replica.version, self.pair.heard
        newest = heard is None or version >= heard.version
        return self.replicator.complete and newest and not self._parts.changes.awaits_program, version

    def _role_changed(self, role: Role) -> None:
        self._parts.changed()
        if self.role is not self._shown:
            self._shown, self._since_ns = self.role, monotonic_ns()
        if role is not Role.ACTIVE and self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _served(self) -> None:
        self._parts.sweeper.soon()  # flows that must leave their backend, and loads: the last sweep is up to 5 s old
        if self._arrival is not None:
            self._arrival.cancel()
        self._arrival = asyncio.get_running_loop().create_task(self._watch_arrival(), name="traffic's arrival")

    async def _watch_arrival(self) -> None:
        """Announce until traffic comes in; see `ctl.cluster.after_takeover`."""
        began_ns = monotonic_ns()
        arrival = Arrival(began_ns, await asyncio.to_thread(self._client_packets))
        while arrival.check_at_ns is not None:
            await asyncio.sleep(max(0, arrival.check_at_ns - monotonic_ns()) / 1e9)
            packets = await asyncio.to_thread(self._client_packets)
            match arrival.check(monotonic_ns(), packets, self._connections() > 0):
                case AnnounceAgain():
                    self.pair.announce_again()
                case Arrived(count, after_ns, again):
                    after_ms = after_ns // 1_000_000
                    text = f"client traffic confirmed: {count} packets within {after_ms} ms, announced {again} times more"
                    confirmed = catalogue.TAKEOVER_CONFIRMED(text, packets=count, after_ms=after_ms, announced_again=again)
                    self._parts.report(log, confirmed)
                case verdict:
                    remedy = "; there are connections: look at the switch and at the clients' ARP" if verdict.expected else ""
                    after_s, again = verdict.after_ns // 1_000_000_000, verdict.again
                    text = f"no client traffic within {after_s} s of becoming active, announced {again} times more{remedy}"
                    severity = Severity.WARNING if verdict.expected else Severity.INFO
                    missing = catalogue.TAKEOVER_UNCONFIRMED(text, severity, after_s=after_s, announced_again=again)
                    self._parts.report(log, missing)

    def _client_packets(self) -> int:
        return int(self._parts.plane.farm_traffic()["packets_in"].sum())


def failover_config(node: NodeSettings, cluster: ClusterSettings) -> FailoverConfig:
    """The failover machine's settings for this node. Raises InvalidInput naming the node file's key."""
    section = node.cluster
    timing = Timing.from_ms(section.heartbeat_ms, section.lease_ms, section.takeover_ms)
    try:
        check_timing(timing, tick_ns=coarse_step_ns())
    except TimingError as error:
        raise InvalidInput(f"{error.detail} (in {node.source})", error.key) from None
    if node.node.name != cluster.own.name:
        raise InvalidInput(
            f'expected "{cluster.own.name}", as when the pair was made, got "{node.node.name}" (in {node.source}); '
            "put it back, or destroy the pair and create it again",
            "node.name",
        )
    priority = section.priority if section.priority_given else cluster.own.priority
    vote = Vote.GATEWAY if section.gateway else Vote.NONE
    return FailoverConfig(cluster.own.name, cluster.peer.name, timing, priority, section.failback, vote)
