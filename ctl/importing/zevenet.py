"""L4xNAT farms of Zevenet and SKUDONET: the files `NAME_l4xnat.cfg` in their directory of configurations.

From version 6 on a file has the JSON of nftlb; before, a line for the farm and one for each backend, in fields with ";".
Source: the programs of both (L4xNAT). Must not know how a farms file is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctl.errors import InvalidInput
from ctl.importing import nftlb
from ctl.importing.form import (
    MAX_SERVICES,
    Imported,
    Listener,
    Place,
    Server,
    Service,
    Source,
    brief,
    host_address,
    persistence,
    whole,
)

FIELDS = ("name", "protocol", "VIP", "port", "nat type", "algorithm", "persistence", "timeout", "status")
LIMITS: Mapping[int, str] = {
    9: "limit of RST per second",
    10: "burst of RST",
    11: "limit of new connections per second",
    12: "burst of new connections",
    13: "connections of a client",
    14: "check of bogus TCP flags",
    15: "queue of packets",
}
HELPERS = ("ftp", "tftp", "sip", "pptp", "irc", "h323", "sane", "snmp", "amanda", "netbios-ns")
UDP_HELPERS = ("tftp", "sip", "snmp", "amanda", "netbios-ns")
GUARDIAN = "checks of farmguardian are not in this file"
ALGORITHMS: Mapping[str, str] = {
    "weight": "roundrobin",
    "roundrobin": "roundrobin",
    "rr": "roundrobin",
    "prio": "roundrobin",
    "leastconn": "leastconn",
    "hash_srcip": "source",
    "hash_srcip_srcport": "maglev",
    "symhash": "maglev",
}


@dataclass(slots=True)
class _Reading:
    out: Imported
    service: Service | None = None
    twin: Service | None = None
    by_priority: bool = False
    began: bool = False


def read(source: Source) -> Imported:
    """Raises InvalidInput naming the line."""
    if source.text.lstrip()[:1] in ("{", "["):
        return nftlb.read(source)
    reading = _Reading(Imported())
    for place, line in source.lines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith(";"):
            _backend(place, text, reading)
        else:
            _finish(reading)
            _farm(place, text, reading)
    _finish(reading)
    return reading.out


def _finish(reading: _Reading) -> None:
    """Priorities mean something to the algorithm prio only."""
    for service in (reading.service, reading.twin):
        if service is None:
            continue
        used = sorted({server.priority for server in service.servers})
        for server in service.servers:
            server.priority = used.index(server.priority) if reading.by_priority else 0
        reading.out.services.append(service)
    reading.service = reading.twin = None


def _farm(place: Place, text: str, reading: _Reading) -> None:
    notes = reading.out.notes
    cells = [cell.strip() for cell in text.split(";")]
    if len(cells) < len(FIELDS):
        expected = ";".join(FIELDS)
        raise InvalidInput(
            f"expected a farm ({expected}), got {len(cells)} of {len(FIELDS)} fields: the line may be cut off", str(place)
        )
    if len(reading.out.services) >= MAX_SERVICES:
        raise InvalidInput(f"more than {MAX_SERVICES} farms", str(place))
    name, protocol, vip, port, nat, algorithm, stick, seconds_text, status = cells[: len(FIELDS)]
    statement, reading.began, reading.by_priority = brief(text), True, algorithm == "prio"
    address, ports = host_address(vip), nftlb.read_ports(port)
    if address is None or ports is None:
        notes.lost(
            place, statement, "expected an address and ports as its third and fourth field", "add the farm with xlbctl farm add"
        )
        return
    mode = {"nat": "snat", "snat": "snat", "dnat": "dnat", "stateless_dnat": "dnat", "dsr": "dsr"}.get(nat)
    if mode is None:
        notes.lost(place, statement, f'xlb has no NAT type "{nat[:20]}"', "choose farm.mode; snat is written")
        mode = "snat"
    service = Service(place, statement, name, "tcp", mode, [Listener(place, address, ports)], checks_known=False, one_port=True)
    _protocol(protocol, service, reading)
    scheduler = ALGORITHMS.get(algorithm)
    if scheduler is None:
        notes.lost(place, statement, f'xlb has no algorithm "{algorithm[:20]}"', "choose farm.scheduler; roundrobin is written")
    service.settings["scheduler"] = scheduler or "roundrobin"
    if stick not in ("", "none"):
        _persistence(stick, seconds_text, service, reading)
    if status == "down":
        service.settings["enabled"] = False
    elif status not in ("up", ""):
        notes.lost(place, statement, f'expected the status up or down, got "{status[:20]}"', "the farm is written as enabled")
    for number, cell in enumerate(cells[len(FIELDS) :], len(FIELDS)):
        if number == 11 and (rate := whole(cell, 1)):
            service.settings["max_rate"] = rate
        elif cell not in ("", "0", "false", "none", "off"):
            what = LIMITS.get(number, "nothing that is known")
            notes.lost(
                place,
                f"farm {name}: field {number + 1}, {cell}",
                f"{what}: xlb has nothing like it",
                "see max_rate and max_half_open",
            )
    reading.service = service if service.protocol != "none" else None
    if protocol == "all" and reading.service is not None:
        service.name = f"{name}-tcp"
        reading.twin = Service(
            place, statement, f"{name}-udp", "udp", mode, list(service.listeners), checks_known=False, one_port=True
        )
        reading.twin.settings = dict(service.settings)


def _protocol(protocol: str, service: Service, reading: _Reading) -> None:
    notes = reading.out.notes
    if protocol in HELPERS:
        service.protocol = "udp" if protocol in UDP_HELPERS else "tcp"
        why = f"xlb does not read {protocol.upper()}: connections that it announces are not translated"
        notes.lost(
            service.place, f"farm {service.name}: protocol {protocol}", why, "leave this farm on Zevenet if it needs that"
        )
    elif protocol == "all":
        why = "a farm of xlb has one protocol: one is written for TCP and one for UDP"
        notes.changed(service.place, f"farm {service.name}: protocol all", why, "remove the one that is not needed")
    elif protocol in ("tcp", "udp"):
        service.protocol = protocol
    else:
        notes.lost(
            service.place, service.statement, f"xlb balances TCP and UDP, not {protocol[:20]}", "leave this farm on Zevenet"
        )
        service.protocol = "none"


def _persistence(stick: str, seconds_text: str, service: Service, reading: _Reading) -> None:
    notes, statement = reading.out.notes, f"farm {service.name}: persistence {stick}"
    seconds = whole(seconds_text)
    if stick not in ("ip", "srcip", "srcip_srcport", "srcip_dstport", "srcmac"):
        why = "xlb keeps a client at a backend by its address only"
        notes.lost(service.place, statement, why, "use persistence_s if that is enough")
    elif seconds is None:
        notes.lost(service.place, statement, f'"{seconds_text[:20]}" is no number of seconds', "set farm.persistence_s")
    elif seconds:
        persistence(service, seconds, service.place, statement, notes)
        if stick not in ("ip", "srcip"):
            why = "xlb keeps a client at a backend by its address only"
            notes.changed(service.place, statement, why, "nothing to do, unless connections of one client must be separated")


def _backend(place: Place, text: str, reading: _Reading) -> None:
    notes, statement = reading.out.notes, brief(text)
    cells = [cell.strip() for cell in text.split(";")]
    if not reading.began:
        raise InvalidInput("a backend before the line of its farm; the beginning of the file is missing", str(place))
    if len(cells) < 8 or cells[1] != "server":
        raise InvalidInput("expected ;server;ADDRESS;PORT;MARK;WEIGHT;PRIORITY;STATUS; the line may be cut off", str(place))
    if reading.service is None:
        notes.lost(place, statement, "its farm is not carried over", "add it with that farm")
        return
    address = host_address(cells[2])
    if address is None:
        notes.lost(place, statement, f'"{cells[2][:60]}" is not an address', "add it with xlbctl backend add")
        return
    weight, priority, most = whole(cells[5], 1, 65535), whole(cells[6], 1, 255), whole(cells[8], 0) if len(cells) > 8 else 0
    for name, value, given in (("weight", weight, cells[5]), ("priority", priority, cells[6])):
        if value is None and given:
            notes.lost(
                place, statement, f'"{given[:20]}" is no {name}', f"set the {name} with xlbctl backend set; 1 is written"
            )
    if most is None and cells[8] not in ("", "none"):
        notes.lost(place, statement, f'"{cells[8][:20]}" is no number of connections', "set max_connections of the backend")
    port = None if cells[3] in ("", "0", "*") else whole(cells[3], 1, 65535)
    if port is None and cells[3] not in ("", "0", "*"):
        notes.lost(place, statement, f'"{cells[3][:20]}" is not a port', "set it with xlbctl backend add")
        return
    for service in (reading.service, reading.twin):
        if service is not None:
            server = Server(
                place, statement, address, port, weight=weight or 1, priority=priority or 1, max_connections=most or 0
            )
            server.draining = cells[7] not in ("up", "")
            service.servers.append(server)
    if cells[7] not in ("up", ""):
        why = f"its status is {cells[7][:20]}: it is drained"
        notes.changed(place, statement, why, "xlbctl backend set --no-drain when it works")
