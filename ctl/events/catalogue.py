"""Every type of event, one per fact: name, severity, fields with units, meaning. The one table of them.

From it follow `xlbctl watch`, the fields in the journal, what `[notify] command` gets and the table in docs/OPERATIONS.md
(docs/make_tables.py). Names are a contract: one is added for a new fact, none is renamed or removed. Must not know who emits
an event, nor who reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool

MAX_TEXT = 2000
"""Characters of a message, and of a field that is a string."""


class Severity(enum.StrEnum):
    """As the levels of log lines."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Field:
    """A value of an event. unit: empty for a name or a text."""

    name: str
    kind: type
    meaning: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One fact at one moment; `message` is for people."""

    type: EventType
    message: str
    severity: Severity
    fields: Mapping[str, Value]

    @property
    def name(self) -> str:
        """The name of its type."""
        return self.type.name


@dataclass(frozen=True, slots=True)
class EventType:
    """severity: unless the fact has another. transient: not kept, not logged, not passed to commands."""

    name: str
    severity: Severity
    meaning: str
    fields: tuple[Field, ...] = ()
    transient: bool = False

    def __call__(self, message: str, severity: Severity | None = None, **values: Value) -> Event:
        """An event with exactly the fields of the type."""
        expected = {each.name: each.kind for each in self.fields}
        if values.keys() != expected.keys():
            raise TypeError(f"{self.name} has the fields {', '.join(expected)}; got {', '.join(values)}")
        fields = {name: _bounded(kind(values[name])) for name, kind in expected.items()}
        return Event(self, _bounded(message), severity or self.severity, fields)


def _bounded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = "".join(each if each.isprintable() else "?" for each in value)
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


TYPES: dict[str, EventType] = {}


def _type(name: str, severity: Severity, meaning: str, *fields: Field, transient: bool = False) -> EventType:
    assert name not in TYPES
    TYPES[name] = made = EventType(name, severity, meaning, fields, transient)
    return made


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
_FARM = Field("farm", str, "the farm")
_BACKEND = Field("backend", str, "address and port")
_EPOCH = Field("epoch", int, "the highest epoch that this node knows", "number")
_GENERATION = Field("generation", int, "the generation that is in force", "number")
_USER = Field("user", str, "who asked, as the kernel names him")
_PEER = Field("peer", str, "the peer")
_TOOK = "how long it took"

NODE_READY = _type(
    "node.ready", _INFO, "xlbd is ready", Field("role", str, "its role"), Field("version", str, "of xlb"), _GENERATION
)
NODE_STOPPING = _type("node.stopping", _INFO, "xlbd stops", Field("role", str, "its role"))
ROLE_CHANGED = _type(
    "role.changed",
    _INFO,
    "role, state or epoch of this node changed; a warning if an operator should look, an error after both were active",
    Field("role", str, "active, backup, fault, maintenance or left"),
    _EPOCH,
    Field("cause", str, "name of the cause, as in PROTOCOL.md; empty: a note without a transition"),
    Field("why", str, "the reason"),
)
TAKEOVER_DONE = _type(
    "takeover.done",
    _INFO,
    "this node has taken the VIPs",
    _EPOCH,
    Field("took_ms", float, "from the decision until the first VIPs were announced", "ms"),
    Field("flows_ms", float, "until the received flows were applied", "ms"),
    Field("lease_ms", float, "from then until the lease was open", "ms"),
    Field("addresses_ms", float, "from then until the first VIPs were announced", "ms"),
)
TAKEOVER_LATE = _type("takeover.late", _WARNING, "a takeover did not wait longer for received flows to be applied")
TAKEOVER_CONFIRMED = _type(
    "takeover.confirmed",
    _INFO,
    "client traffic arrives after a takeover",
    Field("packets", int, "how many arrived", "packets"),
    Field("after_ms", int, "time from the takeover until it was noticed", "ms"),
    Field("announced_again", int, "how often the VIPs were announced meanwhile", "times"),
)
TAKEOVER_UNCONFIRMED = _type(
    "takeover.unconfirmed",
    _INFO,
    "no client traffic arrives after a takeover; a warning if there are connections",
    Field("after_s", int, "how long this node waited", "s"),
    Field("announced_again", int, "how often the VIPs were announced meanwhile", "times"),
)
LEASE_DISCARDED = _type(
    "lease.discarded",
    _WARNING,
    "an extension of the lease came too late and was discarded",
    Field("late_ms", float, "how late", "ms"),
)
LEASE_NEARLY_LOST = _type(
    "lease.nearly_lost",
    _WARNING,
    "the lease was extended with less than a quarter of its time left; at most one event in ten seconds",
    Field("left_ms", float, "what was left of the lease", "ms"),
    Field("times", int, "how often since the last such event", "times"),
)
PEER_HEARD = _type("peer.heard", _INFO, "heartbeats of the peer arrive on the cluster link", _PEER)
PEER_LOST = _type("peer.lost", _WARNING, "no heartbeat of the peer on the cluster link for the takeover time", _PEER)
PEER_ROLE = _type(
    "peer.role",
    _INFO,
    "the peer's role changed, as its heartbeats name it",
    _PEER,
    Field("role", str, "its role"),
    Field("epoch", int, "the epoch it knows", "number"),
)
PATH_CHANGED = _type(
    "path.changed",
    _INFO,
    "the peer's advertisements on the data network began or ended",
    Field("path", str, "data"),
    Field("alive", bool, "whether they arrive"),
)
SYNC_CHANGED = _type(
    "sync.changed",
    _INFO,
    "the flow maps of the pair came in step or went out of step",
    Field("in_step", bool, "whether a failover now would keep every connection"),
    Field("why", str, "the reason"),
)
SPLIT_BRAIN = _type("split.brain", _WARNING, "both nodes were active, and one of them gave way", _PEER)
PAIR_CHANGED = _type("pair.changed", _INFO, "this node became one of a pair, or single", Field("paired", bool, "one of a pair"))
FAULT_BEGAN = _type(
    "fault.began",
    _ERROR,
    "something about this node broke",
    Field("fault", str, "its name"),
    Field("why", str, "what is wrong, and the remedy"),
)
FAULT_ENDED = _type("fault.ended", _INFO, "it works again", Field("fault", str, "its name"))
INTERFACE_CHANGED = _type(
    "interface.changed",
    _INFO,
    "a data interface went up, down or away, or came back; a warning unless it can be used",
    Field("interface", str, "the interface"),
    Field("state", str, "up, down, gone or new"),
)
KERNEL_REPAIRED = _type(
    "kernel.repaired",
    _WARNING,
    "another program changed what xlb needs in the kernel, and xlbd restored it",
    Field("what", str, "sysctl, xdp or vip, and its name"),
)
KERNEL_OVERRUN = _type(
    "kernel.overrun",
    _WARNING,
    "the kernel dropped notifications, and everything was compared",
    Field("repairs", int, "what had to be repaired", "number"),
)
DRAIN_ENDED = _type(
    "drain.ended",
    _INFO,
    "a drain has reached its deadline, or its backend has no connections any more; from the active node",
    _FARM,
    _BACKEND,
    Field("cause", str, "deadline or empty"),
    Field("connections", int, "that were left", "connections"),
    Field("cut", bool, "whether they were ended"),
)
BACKEND_CHANGED = _type(
    "backend.changed",
    _INFO,
    "a backend went up or down by its check, here or on the active node; a warning if it went down",
    _FARM,
    _BACKEND,
    Field("state", str, "up or down"),
    Field("why", str, "the error of the check, or what brought the backend up"),
)
FARM_DOWN = _type("farm.down", _ERROR, "no backend of a farm is up", _FARM)
FARM_UP = _type("farm.up", _INFO, "a backend of a farm without one is up again", _FARM)
CONFIG_CHANGED = _type(
    "config.changed",
    _INFO,
    "a change of the configuration came into force on the node that made it",
    _GENERATION,
    _USER,
    Field("node", str, "where it was entered"),
    Field("command", str, "the command"),
    Field("changes", str, "the values before and after"),
)
CONFIG_ADOPTED = _type(
    "config.adopted",
    _INFO,
    "a configuration of the peer came into force here; of several at once, the user of the last",
    _GENERATION,
    _USER,
    Field("node", str, "where it was entered"),
    Field("command", str, "the command"),
    Field("changes", str, "the values before and after"),
)
CONFIG_CONFLICT = _type(
    "config.conflict",
    _WARNING,
    "after a split the configuration of one node was saved and discarded",
    Field("version", str, "epoch and generation of the one discarded"),
    Field("winner", str, "epoch and generation of the one in force"),
    Field("file", str, "where it is saved"),
    Field("changes", str, "what was discarded"),
)
REQUESTED = _type(
    "operator.requested",
    _INFO,
    "somebody asked for something other than a change of the configuration",
    Field("command", str, "the command"),
    _USER,
)
THRESHOLD_EXCEEDED = _type(
    "threshold.exceeded",
    _WARNING,
    "a value went beyond its limit",
    Field("value", str, "name of the value"),
    Field("measured", float, "the value", "as the value"),
    Field("limit", float, "its limit", "as the value"),
)
THRESHOLD_ENDED = _type(
    "threshold.ended",
    _INFO,
    "the value is well within its limit again",
    Field("value", str, "name of the value"),
    Field("measured", float, "the value", "as the value"),
)
NOTIFY_FAILED = _type(
    "notify.failed",
    _WARNING,
    "the command of `[notify]` failed, hangs or is too slow; once until it works again. It does not get this event",
    Field("why", str, "the first failure"),
)
NOTIFY_WORKS = _type(
    "notify.works", _INFO, "the command of `[notify]` works again", Field("lost", int, "events it did not get", "events")
)
RATES = _type(
    "rates",
    _INFO,
    "what passes, each second while somebody watches",
    Field("packets_per_s", float, "packets of farms, both directions", "packets/s"),
    Field("bits_per_s", float, "the same in bits", "bit/s"),
    Field("new_connections_per_s", float, "connections opened", "1/s"),
    Field("drops_per_s", float, "packets dropped, of all verdicts", "packets/s"),
    Field("connections", int, "connections open at the last sweep", "number"),
    transient=True,
)
WATCH_LOST = _type(
    "watch.lost",
    _WARNING,
    "made by `xlbctl watch`: it was too slow, and events are missing here; the journal has them",
    Field("lost", int, "how many", "events"),
    transient=True,
)
WATCH_INTERRUPTED = _type(
    "watch.interrupted",
    _WARNING,
    "made by `xlbctl watch`: xlbd cannot be reached; it is asked again",
    Field("why", str, "the reason"),
    transient=True,
)
WATCH_RESUMED = _type(
    "watch.resumed",
    _INFO,
    "made by `xlbctl watch`: xlbd answers again",
    Field("restarted", bool, "whether it is another incarnation"),
    transient=True,
)
