"""Makes a farms file and the rest of the findings from what was read.

Decides how services become farms: names, listeners with different ports, families, checks. What the validation of
`xlbctl apply` refuses is left out, with a finding. Must not know any kind of input.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ctl.config import farms_file
from ctl.config.address_rules import problems
from ctl.config.changes import replace_all
from ctl.config.fields import BACKEND_FIELDS, vip_fields
from ctl.config.model import MAX_PORT, Config, Farm, format_ports
from ctl.config.validation import MAX_PORTS_PER_FARM, MAX_VIPS_PER_FARM, find_overlap
from ctl.errors import Code, InvalidInput
from ctl.importing.addresses import DEFAULT_DEVICE, Addresses, Choices
from ctl.importing.form import (
    Finding,
    Imported,
    Kind,
    Listener,
    Place,
    Server,
    Service,
    as_name,
    brief,
    cut_ports,
    with_port,
)

MAX_REPAIRS = 24
"""Settings and backends that the validation may refuse before the farm is left out."""
MAX_NAMED = 4
_BACKEND = re.compile(r"\.backend\[(\d+)\]")
_SETTING = re.compile(r"\.(health\.)?(\w+)$")
ALL_PORTS = ((1, MAX_PORT),)
TIMING = ("interval_ms", "timeout_ms", "rise", "fall", "interval_down_ms")
_ESSENTIAL = ("name", "vip", "port", "proto", "mode", "backend")


@dataclass(frozen=True, slots=True)
class Origin:
    """A farm or VIP of the result, and the statement it was made of."""

    what: str
    name: str
    place: Place
    statement: str


@dataclass(frozen=True, slots=True)
class Result:
    """A farms file (TOML), the same as a document, and the findings in the order of the input."""

    text: str
    document: Mapping[str, object]
    origins: tuple[Origin, ...]
    findings: tuple[Finding, ...]

    def as_document(self) -> dict[str, object]:
        """For programs: the farms file as text and as a document, where its parts come from, and the findings."""
        return {
            "farms_file": self.text,
            "document": self.document,
            "origins": [_flat(each) for each in self.origins],
            "findings": [_flat(each) for each in self.findings],
        }


def _flat(each: Origin | Finding) -> dict[str, object]:
    """With the fields of its place as its own."""
    values = asdict(each)
    place: dict[str, object] = values.pop("place")
    return place | values


@dataclass(slots=True)
class _Farm:
    """A farm that is being made: its table, and the server of each backend."""

    service: Service
    table: dict[str, Any]
    servers: list[Server]
    listeners: list[Listener]
    checked: Farm | None = None
    """The farm as the validation has read it."""

    @property
    def name(self) -> str:
        return str(self.table["name"])


@dataclass(slots=True)
class _Making:
    imported: Imported
    addresses: Addresses
    farms: list[_Farm] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def make(kind: str, sources: Sequence[str], imported: Imported, choices: Choices) -> Result:
    """The farms file of what was read from files of these names. Raises InvalidInput where the whole exceeds a limit of xlb."""
    making = _Making(imported, Addresses(imported, choices))
    making.addresses.resolve()
    for service in imported.services:
        making.farms += _farms_of(service, making)
    making.farms = [farm for farm in making.farms if _is_valid(farm, making)]
    _take_from_all(making)
    _leave_out_overlaps(making)
    config = _config(making)
    _general_findings(making)
    origins = tuple(_origins(making))
    order = {name: number for number, name in enumerate(sources)}
    findings = tuple(sorted(imported.notes.findings, key=lambda each: (order.get(each.place.file, len(order)), each.place)))
    body = farms_file.to_text(farms_file.to_document(config))
    text = _header(kind, sources, config, origins, findings) + body
    _verify(text, config, sources[0])
    return Result(text, farms_file.readable(farms_file.to_document(config)), origins, findings)


# --- services ---------------------------------------------------------------------------------------------------------------


def _farms_of(service: Service, making: _Making) -> Iterator[_Farm]:
    """A farm for the listeners that have the same ports, at most MAX_VIPS_PER_FARM at a time."""
    notes = making.imported.notes
    service.listeners = _distinct(service, making)
    of_ports: dict[tuple[tuple[int, int], ...], list[Listener]] = {}
    for each in service.listeners:
        of_ports.setdefault(each.ports, []).append(each)
    for ports, listeners in list(of_ports.items()):
        if not service.one_port or all(server.port is None for server in service.servers):
            continue
        single = [port for first, last in ports for port in range(first, min(last, first + MAX_PORTS_PER_FARM) + 1)]
        if len(single) == 1 or service.mode in ("dsr", "ipip"):
            continue
        del of_ports[ports]
        if len(single) > MAX_PORTS_PER_FARM:
            of_ports[ports] = listeners
            why = "the servers' port is for all ports; a backend of xlb keeps the distance from the first"
            notes.changed(service.place, service.statement, why, "check the ports of the backends")
        else:
            for port in single:
                own = ((port, port),)
                of_ports.setdefault(own, []).extend(with_port(each, own) for each in listeners)
    for ports, listeners in of_ports.items():
        for number in range(0, len(listeners), MAX_VIPS_PER_FARM):
            yield from _farm(service, ports, listeners[number : number + MAX_VIPS_PER_FARM], making)


def _distinct(service: Service, making: _Making) -> list[Listener]:
    seen: set[tuple[str, tuple[tuple[int, int], ...]]] = set()
    kept = []
    for each in service.listeners:
        if (each.address, each.ports) in seen:
            statement = f"{each.address} of {service.statement}"
            making.imported.notes.lost(each.place, statement, "the service listens there already", "nothing to do")
        else:
            seen.add((each.address, each.ports))
            kept.append(each)
    return kept


def _farm(service: Service, ports: tuple[tuple[int, int], ...], listeners: list[Listener], making: _Making) -> Iterator[_Farm]:
    notes = making.imported.notes
    servers = list(service.servers)
    if service.mode != "ipip" and servers:
        families = {":" in server.address for server in servers}
        for each in listeners:
            if (":" in each.address) not in families:
                family = "IPv6" if ":" in each.address else "IPv4"
                statement = f"{each.address} of {service.statement}"
                why = f"no server has an {family} address, and xlb does not translate between the families"
                notes.lost(each.place, statement, why, f"add {family} backends and the VIP")
        listeners = [each for each in listeners if (":" in each.address) in families]
        of_vips = {":" in each.address for each in listeners}
        for server in servers:
            if listeners and (":" in server.address) not in of_vips:
                family = "IPv6" if ":" in server.address else "IPv4"
                notes.lost(server.place, server.statement, f"the service has no {family} address", f"add an {family} VIP")
        servers = [server for server in servers if (":" in server.address) in of_vips]
    if not listeners:
        return
    table: dict[str, Any] = {
        "name": _name(service, ports, making),
        "vip": [each.address for each in listeners],
        "port": ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ports),
        "proto": service.protocol,
        "mode": service.mode,
        **service.settings,
    }
    if ports == ALL_PORTS:
        table["port"] = "all"
    health = _health(service, servers, making)
    if ports == ALL_PORTS:
        health = _without_port(health, service, making)
    if health is not None:
        table["health"] = health
    kept = _backends(service, servers, ports, making)
    table["backend"] = [backend for backend, _ in kept]
    yield _Farm(service, table, [server for _, server in kept], listeners)


def _name(service: Service, ports: tuple[tuple[int, int], ...], making: _Making) -> str:
    """The service's name; a second farm has its port or a number as well."""
    base = as_name(service.name) or "service"
    if not base[0].isalnum():
        base = f"farm-{base}"
    port = f"{base}-{ports[0][0]}"
    name = next(
        each
        for each in itertools.chain((base, port), (f"{base}-{number}" for number in itertools.count(2)))
        if each not in making.names
    )
    making.names.add(name)
    return name


def _backends(
    service: Service, servers: list[Server], ports: tuple[tuple[int, int], ...], making: _Making
) -> list[tuple[dict[str, Any], Server]]:
    notes = making.imported.notes
    made: dict[tuple[str, int | None], tuple[dict[str, Any], Server]] = {}
    first = ports[0][0]
    for server in servers:
        number = first + server.offset if server.port is None else server.port
        port = None if number == first else number
        if service.mode in ("dsr", "ipip") and port is not None:
            why = f"mode {service.mode} does not change the port: the server gets packets for {first}"
            notes.changed(server.place, server.statement, why, f"let it listen on port {first}")
            port = None
        if ports == ALL_PORTS and port is not None:
            why = "the farm has all ports, and its backends the same"
            notes.changed(server.place, server.statement, why, "name the ports of the farm if it is one")
            port = None
        if (server.address, port) in made:
            notes.lost(
                server.place, server.statement, "the farm has this backend already", "raise the weight of the first instead"
            )
            continue
        backend: dict[str, Any] = {"address": server.address}
        backend |= {"port": port} if port is not None else {}
        for key, value, default in (
            ("weight", server.weight, 1),
            ("priority", server.priority, 0),
            ("max_connections", server.max_connections, 0),
            ("draining", server.draining, False),
        ):
            if value != default:
                backend[key] = value
        made[server.address, port] = (backend, server)
    return list(made.values())


def _health(service: Service, servers: list[Server], making: _Making) -> dict[str, object] | None:
    """The check that most servers have; None: the default of the protocol."""
    if not service.checks_known:
        return None
    _drop_own_addresses(servers, making)
    checks = [_key(server.check) for server in servers if server.check is not None]
    if not checks:
        return {"kind": "none"}
    most, _ = Counter(checks).most_common(1)[0]
    chosen = next(server for server in servers if server.check is not None and _key(server.check) == most)
    assert chosen.check is not None
    notes = making.imported.notes
    others = [server for server in servers if server.check is None or _key(server.check) != most]
    if others and chosen.check.get("kind") == "command":
        # A command usually has the address of its server as an argument: that of one server does not check another.
        why = "a farm has one command for all backends, which gets XLB_ADDRESS and XLB_PORT: a TCP check is written"
        for server in servers:
            notes.lost(server.place, f"check of {server.statement}", why, "use a program that reads them: farm.health.command")
        timing = {name: value for name, value in chosen.check.items() if name in TIMING}
        return {"kind": "tcp"} | timing if service.protocol == "tcp" else {"kind": "none"}
    for server in others:
        if server.check is None:
            why = f"it has no check; a farm checks all its backends, as {chosen.address}"
            notes.changed(server.place, server.statement, why, "let it answer the check, or give it a farm of its own")
        else:
            differs = ", ".join(
                sorted(k for k in server.check.keys() | chosen.check.keys() if server.check.get(k) != chosen.check.get(k))
            )
            why = f"a farm has one check: that of {chosen.address} is used, with another {differs}"
            notes.lost(server.place, f"check of {server.statement}", why, "choose one check, or make two farms")
    return dict(chosen.check)


def _without_port(health: dict[str, object] | None, service: Service, making: _Making) -> dict[str, object] | None:
    """The check of a farm on all ports: without a port of its own it can only be a ping."""
    kind = (health or {}).get("kind", "tcp" if service.protocol == "tcp" else "none")
    if kind in ("none", "icmp", "command") or (health or {}).get("port"):
        return health
    why = f"a farm on all ports has no port for a check of kind {kind}: the servers are asked by ping (icmp)"
    making.imported.notes.changed(service.place, service.statement, why, "choose a port with farm.health.port and its kind")
    return {"kind": "icmp"} | {name: value for name, value in (health or {}).items() if name in TIMING}


def _drop_own_addresses(servers: list[Server], making: _Making) -> None:
    """Addresses of checks that are different for each server: one of them does not check another server."""
    if len({server.check.get("address") for server in servers if server.check is not None}) < 2:
        return
    for server in servers:
        if server.check is not None and (address := server.check.get("address")):
            why = f"a farm has one address for all its checks, or that of each backend; that of {server.address} is {address}"
            remedy = f"let the server answer the check at {server.address}"
            making.imported.notes.lost(server.place, f"address of the check of {server.statement}", why, remedy)
            server.check = {name: value for name, value in server.check.items() if name != "address"}


def _key(check: Mapping[str, object]) -> str:
    return json.dumps(check, sort_keys=True)


# --- what the validation refuses --------------------------------------------------------------------------------------------


def _is_valid(farm: _Farm, making: _Making) -> bool:
    """Leave out what the validation of the farms file refuses; False: the whole farm."""
    notes, place, statement = making.imported.notes, farm.service.place, farm.service.statement
    error: InvalidInput | None = None
    for _ in range(MAX_REPAIRS):
        try:
            farm.checked = _parsed(farm)
            return True
        except InvalidInput as caught:
            error = caught
        if not _repair(farm, error, making):
            break
    assert error is not None
    notes.lost(place, statement, error.detail, "add it with xlbctl farm add once that is solved")
    return False


def _parsed(farm: _Farm) -> Farm:
    vips = [{"address": f"{each}/{128 if ':' in each else 32}", "device": DEFAULT_DEVICE} for each in _vips_of(farm)]
    return farms_file.parse({"vip": vips, "farm": [farm.table]}).farms[0]


def _vips_of(farm: _Farm) -> list[str]:
    """The addresses that must be VIPs."""
    seen = str(farm.table.get("snat_address") or "").split(",")
    return list(dict.fromkeys([*farm.table["vip"], *(each for each in seen if each)]))


def _repair(farm: _Farm, error: InvalidInput, making: _Making) -> bool:
    """Remove the backend or setting that the error names, with a finding."""
    notes = making.imported.notes
    backend, setting = _BACKEND.search(error.key), _SETTING.search(error.key)
    if backend is not None and int(backend[1]) < len(farm.servers):
        number = int(backend[1])
        name = setting[2] if setting else ""
        server = farm.servers[number]
        if name in BACKEND_FIELDS and name in farm.table["backend"][number] and name not in ("address", "port"):
            del farm.table["backend"][number][name]
            notes.lost(server.place, f"{name} of {server.statement}", error.detail, "set it with xlbctl backend set")
        else:
            del farm.table["backend"][number], farm.servers[number]
            notes.lost(server.place, server.statement, error.detail, "add it with xlbctl backend add")
        return True
    if setting is None:
        return False
    place, name = farm.service.place, setting[2]
    if setting[1]:
        health = farm.table.get("health", {})
        given = name in health and name != "kind"
        statement = f"{name} of the check of {farm.service.statement}"
        notes.lost(place, statement, error.detail, "set it with xlbctl farm set, see farm.health in docs/farms-file.md")
        if given:
            del health[name]
        else:
            farm.table["health"] = {"kind": "tcp" if farm.service.protocol == "tcp" else "none"}
        return True
    if name in _ESSENTIAL or name not in farm.table:
        return False
    notes.lost(place, f"{name} of {farm.service.statement}", error.detail, "set it with xlbctl farm set")
    del farm.table[name]
    return True


def _leave_out_overlaps(making: _Making) -> None:
    """Of farms that listen on the same port, keep the first."""
    kept: list[_Farm] = []
    accepted: dict[tuple[str, str], list[Farm]] = {}
    for each in making.farms:
        farm = each.checked
        assert farm is not None
        overlap = next(filter(None, (find_overlap(accepted.get((vip, farm.protocol), []), farm) for vip in farm.vips)), "")
        if overlap:
            remedy = "choose one of them, or another port or VIP"
            making.imported.notes.lost(each.service.place, each.service.statement, overlap, remedy)
            continue
        for address in farm.vips:
            accepted.setdefault((address, farm.protocol), []).append(farm)
        kept.append(each)
    making.farms = kept


def _take_from_all(making: _Making) -> None:
    """A farm on all ports of a VIP leaves those to the other farms there that have them, as IPVS does."""
    for each in making.farms:
        if each.table["port"] != "all":
            continue
        others = [
            other
            for other in making.farms
            if other.table["port"] != "all"
            and other.table["proto"] == each.table["proto"]
            and set(other.table["vip"]) & set(each.table["vip"])
        ]
        taken = tuple(ports for other in others for ports in other.listeners[0].ports)
        _, free = cut_ports(ALL_PORTS, taken)
        if others and 0 < len(free) <= MAX_PORTS_PER_FARM:
            each.table["port"] = format_ports(free)
            each.checked = _parsed(each)


def _config(making: _Making) -> Config:
    """The configuration that `xlbctl apply` makes of the result."""
    config = replace_all(Config(), farms_file.parse(_document(making)))
    if found := next(iter(problems(Config(), config, ())), None):
        raise InvalidInput(f"{found.message}; {found.remedy}", found.key, found.code)
    return config


def _document(making: _Making) -> dict[str, object]:
    used = dict.fromkeys(_used(making))
    unused = [address for address in making.addresses.known if address not in used]
    lists = {str(farm.table[key]) for farm in making.farms for key in ("allow", "deny") if farm.table.get(key)}
    prefixes = making.imported.prefixes
    return {
        # A node answers on a VIP that no farm uses, as on any address: servers may have it as their gateway.
        "vip": [*(vip_fields(making.addresses.vip(each)) for each in used), *(_unused_vip(each, making) for each in unused)],
        "prefixes": [{"name": name, "prefixes": texts} for name, texts in prefixes.items() if name in lists],
        "farm": [farm.table for farm in making.farms],
    }


def _unused_vip(address: str, making: _Making) -> dict[str, object]:
    return vip_fields(replace(making.addresses.vip(address), guard=False))


# --- findings about the whole, and the file ---------------------------------------------------------------------------------


def _general_findings(making: _Making) -> None:
    notes, addresses = making.imported.notes, making.addresses
    places = {each.address: each.place for farm in reversed(making.farms) for each in reversed(farm.listeners)}
    places |= {each.address: each.place for each in addresses.known.values()}
    vips = [address for address in dict.fromkeys([*_used(making), *addresses.known]) if address in places]
    known = addresses.known
    if no_device := [each for each in vips if each not in known or known[each].device is None]:
        why = f"the input does not name the interface of {_named(no_device)}: {addresses.device} is written"
        if not addresses.choices.device:
            remedy = "name it with --dev INTERFACE, or correct the file"
            notes.assumed(places[no_device[0]], f"VIP {no_device[0]}", why, remedy)
    if no_length := [each for each in vips if each not in known or known[each].length is None]:
        shown = " and ".join(f"/{length}" for length in sorted({addresses.choices.length(each) for each in no_length}))
        why = f"the input does not name the prefix length of {_named(no_length)}: {shown} is written"
        remedy = "correct it if the servers or a gateway need the network of the VIP (--vip ADDRESS/LENGTH)"
        notes.assumed(places[no_length[0]], f"VIP {no_length[0]}", why, remedy)
    unchecked = [farm for farm in making.farms if not farm.service.checks_known]
    if tcp := [farm for farm in unchecked if farm.service.protocol == "tcp" and "health" not in farm.table]:
        why = f"the input has no health checks: the port of each backend of {_farms(tcp)} is checked (tcp)"
        notes.assumed(tcp[0].service.place, tcp[0].service.statement, why, 'choose a check, or kind = "none": farm.health')
    if udp := [farm for farm in unchecked if farm.service.protocol == "udp"]:
        why = f"the input has no health checks, and UDP has no handshake to check: none for {_farms(udp)}"
        notes.assumed(
            udp[0].service.place, udp[0].service.statement, why, "choose a check of kind udp, dns or icmp: farm.health"
        )
    if snat := [farm for farm in making.farms if farm.service.mode == "snat" and "snat_address" not in farm.table]:
        why = f"the servers of {_farms(snat)} see the VIP as their client, not an address of the balancer"
        remedy = "allow the VIP in their firewalls, and see that their answers come back to this node"
        notes.changed(snat[0].service.place, snat[0].service.statement, why, remedy)


def _used(making: _Making) -> list[str]:
    """The VIPs of farms."""
    return [address for farm in making.farms for address in _vips_of(farm)]


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _farms(farms: Sequence[_Farm]) -> str:
    return f"farm {farms[0].name}" if len(farms) == 1 else f"{len(farms)} farms"


def _origins(making: _Making) -> Iterator[Origin]:
    for address in dict.fromkeys([*_used(making), *making.addresses.known]):
        known = making.addresses.known.get(address)
        if known is not None and known.place.line:
            yield Origin("vip", address, known.place, "")
    for farm in making.farms:
        yield Origin("farm", farm.name, farm.service.place, brief(farm.service.statement))


def _header(kind: str, sources: Sequence[str], config: Config, origins: Sequence[Origin], findings: Sequence[Finding]) -> str:
    backends = sum(len(farm.backends) for farm in config.farms.values())
    of = Counter(each.kind for each in findings)
    left = ", ".join(f"{of[each]} {each}" for each in Kind if of[each]) or "everything is carried over"
    width = max((len(f"{each.what} {each.name}") for each in origins), default=0)
    lines = [
        f"Made of {brief(_named(sources))} by xlbctl import {kind}.",
        f"It has {_number(len(config.vips), 'VIP')}, {_number(len(config.farms), 'farm')} and {_number(backends, 'backend')}.",
        f"Statements: {left}.",
        "Look at it with: xlbctl apply --dry-run -f FILE",
        "",
        *(f"{f'{each.what} {each.name}':<{width}}  {brief(str(each.place))}  {each.statement}".rstrip() for each in origins),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _verify(text: str, config: Config, source: str) -> None:
    """The validation of `xlbctl apply`, on the file as it is printed."""
    read = replace_all(Config(), farms_file.parse(farms_file.parse_text(text, source)))
    if farms_file.to_document(read) != farms_file.to_document(config):
        raise InvalidInput("the farms file differs from what was read; please report this", source, Code.INTERNAL)
