"""The paths between two simulated daemons, and to the gateway: bytes of the real codecs on the world's network.

Decides what a stopped process finds in its sockets when it is continued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sync.failover import heartbeat_codec
from sync.failover.types import Heartbeat, Role

if TYPE_CHECKING:
    from tests.sim.node import Daemon

INBOX = 4000
DRAINED = frozenset({"heartbeat", "advert", "vote"})
"""What `drain` sinks over; flows and configurations can wait."""

Receivers = dict[str, Callable[[Any], None]]


class Links:
    """Implements `ctl.cluster.effects.Links` and the flows' and the configuration's channels."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._receivers: Receivers = {}
        self._inbox: deque[tuple[str, Any]] = deque()
        self._held: list[tuple[str, Any]] = []  # read by the sockets' threads, which have not handed it over yet
        self.holding = False
        self._sent_flows: deque[bytes] = deque(maxlen=8)

    def open(self, receivers: Receivers) -> None:
        """From now on what arrives is handed over."""
        self._receivers = receivers

    # --- sending ------------------------------------------------------------------------------------------------

    def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        node = self._daemon.node
        node.daemon_did("decision")
        if heartbeat.grants and heartbeat.role is not Role.ACTIVE and node.kernel_open():
            node.world.fail(f"{node.name} grants epoch {heartbeat.grants} while its lease is open")
        node.world.send(node.index, "cluster", "heartbeat", heartbeat_codec.encode(heartbeat))
        node.daemon_did("heartbeat")

    def send_advert(self, priority: int) -> None:
        node = self._daemon.node
        node.world.advert_sent(node, priority)
        node.world.send(node.index, "data", "advert", priority)
        node.daemon_did("advert")

    def ask_vote(self, asked_ns: int) -> None:
        self._daemon.world.ask_vote(self._daemon.node, asked_ns)

    def send_flows(self, message: bytes) -> bool:
        if message in self._sent_flows and len(message) > 128:  # acknowledgements may be equal
            self._daemon.world.mark("flow block sent again")
        self._sent_flows.append(message)
        return self._daemon.world.send(self._daemon.node.index, "bulk", "flows", message)

    def send_configuration(self, message: bytes) -> bool:
        return self._daemon.world.send(self._daemon.node.index, "bulk", "configuration", message)

    # --- receiving ----------------------------------------------------------------------------------------------

    def arrive(self, kind: str, payload: Any) -> None:
        """A message is in the socket."""
        waiting = self._held if self.holding else self._inbox
        if kind in self._receivers and len(waiting) < INBOX:
            waiting.append((kind, payload))
            if not self.holding:
                self._daemon.loop.call_soon(self._read)

    def release(self) -> None:
        """The sockets' threads have woken up."""
        if not self._daemon.alive:
            return
        self.holding = False
        self._inbox.extend(self._held)
        self._held.clear()
        if self._inbox:
            self._daemon.loop.call_soon(self._read)

    def drain(self) -> None:
        """Hand over every heartbeat, advertisement and vote that has arrived."""
        waiting = [each for each in self._inbox if each[0] in DRAINED]
        self._inbox = deque(each for each in self._inbox if each[0] not in DRAINED)
        for kind, payload in waiting:
            self._receivers[kind](payload)

    def _read(self) -> None:
        while self._inbox:
            kind, payload = self._inbox.popleft()
            self._receivers[kind](payload)
