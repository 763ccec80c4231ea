"""What keepalived and ipvsadm have in common: schedulers, forwarding methods and persistence of IPVS in terms of farms.

Source: ipvsadm(8), and net/netfilter/ipvs of Linux.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ctl.importing.form import Notes, Place, Service

MODES: Mapping[str, str] = {
    "nat": "dnat",
    "masq": "dnat",
    "-m": "dnat",
    "--masquerading": "dnat",
    "dr": "dsr",
    "route": "dsr",
    "-g": "dsr",
    "--gatewaying": "dsr",
    "tun": "ipip",
    "tunnel": "ipip",
    "-i": "ipip",
    "--ipip": "ipip",
}
"""NAT of IPVS leaves the client's address: that is mode dnat."""
DEFAULT_SCHEDULER = "wlc"
DEFAULT_PERSISTENCE_S = 360  # keepalived.conf(5); ipvsadm(8) has 300
PLAIN: Mapping[str, str] = {"rr": "roundrobin", "wrr": "roundrobin", "lc": "leastconn", "wlc": "leastconn"}
SIMILAR: Mapping[str, tuple[str, str]] = {
    "sed": ("leastconn", "shortest expected delay"),
    "nq": ("leastconn", "never queue"),
    "twos": ("leastconn", "the better of two random servers"),
    "lblc": ("source", "locality by destination"),
    "lblcr": ("source", "locality by destination"),
    "dh": ("maglev", "a hash of the destination, which is the same for all clients of a VIP"),
    "ovf": ("leastconn", "overflow from one server to the next"),
}
UNWEIGHTED = ("rr", "lc")
MAX_TIER = 255
FULL_HASH = ("sh-port", "mh-port")
FLAGS_WITHOUT_MEANING = ("sh-fallback", "mh-fallback")
"""A hash of xlb never selects a server that is down or has weight 0."""


def set_scheduler(service: Service, name: str, flags: Collection[str], place: Place, statement: str, notes: Notes) -> None:
    """The scheduler of a service whose servers are known; flags: those of -b, such as "sh-port"."""
    algorithm = name.lower()
    if unknown := [each for each in flags if each not in (*FULL_HASH, *FLAGS_WITHOUT_MEANING)]:
        notes.lost(place, statement, f"no flag {unknown[0][:20]} is known", "compare the farm with ipvsadm -Ln")
    if algorithm in ("sh", "mh"):
        service.settings["scheduler"] = "maglev" if set(flags) & set(FULL_HASH) else "source"
    elif algorithm == "fo":
        _by_weight(service)
    elif algorithm in SIMILAR:
        scheduler, what = SIMILAR[algorithm]
        service.settings["scheduler"] = scheduler
        notes.changed(place, statement, f"xlb has no {algorithm} ({what})", f"check whether {scheduler} is right for this farm")
    elif algorithm in PLAIN:
        service.settings["scheduler"] = PLAIN[algorithm]
    else:
        notes.lost(place, statement, f'"{algorithm[:20]}" is no scheduler that is known', "choose one with farm.scheduler")
    weights = {server.weight for server in service.servers if server.weight}
    if algorithm in UNWEIGHTED and weights != {1}:
        for server in service.servers:
            server.weight = min(server.weight, 1)
        if len(weights) > 1:
            why = f"{algorithm} ignores weights, {PLAIN[algorithm]} of xlb does not: the farm has weight 1 for each backend"
            notes.changed(place, statement, why, "set the weights if they are meant")


def _by_weight(service: Service) -> None:
    """Weighted failover: all connections go to the available server with the greatest weight."""
    order = sorted({server.weight for server in service.servers if server.weight}, reverse=True)
    for server in service.servers:
        if server.weight:
            server.priority, server.weight = min(order.index(server.weight), MAX_TIER), 1
