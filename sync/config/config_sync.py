"""The farm configuration on two nodes: which node may change it, when a change counts, and which version wins.

Decides versions and answers. Must not know sockets, files, clocks, or what a configuration contains: a body is opaque bytes.

A version is (epoch, generation): the epoch in which the change was accepted, and a count that grows by one with each. One
node is active per epoch, so within an epoch versions are one line of history, and a document carries the last generation
of each earlier epoch it builds on. So an ancestor, which is replaced silently, differs from the other side of a split,
which is saved and named in the log.

A change is stored here, then on the peer, then answered. If the peer is absent, or does not confirm in time, the answer
has a note. A change that was not answered may survive or not; an answered one is never lost: the node with the higher
version offers it to the other, and what it replaces is either its ancestor or saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Version = tuple[int, int]
"""(epoch, generation); a greater one wins."""

MAX_HISTORY = 64
CONFIRM_TIMEOUT_NS = 2_000_000_000
OFFER_AGAIN_NS = 200_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration. `history`: last generation of each earlier epoch it builds on, oldest first, at most MAX_HISTORY."""

    version: Version
    history: tuple[Version, ...]
    body: bytes

    def builds_on(self, version: Version) -> bool:
        """Whether `version` is this document or an ancestor of it."""
        epoch, generation = version
        if version == (0, 0):
            return True
        return any(e == epoch and generation <= g for e, g in (*self.history, self.version))

    def successor(self, epoch: int, body: bytes) -> Document:
        """The document after one change, accepted in the epoch `epoch`."""
        same_term = self.version[0] == epoch or self.version == (0, 0)
        history = self.history if same_term else (*self.history, self.version)[-MAX_HISTORY:]
        return Document((epoch, self.version[1] + 1), history, body)


EMPTY = Document((0, 0), (), b"")

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Store:
    """Write, fsync and rename, after every earlier effect of this machine; then call `stored` or `store_failed`."""

    document: Document


@dataclass(frozen=True, slots=True)
class KeepConflict:
    """Save the document in a file of its own, with fsync, before the next effect, and name it in the log."""

    document: Document
    winner: Version


@dataclass(frozen=True, slots=True)
class Adopt:
    """Run with this configuration: it is on disk."""

    document: Document


@dataclass(frozen=True, slots=True)
class SendOffer:
    """Send the whole document to the peer."""

    document: Document


@dataclass(frozen=True, slots=True)
class SendVersion:
    """Send the peer the version that is on disk here."""

    version: Version


class Why(Enum):
    """Why a change is not in force, or not known to be."""

    NOT_SERVING = "this node does not accept changes"
    BUSY = "another change is being stored"
    INTERRUPTED = "this node stopped being active during the change"
    OVERTAKEN = "the peer has a newer configuration"
    NOT_STORED = "the disk or the kernel refused it"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the request for the change.

    `ok`: it is on this node's disk. `on_peer`: on the peer's too. `why`: the cause when it is not ok.
    """

    request: int
    ok: bool
    on_peer: bool
    message: str
    why: Why | None = None


Effect = Store | KeepConflict | Adopt | SendOffer | SendVersion | Answer


class ConfigSync:
    """One node's machine. `document` is what the disk holds; `peer` is the other node's name."""

    def __init__(self, document: Document, peer: str) -> None:
        self.document = document  # newest accepted here
        self.stored_version = document.version
        self.peer = peer
        self.epoch = 0  # in which this node is active; 0: it is not
        self.peer_version: Version | None = None  # on the peer's disk; None: absent
        self._previous = document
        self._request = 0  # the one change in progress; 0: none
        self._request_ns = 0
        self._offered: tuple[Version, int] = ((0, 0), 0)

    @property
    def busy(self) -> bool:
        """Whether a change is in progress: the next one must wait for its answer."""
        return self._request != 0 or self.stored_version != self.document.version

    def serve(self, epoch: int) -> list[Effect]:
        """This node is active in `epoch`; 0: it no longer is."""
        out: list[Effect] = []
        if not epoch and self._request:
            out.append(
                self._answer(
                    False,
                    False,
                    f"this node is no longer active; check on {self.peer} whether the change is stored",
                    Why.INTERRUPTED,
                )
            )
        self.epoch = epoch
        return out

    def change(self, request: int, body: bytes, now_ns: int) -> list[Effect]:
        """A client changes the configuration to `body`, made from the present one. request: non-zero, for the answer."""
        if not self.epoch:
            return [Answer(request, False, False, f"this node is not active; make the change on {self.peer}", Why.NOT_SERVING)]
        if self.busy or self.epoch < self.document.version[0]:
            return [Answer(request, False, False, "another change is being stored; try again", Why.BUSY)]
        self._request, self._request_ns = request, now_ns
        return self._store(self.document.successor(self.epoch, body))

    def stored(self, version: Version, now_ns: int) -> list[Effect]:
        """A Store is on disk."""
        if version != self.document.version:
            return []
        self.stored_version, self._previous = version, self.document
        out: list[Effect] = [Adopt(self.document)]
        if self.peer_version is None:
            out += self._answer_if_asked(False, f"stored on this node only: {self.peer} is absent")
        elif self.peer_version < version:
            out += self._offer(now_ns)
        else:
            out.append(SendVersion(version))
            out += self.peer_has(self.peer_version, now_ns)
        return out

    def store_failed(self, version: Version, error: str) -> list[Effect]:
        """A Store did not reach the disk: nothing has changed."""
        if version == self.document.version and version != self.stored_version:
            self.document = self._previous
            return [self._answer(False, False, f"not stored: {error}", Why.NOT_STORED)] if self._request else []
        return []

    def peer_has(self, version: Version, now_ns: int) -> list[Effect]:
        """The peer is there and has `version` on its disk (from its heartbeats and from SendVersion)."""
        self.peer_version = version
        if self.stored_version != self.document.version:
            return []
        if version < self.stored_version:
            return self._offer(now_ns)
        # A newer one will be offered to this node, which then learns whether it holds the change.
        return self._answer_if_asked(True, "stored on both nodes") if version == self.stored_version else []

    def peer_gone(self) -> list[Effect]:
        """The peer is not heard any more."""
        self.peer_version = None
        if self.stored_version != self.document.version:
            return []
        return self._answer_if_asked(False, f"stored on this node only: {self.peer} is absent")

    def offered(self, document: Document) -> list[Effect]:
        """The peer sent its configuration."""
        if document.version <= self.document.version:
            return [SendVersion(self.stored_version)]
        self.peer_version = document.version  # what is offered is on the peer's disk
        out: list[Effect] = []
        ancestor = document.builds_on(self.document.version)
        if ancestor and self.stored_version == self.document.version:
            out += self._answer_if_asked(True, "stored on both nodes")
        elif self._request:
            why = f"{self.peer} has the newer version {document.version}: check whether it contains the change"
            out.append(self._answer(False, False, why, Why.OVERTAKEN))
        if not ancestor:
            out.append(KeepConflict(self.document, document.version))
        return out + self._store(document)

    def tick(self, now_ns: int) -> list[Effect]:
        """Call at least every second."""
        if self.stored_version != self.document.version:
            return []
        out: list[Effect] = []
        if self._request and now_ns - self._request_ns >= CONFIRM_TIMEOUT_NS:
            out += self._answer_if_asked(False, f"stored on this node; {self.peer} has not confirmed it")
        if self.peer_version is not None and self.peer_version < self.stored_version:
            out += self._offer(now_ns)
        return out

    def _store(self, document: Document) -> list[Effect]:
        self.document = document
        return [Store(document)]

    def _offer(self, now_ns: int) -> list[Effect]:
        """Offer what the peer lacks, each version at most once per OFFER_AGAIN_NS."""
        version, offered_ns = self._offered
        if version == self.document.version and now_ns - offered_ns < OFFER_AGAIN_NS:
            return []
        self._offered = (self.document.version, now_ns)
        return [SendOffer(self.document)]

    def _answer(self, ok: bool, on_peer: bool, message: str, why: Why | None = None) -> Answer:
        request, self._request = self._request, 0
        return Answer(request, ok, on_peer, message, why)

    def _answer_if_asked(self, on_peer: bool, message: str) -> list[Effect]:
        return [self._answer(True, on_peer, message)] if self._request else []
