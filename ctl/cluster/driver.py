"""The failover driver: feeds the failover machine with events and carries out its effects, in order and at once.

Decides only the order of things: an event that comes of an effect waits for that effect's end, and silence is judged after what
waits to be read. Decides no role: `sync.failover.machine` does. Must not know what an effect means: `ctl.cluster.effects` does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable

from ctl.cluster.effects import Performer, Sinks
from ctl.cluster.operator_requests import Requests
from ctl.events import catalogue
from ctl.events.tally import LATENESS_MS, Histogram
from ctl.runtime.clock import Clock, monotonic_ns
from sync.failover.clock import ClockEstimator
from sync.failover.machine import Failover
from sync.failover.types import (
    AdvertHeard,
    Effect,
    EpochPersisted,
    Event,
    FailoverConfig,
    FaultChanged,
    Heartbeat,
    HeartbeatHeard,
    Leases,
    LeasesPersisted,
    PersistEpoch,
    PersistLeases,
    ShutdownRequested,
    StandingChanged,
    Tick,
    VoteAnswered,
)

Standing = tuple[bool, tuple[int, int]]
"""Whether this node has every flow and no older configuration than its peer, and which version that is."""

log = logging.getLogger(__name__)


class FailoverDriver:
    """Make it on the running loop, `start`, and `stop` once. Every method is called on the loop."""

    def __init__(
        self,
        config: FailoverConfig,
        sinks: Sinks,
        standing: Callable[[], Standing],
        failed: Callable[[str], None] = lambda why: None,
        boot: int = 0,
        now_ns: Clock = monotonic_ns,
    ) -> None:
        """failed: called with the reason when this node gives up its part.

        boot: random non-zero number of this incarnation.
        """
        self.config = config
        self._now_ns = now_ns
        self.boot = boot or new_boot()
        self.clock = ClockEstimator()
        stored = sinks.epochs.state
        leases = Leases(stored.lease_ns, stored.peer_lease_ns)
        self.machine = Failover(config, self.boot, stored.epoch, stored.reserved, now_ns(), stored.maintenance, leases)
        self.requests = Requests()
        self.heard: Heartbeat | None = None  # the peer's last
        self._links, self._flows, self._epochs = sinks.links, sinks.flows, sinks.epochs
        self._read_standing, self._failed = standing, failed
        self._performer = Performer(
            config.node,
            sinks,
            self.requests,
            happened=self.handle,
            resume=self._run,
            epoch=lambda: self.machine.epoch,
            now_ns=now_ns,
        )
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._effects: deque[Effect] = deque()
        self._busy = False
        self._wake: asyncio.TimerHandle | None = None
        self._wake_ns = 0
        self._decided_ns = 0
        self._peer_alive, self._peer_boot = False, 0
        self._peer_role, self._peer_advertises = "", False
        self.lateness = Histogram(LATENESS_MS)
        self._report = sinks.report
        self._standing: Standing = (False, (0, 0))
        self._alive = True

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin fenced: the lease and the addresses that an earlier incarnation left are removed."""
        self._effects.extend(self.machine.start())
        self._run()

    async def found(self) -> None:
        """Begin a new pair as its active node, without a pause: no other node can be active."""
        for effect in self.machine.start(founding=True):
            if isinstance(effect, PersistEpoch | PersistLeases):
                await self._store(effect)
        self._decided_ns = self._now_ns()
        self._effects.extend(self.machine.found(self._decided_ns))
        self._run()

    async def _store(self, effect: PersistEpoch | PersistLeases) -> None:
        event: Event
        if isinstance(effect, PersistEpoch):
            self._epochs.save(effect.epoch, effect.reserved, lambda: None)
            event = EpochPersisted(effect.reserved)
        else:
            self._epochs.save_leases(effect.leases, lambda: None)
            event = LeasesPersisted(effect.leases)
        await self._epochs.idle()
        self.machine.handle(event, self._now_ns())

    async def shut_down(self) -> None:
        """Hand over if the peer can serve, else close the lease. Bounded by the machine's own time-out."""
        if not self._alive:
            return
        await self.requests.ask("shutdown", lambda: self.handle(ShutdownRequested()))
        await self._epochs.idle()

    async def stored(self) -> None:
        """Wait until the epoch file holds this node's state."""
        await self._epochs.idle()

    def stop(self) -> None:
        """End this incarnation: no event reaches the machine any more. The lease is left as it is."""
        self._alive = False
        if self._wake is not None:
            self._wake.cancel()
        self._performer.stop()
        self.requests.end(f"{self.config.node} leaves the pair")

    # --- what happens to this node ---------------------------------------------------------------------------

    def heartbeat_heard(self, heartbeat: Heartbeat) -> None:
        """A heartbeat of the authenticated peer."""
        now = self._now_ns()
        echoed = heartbeat.echo_sent_ns if heartbeat.echo_boot == self.boot else 0
        self.clock.heard(heartbeat.boot, heartbeat.sent_ns, echoed, heartbeat.echo_held_ns, now)
        self.heard = heartbeat
        self.update_standing()  # the answer carries it
        self.handle(HeartbeatHeard(heartbeat))

    def advert_heard(self, priority: int, sender_is_greater: bool) -> None:
        """A VRRP advertisement of the peer."""
        self.handle(AdvertHeard(priority, sender_is_greater))

    def vote_answered(self, asked_ns: int) -> None:
        """The tie-breaker answered."""
        self.handle(VoteAnswered(asked_ns))

    def fault_changed(self, fault: FaultChanged) -> None:
        """A fault of this node began or ended."""
        self.handle(fault)

    def update_standing(self) -> None:
        """The flow maps or the configuration may have changed; also read before each heartbeat."""
        standing = self._read_standing()
        if standing != self._standing:
            self._standing = standing
            self.handle(StandingChanged(*standing))

    def announce_again(self) -> None:
        """Announce the VIPs again, if this node is active."""
        if self.machine.serving:
            self._performer.announce_again()

    def handle(self, event: Event) -> None:
        """Let the machine decide, and carry out its effects. An event that an effect causes waits until the effect ends."""
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
            # A bug. Half a takeover must not continue: the lease expires, and systemd starts the next incarnation.
            log.exception("%s gives up its part in the pair", self.config.node)
            self.stop()
            self._failed(f"failover failed ({error!r})")
        finally:
            self._busy = False

    def _run_to_end(self) -> None:
        while self._alive:
            if self._effects and not self._performer.waiting:
                self._performer.perform(self._effects.popleft(), self._decided_ns)
            elif self._events:
                self._decided_ns = self._now_ns()
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
        self._links.drain()
        self.update_standing()
        if not self._alive:
            return
        now_ns = self._now_ns()
        if now_ns >= self._wake_ns:
            self.lateness.observe((now_ns - self._wake_ns) / 1e6)
            self.handle(Tick())
        else:
            self._set_alarm()

    def _watch_peer(self) -> None:
        self._watch_what_peer_says()
        alive, boot = self.machine.peer_alive, self.machine.peer_boot
        if (alive, boot) == (self._peer_alive, self._peer_boot):
            return
        if boot:
            self._links.peer_lives(boot)
        lost = self._peer_alive and not alive
        self._peer_alive, self._peer_boot = alive, boot
        self._flows.peer_present(alive, boot)
        if lost:
            text = f"{self.config.peer} is not heard on the cluster link any more"
            self._report(log, catalogue.PEER_LOST(text, peer=self.config.peer))
        elif alive:
            self._report(log, catalogue.PEER_HEARD(f"{self.config.peer} is heard on the cluster link", peer=self.config.peer))

    def _watch_what_peer_says(self) -> None:
        """Its role, and whether the data network brings its advertisements: only an active peer sends them."""
        peer, heard = self.config.peer, self.machine.peer_heartbeat
        if heard is not None and heard.role.value != self._peer_role:
            self._peer_role = heard.role.value
            text = f"{peer} reports the role {heard.role.value}, epoch {heard.epoch}"
            self._report(log, catalogue.PEER_ROLE(text, peer=peer, role=heard.role.value, epoch=heard.epoch))
        advertises = self.machine.peer_advertises
        if advertises != self._peer_advertises:
            self._peer_advertises = advertises
            text = f"advertisements of {peer} {'arrive' if advertises else 'do not arrive any more'} on the data network"
            self._report(log, catalogue.PATH_CHANGED(text, path="data", alive=advertises))


def new_boot() -> int:
    """A number for one incarnation of the daemon: non-zero, 63 bits."""
    return secrets.randbits(62) + 1
