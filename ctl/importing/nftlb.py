"""The JSON configuration of nftlb, which L4xNAT farms of Zevenet and SKUDONET from version 6 on are stored in as well.

Source: nftlb's README and include/config.h; what the limits count: its src/nft.c. Must not know how a farms file is made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from ctl.errors import InvalidInput
from ctl.importing.form import (
    MAX_SERVICES,
    Address,
    Imported,
    Listener,
    Notes,
    Place,
    Server,
    Service,
    Source,
    as_name,
    host_address,
    persistence,
    whole,
)
from ctl.importing.json_lines import Node, parse

ALL_PORTS = ((1, 65535),)
MODES: Mapping[str, str] = {"snat": "snat", "dnat": "dnat", "stlsdnat": "dnat", "dsr": "dsr"}
DEFAULT_PERSISTENCE_S = 60
MAX_PREFIX_WORK = 2_000_000
"""Pairs of prefixes that are compared to take a whitelist from a blacklist."""
PERIODS_S: Mapping[str, int] = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
SAME = ("", "none", "0", "off", "0/second", "-1")
"""Values that switch something off."""
FARM_IGNORED = (
    *("family", "oface", "ether-addr", "iether-addr", "oether-addr", "mark", "priority", "counter-packets"),
    *("counter-bytes", "action", "used", "log-prefix", "new-rtlimit-log-prefix", "rst-rtlimit-log-prefix", "responsettl"),
    *("est-connlimit-log-prefix", "tcp-strict-log-prefix", "log-rtlimit", "flow-offload", "intra-connect", "newname"),
)
"""Marks and interfaces that nftlb sets by itself, logs, and settings of limits that are read with them."""
OF_LIMITS = ("new-rtlimit-burst", "rst-rtlimit-burst", "limits-ttl")
"""Settings of limits, which mean nothing without one."""
FARM_READ = (
    *("name", "virtual-addr", "virtual-ports", "iface", "source-addr", "mode", "protocol", "scheduler", "sched-param"),
    *(
        "persistence",
        "persist-ttl",
        "state",
        "backends",
        "addresses",
        "policies",
        "new-rtlimit",
        "sessions",
        "tcp-strict",
        *OF_LIMITS,
    ),
)
FARM_LOST: Mapping[str, tuple[str, str]] = {
    "helper": (
        "xlb does not read FTP, SIP or the like: connections that they announce are not translated",
        "leave this farm on nftlb",
    ),
    "est-connlimit": (
        "nftlb limits the open connections of one client; max_connections of a farm is for all clients",
        "set farm.max_rate or max_half_open, which are per client",
    ),
    "rst-rtlimit": ("xlb does not limit resets", "set farm.max_rate"),
    "queue": ("xlb gives no packets to programs", "nothing to do"),
    "log": ("xlb does not log connections", "see xlbctl conn list"),
    "verdict": ("clients of a deny list are dropped and counted", "see xlbctl stats"),
}
BACKEND_IGNORED = (
    "mark",
    "ether-addr",
    "oface",
    "iface",
    "est-connlimit-log-prefix",
    "counter-packets",
    "counter-bytes",
    "action",
    "name",
    "newname",
)
ADDRESS_KEYS = ("name", "family", "ip-addr", "ports", "protocol", "verdict", "log-prefix", "log-rtlimit", "used")
STATES = ("up", "down", "off", "available", "config_error")
BACKEND_READ = ("ip-addr", "port", "weight", "priority", "state", "est-connlimit")


@dataclass(slots=True)
class _Policy:
    place: Place
    deny: bool
    prefixes: list[str] = field(default_factory=list)
    used: bool = False


@dataclass(slots=True)
class _Reading:
    out: Imported
    addresses: dict[str, Node] = field(default_factory=dict)
    used_addresses: set[str] = field(default_factory=set)
    policies: dict[str, _Policy] = field(default_factory=dict)

    @property
    def notes(self) -> Notes:
        return self.out.notes


def read(source: Source) -> Imported:
    """Raises InvalidInput naming the line."""
    top = parse(source)
    if not top.is_object:
        raise InvalidInput('expected an object with "farms"', str(top.place))
    reading = _Reading(Imported())
    for name, node in top.members():
        if name == "policies":
            for each in node.items():
                _policy(each, reading)
        elif name == "addresses":
            for each in node.items():
                _address(each, reading)
        elif name != "farms":
            reading.notes.lost(
                node.place, f'"{name}"', "nftlb has no such section, or xlb has nothing like it", "nothing to do"
            )
    farms = top.get("farms")
    for each in farms.items() if farms is not None else []:
        _farm(each, reading)
    for name, address in reading.addresses.items():
        if name not in reading.used_addresses:
            reading.notes.lost(address.place, f"address {name}", "no farm that is carried over uses it", "nothing to do")
    for name, policy in reading.policies.items():
        if not policy.used:
            reading.notes.lost(policy.place, f"policy {name}", "no farm that is carried over uses it", "nothing to do")
    return reading.out


def _address(node: Node, reading: _Reading) -> None:
    name = _member(node, "name")
    reading.addresses[name] = node
    for key, found in node.members():
        if key not in ADDRESS_KEYS:
            _lost(
                reading.notes,
                found,
                key,
                f"address {name}",
                "xlb has nothing like it, or the word is misspelled",
                "nothing to do",
            )


def _member(node: Node, name: str, default: str = "") -> str:
    found = node.get(name)
    return default if found is None else found.text


def _lost(notes: Notes, found: Node, name: str, of: str, why: str, remedy: str) -> None:
    notes.lost(found.place, f'{of}: "{name}": "{found.text}"', why, remedy)


def _farm(node: Node, reading: _Reading) -> None:
    notes = reading.notes
    name = _member(node, "name")
    of = f"farm {name}" if name else "a farm without a name"
    if not node.is_object:
        notes.lost(node.place, "an element of farms", "expected an object", "nothing to do")
        return
    if len(reading.out.services) >= MAX_SERVICES:
        raise InvalidInput(f"more than {MAX_SERVICES} farms", str(node.place))
    mode = _member(node, "mode", "snat")
    if mode not in MODES:
        why = "its service runs on the balancer itself" if mode == "local" else f'xlb has no mode "{mode[:20]}"'
        named = node.get("mode")
        place = named.place if named is not None else node.place
        notes.lost(place, f'{of}: "mode": "{mode}"', why, "run it on servers, and add the farm with xlbctl farm add")
        return
    protocols = _protocols(node, of, notes)
    listeners = _listeners(node, of, reading)
    for protocol in protocols:
        both = f"{name}-{protocol}" if len(protocols) > 1 else name
        service = Service(node.place, of, both, protocol, MODES[mode], checks_known=False, one_port=True)
        service.listeners = [each for each, wanted in listeners if wanted in (protocol, "")]
        if not service.listeners:
            why = "it has no address that can be carried over"
            notes.lost(node.place, of, why, "add the farm with xlbctl farm add")
            continue
        _settings(node, service, of, reading)
        backends = node.get("backends")
        for each in backends.items() if backends is not None else []:
            _backend(each, service, of, notes)
        _priorities(service)
        reading.out.services.append(service)


def _protocols(node: Node, of: str, notes: Notes) -> tuple[str, ...]:
    found = node.get("protocol")
    value = found.text if found is not None else "tcp"
    if value in ("tcp", "udp"):
        return (value,)
    place = found.place if found is not None else node.place
    if value == "all":
        why = "a farm of xlb has one protocol: one is written for TCP and one for UDP"
        notes.changed(
            place, f'{of}: "protocol": "all"', why, "remove the one that is not needed; other protocols are not balanced"
        )
        return ("tcp", "udp")
    notes.lost(place, f'{of}: "protocol": "{value}"', f"xlb balances TCP and UDP, not {value[:20]}", "leave this farm on nftlb")
    return ()


def _listeners(node: Node, of: str, reading: _Reading) -> list[tuple[Listener, str]]:
    """Each with its protocol, "" where it is that of the farm."""
    notes, found = reading.notes, []
    if (address := node.get("virtual-addr")) is not None and address.text:
        ports = node.get("virtual-ports")
        if listener := _listener(address, ports, of, notes):
            found.append((listener, ""))
            if device := _member(node, "iface"):
                reading.out.addresses.append(Address(address.place, listener.address, None, device))
    own = node.get("addresses")
    for each in own.items() if own is not None else []:
        full = each if each.get("ip-addr") is not None else reading.addresses.get(_member(each, "name"))
        reading.used_addresses.add(_member(each, "name"))
        where = full.get("ip-addr") if full is not None else None
        if full is None or where is None:
            notes.lost(
                each.place, f"{of}: address {_member(each, 'name')}", "there is no such address", "add it with xlbctl vip add"
            )
            continue
        protocol = _member(full, "protocol")
        if protocol not in ("", "tcp", "udp", "all"):
            notes.lost(full.place, f"{of}: address {where.text}", f"xlb does not balance {protocol[:20]}", "nothing to do")
        elif listener := _listener(where, full.get("ports"), of, notes):
            found.append((listener, "" if protocol == "all" else protocol))
    return found


def _listener(address: Node, ports: Node | None, of: str, notes: Notes) -> Listener | None:
    canonical = host_address(address.text)
    ranges = read_ports(ports.text if ports is not None else "")
    if canonical is None:
        _lost(notes, address, "virtual-addr", of, "expected an address", "add it with xlbctl vip add")
        return None
    if ranges is None:
        assert ports is not None
        _lost(notes, ports, "virtual-ports", of, "expected ports such as 80,8000-8010", "set them with xlbctl farm set --port")
        return None
    return Listener(address.place, canonical, ranges)


def read_ports(text: str) -> tuple[tuple[int, int], ...] | None:
    """80,443,8000-8010 (or with colons) as ascending ranges without overlaps; "" and 0 are all ports. None: neither."""
    if text.strip() in ("", "0", "*"):
        return ALL_PORTS
    ranges = []
    for part in text.split(","):
        first, _, last = part.strip().replace(":", "-").partition("-")
        low, high = whole(first, 0, 65535), whole(last or first, 0, 65535)
        if low is None or high is None or high < max(low, 1):
            return None
        ranges.append((max(1, low), high))
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


# --- settings ---------------------------------------------------------------------------------------------------------------


def _settings(node: Node, service: Service, of: str, reading: _Reading) -> None:
    notes = reading.notes
    _scheduler(node, service, of, notes)
    _persistence(node, service, of, notes)
    if (state := node.get("state")) is not None:
        if state.text in ("down", "off"):
            service.settings["enabled"] = False
        elif state.text not in ("up", "config_error"):
            _lost(notes, state, "state", of, "expected up, down or off", "the farm is written as enabled")
    if (seen := node.get("source-addr")) is not None and seen.text:
        _source_address(seen, service, of, reading)
    if (rate := node.get("new-rtlimit")) is not None and rate.text not in SAME:
        _rate(node, rate, service, of, notes)
    if (sessions := node.get("sessions")) is not None and sessions.items():
        notes.lost(
            sessions.place,
            f"{of}: sessions",
            "xlb has no fixed client of a backend",
            "nothing to do, unless a client needs its server",
        )
    _policies(node, service, of, reading)
    for name, found in node.members():
        if name in FARM_LOST and found.text not in SAME and not (name == "verdict" and "drop" in found.text):
            _lost(notes, found, name, of, *FARM_LOST[name])
        elif name not in (*FARM_LOST, *FARM_IGNORED, *FARM_READ):
            _lost(
                notes,
                found,
                name,
                of,
                "xlb has nothing like it, or the word is misspelled",
                "nothing to do, if nftlb ignores it too",
            )


def _scheduler(node: Node, service: Service, of: str, notes: Notes) -> None:
    found = node.get("scheduler")
    value = found.text if found is not None else "rr"
    parameter = _member(node, "sched-param", "none").split()
    if value in ("rr", "weight"):
        service.settings["scheduler"] = "roundrobin"
    elif value == "symhash":
        service.settings["scheduler"] = "maglev"
    elif value == "hash" and set(parameter) <= {"none", "srcip"}:
        service.settings["scheduler"] = "source"
    elif value == "hash" and set(parameter) <= {"srcip", "srcport", "dstip", "dstport"} and "srcport" in parameter:
        service.settings["scheduler"] = "maglev"
    else:
        assert found is not None
        service.settings["scheduler"] = "source" if value == "hash" else "roundrobin"
        why = f"xlb hashes the client's address, or the connection, not {' '.join(parameter)[:40]}"
        if value != "hash":
            why = f'xlb has no scheduler "{value[:20]}"'
        notes.changed(
            found.place,
            f'{of}: "scheduler": "{value}"',
            why,
            f"{service.settings['scheduler']} is written; choose with farm.scheduler",
        )


def _persistence(node: Node, service: Service, of: str, notes: Notes) -> None:
    found = node.get("persistence")
    if found is None or found.text in SAME:
        return
    parts = set(found.text.split())
    statement = f'{of}: "persistence": "{found.text}"'
    if not parts & {"srcip", "srcmac"}:
        notes.lost(
            found.place, statement, "xlb keeps a client at a backend by its address only", "use persistence_s if that is enough"
        )
        return
    if parts != {"srcip"}:
        why = "xlb keeps a client at a backend by its address only"
        notes.changed(found.place, statement, why, "nothing to do, unless connections of one client must be separated")
    time = node.get("persist-ttl")
    seconds = whole(time.text, 0) if time is not None else DEFAULT_PERSISTENCE_S
    if seconds:
        persistence(service, seconds, time.place if time is not None else found.place, statement, notes)
    elif time is not None:
        _lost(notes, time, "persist-ttl", of, "expected a number of seconds", "set farm.persistence_s")


def _source_address(seen: Node, service: Service, of: str, reading: _Reading) -> None:
    address = host_address(seen.text)
    if service.mode != "snat":
        _lost(reading.notes, seen, "source-addr", of, f"mode {service.mode} keeps the client's address", "nothing to do")
    elif address is None:
        _lost(reading.notes, seen, "source-addr", of, "expected an address", "set farm.snat_address")
    else:
        service.settings["snat_address"] = address
        reading.out.addresses.append(Address(seen.place, address))
        why = f"{address} becomes a VIP, which moves to the peer with the others"
        reading.notes.changed(
            seen.place, f'{of}: "source-addr": "{seen.text}"', why, "choose a free address if it is a node's own"
        )


def _rate(node: Node, rate: Node, service: Service, of: str, notes: Notes) -> None:
    for name in ("new-rtlimit-burst", "limits-ttl"):
        found = node.get(name)
        if found is not None and found.text not in SAME:
            why = "a client of xlb gets max_rate connections per second, without a burst or a time in which it is banned"
            _lost(notes, found, name, of, why, "raise farm.max_rate if clients need more at once")
    number_text, _, period = rate.text.partition("/")
    number, seconds = whole(number_text.strip(), 1), PERIODS_S.get(period.strip() or "second")
    if number is None or seconds is None:
        _lost(notes, rate, "new-rtlimit", of, "expected a number of connections per second", "set farm.max_rate")
        return
    service.settings["max_rate"] = max(1, ceil(number / seconds))
    if number % seconds:
        why = f"max_rate is per second: {service.settings['max_rate']}"
        notes.changed(rate.place, f'{of}: "new-rtlimit": "{rate.text}"', why, "check what clients need at once")


def _backend(node: Node, service: Service, of: str, notes: Notes) -> None:
    name = _member(node, "name") or _member(node, "ip-addr")
    statement = f"{of}: backend {name}"
    where = node.get("ip-addr")
    address = host_address(where.text) if where is not None else None
    if address is None:
        place = where.place if where is not None else node.place
        notes.lost(place, statement, "it has no address", "add it with xlbctl backend add")
        return
    server = Server(node.place, statement, address)
    for key, found in node.members():
        if key == "port" and found.text not in ("", "0"):
            server.port = whole(found.text, 1, 65535)
            if server.port is None:
                _lost(notes, found, key, statement, "expected a port from 1 to 65535", "set it with xlbctl backend add")
        elif key == "weight":
            server.weight = _number(found, key, statement, 0, 65535, notes)
        elif key == "priority":
            server.priority = _number(found, key, statement, 1, 256, notes)
        elif key == "est-connlimit" and found.text not in SAME:
            server.max_connections = _number(found, key, statement, 0, 2**31 - 1, notes)
        elif key == "state":
            if found.text not in STATES:
                _lost(notes, found, key, statement, f"expected one of {', '.join(STATES)}", "the backend is written as up")
            server.draining = found.text in ("off", "down")
            if found.text == "down":
                why = "it is down by a check or by hand: it is drained, so that a check does not bring it back"
                notes.changed(found.place, f'{statement}: "state": "down"', why, "xlbctl backend set --no-drain when it works")
        elif key == "source-addr" and found.text:
            _lost(notes, found, key, statement, "all backends of a farm see the same addresses", "set farm.snat_address")
        elif key not in (*BACKEND_READ, *BACKEND_IGNORED, "source-addr"):
            _lost(
                notes,
                found,
                key,
                statement,
                "xlb has nothing like it, or the word is misspelled",
                "nothing to do, if nftlb ignores it too",
            )
    service.servers.append(server)


def _number(found: Node, key: str, statement: str, low: int, high: int, notes: Notes) -> int:
    value = whole(found.text, low, high)
    if value is None:
        _lost(
            notes,
            found,
            key,
            statement,
            f"expected a number from {low} to {high}",
            f"{low} is written; set it with xlbctl backend set",
        )
    return low if value is None else value


def _priorities(service: Service) -> None:
    """nftlb counts from 1. A backend that is down lets in those of the next number: that is tier_minimum."""
    used = sorted({server.priority or 1 for server in service.servers})
    for server in service.servers:
        server.priority = used.index(server.priority or 1)
    first = sum(server.priority == 0 for server in service.servers)
    if len(used) > 1 and first > 1:
        service.settings["tier_minimum"] = min(1000, first)


# --- policies ---------------------------------------------------------------------------------------------------------------


def _policy(node: Node, reading: _Reading) -> None:
    name, kind = _member(node, "name"), _member(node, "type", "blacklist")
    policy = _Policy(node.place, kind in ("blacklist", "denylist"))
    if kind not in ("blacklist", "denylist", "whitelist", "allowlist"):
        why = "expected the type blacklist or whitelist; it is read as a whitelist"
        reading.notes.changed(node.place, f'policy {name}: "type": "{kind}"', why, "correct it and import again")
    elements = node.get("elements")
    for each in elements.items() if elements is not None else []:
        data = each.get("data")
        text = data.text if data is not None else ""
        prefixes = prefixes_of(text)
        if not prefixes:
            why = "expected an address, a network or a range of addresses"
            reading.notes.lost(each.place, f'policy {name}: "{text}"', why, "add it with xlbctl prefixes set")
        policy.prefixes += prefixes
    for key, found in node.members():
        if key not in (
            "name",
            "type",
            "family",
            "elements",
            "log-prefix",
            "counter-packets",
            "counter-bytes",
            "used",
            "timeout",
        ):
            _lost(reading.notes, found, key, f"policy {name}", "a prefix list has no such setting", "nothing to do")
        elif key == "timeout" and found.text not in SAME:
            _lost(
                reading.notes,
                found,
                key,
                f"policy {name}",
                "prefixes of a list do not expire",
                "replace the list with xlbctl prefixes set",
            )
    reading.policies[name] = policy


def prefixes_of(text: str) -> list[str]:
    """An address, a network or a range of addresses as prefixes; nothing if it is none of these."""
    first, dash, last = text.partition("-")
    try:
        if not dash:
            return [str(ipaddress.ip_network(text.strip(), strict=False))]
        low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
        return [str(each) for each in ipaddress.summarize_address_range(low, high)]
    except (ValueError, TypeError):
        return []


def _policies(node: Node, service: Service, of: str, reading: _Reading) -> None:
    notes = reading.notes
    named = node.get("policies")
    deny: list[str] = []
    names: list[str] = []
    accepted: list[str] = []
    exempt: list[tuple[Place, str]] = []
    for each in named.items() if named is not None else []:
        name = _member(each, "name") or each.text
        policy = reading.policies.get(name)
        if policy is None:
            notes.lost(
                each.place,
                f"{of}: policy {name}",
                "the file does not have this policy",
                "import it with the policy, or xlbctl prefixes set",
            )
            continue
        policy.used = True
        if policy.deny:
            deny += policy.prefixes
            names.append(name)
        else:
            accepted += policy.prefixes
            exempt.append((each.place, name))
    for place, name in exempt:
        why = (
            "its clients are accepted before blacklists and limits: xlb takes them from the deny list, but limits apply to them"
        )
        notes.changed(place, f"{of}: policy {name}", why, "nothing to do, unless they need more than the limits")
    if not deny:
        return
    key = as_name("-".join(names)) or "blacklist"
    prefixes = _without(deny, accepted) if accepted else deny
    if prefixes is None:
        notes.lost(
            exempt[0][0],
            f"{of}: policy {exempt[0][1]}",
            "the lists are too long to be compared",
            "take its clients from the deny list",
        )
        prefixes = deny
    elif accepted:
        key = as_name(f"{service.name}-{key}") or key
    reading.out.prefixes[key] = prefixes
    service.settings["deny"] = key


def _without(deny: list[str], accepted: list[str]) -> list[str] | None:
    """The addresses of one list that the other does not have; None: too much work."""
    if len(deny) * len(accepted) > MAX_PREFIX_WORK:
        return None
    left = [ipaddress.ip_network(each) for each in deny]
    for text in accepted:
        taken = ipaddress.ip_network(text)
        kept = []
        for each in left:
            if each.version != taken.version or not each.overlaps(taken):
                kept.append(each)
            elif taken.prefixlen > each.prefixlen:
                kept += list(each.address_exclude(taken))  # type: ignore[arg-type]
        left = kept
        if len(left) * len(accepted) > MAX_PREFIX_WORK:
            return None
    return [str(each) for each in left]
