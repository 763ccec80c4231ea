"""Whether the program is on a data interface, and how. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.diagnosis.finding import Finding, Severity, judged


@dataclass(frozen=True, slots=True)
class Seen:
    """An interface with the program. reason: why not in native mode; driver: empty if unknown.

    device: of a VLAN device the interface below it that has the program; empty: the interface itself.
    """

    mode: str
    driver: str
    reason: str
    carrier: bool
    device: str = ""


def examine(name: str, seen: Seen | None, generic: bool, why_not: str = "missing or without XDP") -> Finding:
    """seen: None when the interface or the program is missing; why_not says so. generic: the node file asks for that mode."""
    name = f"interface {name}"
    if seen is None:
        remedy = (
            "bring the interface back, remove the program of others (ip link set dev NAME xdp off): xlbd attaches by itself"
        )
        return Finding(name, Severity.FAIL, f"balances nothing: {why_not}", remedy.replace("NAME", name.split()[1]))
    if not seen.carrier:
        return Finding(name, Severity.FAIL, "has no carrier", f"check the cable and: ip link set {name.split()[1]} up")
    where = f" on {seen.device}" if seen.device else ""
    message = f"{seen.mode} XDP{where}, driver {seen.driver or 'unknown'}" + (f": {seen.reason}" if seen.reason else "")
    remedy = "generic mode is correct but slow: use a driver with native XDP, or more queues"
    return judged(name, seen.mode == "native" or generic, message, remedy)
