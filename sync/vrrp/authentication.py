"""Which advertisements are the peer's: an HMAC-SHA256 trailer, and keys that belong to one incarnation of each node.

Decides genuine or not. Must not know sockets, clocks or what an advertisement leads to.

The trailer is the one of draft-cassen-vrrp-auth-hmac (keepalived 2.4 `auth_hmac`): scheme, key number, a sequence of 64 bits,
and an HMAC-SHA256, cut to 128 bits, of a pseudo-header, the message and the trailer before it. There the sequence is the time
of day; here it is a counter, because the clock of a node that fails over may be wrong. A counter alone would let anybody replay
what an earlier incarnation sent. So the key of an advertisement is derived from the pair's secret, the sender's incarnation and
the receiver's: no other incarnation of either node ever had it, and within one the counter only grows.

An incarnation of the peer counts once it is known to live: its heartbeats came over the cluster link, or it has greeted with
the number of this incarnation, which was not known earlier. It then replaces the one before it for good.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import struct
from collections import deque

from sync.vrrp.codec import TRAILER_BYTES, VERSION

SCHEME_HMAC_SHA256 = 1
ADVERTISEMENT_KEY, GREETING_KEY = 1, 2
HMAC_BYTES = 16
MAX_RETIRED = 4096
"""Incarnations of the peer that this one remembers as over; a daemon that restarts every second takes an hour for as many."""

_PREFIX = struct.Struct("!BBHQ")
_PSEUDO = struct.Struct("!BBBx16s")
_INCARNATIONS = struct.Struct("!QQ")


class Verdict(enum.Enum):
    """What the trailer of a message proves."""

    GENUINE = "genuine"
    UNSIGNED = "unsigned"
    FORGED = "forged"  # or made for another incarnation of either node
    REPLAYED = "replayed"


def trailer(key: bytes, number: int, sequence: int, message: bytes, source: str) -> bytes:
    """The trailer of `message`, whose checksum field is zero. number: of the key; source: the sender's address."""
    prefix = _PREFIX.pack(SCHEME_HMAC_SHA256, number, 0, sequence)
    return prefix + _digest(key, prefix, message, source)


def _digest(key: bytes, prefix: bytes, message: bytes, source: str) -> bytes:
    address = ipaddress.ip_address(source)
    pseudo = _PSEUDO.pack(address.version, VERSION, message[1], address.packed)
    return hmac.digest(key, pseudo + message + prefix + bytes(HMAC_BYTES), hashlib.sha256)[:HMAC_BYTES]


def sequence_of(key: bytes, number: int, message: bytes, end: bytes, source: str) -> int | None:
    """The sequence in a right trailer; None if it is of another key, or wrong."""
    if len(end) != TRAILER_BYTES:
        return None
    scheme, key_number, reserved, sequence = _PREFIX.unpack_from(end)
    if (scheme, key_number, reserved) != (SCHEME_HMAC_SHA256, number, 0):
        return None
    right = hmac.compare_digest(_digest(key, end[: _PREFIX.size], message, source), end[_PREFIX.size :])
    return int(sequence) if right else None


class Session:
    """The keys between this incarnation and the peer's. `peer_boot` is 0 until one is known to live."""

    __slots__ = (
        "_greeting_key",
        "_heard_key",
        "_last_greeted",
        "_last_heard",
        "_retired",
        "_secret",
        "_sent",
        "_sent_key",
        "boot",
        "peer_boot",
        "peer_is_old",
    )

    def __init__(self, secret: bytes, boot: int) -> None:
        """secret: of the pair; boot: random non-zero number of this incarnation."""
        self._secret, self.boot = secret, boot
        self.peer_boot = 0
        self.peer_is_old = False  # of version 0.1.0, which knows of no trailer, as it said on the cluster link
        self._greeting_key = hmac.digest(secret, b"greeting", hashlib.sha256)
        self._retired: deque[int] = deque(maxlen=MAX_RETIRED)
        self._sent = self._last_heard = self._last_greeted = 0
        self._sent_key = self._heard_key = b""
        self._derive()

    def _derive(self) -> None:
        self._sent_key = self._key(self.boot, self.peer_boot)
        self._heard_key = self._key(self.peer_boot, self.boot)

    def _key(self, sender: int, receiver: int) -> bytes:
        return hmac.digest(self._secret, b"advertisement" + _INCARNATIONS.pack(sender, receiver), hashlib.sha256)

    def lives(self, boot: int) -> bool:
        """The peer's incarnation `boot` is known to live; False if that is no news."""
        if boot in (0, self.peer_boot, self.boot) or boot in self._retired:
            return False
        if self.peer_boot:
            self._retired.append(self.peer_boot)
        self.peer_boot, self.peer_is_old = boot, False
        self._last_heard = self._last_greeted = 0
        self._derive()
        return True

    # --- advertisements -------------------------------------------------------------------------------------------------

    def sign(self, message: bytes, source: str) -> bytes:
        """The trailer of an advertisement of this node; each one has a sequence of its own."""
        self._sent += 1
        return trailer(self._sent_key, ADVERTISEMENT_KEY, self._sent, message, source)

    def judge(self, message: bytes, end: bytes, source: str) -> Verdict:
        """Whether an advertisement is the peer's and newer than every one before."""
        if not end:
            return Verdict.UNSIGNED
        if not self.peer_boot:
            return Verdict.FORGED
        sequence = sequence_of(self._heard_key, ADVERTISEMENT_KEY, message, end, source)
        if sequence is None:
            return Verdict.FORGED
        if sequence <= self._last_heard:
            return Verdict.REPLAYED
        self._last_heard = sequence
        return Verdict.GENUINE

    # --- greetings ------------------------------------------------------------------------------------------------------

    def sign_greeting(self, message: bytes, source: str) -> bytes:
        """The trailer of a greeting."""
        self._sent += 1
        return trailer(self._greeting_key, GREETING_KEY, self._sent, message, source)

    def greeting_sequence(self, message: bytes, end: bytes, source: str) -> int | None:
        """The number of a greeting that a node of the pair made, in whatever incarnation; None if none did."""
        return sequence_of(self._greeting_key, GREETING_KEY, message, end, source)

    def is_last_greeting(self, sequence: int) -> bool:
        """Whether a greeting of the incarnation that counts is newer than every one before."""
        newer = sequence > self._last_greeted
        self._last_greeted = max(sequence, self._last_greeted)
        return newer
