"""Links to the peer: encrypted channels on the cluster network, VRRP on the data network; and to the tie-breaking gateway.

Does I/O; decides only that a link that cannot be opened is tried again: at boot an address may appear later than the
daemon. Heartbeats have a link with a thread of its own, so that neither flows nor configurations delay them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from zmq.utils import z85

from ctl.cluster.flows.service import BULK_BOUNDS
from ctl.cluster.gateway_probe import GatewayProbe
from ctl.cluster.peer_rpc import BOUNDS as CONFIG_BOUNDS
from ctl.cluster.vrrp_socket import VrrpSocket
from ctl.errors import XlbError
from ctl.network.kernel.own_addresses import NO_DEVICE, Device, device_towards
from ctl.state.cluster_file import BULK_PORT, CONFIG_PORT, CONTROL_PORT, ClusterSettings
from ctl.state.node_file import NodeSettings
from sync.errors import WireError
from sync.failover import heartbeat_codec
from sync.failover.types import Heartbeat
from sync.transport import TOS_NETWORK_CONTROL, Channel, ChannelBounds, Link
from sync.vrrp.authentication import Session
from sync.vrrp.key_agreement import pair_secret

CONTROL_BOUNDS = ChannelBounds(queued_messages=64, message_bytes=4096, tos=TOS_NETWORK_CONTROL)
RETRY_S = 1.0
SOON_S = 0.05
"""The first wait: ZeroMQ closes a socket in the background, so its address is in use for a moment."""
FOLLOW_S = 1.0
"""How often the sockets are compared with the node's addresses and interfaces, besides at each notification."""
COALESCE_S = 0.02
PATIENCE_S = 0.2
"""A link that opens with a later attempt than the first ones is worth a line in the log."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """The receivers of what arrives; each is called on the loop."""

    heartbeat: Callable[[Heartbeat], None]
    advert: Callable[[int, bool], None]
    vote: Callable[[int], None]
    flows: Callable[[bytes], None]
    configuration: Callable[[bytes], None]


@dataclass(slots=True)
class LinkCounts:
    """In addition to the channels' own."""

    malformed: int = 0  # on the control channel


class PeerLinks:
    """Implements `ctl.cluster.effects.Links`. Create on a running loop, `open` once, `close` once.

    boot: number of this incarnation. virtual: the VIPs at this moment. new_peer: called when another incarnation of the peer
    is heard. realtime_priority: of the thread that moves heartbeats, 0 for an ordinary one.
    """

    def __init__(
        self,
        cluster: ClusterSettings,
        node: NodeSettings,
        boot: int,
        virtual: Callable[[], Collection[str]],
        new_peer: Callable[[], None],
        realtime_priority: int = 0,
    ) -> None:
        self._cluster, self._node, self._virtual = cluster, node, virtual
        self._new_peer, self._peer_boot = new_peer, 0
        self._session = Session(_secret_of(cluster), boot)
        self.counts = LinkCounts()
        self._heartbeats = Link(cluster.keys, cluster.peer.public_key, realtime_priority)
        self._bulk = Link(cluster.keys, cluster.peer.public_key)
        self.control: Channel | None = None
        self.flows: Channel | None = None
        self.configuration: Channel | None = None
        self.vrrp: VrrpSocket | None = None
        self.gateway: GatewayProbe | None = None
        self._device = NO_DEVICE  # of the cluster link
        self._retry: asyncio.TimerHandle | None = None
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wait_s = SOON_S
        self._complaints: set[str] = set()
        self._closed = False

    def open(self, heard: Heard) -> None:
        """Open every link that can be opened; the others are tried again, in the end each second, and logged once."""
        self._retry = None
        if self._closed:
            return
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._follow(heard), name="links")
        missing = False
        attempts: dict[str, Callable[[Heard], None]] = {
            "cluster": self._open_channels,
            "vrrp": self._open_vrrp,
            "gateway": self._open_gateway,
        }
        for name, attempt in attempts.items():
            try:
                attempt(heard)
            except (OSError, XlbError) as error:
                missing = True
                if name not in self._complaints and self._wait_s > PATIENCE_S:
                    self._complaints.add(name)
                    log.error("%s; trying again every %g s", error.strerror if isinstance(error, OSError) else error, RETRY_S)
            else:
                self._complaints.discard(name)
        if missing:
            self._retry = asyncio.get_running_loop().call_later(self._wait_s, self.open, heard)
            self._wait_s = min(RETRY_S, 2 * self._wait_s)
        else:
            self._wait_s = SOON_S

    def _open_channels(self, heard: Heard) -> None:
        own, peer = self._cluster.own.cluster_address, self._cluster.peer.cluster_address
        if self._device is NO_DEVICE:
            self._device = device_towards(own, peer)
        on = self._device.name
        if self.control is None:
            self.control = self._heartbeats.open(
                own, peer, CONTROL_PORT, CONTROL_BOUNDS, lambda data: self._control(data, heard.heartbeat), on
            )
        if self.flows is None:
            self.flows = self._bulk.open(own, peer, BULK_PORT, BULK_BOUNDS, heard.flows, on)
        if self.configuration is None:
            self.configuration = self._bulk.open(own, peer, CONFIG_PORT, CONFIG_BOUNDS, heard.configuration, on)

    def _open_vrrp(self, heard: Heard) -> None:
        own, peer, section = self._cluster.own.data_address, self._cluster.peer.data_address, self._node.cluster
        if self.vrrp is None and own and peer:
            device = self._node.data.interfaces[0] if section.vrrp_multicast else ""
            self.vrrp = VrrpSocket(
                own, peer, section.vrrp_id, section.heartbeat_ms, device, self._virtual, heard.advert, self._session
            )

    def _open_gateway(self, heard: Heard) -> None:
        gateway, interfaces = self._node.cluster.gateway, self._node.data.interfaces
        if self.gateway is None and gateway:
            self.gateway = GatewayProbe(gateway, interfaces[0] if len(interfaces) == 1 else "", heard.vote)

    # --- what changes under the sockets -----------------------------------------------------------------------

    def network_changed(self) -> None:
        """A route, an address or an interface is another one: compare at once."""
        self._changed.set()

    async def _follow(self, heard: Heard) -> None:
        """Sockets keep the address and the interface they were opened with; open those again that have other ones now."""
        own, peer = self._cluster.own.cluster_address, self._cluster.peer.cluster_address
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), FOLLOW_S)
            await asyncio.sleep(COALESCE_S)
            self._changed.clear()
            if self.vrrp is not None:
                self.vrrp.follow()
            if self.gateway is not None:
                self.gateway.follow()
            self._follow_device(await asyncio.to_thread(device_towards, own, peer), heard)

    def _follow_device(self, device: Device, heard: Heard) -> None:
        if device in (NO_DEVICE, self._device) or self._closed:
            return
        if self._device != NO_DEVICE:
            log.warning("the cluster link is on %s now, it was on another interface: opening it again", device.name)
        self._device = device
        for link, channel in ((self._heartbeats, self.control), (self._bulk, self.flows), (self._bulk, self.configuration)):
            if channel is not None:
                link.close_channel(channel)
        self.control = self.flows = self.configuration = None
        if self._retry is not None:
            self._retry.cancel()
        self._wait_s = SOON_S
        self.open(heard)

    def vote_problem(self, now_ns: int, within_ns: int) -> str:
        """Why this node cannot get the vote at this moment; empty if it can, or needs none."""
        address, probe = self._node.cluster.gateway, self.gateway
        if not address:
            return ""
        if probe is None:
            return f"gateway {address} cannot be asked: no socket"
        if probe.problem:
            return probe.problem
        if not probe.answered_ns:
            return f"gateway {address} has not answered yet"
        silent_ns = now_ns - probe.answered_ns
        return f"gateway {address} has not answered for {silent_ns // 1_000_000} ms" if silent_ns > within_ns else ""

    def close_soon(self) -> None:
        """Stop reading at once."""
        self._closed = True
        if self._following is not None:
            self._following.cancel()
        if self._retry is not None:
            self._retry.cancel()
        for each in (self.control, self.flows, self.configuration, self.vrrp, self.gateway):
            if each is not None:
                each.close()
        self.control = self.flows = self.configuration = None
        self.vrrp = self.gateway = None

    async def close(self) -> None:
        self.close_soon()
        await self._heartbeats.close()
        await self._bulk.close()

    # --- sending ---------------------------------------------------------------------------------------------

    def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        if self.control is not None:
            self.control.send(heartbeat_codec.encode(heartbeat))
        if self.vrrp is not None:
            self.vrrp.greet()

    def peer_lives(self, boot: int) -> None:
        if boot == self._peer_boot:
            return
        self._peer_boot = boot
        if self.vrrp is not None:
            self.vrrp.peer_lives(boot)
        else:
            self._session.lives(boot)
        self._new_peer()

    def send_advert(self, priority: int) -> None:
        if self.vrrp is not None:
            self.vrrp.send(priority)

    def ask_vote(self, asked_ns: int) -> None:
        if self.gateway is not None:
            self.gateway.ask(asked_ns)

    def peer_is_old(self) -> None:
        """The peer is of version 0.1.0, and knows of no trailer."""
        self._session.peer_is_old = True

    def send_flows(self, message: bytes) -> bool:
        """Queue a message of the replicator; False if the queue is full or there is no connection."""
        return self.flows is not None and self.flows.send(message)

    def send_configuration(self, message: bytes) -> bool:
        """Queue a message of the configuration's channel."""
        return self.configuration is not None and self.configuration.send(message)

    # --- receiving -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Hand over every heartbeat, advertisement and vote that has arrived; flows and configurations can wait."""
        for each in (self.control, self.vrrp, self.gateway):
            if each is not None:
                each.drain()

    def _control(self, data: bytes, heard: Callable[[Heartbeat], None]) -> None:
        try:
            message = heartbeat_codec.decode_control(data)
        except WireError as error:
            self.counts.malformed += 1
            log.debug("a message on the control channel was dropped: %s", error)
            return
        if isinstance(message, Heartbeat):
            heard(message)
        else:
            self.counts.malformed += 1


def _secret_of(cluster: ClusterSettings) -> bytes:
    return pair_secret(z85.decode(cluster.secret_key.encode()), z85.decode(cluster.peer.public_key.encode()))
