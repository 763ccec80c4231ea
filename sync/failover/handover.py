"""The middle layer of the failover machine: what operators ask for, and handing the VIPs to the peer without loss.

Decides how an active node leaves service. Must not know sockets, clocks, files or the kernel.

The hand-over: the active says `offering` in its heartbeats and flushes its flow changes; the peer claims its reserved
epoch; once flushed and claimed the active closes its lease and, after that, grants the claim; the peer opens when it
hears the grant. Every step repeats with each heartbeat, so a lost message delays and nothing else. Before the lease is
closed either side may give up and nothing has happened; after it, the peer holds a promise like any other.
"""

from __future__ import annotations

from sync.failover.lease import Lease
from sync.failover.states import State
from sync.failover.timing import NS_PER_MS
from sync.failover.types import (
    Completed,
    FlowsFlushed,
    FlushFlows,
    MaintenanceRequested,
    Refused,
    Role,
    ShutdownRequested,
    SwitchoverRequested,
)


class Handover(Lease):
    """Requests of operators, and the offering side of a hand-over."""

    def _unable_peer(self) -> str:
        """Why the peer cannot be handed the VIPs; empty if it can."""
        peer, name = self._peer, self.config.peer
        if peer is None or not self.peer_alive:
            return f"{name} is not heard on the cluster link"
        if not peer.can_serve or peer.role is not Role.BACKUP:
            return f"{name} is {peer.role.value} and cannot serve"
        return "" if peer.in_step else f"{name}'s flow table is not in step yet"

    def _offer(self, request: str) -> None:
        self._request, self._request_until_ns = request, self._now + self.timing.handover_timeout_ns
        self._enter(State.OFFERING, f"serving with epoch {self.epoch} and handing over to {self.config.peer}: {request}")
        self._out.append(FlushFlows(self._next_flush()))
        self._send()

    def _continue_offer(self) -> None:
        peer = self._peer
        if unable := self._unable_peer():
            self._abort_offer(unable)
        elif self._flushed and peer and peer.claim > self.epoch:
            # The lease is closed before the grant leaves: effects are carried out in order.
            self._grants = peer.claim
            self._step_down(State.BACKUP, f"handed over to {self.config.peer}, epoch {peer.claim}", handover=True)

    def _abort_offer(self, why: str) -> None:
        request, self._request = self._request, ""
        self._enter(State.ACTIVE, f"serving with epoch {self.epoch}: hand-over given up, {why}")
        self._out.append(Refused(request, why))
        if request == "shutdown":
            self._retire(State.STOPPED, request)

    def _flows_flushed(self, event: FlowsFlushed) -> None:
        if event.number == self._flush_number:
            self._flushed = True
            if self.state is State.OFFERING:
                self._continue_offer()

    def _switchover(self, event: SwitchoverRequested) -> None:
        if not self.serving:
            self._out.append(Refused("switchover", f"{self.config.node} is {self.role.value}: ask {self.config.peer}"))
        elif why := "another hand-over is under way" if self._request else self._unable_peer():
            self._out.append(Refused("switchover", why))
        else:
            self._offer("switchover")

    def _maintenance(self, event: MaintenanceRequested) -> None:
        if not event.on:
            if self._request == "maintenance" and self.state is State.OFFERING:
                self._abort_offer("maintenance ended before it began")
            elif self._request == "maintenance":
                self._request = ""
            elif self.state is State.MAINTENANCE:
                self._enter(State.FAULT if self._down else State.BACKUP, "maintenance ended")
                self._send()
            self._out.append(Completed("maintenance"))
            return
        why = "another hand-over is under way" if self._request else self._unable_peer()
        if self.serving and not why:
            self._offer("maintenance")
        elif self.serving and not event.force:
            self._out.append(Refused("maintenance", why))
        else:
            self._retire(State.MAINTENANCE, "maintenance")

    def _shutdown(self, event: ShutdownRequested) -> None:
        if self.serving and not self._unable_peer():
            if self.state is State.ACTIVE:
                self._offer("shutdown")
            self._request = "shutdown"
        else:
            self._retire(State.STOPPED, "shutdown")

    def _retire(self, state: State, request: str) -> None:
        """Leave service for `state`, from whatever this node was."""
        self._request = ""
        if self.serving:
            self._step_down(state, f"{request}: lease closed")
        elif self.state is not state:
            self._enter(state, request)
            self._send()
        if state is State.STOPPED:
            self._out.append(self._epochs.give_back())
        self._out.append(Completed(request))

    def _finish_request(self) -> None:
        """The peer serves, or did not in time: what the hand-over was for can happen now."""
        request, self._request = self._request, ""
        if request == "maintenance":
            self._retire(State.MAINTENANCE, request)
        elif request == "shutdown":
            self._retire(State.STOPPED, request)
        else:
            self._out.append(Completed(request))

    def _request_timed_out(self) -> None:
        if self.state is State.OFFERING:
            timeout_ms = self.timing.handover_timeout_ns // NS_PER_MS
            self._abort_offer(f"{self.config.peer} did not claim within {timeout_ms} ms")
        else:
            self._finish_request()
