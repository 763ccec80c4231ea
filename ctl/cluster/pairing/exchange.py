"""Making two nodes a pair: the one-time token, and the four messages that exchange keys, names and addresses.

Decides which bytes are believed and whether the two nodes fit. Must not know sockets, files, clocks or the kernel: bytes
and `now` in, bytes and outcomes out; random numbers are arguments of what begins an exchange.

    joiner → creator   join      its name, addresses, key, versions
    creator → joiner   accepted  its own, and the pair's id           or refused, with the reason
    joiner → creator   stored    the pair is on the joiner's disk
    creator → joiner   done      and on the creator's: from here on it exists

The token carries the creator's CURVE key, so the joiner authenticates the creator, and the exchange is encrypted. Every message
carries an HMAC-SHA256 (RFC 2104) under the token's secret over a label, both keys and all messages before it; its body
is not even parsed before that is right. A token is used up by `stored`, by time, and by MAX_WRONG_PROOFS wrong guesses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import Any

import msgpack

from ctl.config.validation import MAX_PRIORITY, canonical_address
from ctl.errors import Code, InvalidInput, XlbError
from ctl.state.cluster_file import ClusterSettings, Member, check_member, why_no_pair
from sync.transport import Keys

PROTOCOL_VERSION = 1
TOKEN_PREFIX = "xlb1-"
TOKEN_LIFE_S = 15 * 60
SECRET_BYTES = 32
MAX_WRONG_PROOFS = 5
MAX_MESSAGE_BYTES = 16 * 1024
CREATOR_PRIORITY, JOINER_PRIORITY = 100, 50
PRIORITY_STEP = 50
NEW_TOKEN = "make a new one with xlbctl cluster create --token-only"


@dataclass(frozen=True, slots=True)
class Token:
    """What a node needs to join. Its string is a password until it is used."""

    address: str
    port: int
    public_key: str  # the creator's, Z85
    secret: bytes

    def text(self) -> str:
        address = ip_address(self.address).packed
        key = self.public_key.encode()
        body = struct.pack("!BH", len(address), self.port) + address + key + self.secret
        body += hashlib.sha256(body).digest()[:4]  # distinguishes a mistyped token from a wrong one
        return TOKEN_PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @staticmethod
    def parse(text: str) -> Token:
        """Raises InvalidInput for what is no whole token."""
        message = "this is no token of xlb: copy the whole line that xlbctl cluster create --token-only printed"
        encoded = "".join(text.split())
        if not encoded.startswith(TOKEN_PREFIX) or len(encoded) > 512:
            raise InvalidInput(message, "TOKEN", Code.WRONG_TOKEN)
        encoded = encoded.removeprefix(TOKEN_PREFIX)
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            body, digest = data[:-4], data[-4:]
            length, port = struct.unpack_from("!BH", body)
            address, key, secret = body[3 : 3 + length], body[3 + length : 43 + length], body[43 + length :]
            if len(secret) != SECRET_BYTES or hashlib.sha256(body).digest()[:4] != digest:
                raise ValueError("damaged")
            return Token(str(ip_address(address)), port, key.decode("ascii"), secret)
        except (ValueError, struct.error, binascii.Error):
            raise InvalidInput(message, "TOKEN", Code.WRONG_TOKEN) from None


@dataclass(frozen=True, slots=True)
class Fitting:
    """What must be equal on both nodes for them to understand each other and to keep their leases apart."""

    version: str
    abi: int
    config_format: int
    protocol: int
    heartbeat_ms: int
    lease_ms: int
    takeover_ms: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node as it introduces itself. `priority_given`: the node file sets it, so it is not changed."""

    member: Member
    priority_given: bool
    fitting: Fitting


class NotProven(Exception):
    """A message without the proof that its sender has the token, or no message at all."""


class Transcript:
    """The messages exchanged so far, and the proofs over them. Both ends keep one."""

    def __init__(self, token: Token, joiner_key: str) -> None:
        self._secret = token.secret
        self._hash = hashlib.sha256(f"xlb pairing {PROTOCOL_VERSION}\n{token.public_key}\n{joiner_key}\n".encode()).digest()

    def seal(self, label: str, body: dict[str, Any], key: str = "") -> bytes:
        """A message to send; it becomes part of the transcript."""
        packed = msgpack.packb(body, use_bin_type=True)
        message: bytes = msgpack.packb([label, key, packed, self._proof(label, packed)], use_bin_type=True)
        self._say(label, packed)
        return message

    def open(self, message: bytes, *labels: str) -> tuple[str, dict[str, Any]]:
        """Label and body of a message. Raises NotProven unless it carries one of `labels` and the right proof."""
        label, _, packed, proof = _unpack(message)
        if label not in labels or not hmac.compare_digest(proof, self._proof(label, packed)):
            raise NotProven
        body = _unpack_body(packed)
        self._say(label, packed)
        return label, body

    def _proof(self, label: str, packed: bytes) -> bytes:
        return hmac.digest(self._secret, label.encode() + b"\0" + self._hash + packed, "sha256")

    def _say(self, label: str, packed: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + label.encode() + b"\0" + packed).digest()


def _unpack(message: bytes) -> tuple[str, str, bytes, bytes]:
    if len(message) > MAX_MESSAGE_BYTES:
        raise NotProven
    try:
        label, key, packed, proof = msgpack.unpackb(message, raw=False, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        raise NotProven from None
    if not (isinstance(label, str) and isinstance(key, str) and isinstance(packed, bytes) and isinstance(proof, bytes)):
        raise NotProven
    return label, key, packed, proof


def _unpack_body(packed: bytes) -> dict[str, Any]:
    try:
        body = msgpack.unpackb(packed, raw=False, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        raise NotProven from None
    if not isinstance(body, dict):
        raise NotProven
    return body


# --- the creator -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send back. `note`: a message for the log; empty: none. refused: an operator should know."""

    message: bytes
    note: str = ""
    refused: bool = True


@dataclass(frozen=True, slots=True)
class Agreed:
    """Store these settings and become the active node of the pair, then send what `completed` or `failed` returns."""

    settings: ClusterSettings


DENIED = msgpack.packb(["denied", "", b"", b""])
WORKING = msgpack.packb(["working", "", b"", b""])
"""To a joiner that asks again while the creator stores the pair. The encrypted channel proves where it comes from."""


class Invitation:
    """The creator's side of one token, for the node with the cluster address `peer` only."""

    def __init__(self, token: Token, keys: Keys, own: Candidate, pair_id: str, expires_ns: int, peer: str) -> None:
        self.token, self.expires_ns, self.peer = token, expires_ns, peer
        self.wrong_proofs = 0
        self.used = False
        self._keys, self._own, self._pair_id = keys, own, pair_id
        self._transcript: Transcript | None = None
        self._agreed: ClusterSettings | None = None
        self._last: tuple[bytes, bytes] = b"", b""  # a message that was answered, and the answer

    def over(self, now_ns: int) -> XlbError | None:
        """Why this token cannot be used any more; None while it can."""
        if self.used:
            return XlbError(f"this token was used already: {NEW_TOKEN}", Code.TOKEN_USED)
        if now_ns >= self.expires_ns:
            return XlbError(f"this token has expired: {NEW_TOKEN}", Code.TOKEN_EXPIRED)
        if self.wrong_proofs >= MAX_WRONG_PROOFS:
            tried = f"{self.wrong_proofs} wrong tokens were tried, so this one is void"
            return XlbError(f"{tried}: {NEW_TOKEN}", Code.TOKEN_VOID)
        return None

    def received(self, message: bytes, now_ns: int, created_s: int) -> Reply | Agreed:
        """Handle a message of a client. created_s: seconds since 1970, for the cluster file."""
        if (message and message == self._last[0]) or self._last[1] == WORKING:
            return Reply(self._last[1])
        try:
            label, key, _, _ = _unpack(message)
            if label == "join":
                return self._join(message, key, now_ns)
            if label == "stored" and self._transcript is not None and self._agreed is not None and not self.over(now_ns):
                self._transcript.open(message, "stored")
                self._last = message, WORKING
                return Agreed(replace(self._agreed, created_s=created_s))
            raise NotProven
        except NotProven:
            self.wrong_proofs += 1
            return Reply(DENIED, f"join refused: wrong token ({self.wrong_proofs} of {MAX_WRONG_PROOFS})")

    def completed(self) -> bytes:
        """The pair exists: the message to the joiner."""
        assert self._transcript is not None
        self.used = True
        self._last = self._last[0], self._transcript.seal("done", {})
        return self._last[1]

    def failed(self, cause: XlbError) -> bytes:
        """The creator could not store the pair: the message to the joiner."""
        assert self._transcript is not None
        self._agreed = None
        self._last = self._last[0], self._transcript.seal("refused", _refusal(cause))
        return self._last[1]

    def _join(self, message: bytes, key: str, now_ns: int) -> Reply:
        transcript = Transcript(self.token, key)
        _, body = transcript.open(message, "join")
        if over := self.over(now_ns):
            return Reply(transcript.seal("refused", _refusal(over)), f"join refused: {over}")
        try:
            joiner = _candidate(body)
            if joiner.member.public_key != key:
                raise NotProven
            own, peer = agree(self._own, joiner)
            if peer.cluster_address != self.peer:
                remedy = f"give --local {self.peer} there, or make a token with --peer {peer.cluster_address}"
                raise XlbError(
                    f"the token is for {self.peer}, and {peer.name} joins as {peer.cluster_address}; {remedy}",
                    Code.NODES_CONFLICT,
                )
            self._agreed = ClusterSettings(self._pair_id, own, peer, self._keys.secret, creator=True, created_s=0)
        except XlbError as error:
            refusal = _refusal(error)
            return Reply(transcript.seal("refused", refusal), f"join refused: {refusal['reason']}")
        self._transcript = transcript
        answer = {"pair_id": self._pair_id, "priority": peer.priority, **_introduction(replace(self._own, member=own))}
        return Reply(transcript.seal("accepted", answer), f"{peer.name} at {peer.cluster_address} joins", refused=False)


# --- the joiner ------------------------------------------------------------------------------------------------------


class Application:
    """The joiner's side: `join` is sent first, then `accepted` and `done` are given the answers."""

    def __init__(self, token: Token, keys: Keys, own: Candidate) -> None:
        self._token, self._keys, self._own = token, keys, own
        self._transcript = Transcript(token, keys.public)
        self.join = self._transcript.seal("join", _introduction(own), keys.public)

    def accepted(self, answer: bytes, created_s: int) -> tuple[ClusterSettings, bytes]:
        """The pair to store, and the message to send then. Raises XlbError with the creator's reason."""
        body = self._open(answer, "accepted")
        creator = _candidate(body)
        own = replace(self._own.member, priority=_number(body, "priority"))
        if creator.member.public_key != self._token.public_key or not isinstance(body.get("pair_id"), str):
            raise XlbError("the creator contradicts its token; make a new one", Code.NOT_PROVEN)
        if reason := why_unfit(creator.fitting, self._own.fitting, creator.member.name, own.name):
            raise XlbError(reason, Code.NODES_DIFFER)
        settings = ClusterSettings(body["pair_id"], own, creator.member, self._keys.secret, False, created_s)
        return settings, self._transcript.seal("stored", {})

    def done(self, answer: bytes) -> None:
        """Raises XlbError unless the creator confirms that the pair exists."""
        self._open(answer, "done")

    def _open(self, answer: bytes, wanted: str) -> dict[str, Any]:
        if answer == DENIED:
            raise XlbError(
                "the token is wrong: it is not the newest one of that node; copy it again or make a new one", Code.WRONG_TOKEN
            )
        try:
            label, body = self._transcript.open(answer, wanted, "refused")
        except NotProven:
            raise XlbError(
                "the answer does not prove that it comes from the node that made the token", Code.NOT_PROVEN
            ) from None
        if label == "refused":
            code = body.get("code")  # a node of version 0.1.0 gives none
            raise XlbError(str(body.get("reason", ""))[:1000], code if isinstance(code, str) else Code.UNCODED)
        return body


# --- do the two fit --------------------------------------------------------------------------------------------------


def agree(creator: Candidate, joiner: Candidate) -> tuple[Member, Member]:
    """Both members with the priorities they will have. Raises XlbError with the reason they cannot be a pair."""
    one, two = creator.member, joiner.member
    if reason := why_unfit(creator.fitting, joiner.fitting, one.name, two.name):
        raise XlbError(reason, Code.NODES_DIFFER)
    one, two = _with_priorities(creator, joiner)
    if reason := why_no_pair(one, two):
        raise XlbError(reason, Code.NODES_CONFLICT)
    return one, two


def why_unfit(one: Fitting, two: Fitting, one_name: str, two_name: str) -> str:
    """Why the two nodes' programs or times do not fit, with the remedy; empty if they do."""
    for what, name, remedy in (
        ("the pairing protocol", "protocol", "install the same version on both"),
        ("xlb", "version", "install the same version on both"),
        ("tables of ABI", "abi", "install the same version on both"),
        ("configuration format", "config_format", "install the same version on both"),
        ("cluster.heartbeat_ms =", "heartbeat_ms", "set the same in both node files and restart xlbd"),
        ("cluster.lease_ms =", "lease_ms", "set the same in both node files and restart xlbd"),
        ("cluster.takeover_ms =", "takeover_ms", "set the same in both node files and restart xlbd"),
    ):
        ours, theirs = getattr(one, name), getattr(two, name)
        if ours != theirs:
            return f"{one_name} has {what} {ours} and {two_name} {theirs}; {remedy}"
    return ""


def _with_priorities(creator: Candidate, joiner: Candidate) -> tuple[Member, Member]:
    """Priorities that node files set stay; the others are chosen to differ, the creator's the higher."""
    one, two = creator.member, joiner.member
    if not creator.priority_given and not joiner.priority_given:
        return replace(one, priority=CREATOR_PRIORITY), replace(two, priority=JOINER_PRIORITY)
    if not joiner.priority_given:
        return one, replace(two, priority=_beside(one.priority, -PRIORITY_STEP))
    if not creator.priority_given:
        return replace(one, priority=_beside(two.priority, PRIORITY_STEP)), two
    return one, two


def _beside(priority: int, step: int) -> int:
    """A priority other than this one, `step` away where the range allows."""
    return priority + step if 1 <= priority + step < MAX_PRIORITY else priority - step


def _introduction(candidate: Candidate) -> dict[str, Any]:
    return {
        "member": asdict(candidate.member),
        "priority_given": candidate.priority_given,
        "fitting": asdict(candidate.fitting),
    }


def _candidate(body: dict[str, Any]) -> Candidate:
    """Raises XlbError for what is no introduction, e.g. that of another version."""
    try:
        fields, fitting = body["member"], body["fitting"]
        texts = {name: _text(fields, name) for name in ("name", "cluster_address", "data_address", "public_key")}
        numbers = {name: _number(fitting, name) for name in Fitting.__slots__ if name != "version"}
        member = Member(priority=_number(fields, "priority"), **texts)
        candidate = Candidate(member, bool(body["priority_given"]), Fitting(_text(fitting, "version"), **numbers))
    except (KeyError, TypeError):
        raise XlbError(
            "the other node uses another pairing protocol: install the same version of xlb on both", Code.PEER_VERSION
        ) from None
    check_member(candidate.member, "peer")
    return candidate


def _refusal(error: XlbError) -> dict[str, str]:
    """The refusal sent to the joiner. On this node "peer" is the joiner itself, so that key is left out."""
    return {"reason": error.detail if error.key == "peer" else str(error), "code": str(error.code)}


def _text(values: dict[str, Any], name: str) -> str:
    if not isinstance(values[name], str):
        raise TypeError
    return str(values[name])


def _number(values: dict[str, Any], name: str) -> int:
    if not isinstance(values[name], int) or isinstance(values[name], bool):
        raise TypeError
    return int(values[name])


def check_own_address(text: str, key: str) -> str:
    """The canonical form of an address for --local or --peer. Raises InvalidInput."""
    address = canonical_address(text, key)
    if ip_address(address).is_link_local:
        raise InvalidInput(f"{address} is link-local; give the cluster interface an address of its own", key)
    return address
