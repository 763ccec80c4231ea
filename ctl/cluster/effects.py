"""What the failover machine's effects mean on this node: lease, addresses, announcements, flows, epoch file, answers.

Decides only what a late or refused step means. No queue lies between an effect and the kernel: lease, addresses and
announcements are written on the event loop from what was prepared before. Must not know the machine, the order of its events or
the peer's messages; `ctl.cluster.links` sends bytes, `ctl.cluster.flows.service` replicates flows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bpf.constants import LEASE_HANDED_OVER_NS
from bpf.dataplane import DataPlane, PlaneError
from ctl.cluster.epoch_writer import EpochWriter
from ctl.cluster.operator_requests import Requests
from ctl.events import catalogue
from ctl.events.catalogue import Severity
from ctl.network.vip_addresses import VipAddresses
from ctl.runtime.clock import Clock
from ctl.runtime.event_hub import Report, log_only
from sync.failover.types import (
    Announce,
    ApplyReplicated,
    AskVote,
    Attention,
    CloseLease,
    Completed,
    Effect,
    EpochPersisted,
    Event,
    ExtendLease,
    FlowsFlushed,
    FlushFlows,
    Heartbeat,
    LeasesPersisted,
    PersistEpoch,
    PersistLeases,
    Refused,
    Role,
    RoleChanged,
    SendAdvert,
    SendHeartbeat,
    Serve,
    StopServing,
)

APPLY_BOUND_S = 0.02
"""Bound on how long a takeover waits for flows that were received and are not in the maps yet."""
HANDED_OVER_S = 2.0
"""How long the kernel of a node that handed over forwards what still arrives, while neighbours learn of the new active node."""
NEARLY_LOST = 4
"""An extension with less than a fourth of the lease left is an event,"""
NEARLY_LOST_QUIET_NS = 10_000_000_000
"""and none within this time after another."""
LAST_FLUSH_BOUND_S = 0.1
"""How long a node that stepped down still sends its last flow changes to the new active node."""

log = logging.getLogger(__name__)


class Links(Protocol):
    """The heartbeat paths to the peer, and the gateway. No call blocks; what cannot be sent is lost, as on any network."""

    def send_heartbeat(self, heartbeat: Heartbeat) -> None: ...
    def send_advert(self, priority: int) -> None: ...
    def ask_vote(self, asked_ns: int) -> None: ...
    def peer_lives(self, boot: int) -> None:
        """A heartbeat of this incarnation of the peer counted: its advertisements may, too."""

    def drain(self) -> None:
        """Hand over everything that has arrived."""


class Flows(Protocol):
    """What a pair asks of `ctl.cluster.flows.service.Replicator`."""

    def peer_present(self, present: bool, boot: int = 0) -> None: ...
    def serve(self, epoch: int) -> None: ...
    def stop_serving(self) -> None: ...
    def flush(self, number: int, done: Callable[[int], None]) -> None: ...
    def apply_pending(self, done: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class Sinks:
    """Where effects go. The functions are called in the loop's next turn.

    split_ended: this node and its peer were both active, and are not any more. report: takes events in.
    """

    plane: DataPlane
    addresses: VipAddresses
    links: Links
    flows: Flows
    epochs: EpochWriter
    role_changed: Callable[[Role], None] = lambda role: None
    served: Callable[[], None] = lambda: None
    split_ended: Callable[[], None] = lambda: None
    report: Report = log_only


class Performer:
    """Carries out one effect after the other, on the loop; `stop` once.

    happened: called with the event that an effect causes. resume: called when `waiting` ends. epoch: the highest epoch this
    node knows.
    """

    def __init__(
        self,
        node: str,
        sinks: Sinks,
        requests: Requests,
        happened: Callable[[Event], None],
        resume: Callable[[], None],
        epoch: Callable[[], int],
        now_ns: Clock,
    ) -> None:
        self._node, self._sinks, self._requests = node, sinks, requests
        self._happened, self._resume, self._epoch, self._now_ns = happened, resume, epoch, now_ns
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None  # until replicated flows are applied
        self._decided_ns = self._opening_ns = self._applied_ns = self._leased_ns = 0
        self._moving: Iterator[list[str]] | None = None  # VIPs being added or removed, a batch per turn
        self._stop_flows: asyncio.TimerHandle | None = None
        self._close: asyncio.TimerHandle | None = None
        self._deadline_ns = 0
        self._nearly_lost, self._quiet_until_ns = 0, 0
        self._unserved: Serve | None = None  # to be carried out once the lease is open

    @property
    def waiting(self) -> bool:
        """Whether the next effect must not be carried out yet."""
        return self._waiting is not None

    def perform(self, effect: Effect, decided_ns: int) -> None:
        """Carry out an effect of a decision made at decided_ns."""
        self._decided_ns = decided_ns
        _DO[type(effect)](self, effect)

    def announce_again(self) -> None:
        """Announce the VIPs again."""
        self._announce(Announce())

    def stop(self) -> None:
        """Stop what is in progress. The lease is left as it is; the marker of a hand-over is removed."""
        for handle in (self._waiting, self._stop_flows, self._close):
            if handle is not None:
                handle.cancel()
        if self._close is not None:
            self._close_for_good()
        self._moving = None

    # --- lease, epoch, requests ------------------------------------------------------------------------------

    def _send_advert(self, effect: SendAdvert) -> None:
        if self._now_ns() <= effect.void_after_ns:
            self._sinks.links.send_advert(effect.priority)

    def _extend_lease(self, effect: ExtendLease) -> None:
        # A process that was stopped since the decision must not open what the peer may have taken meanwhile.
        late_ns = self._now_ns() - effect.void_after_ns
        if late_ns > 0:
            text = f"lease extension discarded: {late_ns / 1e6:.1f} ms late"
            self._report(catalogue.LEASE_DISCARDED(text, late_ms=round(late_ns / 1e6, 3)))
            return
        self._watch_lease(effect)
        self._write_lease(effect.deadline_ns, effect.epoch)
        if self._unserved is not None:
            self._serve(self._unserved)

    def _watch_lease(self, effect: ExtendLease) -> None:
        """An extension that comes when little is left shows how near the node came to losing service."""
        now_ns = self._now_ns()
        left_ns = self._deadline_ns - now_ns
        if not 0 < left_ns < (effect.deadline_ns - now_ns) // NEARLY_LOST:
            return
        self._nearly_lost += 1
        if now_ns < self._quiet_until_ns:
            return
        times, self._nearly_lost, self._quiet_until_ns = self._nearly_lost, 0, now_ns + NEARLY_LOST_QUIET_NS
        text = f"lease nearly lost: extended with {left_ns / 1e6:.0f} ms left, {times} times"
        self._report(catalogue.LEASE_NEARLY_LOST(text, left_ms=round(left_ns / 1e6, 1), times=times))

    def _report(self, event: catalogue.Event) -> None:
        self._sinks.report(log, event)

    @property
    def _lease_open(self) -> bool:
        return self._now_ns() < self._deadline_ns

    def _close_lease(self, effect: CloseLease) -> None:
        """After a hand-over the kernel forwards what still arrives: not before every address is gone, or it would answer."""
        self._unserved = None
        if not effect.handover:
            self._write_lease(0, self._epoch())
            return
        for refused in self._sinks.addresses.stop_serving():
            if refused:
                self._write_lease(0, self._epoch())
                return
        self._write_lease(LEASE_HANDED_OVER_NS, self._epoch())
        self._close = self._loop.call_later(HANDED_OVER_S, self._close_for_good)

    def _close_for_good(self) -> None:
        self._close = None
        if self._deadline_ns == LEASE_HANDED_OVER_NS:
            self._write_lease(0, self._epoch())

    def _write_lease(self, deadline_ns: int, epoch: int) -> None:
        try:
            self._sinks.plane.set_lease(deadline_ns, epoch)
        except (PlaneError, OSError) as error:
            log.error("the lease could not be written: %s", error)
        self._deadline_ns, self._leased_ns = deadline_ns, self._now_ns()

    def _persist(self, effect: PersistEpoch) -> None:
        self._sinks.epochs.save(effect.epoch, effect.reserved, lambda: self._happened(EpochPersisted(effect.reserved)))

    def _persist_leases(self, effect: PersistLeases) -> None:
        self._sinks.epochs.save_leases(effect.leases, lambda: self._happened(LeasesPersisted(effect.leases)))

    def _role_changed(self, effect: RoleChanged) -> None:
        role, epoch, why = effect.role.value, effect.epoch, effect.why
        self._report(
            catalogue.ROLE_CHANGED(
                f"{self._node} is {role}, epoch {epoch}: {why}",
                Severity[effect.attention.value],
                role=role,
                epoch=epoch,
                cause=effect.cause,
                why=why,
            )
        )
        self._sinks.epochs.set_maintenance(effect.role is Role.MAINTENANCE)
        self._loop.call_soon(self._sinks.role_changed, effect.role)
        if effect.attention is Attention.HARM:
            self._loop.call_soon(self._sinks.split_ended)

    def _refused(self, effect: Refused) -> None:
        if not self._requests.refused(effect.request, effect.why):
            log.warning("%s given up: %s", effect.request, effect.why)

    def _completed(self, effect: Completed) -> None:
        self._requests.completed(effect.request)

    # --- serving and stopping to ---------------------------------------------------------------------------------

    def _apply_replicated(self, effect: ApplyReplicated) -> None:
        self._opening_ns = self._decided_ns
        self._waiting = self._loop.call_later(APPLY_BOUND_S, self._applied, True)
        self._sinks.flows.apply_pending(self._applied)

    def _applied(self, late: bool = False) -> None:
        if self._waiting is None:
            return
        if late:
            text = f"flows not applied in time: active {APPLY_BOUND_S:g} s after the decision without all received flows"
            self._report(catalogue.TAKEOVER_LATE(text))
        self._waiting.cancel()
        self._waiting = None
        self._applied_ns = self._now_ns()
        self._resume()

    def _serve(self, effect: Serve) -> None:
        """Not without a lease: its extension may have been discarded, and a node without one must not announce VIPs."""
        self._unserved = None if self._lease_open else effect
        if self._unserved is not None:
            return
        leased_ns = self._leased_ns
        self._keep_flows()
        self._move(self._sinks.addresses.serve(), effect)
        done_ns = self._now_ns()
        self._sinks.flows.serve(effect.epoch)
        took, flows = done_ns - self._opening_ns, self._applied_ns - self._opening_ns
        lease, addresses = leased_ns - self._applied_ns, done_ns - leased_ns
        self._report(
            catalogue.TAKEOVER_DONE(
                f"took over in {took / 1e6:.2f} ms: flows applied {flows / 1e6:.2f}, lease open {lease / 1e6:.2f}, "
                f"addresses announced {addresses / 1e6:.2f}",
                epoch=effect.epoch,
                took_ms=round(took / 1e6, 3),
                flows_ms=round(flows / 1e6, 3),
                lease_ms=round(lease / 1e6, 3),
                addresses_ms=round(addresses / 1e6, 3),
            )
        )
        self._loop.call_soon(self._sinks.served)

    def _announce(self, effect: Announce) -> None:
        if self._moving is None and self._unserved is None:
            self._move(self._sinks.addresses.announce())

    def _stop_serving(self, effect: StopServing) -> None:
        self._move(self._sinks.addresses.stop_serving())
        self._stop_flows_in(LAST_FLUSH_BOUND_S)

    def _move(self, moves: Iterator[list[str]], serve: Serve | None = None) -> None:
        """Do the first batch now and the others in the loop's next turns; a later move replaces one in progress.

        serve: the effect that adds VIPs; it is carried out again when the lease expires between two batches.
        """
        self._moving = moves
        self._move_on(moves, serve)

    def _move_on(self, moves: Iterator[list[str]], serve: Serve | None) -> None:
        if moves is not self._moving:
            return
        if serve is not None and not self._lease_open:
            self._moving, self._unserved = None, serve
            return
        refused = next(moves, None)
        if refused is None:
            self._moving = None
            return
        for message in refused[:3]:
            log.error("%s", message)
        self._loop.call_soon(self._move_on, moves, serve)

    def _stop_flows_in(self, delay_s: float) -> None:
        self._keep_flows()
        self._stop_flows = self._loop.call_later(delay_s, self._flows_stopped)

    def _keep_flows(self) -> None:
        if self._stop_flows is not None:
            self._stop_flows.cancel()
            self._stop_flows = None

    def _flows_stopped(self) -> None:
        self._stop_flows = None
        self._sinks.flows.stop_serving()

    def _flush(self, effect: FlushFlows) -> None:
        self._sinks.flows.flush(effect.number, self._flushed)

    def _flushed(self, number: int) -> None:
        if self._stop_flows is not None:
            self._stop_flows_in(0)
        self._happened(FlowsFlushed(number))


_DO: dict[type, Callable[[Performer, Any], None]] = {
    SendHeartbeat: lambda performer, effect: performer._sinks.links.send_heartbeat(effect.heartbeat),
    SendAdvert: Performer._send_advert,
    ExtendLease: Performer._extend_lease,
    CloseLease: Performer._close_lease,
    PersistEpoch: Performer._persist,
    PersistLeases: Performer._persist_leases,
    ApplyReplicated: Performer._apply_replicated,
    Serve: Performer._serve,
    Announce: Performer._announce,
    StopServing: Performer._stop_serving,
    FlushFlows: Performer._flush,
    AskVote: lambda performer, effect: performer._sinks.links.ask_vote(effect.asked_ns),
    RoleChanged: Performer._role_changed,
    Refused: Performer._refused,
    Completed: Performer._completed,
}
