"""Whether this node is single or one of a pair, and the change from one to the other in a running daemon.

Decides the order of its steps, so that a failure leaves the node single. What a pair's member does is decided in
`ctl.cluster.member`; what `cluster create`, `join` and `destroy` store is decided in `ctl.cluster.pairing`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

from bpf.constants import LEASE_FOREVER_NS
from ctl.cluster.pair_configuration import PairConfiguration
from ctl.cluster.parts import PairParts
from ctl.config.record_codec import Record
from ctl.errors import Code, XlbError
from ctl.events import catalogue
from ctl.state.cluster_file import ClusterSettings

if TYPE_CHECKING:
    from ctl.cluster.member import PairMember

ROLE_SINGLE, ROLE_FAULT = "single", "fault"
SINGLE_EPOCH = 0

log = logging.getLogger(__name__)


class Membership:
    """Create on a running loop. follow_addresses: makes the interfaces carry the VIPs they should.

    report_flows: has the program report flow changes to the peer.
    """

    def __init__(
        self, parts: PairParts, follow_addresses: Callable[[], Awaitable[None]], report_flows: Callable[[], Awaitable[str]]
    ) -> None:
        self._parts, self._follow_addresses, self._report_flows = parts, follow_addresses, report_flows
        self._member: PairMember | None = None
        self._orphaned, self._refusing = "", Refusing("")
        self._faults: dict[str, tuple[str, bool]] = {}

    @property
    def member(self) -> PairMember | None:
        """This node's half of the pair; None while it is single."""
        return self._member

    @property
    def configuration(self) -> PairConfiguration | None:
        """The pair's configuration on this node; None while it is single."""
        return self._member.configuration if self._member is not None else None

    @property
    def role(self) -> str:
        """single, or the role in the pair; fault: this node lost its pair file."""
        if self._member is not None:
            return self._member.role.value
        return ROLE_FAULT if self._orphaned else ROLE_SINGLE

    def required(self) -> PairMember:
        """Raises XlbError while the node is single."""
        if self._member is None and self._orphaned:
            raise XlbError(self._orphaned, Code.PAIR_LOST)
        if self._member is None:
            raise XlbError("this node is single; make a pair with xlbctl cluster create", Code.NOT_IN_PAIR)
        return self._member

    def required_configuration(self) -> PairConfiguration:
        """Raises XlbError while the node is single."""
        return self.required().configuration

    def require_single(self) -> None:
        """Raises XlbError in a pair, or where the pair file is lost."""
        if self._orphaned:
            raise XlbError(self._orphaned, Code.PAIR_LOST)
        if self._member is not None:
            peer = self._member.cluster.peer.name
            raise XlbError(f"this node is in a pair with {peer} already; xlbctl cluster destroy ends it", Code.PAIR_EXISTS)

    # --- the pair file is lost -----------------------------------------------------------------------------------

    @property
    def orphaned(self) -> str:
        """Why this node neither serves nor changes anything in no pair; empty if it does (`ctl.state.lost_pair`)."""
        return self._orphaned

    async def refuse(self, why: str) -> None:
        """Before anything is on the interfaces: serve nothing, and accept no change."""
        plane = self._parts.plane
        plane.set_lease(0, plane.lease()[1])
        self._parts.addresses.pair(serving=False)
        self._orphaned, self._refusing = why, Refusing(why)
        await self._parts.changes.record_with(self._refusing, _nothing)
        log.error("not serving: %s", why)

    async def serve_alone(self) -> None:
        """An operator decided: this node is single from now on, with the farms it has."""
        self._orphaned = ""
        await self._parts.changes.record_alone(self._refusing)
        await self._become_single()
        self._parts.changed()

    # --- faults of this node -------------------------------------------------------------------------------------

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with this node, one message per fault; tracked carriers belong to the member."""
        return tuple(message for message, _ in self._faults.values())

    def fault_changed(self, name: str, message: str, disables: bool = False) -> None:
        """Something about this node broke, or works again (empty message). In a pair a fit peer gets the VIPs.

        name: one per cause, e.g. "storage" or "xdp eth0". disables: this node could not answer clients; otherwise it is active
        where the peer cannot be. See `sync.failover.faults`.
        """
        if self._faults.get(name, ("", disables)) == (message, disables):
            return
        if message:
            self._faults[name] = (message, disables)
            self._parts.report(log, catalogue.FAULT_BEGAN(f"node fault: {message}", fault=name, why=message))
        else:
            del self._faults[name]
            self._parts.report(log, catalogue.FAULT_ENDED(f"fault ended: {name}", fault=name))
        if self._member is not None:
            self._member.fault_changed(name, message, disables)
        self._parts.changed()

    async def program_replaced(self) -> None:
        """The program has more features than before."""
        if self._member is not None:
            await self._member.program_replaced()

    # --- start and stop ------------------------------------------------------------------------------------------

    def open_lease(self) -> None:
        """On a single node: open the lease without an end."""
        self._parts.plane.set_lease(LEASE_FOREVER_NS, SINGLE_EPOCH)

    def fence(self) -> None:
        """In a pair, before anything is on the interfaces.

        A lease that an earlier incarnation left open for longer than any lease of a pair is closed; a shorter one expires.
        """
        plane, lease_ms = self._parts.plane, self._parts.settings.cluster.lease_ms
        deadline_ns, epoch = plane.lease()
        if deadline_ns > time.monotonic_ns() + lease_ms * 1_000_000:
            plane.set_lease(0, epoch)
        self._parts.addresses.pair(serving=False)  # before any address is added: that would also be announced

    async def begin(self, cluster: ClusterSettings, founding: bool = False) -> None:
        """Become half of the pair. Raises XlbError, with the addresses as in a pair and no member."""
        member = self._make_member(cluster)
        self._parts.addresses.pair(serving=founding)
        await self._follow_addresses()  # prepares what a takeover needs
        await member.begin(founding)
        self._member = member
        for name, (message, disables) in self._faults.items():
            member.fault_changed(name, message, disables)

    async def shut_down(self) -> None:
        """Hand over, or close the lease; the control socket still answers."""
        if self._member is not None:
            await self._member.shut_down()

    async def end(self) -> None:
        """Stop every part of the member; the lease and the addresses are left as they are."""
        if self._member is not None:
            await self._member.end()

    # --- in a running daemon -------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Have the program report flow changes, before the nodes begin to pair: it takes as long as the compiler does.

        Harmless on a node that stays single: its next start has the ordinary program. Raises XlbError.
        """
        self.require_single()
        await self._report_flows()

    async def enter(self, cluster: ClusterSettings) -> None:
        """Become one of a pair in the running daemon; the caller writes cluster.json.

        The creator stays active without a pause: call it before the other node can be active. The joiner begins fenced, and
        its addresses are removed. Raises XlbError with the node single.
        """
        self.require_single()
        self._make_member(cluster)  # refused before anything is changed
        await self._report_flows()
        try:
            await self.begin(cluster, cluster.creator)
        except BaseException:
            await self._become_single()
            raise
        self._parts.changed()
        pair = f"{cluster.own.name} and {cluster.peer.name} are a pair"
        self._parts.report(log, catalogue.PAIR_CHANGED(pair, paired=True))

    async def leave(self) -> None:
        """Become single in the running daemon: a lease that never runs out, addresses on the interfaces.

        The peer must have left before, and a node that is not active must have no VIPs for which the peer is.
        """
        if self._member is not None:
            await self._become_single()
            self._parts.changed()
            self._parts.report(log, catalogue.PAIR_CHANGED("this node is single", paired=False))

    async def _become_single(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            member.pair.stop()
        self.open_lease()
        if member is not None:
            await member.end()
        self._parts.addresses.unpair()
        await self._follow_addresses()

    def _make_member(self, cluster: ClusterSettings) -> PairMember:
        from ctl.cluster.member import PairMember  # for cost alone: a single node needs none of it

        return PairMember(self._parts, cluster)


class Refusing:
    """The recorder of a node that lost its pair file: it accepts no change."""

    def __init__(self, why: str) -> None:
        self._why = why

    async def begin(self) -> NoReturn:
        raise XlbError(self._why, Code.PAIR_LOST)


async def _nothing(_: Record) -> None:
    """A node that accepts no changes needs no record."""
