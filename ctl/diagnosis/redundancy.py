"""Whether the VIPs are served, and would still be if this node or its peer failed: what the answer of `status` means. Pure.

`examine_node` judges what a node knows of itself, and travels to the peer; `examine_pair` judges the two together. WARN: the
VIPs are served, but redundancy is lost or reduced. FAIL: they are not served, or served twice. `judge` and `line` make the exit
code and the one line of `cluster status --check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctl.diagnosis.finding import Finding, Severity, worst

Status = Mapping[str, Any]

OUT_OF_SERVICE = ("fault", "maintenance")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exit code and the first word of the line, as monitoring plugins have them."""

    exit_code: int
    word: str
    meaning: str


OK = Verdict(0, "OK", "the VIPs are served, and in a pair the peer can take over without losing a connection")
WARNING = Verdict(1, "WARNING", "the VIPs are served, but redundancy is lost or reduced")
CRITICAL = Verdict(
    2, "CRITICAL", "the VIPs are not served or served twice as far as this node knows, or xlbd does not run here"
)
UNKNOWN = Verdict(3, "UNKNOWN", "xlbd does not answer in time, or this user may not ask it")
VERDICTS = (OK, WARNING, CRITICAL, UNKNOWN)

_OF_SEVERITY = {Severity.OK: OK, Severity.INFO: OK, Severity.WARN: WARNING, Severity.FAIL: CRITICAL}


def judge(findings: Sequence[Finding]) -> Verdict:
    """The verdict on all of them."""
    return _OF_SEVERITY[worst(findings)]


def line(verdict: Verdict, summary: str, findings: Iterable[Finding]) -> str:
    """One line: the gravest first, each with its remedy."""
    order = list(Severity)
    bad = [each for each in findings if each.status in (Severity.WARN, Severity.FAIL)]
    shown = sorted(bad, key=lambda each: -order.index(each.status))
    said = "; ".join(f"{each.name}: {each.message}" + (f" ({each.remedy})" if each.remedy else "") for each in shown)
    return f"{verdict.word}: {said or summary}"


def summary(status: Status) -> str:
    """What is well, in a few words: "lb1 is active with epoch 7, lb2 is backup and in step"."""
    own = f"{status['node']} is {status['role']}"
    peer = status.get("peer")
    if not peer:
        return own
    step = " and in step" if peer.get("in_step") or (status.get("sync") or {}).get("in_step") else ""
    return f"{own} with epoch {status['epoch']}, {peer['name']} is {peer['role']}{step}"


# --- one node --------------------------------------------------------------------------------------------------------


def examine_node(status: Status) -> Iterator[Finding]:
    """What a node knows of itself."""
    serving = status["role"] in ("active", "single")
    grave = Severity.FAIL if serving else Severity.WARN
    if not status.get("started", True):
        yield Finding("xlbd", Severity.WARN, "is starting", "journalctl -u xlbd shows what it waits for")
    for each in status.get("interfaces", ()):
        yield from _interface(each, status.get("xdp_configured", "auto"), grave)
    for message in status.get("faults", ()):
        yield Finding("fault", Severity.WARN, str(message), "remove the cause; journalctl -u xlbd has when it began")
    vote = status.get("vote")
    if vote and not vote["can_be_asked"]:
        remedy = "without its vote this node cannot become active alone: look at the gateway and the data network"
        yield Finding("vote", Severity.WARN, str(vote["why"]), remedy)
    if status["role"] in OUT_OF_SERVICE:
        remedy = (
            "xlbctl cluster maintenance off" if status["role"] == "maintenance" else "remove the cause; it returns by itself"
        )
        alone = Severity.WARN if status.get("peer") else Severity.FAIL
        yield Finding(status["role"], alone, str(status.get("why") or "out of service"), remedy)


def _interface(each: Mapping[str, Any], configured: str, grave: Severity) -> Iterator[Finding]:
    name = f"interface {each['name']}"
    if not each["xdp_mode"]:
        remedy = "bring the interface back; xlbd attaches by itself, and its journal has the cause where it cannot"
        yield Finding(name, grave, "the program is not attached", remedy)
    elif configured == "native" and each["xdp_mode"] != "native":
        yield Finding(name, Severity.WARN, f"{each['xdp_mode']} XDP, the node file wants native", "xlbctl doctor has the cause")
    if not each["carrier"]:
        yield Finding(name, grave, "has no carrier", f"check the cable and: ip link set {each['name']} up")


# --- the pair --------------------------------------------------------------------------------------------------------


def examine_pair(status: Status) -> Iterator[Finding]:
    """What this node knows of the pair; nothing on a single node."""
    peer = status.get("peer")
    if not peer:
        return
    role, its = status["role"], peer["role"] if peer["alive"] else "silent"
    name = str(peer["name"])
    if role == "active" and its == "active":
        remedy = "cut one of them from the clients, then find why they did not hear each other: xlbctl cluster check"
        yield Finding("split brain", Severity.FAIL, f"{status['node']} and {name} are both active", remedy)
    elif role != "active" and its != "active":
        message = f"neither node is active: {status['node']} is {role}, {name} is {its}"
        yield Finding("service", Severity.FAIL, message, f"xlbctl cluster status and journalctl -u xlbd, here and on {name}")
    if not peer["alive"]:
        yield Finding(
            "peer", Severity.WARN, _silence(peer), f"see whether {name} and its xlbd run, and whether the cluster link does"
        )
        return
    if its in OUT_OF_SERVICE or its == "left":
        remedy = f"xlbctl cluster maintenance off on {name}" if its == "maintenance" else f"xlbctl cluster status on {name}"
        yield Finding("peer", Severity.WARN, f"{name} is in {its} and cannot take over", remedy)
    elif peer.get("can_serve") is False:
        yield Finding("peer", Severity.WARN, f"{name} cannot take over", f"xlbctl cluster status on {name}")
    yield from _paths(status, name)
    yield from _step(status, peer)
    yield from _versions(status, name)


def _silence(peer: Mapping[str, Any]) -> str:
    heard_ms = peer.get("last_heard_ms")
    since = "since xlbd started" if heard_ms is None else f"for {heard_ms / 1000:.1f} s"
    return f"{peer['name']} has not been heard {since}"


def _paths(status: Status, name: str) -> Iterator[Finding]:
    """The active node alone advertises on the data network, so it hears nothing there."""
    paths = status.get("paths") or {}
    if not paths.get("cluster", True):
        remedy = "look at the cluster link and its interface on both nodes"
        yield Finding("cluster link", Severity.WARN, f"brings no heartbeat of {name}", remedy)
    if status["role"] == "backup" and not paths.get("data", True):
        remedy = "let IP protocol 112 pass between the two data addresses: xlbctl cluster check"
        yield Finding("data network", Severity.WARN, f"brings no advertisement of {name}", remedy)


def _step(status: Status, peer: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the node that is not active has every connection."""
    in_step = peer.get("in_step") if status["role"] == "active" else (status.get("sync") or {}).get("in_step")
    if status["role"] in ("active", "backup") and in_step is False:
        backup = peer["name"] if status["role"] == "active" else status["node"]
        remedy = "it catches up by itself; if it does not, journalctl -u xlbd has the cause"
        yield Finding("flows", Severity.WARN, f"{backup} is not in step: a failover now would lose connections", remedy)


def _versions(status: Status, name: str) -> Iterator[Finding]:
    rows = {row["name"]: row for row in status.get("nodes", ())}
    own, its = rows.get(status["node"], {}), rows.get(name, {})
    if own.get("version") and its.get("version") and own["version"] != its["version"]:
        message = f"xlb {own['version']} on {status['node']}, {its['version']} on {name}"
        yield Finding("version", Severity.WARN, message, "install the same version of xlb on both")
    if own.get("generation") is not None and its.get("generation") is not None and own["generation"] != its["generation"]:
        message = f"configuration {own['generation']} on {status['node']}, {its['generation']} on {name}"
        yield Finding(
            "configuration", Severity.WARN, message, "it is copied by itself; if not, journalctl -u xlbd has the cause"
        )
