"""One node's half of a pair: carries out what the failover machine asks for, in order and at once.

Decides no role: `sync.failover` does. Here is what its effects mean on this machine, and that nothing stands between its
decision and the kernel: lease, addresses and announcements are written on the event loop from what was made ready before. How
bytes reach the peer stands in `ctl.pair_wires`, what becomes of flows in `ctl.replicator`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bpf.constants import LEASE_HANDED_OVER_NS
from bpf.tables import DataPlane, PlaneError
from ctl.pair_requests import Requests
from ctl.pair_terms import TermsWriter
from ctl.vips import VipAddresses
from sync.clock import ClockEstimator
from sync.failover import Failover
from sync.failover_types import (
    AdvertHeard,
    Announce,
    ApplyReplicated,
    AskVote,
    CarrierChanged,
    CloseLease,
    Completed,
    Effect,
    EpochPersisted,
    Event,
    ExtendLease,
    FailoverConfig,
    FlowsFlushed,
    FlushFlows,
    Heartbeat,
    HeartbeatHeard,
    PersistEpoch,
    Refused,
    Role,
    RoleChanged,
    SendAdvert,
    SendHeartbeat,
    Serve,
    ShutdownRequested,
    StandingChanged,
    StopServing,
    Tick,
    VoteAnswered,
)

APPLY_BOUND_S = 0.02
"""A takeover waits no longer for flows that were received and are not in the table yet."""
HANDED_OVER_S = 2.0
"""So long the kernel of a node that handed over sends on what still comes: neighbours learn of the new node meanwhile."""
LAST_FLUSH_BOUND_S = 0.1
"""So long a node that has stopped serving still sends its last flow changes to the one that serves now."""

Standing = tuple[bool, tuple[int, int]]
"""Whether this node has every flow and no older configuration than its peer, and which version that is."""

log = logging.getLogger(__name__)


class Wires(Protocol):
    """The ways to the peer and to the gateway. Nothing waits; what cannot be sent is lost, as on any network."""

    def send_heartbeat(self, heartbeat: Heartbeat) -> None: ...
    def send_advert(self, priority: int) -> None: ...
    def ask_vote(self, asked_ns: int) -> None: ...
    def drain(self) -> None:
        """Hand over everything that has arrived."""


class Flows(Protocol):
    """What a pair asks of `ctl.replicator.Replicator`."""

    def peer_present(self, present: bool, boot: int = 0) -> None: ...
    def serve(self, epoch: int) -> None: ...
    def stop_serving(self) -> None: ...
    def flush(self, number: int, done: Callable[[int], None]) -> None: ...
    def apply_pending(self, done: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class Hands:
    """What a pair works with. `role_changed` and `served` are told in the loop's next turn."""

    plane: DataPlane
    addresses: VipAddresses
    wires: Wires
    flows: Flows
    standing: Callable[[], Standing]
    role_changed: Callable[[Role], None] = lambda role: None
    served: Callable[[], None] = lambda: None
    failed: Callable[[str], None] = lambda why: None


class Pair:
    """Make it on the running loop, `start`, and `stop` once. Every method is called on the loop."""

    def __init__(self, config: FailoverConfig, terms: TermsWriter, hands: Hands, boot: int = 0) -> None:
        """boot: random non-zero number of this run."""
        self.config, self.hands = config, hands
        self.boot = boot or new_boot()
        self.clock = ClockEstimator()
        stored = terms.terms
        self.machine = Failover(config, self.boot, stored.epoch, stored.reserved, now_ns(), stored.maintenance)
        self.requests = Requests()
        self.heard: Heartbeat | None = None  # the peer's last
        self._terms = terms
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._effects: deque[Effect] = deque()
        self._busy = False
        self._held: asyncio.TimerHandle | None = None  # effects wait until replicated flows are applied
        self._wake: asyncio.TimerHandle | None = None
        self._wake_ns = 0
        self._decided_ns = self._opening_ns = self._applied_ns = self._leased_ns = 0
        self._moving: Iterator[list[str]] | None = None  # VIPs under way, a batch per turn
        self._stop_flows: asyncio.TimerHandle | None = None
        self._close: asyncio.TimerHandle | None = None
        self._deadline_ns = 0
        self._peer_alive, self._peer_boot = False, 0
        self._standing: Standing = (False, (0, 0))
        self._alive = True

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin fenced: what an earlier run left open is closed, its addresses go."""
        self._effects.extend(self.machine.start())
        self._run()

    async def found(self) -> None:
        """Begin a new pair as its serving node, without a pause: nobody else can be serving."""
        for effect in self.machine.start(founding=True):
            if isinstance(effect, PersistEpoch):
                await self._terms.save_now(effect.epoch, effect.reserved)
                self.machine.handle(EpochPersisted(effect.reserved), now_ns())
        self._decided_ns = now_ns()
        self._effects.extend(self.machine.found(self._decided_ns))
        self._run()

    async def shut_down(self) -> None:
        """Hand over if the peer can serve, else close the lease. Bounded by the machine's own time-out."""
        if not self._alive:
            return
        await self.requests.ask("shutdown", lambda: self.handle(ShutdownRequested()))
        await self._terms.idle()

    async def stored(self) -> None:
        """Wait until the epoch file says what this node is."""
        await self._terms.idle()

    def stop(self) -> None:
        """End this run: the machine hears and says nothing any more. The lease is left as it is."""
        self._alive = False
        for handle in (self._held, self._wake, self._stop_flows, self._close):
            if handle is not None:
                handle.cancel()
        if self._close is not None:
            self._close_for_good()
        self._moving = None
        self.requests.end(f"{self.config.node} leaves the pair")

    # --- what happens to this node ---------------------------------------------------------------------------

    def heartbeat_heard(self, heartbeat: Heartbeat) -> None:
        """A heartbeat of the authenticated peer."""
        now = now_ns()
        echoed = heartbeat.echo_sent_ns if heartbeat.echo_boot == self.boot else 0
        self.clock.heard(heartbeat.boot, heartbeat.sent_ns, echoed, heartbeat.echo_held_ns, now)
        self.heard = heartbeat
        self.tell_standing()  # the answer says it
        self.handle(HeartbeatHeard(heartbeat))

    def advert_heard(self, priority: int, sender_is_greater: bool) -> None:
        """A VRRP advertisement of the peer."""
        self.handle(AdvertHeard(priority, sender_is_greater))

    def vote_answered(self, asked_ns: int) -> None:
        """The tie-breaker answered."""
        self.handle(VoteAnswered(asked_ns))

    def carrier_changed(self, interface: str, up: bool) -> None:
        """A tracked interface lost or regained its carrier."""
        self.handle(CarrierChanged(interface, up))

    def tell_standing(self) -> None:
        """The flow table or the configuration may have changed; looked at before each heartbeat too."""
        standing = self.hands.standing()
        if standing != self._standing:
            self._standing = standing
            self.handle(StandingChanged(*standing))

    def handle(self, event: Event) -> None:
        """Let the machine decide, and do what it says. An event that comes of an effect waits for that effect's end."""
        self._events.append(event)
        self._run()

    # --- the order of things ---------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._busy or not self._alive:
            return
        self._busy = True
        try:
            self._run_to_end()
        except Exception as error:
            # A bug. Half a takeover must not go on: the lease runs out, and the daemon's successor starts afresh.
            log.exception("%s gives up its part in the pair", self.config.node)
            self.stop()
            self.hands.failed(f"failover failed ({error!r})")
        finally:
            self._busy = False

    def _run_to_end(self) -> None:
        while self._alive:
            if self._effects and self._held is None:
                effect = self._effects.popleft()
                _DO[type(effect)](self, effect)
            elif self._events:
                self._decided_ns = now_ns()
                self._effects.extend(self.machine.handle(self._events.popleft(), self._decided_ns))
            else:
                self._watch_peer()
                self._set_alarm()
                return

    def _set_alarm(self) -> None:
        wake_ns = self.machine.next_wakeup_ns
        if wake_ns == self._wake_ns and self._wake is not None:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_ns, self._wake = wake_ns, self._loop.call_at(wake_ns / 1e9, self._alarm)

    def _alarm(self) -> None:
        self._wake = None
        # Silence is not silence while something waits to be read.
        self.hands.wires.drain()
        self.tell_standing()
        if not self._alive:
            return
        if now_ns() >= self._wake_ns:
            self.handle(Tick())
        else:
            self._set_alarm()

    def _watch_peer(self) -> None:
        alive, boot = self.machine.peer_alive, self.machine.peer_boot
        if (alive, boot) == (self._peer_alive, self._peer_boot):
            return
        lost = self._peer_alive and not alive
        self._peer_alive, self._peer_boot = alive, boot
        self.hands.flows.peer_present(alive, boot)
        if lost:
            log.warning("%s is not heard on the cluster link any more", self.config.peer)
        elif alive:
            log.info("%s is heard on the cluster link", self.config.peer)

    # --- effects ---------------------------------------------------------------------------------------------

    def _send_advert(self, effect: SendAdvert) -> None:
        if now_ns() <= effect.void_after_ns:
            self.hands.wires.send_advert(effect.priority)

    def _extend_lease(self, effect: ExtendLease) -> None:
        # A process that slept since the decision must not open what the peer may have taken meanwhile.
        if now_ns() <= effect.void_after_ns:
            self._write_lease(effect.deadline_ns, effect.epoch)
        else:
            log.warning("an extension of the lease came too late and is void")

    def _close_lease(self, effect: CloseLease) -> None:
        """After a hand-over the kernel sends on what still comes: not before every address is gone, or it would answer."""
        if not effect.handover:
            self._write_lease(0, self.machine.epoch)
            return
        for refused in self.hands.addresses.stand_by():
            if refused:
                self._write_lease(0, self.machine.epoch)
                return
        self._write_lease(LEASE_HANDED_OVER_NS, self.machine.epoch)
        self._close = self._loop.call_later(HANDED_OVER_S, self._close_for_good)

    def _close_for_good(self) -> None:
        self._close = None
        if self._deadline_ns == LEASE_HANDED_OVER_NS:
            self._write_lease(0, self.machine.epoch)

    def _write_lease(self, deadline_ns: int, epoch: int) -> None:
        try:
            self.hands.plane.set_lease(deadline_ns, epoch)
        except (PlaneError, OSError) as error:
            log.error("the lease could not be written: %s", error)
        self._deadline_ns, self._leased_ns = deadline_ns, now_ns()

    def _persist(self, effect: PersistEpoch) -> None:
        self._terms.save(effect.epoch, effect.reserved, lambda: self.handle(EpochPersisted(effect.reserved)))

    def _apply_replicated(self, effect: ApplyReplicated) -> None:
        self._opening_ns = self._decided_ns
        self._held = self._loop.call_later(APPLY_BOUND_S, self._applied, True)
        self.hands.flows.apply_pending(self._applied)

    def _applied(self, late: bool = False) -> None:
        if self._held is None:
            return
        if late:
            log.warning("serving before every received flow is in the table: that took more than %g s", APPLY_BOUND_S)
        self._held.cancel()
        self._held = None
        self._applied_ns = now_ns()
        self._run()

    def _serve(self, effect: Serve) -> None:
        leased_ns = self._leased_ns
        self._keep_flows()
        self._move(self.hands.addresses.serve())
        done_ns = now_ns()
        self.hands.flows.serve(effect.epoch)
        spent = (done_ns - self._opening_ns, self._applied_ns - self._opening_ns, leased_ns - self._applied_ns)
        log.info(
            "took over in %.2f ms: flows applied %.2f, lease open %.2f, addresses announced %.2f",
            *(each / 1e6 for each in (*spent, done_ns - leased_ns)),
        )
        self._loop.call_soon(self.hands.served)

    def _announce(self, effect: Announce) -> None:
        if self._moving is None:
            self._move(self.hands.addresses.announce())

    def announce_again(self) -> None:
        """Tell the links once more where the VIPs are, if they are here."""
        if self.machine.serving:
            self._announce(Announce())

    def _stop_serving(self, effect: StopServing) -> None:
        self._move(self.hands.addresses.stand_by())
        self._stop_flows_in(LAST_FLUSH_BOUND_S)

    def _move(self, moves: Iterator[list[str]]) -> None:
        """Do the first batch now and the others in the loop's next turns; a later move replaces one under way."""
        self._moving = moves
        self._move_on(moves)

    def _move_on(self, moves: Iterator[list[str]]) -> None:
        if moves is not self._moving:
            return
        refused = next(moves, None)
        if refused is None:
            self._moving = None
            return
        for sentence in refused[:3]:
            log.error("%s", sentence)
        self._loop.call_soon(self._move_on, moves)

    def _stop_flows_in(self, delay_s: float) -> None:
        self._keep_flows()
        self._stop_flows = self._loop.call_later(delay_s, self._flows_stopped)

    def _keep_flows(self) -> None:
        if self._stop_flows is not None:
            self._stop_flows.cancel()
            self._stop_flows = None

    def _flows_stopped(self) -> None:
        self._stop_flows = None
        self.hands.flows.stop_serving()

    def _flush(self, effect: FlushFlows) -> None:
        self.hands.flows.flush(effect.number, self._flushed)

    def _flushed(self, number: int) -> None:
        if self._stop_flows is not None:
            self._stop_flows_in(0)
        self.handle(FlowsFlushed(number))

    def _role_changed(self, effect: RoleChanged) -> None:
        level = logging.INFO if effect.role in (Role.ACTIVE, Role.BACKUP, Role.LEFT) else logging.WARNING
        log.log(level, "%s is %s, epoch %d: %s", self.config.node, effect.role.value, effect.epoch, effect.why)
        self._terms.set_maintenance(effect.role is Role.MAINTENANCE)
        self._loop.call_soon(self.hands.role_changed, effect.role)

    def _refused(self, effect: Refused) -> None:
        if not self.requests.refused(effect.request, effect.why):
            log.warning("%s given up: %s", effect.request, effect.why)

    def _completed(self, effect: Completed) -> None:
        self.requests.completed(effect.request)


_DO: dict[type, Callable[[Pair, Any], None]] = {
    SendHeartbeat: lambda pair, effect: pair.hands.wires.send_heartbeat(effect.heartbeat),
    SendAdvert: Pair._send_advert,
    ExtendLease: Pair._extend_lease,
    CloseLease: Pair._close_lease,
    PersistEpoch: Pair._persist,
    ApplyReplicated: Pair._apply_replicated,
    Serve: Pair._serve,
    Announce: Pair._announce,
    StopServing: Pair._stop_serving,
    FlushFlows: Pair._flush,
    AskVote: lambda pair, effect: pair.hands.wires.ask_vote(effect.asked_ns),
    RoleChanged: Pair._role_changed,
    Refused: Pair._refused,
    Completed: Pair._completed,
}


def now_ns() -> int:
    """CLOCK_MONOTONIC: the clock of the lease and of the event loop."""
    return time.monotonic_ns()


def new_boot() -> int:
    """A number for one run of the daemon: non-zero, 63 bits."""
    return secrets.randbits(62) + 1
