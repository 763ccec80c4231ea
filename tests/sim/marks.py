"""Reachability marks: what must happen in the histories of `make sim`, or those prove nothing about it.

A mark is a name. The world and the simulated nodes set some (`World.mark`); the others are log lines of the product, since what
an operator may read in the journal must be reachable.
"""

from __future__ import annotations

import re

LOGGED = {
    "vip put back": r"vip \S+ was missing on",
    "takeover after silence": r"is active, .*silent on every heartbeat path",
    "takeover after the peer shut down": r"is active, .*shut down",
    "takeover by a granted claim": r"granted the claim",
    "claim after an offered hand-over": r"claiming epoch .* offers a hand-over",
    "claim by rank": r"claiming epoch .* ranks lower",
    "claim withdrawn, higher epoch": r"claim of epoch \d+ withdrawn: epoch \d+ is known",
    "claim withdrawn, peer is active": r"claim of epoch \d+ withdrawn: \w+ is active",
    "claim withdrawn, peer fell silent": r"fell silent before it granted",
    "hand-over for a switchover": r"handing over to \w+: switchover",
    "hand-over for maintenance": r"handing over to \w+: maintenance",
    "hand-over for a shutdown": r"handing over to \w+: shutdown",
    "failback": r"handing over to \w+: failback",
    "hand-over done": r"handed over to",
    "hand-over cancelled": r"hand-over cancelled",
    "lease expired under a late daemon": r"lease expired \d+ ms ago",
    "lease extension discarded": r"lease extension discarded",
    "carrier lost while active": r"is fault, .*can become active",
    "carrier lost on a backup": r"is fault, epoch \d+: no carrier on \w+$",
    "hand-over for a fault": r"handing over to \w+: fault",
    "carrier back": r"fault ended: carrier",
    "maintenance": r"is maintenance",
    "epoch raised while active": r"epoch raised to",
    "two active, the lower epoch steps down": r"is active too, with the higher epoch",
    "advertisement unseats an active node": r"advertises priority \d+ while the cluster link is silent",
    "raised lease waits for the peer": r"lease_ms is \d+, but",
    "lease raised after agreement": r"lease_ms \d+ is in force",
    "leases differ": r"takeovers here wait",
    "snapshot restarted, ring full": r"sending a new snapshot: the kernel's ring buffer overflowed",
    "snapshot restarted, stream lost": r"sending a new snapshot: the peer lost the stream",
    "snapshot over flows that were in step": r"receiving a new snapshot",
    "flows late for a takeover": r"flows not applied in time",
    "configuration conflict saved": r"have a common origin only|conflict saved",
    "epoch write refused by the disk": r"cannot store .*epoch\.json",
}
"""Mark to a pattern of a log line."""

OBSERVED = (
    "advertisement rejected",
    "carriers flapped",
    "change on both nodes",
    "change on one node only",
    "change refused: disk_full",
    "takeover while the disk refuses",
    "configuration of the peer adopted",
    "died between two effects",
    "event ring full",
    "flow block sent again",
    "hand-over marker removed",
    "hand-over marker set",
    "incarnation proved by a greeting",
    "late flows taken by an active node",
    "maintenance refused",
    "node file with other times",
    "notification lost",
    "power cut lost a file name",
    "shutdown done",
    "shutdown without a hand-over",
    "stale flows swept",
    "stopped after addresses",
    "stopped after advert",
    "stopped after announce",
    "stopped after decision",
    "stopped after disk",
    "stopped after heartbeat",
    "stopped after lease",
    "switchover done",
    "switchover refused",
    "takeover while flow maps are not in step",
    "vote refused",
    "work in a thread lost in a crash",
)
"""Set by `tests.sim`."""

REQUIRED = frozenset(LOGGED) | frozenset(OBSERVED)

_PATTERNS = [(mark, re.compile(pattern)) for mark, pattern in LOGGED.items()]


def marks_of_log(message: str) -> list[str]:
    """The marks that a log line of the product stands for."""
    return [mark for mark, pattern in _PATTERNS if pattern.search(message)]
