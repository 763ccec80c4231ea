"""One node's end of the advertisements: what it sends, and what of that which arrives is the peer's.

Decides bytes and verdicts; a socket of `ctl.cluster` carries them. Must not know roles: whoever is active has it advertise.

Two nodes whose cluster link is cut from the start learn each other's incarnation by greetings. A node greets while it knows
none, or hears advertisements it cannot verify. A greeting with the number of this incarnation is new, as the number is; any
other may be a replay, and is only answered, with its sender's number. So both know each other after three messages, and
a replayed greeting causes an answer and nothing else.

An address may be replaced while the daemons run. Source addresses are signed: the peer is wherever its last genuine message
came from, and a node whose address is another than the pair was made with greets every second.

A peer of version 0.1.0 cannot verify anything, and takes no advertisement with a trailer. It is known by its answer on the
cluster link; then, and only then, it gets a copy without a trailer too. What it sends is shown, and has no more effect than any
other advertisement that cannot be verified.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sync.errors import WireError
from sync.vrrp import codec
from sync.vrrp.authentication import Session, Verdict

NS_PER_MS = 1_000_000
GREETING_INTERVAL_NS = 20 * NS_PER_MS
"""At least this long between two greetings, whatever arrives."""
AWAY_INTERVAL_NS = 1000 * NS_PER_MS
MOVED_NS = 10_000 * NS_PER_MS
"""So long after its address changed a node greets as often as one that is away."""
GRACE_NS = 3000 * NS_PER_MS
"""A node that restarts gets advertisements that were made for its last incarnation, until the peer knows the new one."""
REMIND_NS = 3600_000 * NS_PER_MS

Datagram = tuple[bytes, str]
"""What follows the IP header, and the address it is for."""


@dataclass(slots=True)
class VrrpCounts:
    """What the node has seen since it entered its pair."""

    sent: int = 0
    unsent: int = 0
    received: int = 0
    foreign: int = 0  # not from the peer's address, or of another virtual router
    malformed: int = 0
    unsigned: int = 0
    forged: int = 0  # the trailer is wrong, or made for another incarnation of either node
    replayed: int = 0

    @property
    def rejected(self) -> int:
        """In the peer's name, and not known to be the peer's: without any effect."""
        return self.unsigned + self.forged + self.replayed


@dataclass(frozen=True, slots=True)
class Taken:
    """What a packet leads to. priority: of an advertisement of the peer, else None; alarm: what an operator should read."""

    priority: int | None = None
    answers: Sequence[Datagram] = ()
    alarm: str = ""


_NOTHING = Taken()


class Endpoint:
    """Between `own` and `peer`, addresses of one family. `virtual`: the VIPs, the same object as long as they do not change.

    group: whether to send to the multicast group as well. session: None for RFC 9568 alone, where anybody is believed.
    """

    def __init__(
        self,
        own: str,
        peer: str,
        router_id: int,
        interval_cs: int,
        group: bool,
        virtual: Callable[[], Collection[str]],
        session: Session | None,
        now_ns: int,
    ) -> None:
        self.counts = VrrpCounts()
        self.own, self.peer, self._home = own, peer, own
        self._router_id, self._interval_cs, self._virtual, self._session = router_id, interval_cs, virtual, session
        self._group = [codec.GROUP_V6 if ":" in own else codec.GROUP_V4] if group else []
        self._addresses: tuple[codec.Address, ...] = ()
        self._built_for: object = None
        self._shown_ns = now_ns - REMIND_NS
        self._unverified = False  # since the last greeting
        self._heard_boot = 0  # in a greeting
        self._greeted_ns = now_ns - GREETING_INTERVAL_NS
        self._trusting_until_ns = now_ns + GRACE_NS
        self._quiet_until_ns = self._moved_until_ns = now_ns

    def move(self, own: str, now_ns: int) -> None:
        """This node's address is another one now."""
        self.own, self._unverified, self._moved_until_ns = own, True, now_ns + MOVED_NS

    @property
    def peer_is_greater(self) -> bool:
        """By address, RFC 9568 6.4.3."""
        return ipaddress.ip_address(self.peer).packed > ipaddress.ip_address(self.own).packed

    @property
    def peer_boot(self) -> int:
        """The peer's incarnation whose advertisements count; 0: none yet."""
        return self._session.peer_boot if self._session is not None else 0

    @property
    def _peer_is_old(self) -> bool:
        return self._session is not None and self._session.peer_is_old

    def shows(self, now_ns: int, within_ns: int) -> bool:
        """Whether a peer of version 0.1.0 seems to advertise; nothing may depend on it."""
        return self._peer_is_old and now_ns - self._shown_ns < within_ns

    # --- sending --------------------------------------------------------------------------------------------------------

    def advertisement(self, priority: int) -> list[Datagram]:
        """One for the peer, and one for the group where multicast is wanted."""
        advert = codec.Advertisement(self._router_id, priority, self._interval_cs, self._advertised())
        session = self._session
        sign = (lambda message: session.sign(message, self.own)) if session is not None else None
        packets = [(codec.build(advert, self.own, target, trailer=sign), target) for target in (self.peer, *self._group)]
        return packets + ([(codec.build(advert, self.own, self.peer), self.peer)] if self._peer_is_old else [])

    def _advertised(self) -> tuple[codec.Address, ...]:
        virtual = self._virtual()
        if virtual is not self._built_for:
            own = ipaddress.ip_address(self.own)
            of_family = [each for each in map(ipaddress.ip_address, virtual) if each.version == own.version]
            self._built_for = virtual
            self._addresses = tuple(of_family[: codec.MAX_ADDRESSES]) or (own,)  # an advertisement without any is malformed
        return self._addresses

    def greeting(self, now_ns: int) -> list[Datagram]:
        """What to send now so that both nodes know each other's incarnation; called with each heartbeat."""
        session = self._session
        if session is None:
            return []
        away = self.own != self._home or now_ns < self._moved_until_ns
        due = not session.peer_boot or self._unverified or (away and now_ns - self._greeted_ns >= AWAY_INTERVAL_NS)
        return self._greet(session, session.peer_boot or self._heard_boot, self.peer, now_ns) if due else []

    def _greet(self, session: Session, echo: int, target: str, now_ns: int) -> list[Datagram]:
        if now_ns - self._greeted_ns < GREETING_INTERVAL_NS:
            return []
        self._greeted_ns, self._unverified = now_ns, False
        greeting = codec.Greeting(self._router_id, session.boot, echo)
        packet = codec.build_greeting(greeting, self.own, target, lambda message: session.sign_greeting(message, self.own))
        return [(packet, target)]

    def peer_lives(self, boot: int, now_ns: int) -> bool:
        """The peer's incarnation `boot` was heard on the cluster link, or proved by a greeting; False if that is no news."""
        if self._session is None or not self._session.lives(boot):
            return False
        self._trusting_until_ns = now_ns + GRACE_NS
        return True

    # --- receiving ------------------------------------------------------------------------------------------------------

    def take(self, payload: bytes, sender: str, destination: str, ttl: int, now_ns: int) -> Taken:
        """Take in what follows an IP header. Raises WireError, counted, for what is no message of this protocol."""
        session = self._session
        try:
            packet = codec.parse(payload, sender, destination, ttl)
        except WireError:
            if sender == self.peer:
                self.counts.malformed += 1
                raise
            return self._foreign()
        if packet.content.router_id != self._router_id or (session is None and sender != self.peer):
            return self._foreign()
        if isinstance(packet.content, codec.Greeting):
            return self._take_greeting(packet.content, packet, sender, now_ns)
        verdict = session.judge(packet.message, packet.trailer, sender) if session is not None else Verdict.GENUINE
        if verdict is not Verdict.GENUINE:
            return self._reject(verdict, sender, now_ns)
        self.counts.received += 1
        self.peer = sender
        return Taken(packet.content.priority)

    def _take_greeting(self, greeting: codec.Greeting, packet: codec.Packet, sender: str, now_ns: int) -> Taken:
        session = self._session
        if session is None:
            return _NOTHING
        sequence = session.greeting_sequence(packet.message, packet.trailer, sender)
        if sequence is None:
            return self._reject(Verdict.FORGED if packet.trailer else Verdict.UNSIGNED, sender, now_ns)
        if greeting.boot == session.boot:  # its own words
            return self._reject(Verdict.REPLAYED, sender, now_ns)
        if greeting.echo == session.boot:
            news = self.peer_lives(greeting.boot, now_ns)
            if greeting.boot == session.peer_boot and session.is_last_greeting(sequence):
                self.peer = sender
            if not news:
                return _NOTHING
        self._heard_boot = greeting.boot
        return Taken(answers=self._greet(session, greeting.boot, sender, now_ns))

    def _foreign(self) -> Taken:
        self.counts.foreign += 1
        return _NOTHING

    def _reject(self, verdict: Verdict, sender: str, now_ns: int) -> Taken:
        """Count what only claims to be the peer's; an alarm at once, and then once an hour while it continues."""
        if sender != self.peer:
            return self._foreign()
        counts = self.counts
        if verdict is Verdict.UNSIGNED:
            counts.unsigned += 1
            if self._peer_is_old:
                self._shown_ns = now_ns
                return _NOTHING
        elif verdict is Verdict.REPLAYED:
            counts.replayed += 1
        else:
            counts.forged += 1
            self._unverified = True
            if now_ns < self._trusting_until_ns:
                return _NOTHING
        if now_ns < self._quiet_until_ns:
            return _NOTHING
        self._quiet_until_ns = now_ns + REMIND_NS
        return Taken(alarm=verdict.value)
