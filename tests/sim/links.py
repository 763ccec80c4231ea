"""The paths between two simulated daemons, and to the gateway: bytes of the real codecs on the world's network.

Decides what a stopped process finds in its sockets when it is continued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sync.failover import heartbeat_codec
from sync.failover.types import Heartbeat, Role
from sync.vrrp.authentication import Session
from sync.vrrp.codec import TTL
from sync.vrrp.endpoint import Datagram, Endpoint

if TYPE_CHECKING:
    from tests.sim.node import Daemon

INBOX = 4000
DRAINED = frozenset({"heartbeat", "advert", "injected", "vote"})
"""What `drain` hands over; flows and configurations can wait."""
ADDRESSES = ("10.9.8.1", "10.9.8.2")
SECRET = bytes(range(32))
VIRTUAL = ("10.9.0.1",)

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
        self._vrrp = endpoint(daemon.node.index, SECRET, daemon.boot, daemon.now_ns())

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
        self._send_data(self._vrrp.greeting(self._daemon.now_ns()))
        node.daemon_did("heartbeat")

    def send_advert(self, priority: int) -> None:
        node = self._daemon.node
        node.world.advert_sent(node, priority)
        self._send_data(self._vrrp.advertisement(priority))
        node.daemon_did("advert")

    def _send_data(self, packets: Iterable[Datagram]) -> None:
        for packet, _ in packets:
            self._daemon.world.send(self._daemon.node.index, "data", "advert", packet)

    def peer_lives(self, boot: int) -> None:
        self._vrrp.peer_lives(boot, self._daemon.now_ns())

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
        if (kind in self._receivers or kind == "injected") and len(waiting) < INBOX:
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
            self._hand_over(kind, payload)

    def _read(self) -> None:
        while self._inbox:
            self._hand_over(*self._inbox.popleft())

    def _hand_over(self, kind: str, payload: Any) -> None:
        if kind not in ("advert", "injected"):
            self._receivers[kind](payload)
            return
        daemon, vrrp = self._daemon, self._vrrp
        before, known = vrrp.counts.rejected, vrrp.peer_boot
        taken = vrrp.take(payload, vrrp.peer, vrrp.own, TTL, daemon.now_ns())
        if vrrp.peer_boot != known:
            daemon.world.mark("incarnation proved by a greeting")
        if vrrp.counts.rejected > before:
            daemon.world.mark("advertisement rejected")
        self._send_data(taken.answers)
        if taken.priority is None:
            return
        if kind == "injected":
            daemon.world.fail(f"{daemon.node.name} believes an advertisement that its peer did not send now")
        self._receivers["advert"](taken.priority)


def endpoint(index: int, secret: bytes, boot: int, now_ns: int) -> Endpoint:
    """The end of the advertisements of the node with this index."""
    own, peer = ADDRESSES[index], ADDRESSES[1 - index]
    return Endpoint(own, peer, 7, 1, False, lambda: VIRTUAL, Session(secret, boot), now_ns)
