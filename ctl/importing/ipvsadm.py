"""The rules of IPVS: what `ipvsadm-save` or `ipvsadm -S` writes, and the listing of `ipvsadm -Ln`.

Source: ipvsadm(8). Must not know how a farms file is made.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from ctl.errors import InvalidInput
from ctl.importing import ipvs
from ctl.importing.form import (
    MAX_SERVICES,
    Imported,
    Listener,
    Notes,
    Place,
    Server,
    Service,
    Source,
    brief,
    cut_endpoint,
    endpoint_name,
    host_address,
    mask_length,
    persistence,
    persistence_prefix,
    port_number,
    whole,
)

ALL_PORTS = ((1, 65535),)
DEFAULT_PERSISTENCE_S = 300
ADD_SERVICE = ("-A", "--add-service", "-E", "--edit-service")
ADD_SERVER = ("-a", "--add-server", "-e", "--edit-server")
PROTOCOLS: Mapping[str, str] = {
    "-t": "tcp",
    "--tcp-service": "tcp",
    "-u": "udp",
    "--udp-service": "udp",
    "--sctp-service": "sctp",
    "-f": "fwmark",
    "--fwmark-service": "fwmark",
}
VALUES = (
    *("-s", "--scheduler", "-M", "--netmask", "-b", "--sched-flags", "--pe", "-r", "--real-server", "-w", "--weight"),
    *("-x", "--u-threshold", "-y", "--l-threshold", "--tun-type", "--tun-port"),
)
"""Options with a value. That of -p is optional."""
IGNORED = ("-6", "-n", "--numeric", "--tun-nocsum", "--tun-csum", "--tun-remcsum")
IGNORED_ACTIONS = ("-C", "--clear", "-S", "--save", "-Z", "--zero")
SHOW_REMEDY = "make the file with ipvsadm-save -n"
_HEADER = re.compile(r"\s*(IP Virtual Server version|Prot +LocalAddress|-> +RemoteAddress)")
_LISTED = re.compile(r"\s*(TCP|UDP|SCTP|FWM)\s+(\S+)(?:\s+(.*))?$")
_LISTED_SERVER = re.compile(r"\s*->\s+(\S+)\s+(Masq|Route|Tunnel|Local|Bypass)\s+(\d+)(\s.*)?$", re.IGNORECASE)
_COMMAND = re.compile(r"\s*(?:\S*/)?ipvsadm\s+")


@dataclass(slots=True)
class _Virtual:
    """A virtual service as it is read, before its scheduler is known to all its servers."""

    service: Service
    scheduler: str = ipvs.DEFAULT_SCHEDULER
    flags: list[str] = field(default_factory=list)
    method: str = ""


@dataclass(slots=True)
class _Reading:
    out: Imported
    virtuals: dict[tuple[str, str], _Virtual | None] = field(default_factory=dict)
    listed: tuple[str, str] | None = None
    timeouts: dict[str, dict[str, int]] = field(default_factory=lambda: {"tcp": {}, "udp": {}})

    @property
    def notes(self) -> Notes:
        return self.out.notes


def read(source: Source) -> Imported:
    """Raises InvalidInput naming the line."""
    reading = _Reading(Imported())
    for place, line in source.lines():
        text = line.partition("#")[0]
        if not text.strip() or _HEADER.match(text):
            continue
        if found := _LISTED_SERVER.match(text):
            _listed_server(place, found, reading)
        elif found := _LISTED.match(text):
            _listed_service(place, found, reading)
        elif text.lstrip().startswith("->"):
            raise InvalidInput(
                "the list has no column Forward; make it with ipvsadm -Ln, without --stats or --rate", str(place)
            )
        else:
            _rule(place, _COMMAND.sub("", text, count=1), reading)
    for virtual in reading.virtuals.values():
        if virtual is not None:
            _finish(virtual, reading)
    return reading.out


def _finish(virtual: _Virtual, reading: _Reading) -> None:
    service = virtual.service
    service.settings = {**reading.timeouts[service.protocol], **service.settings}
    ipvs.set_scheduler(service, virtual.scheduler, virtual.flags, service.place, service.statement, reading.notes)
    reading.out.services.append(service)


def _new(place: Place, statement: str, protocol: str, text: str, reading: _Reading) -> _Virtual | None:
    """A service, or None with a finding if it cannot be carried over."""
    notes, key = reading.notes, (protocol, text)
    if key in reading.virtuals:
        return reading.virtuals[key]
    if len(reading.virtuals) >= MAX_SERVICES:
        raise InvalidInput(f"more than {MAX_SERVICES} virtual services", str(place))
    reading.virtuals[key] = None
    address, port_text = cut_endpoint(text)
    canonical = host_address(address)
    port = 0 if port_text in ("", "0") else port_number(port_text)
    if protocol == "fwmark":
        why = "which packets have the mark is in the firewall's rules"
        notes.lost(place, statement, why, "add a farm with the addresses and ports of these rules: xlbctl farm add")
    elif protocol == "sctp":
        notes.lost(place, statement, "xlb balances TCP and UDP, not SCTP", "leave this service on IPVS")
    elif canonical is None or port is None:
        notes.lost(place, statement, f'"{text[:80]}" is not an address and a port', SHOW_REMEDY)
    else:
        ports = ALL_PORTS if port == 0 else ((port, port),)
        name = endpoint_name(canonical, str(port) if port else "all", protocol)
        service = Service(place, statement, name, protocol, "dnat", [Listener(place, canonical, ports)], checks_known=False)
        service.one_port = True
        reading.virtuals[key] = _Virtual(service)
    return reading.virtuals[key]


def _add_server(place: Place, statement: str, virtual: _Virtual, server: Server, method: str, notes: Notes) -> None:
    mode = ipvs.MODES.get(method.lower())
    if mode is None:
        why = (
            "the server is this machine itself" if method.lower() == "local" else f"xlb has no forwarding method {method[:20]}"
        )
        notes.lost(place, statement, why, "run the server on another machine, and add it with xlbctl backend add")
        return
    if not virtual.service.servers:
        virtual.service.mode, virtual.method = mode, method
    elif virtual.service.mode != mode:
        why = f"all backends of a farm have one mode, and that of this one is {virtual.service.mode}"
        notes.lost(place, statement, why, f"add a farm of mode {mode} for it")
        return
    known = [each for each in virtual.service.servers if (each.address, each.port) != (server.address, server.port)]
    virtual.service.servers = [*known, server]


def _server(place: Place, statement: str, text: str, notes: Notes) -> Server | None:
    address, port_text = cut_endpoint(text)
    canonical = host_address(address)
    port = None if port_text in ("", "0") else port_number(port_text)
    if canonical is None or (port is None and port_text not in ("", "0")):
        notes.lost(place, statement, f'"{text[:80]}" is not an address and a port', SHOW_REMEDY)
        return None
    return Server(place, statement, canonical, port)


# --- listing ----------------------------------------------------------------------------------------------------------------


def _listed_service(place: Place, found: re.Match[str], reading: _Reading) -> None:
    protocol = {"FWM": "fwmark"}.get(found[1].upper(), found[1].lower())
    statement = brief(found[0])
    reading.listed = (protocol, found[2])
    virtual = _new(place, statement, protocol, found[2], reading)
    if virtual is None:
        return
    words = (found[3] or "").split()
    if words:
        virtual.scheduler = words.pop(0)
    while words:
        word = words.pop(0)
        value = words[0] if words else ""
        if word == "persistent":
            seconds = whole(value, 1)
            if seconds is None:
                reading.notes.lost(place, statement, "expected a number of seconds after persistent", "set farm.persistence_s")
            else:
                persistence(virtual.service, seconds, place, statement, reading.notes)
        elif word == "mask":
            _mask(virtual.service, value, place, statement, reading.notes)
        elif word in ("pe", "ops"):
            _lost_option(word, place, statement, reading.notes)
        elif word.startswith("("):
            virtual.flags += word.strip("()").split(",")
            continue
        else:
            reading.notes.lost(place, statement, f'"{word[:40]}" is no flag that is known', "compare the farm with ipvsadm -Ln")
        if word in ("persistent", "mask", "pe") and words:
            words.pop(0)


def _listed_server(place: Place, found: re.Match[str], reading: _Reading) -> None:
    statement = brief(" ".join(found[0].split()[:4]))
    if reading.listed is None:
        raise InvalidInput("a server before the first service; the beginning of the list is missing", str(place))
    virtual = reading.virtuals.get(reading.listed)
    server = _server(place, statement, found[1], reading.notes) if virtual else None
    if virtual is None or server is None:
        if virtual is None:
            reading.notes.lost(place, statement, "its service is not carried over", "add it with that farm")
        return
    server.weight = min(65535, int(found[3][:6]))
    _add_server(place, statement, virtual, server, found[2], reading.notes)


# --- rules ------------------------------------------------------------------------------------------------------------------


def _rule(place: Place, text: str, reading: _Reading) -> None:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInput(f"is not a rule of ipvsadm: {str(error).lower()}", str(place)) from None
    if not words:
        return
    statement, action = brief(text), words[0]
    if action in IGNORED_ACTIONS:
        return
    if action == "--set":
        _set_timeouts(place, statement, words[1:], reading)
    elif action in ("--start-daemon", "--stop-daemon"):
        reading.notes.lost(place, statement, "xlb replicates connections by itself", "create a pair with xlbctl cluster create")
    elif action in (*ADD_SERVICE, *ADD_SERVER):
        _add_rule(place, statement, words, reading)
    elif action in ("-D", "--delete-service", "-d", "--delete-server"):
        reading.notes.lost(place, statement, "only rules that add are read", SHOW_REMEDY)
    elif action.startswith("-"):
        reading.notes.lost(place, statement, f'"{action[:40]}" adds no service or server', "nothing to do")
    else:
        raise InvalidInput(
            f'expected a rule such as "-A -t ADDRESS:PORT -s wlc" or a line of ipvsadm -Ln, got "{statement[:60]}"', str(place)
        )


def _set_timeouts(place: Place, statement: str, words: list[str], reading: _Reading) -> None:
    numbers = [whole(word, 0, 604800) for word in words[:3]]
    if len(numbers) < 3 or None in numbers:
        reading.notes.lost(place, statement, "expected three numbers of seconds", "set farm.idle_timeout_s")
        return
    for (protocol, key), value in zip(
        (("tcp", "idle_timeout_s"), ("tcp", "closing_timeout_s"), ("udp", "idle_timeout_s")), numbers, strict=True
    ):
        if value:
            reading.timeouts[protocol][key] = value


def _add_rule(place: Place, statement: str, words: list[str], reading: _Reading) -> None:
    notes = reading.notes
    options, plain = _options(place, statement, words[1:], notes)
    named = [(PROTOCOLS[name], value) for name, value in options if name in PROTOCOLS]
    if len(named) != 1:
        raise InvalidInput("expected one of -t, -u, --sctp-service and -f with a service", str(place))
    protocol, text = named[0]
    if words[0] in ADD_SERVICE:
        virtual = _new(place, statement, protocol, text, reading)
        if virtual is not None:
            _service_options(place, statement, virtual, options, plain, notes)
        return
    if (protocol, text) not in reading.virtuals:
        raise InvalidInput(f"a server of {text[:60]}, which no line before it adds (-A)", str(place))
    virtual = reading.virtuals[protocol, text]
    if virtual is None:
        notes.lost(place, statement, "its service is not carried over", "add it with that farm")
        return
    given = dict(options)
    target = given.get("-r", given.get("--real-server"))
    if target is None:
        raise InvalidInput("expected -r with a server", str(place))
    server = _server(place, statement, target, notes)
    if server is None:
        return
    method = next((word for word in plain if word in ipvs.MODES), "-g")
    weight = whole(given.get("-w", given.get("--weight", "1")), 0, 65535)
    if weight is None:
        notes.lost(place, statement, "a weight is from 0 to 65535", "1 is written; set it with xlbctl backend set")
    server.weight = 1 if weight is None else weight
    server.max_connections = whole(given.get("-x", given.get("--u-threshold", "0"))) or 0
    if given.get("-y", given.get("--l-threshold", "0")) != "0":
        why = "a backend takes connections again as soon as it has fewer than max_connections"
        notes.lost(place, statement, f"-y: {why}", "nothing to do")
    if given.get("--tun-type", "ipip") != "ipip":
        why = "xlb tunnels with IP in IP only"
        notes.changed(place, statement, why, "set up an IPIP tunnel on the servers, see docs/ONE-WAY.md")
    _add_server(place, statement, virtual, server, method, notes)


def _options(place: Place, statement: str, words: list[str], notes: Notes) -> tuple[list[tuple[str, str]], list[str]]:
    """Options with their values, and those without."""
    options: list[tuple[str, str]] = []
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in PROTOCOLS or name in VALUES:
            if not equals and not rest:
                raise InvalidInput(f"{name} has no value; the line may be cut off", str(place))
            options.append((name, value if equals else rest.pop(0)))
        elif name in ("-p", "--persistent"):
            optional = value if equals else rest.pop(0) if rest and not rest[0].startswith("-") else ""
            options.append(("-p", optional))
        elif word in ipvs.MODES or word in ("-o", "--ops"):
            plain.append(word)
        elif word not in IGNORED:
            notes.lost(place, statement, f'"{word[:40]}" is no option that is known', "compare the farm with ipvsadm -Ln")
    return options, plain


def _service_options(
    place: Place, statement: str, virtual: _Virtual, options: list[tuple[str, str]], plain: list[str], notes: Notes
) -> None:
    for name, value in options:
        if name in ("-s", "--scheduler"):
            virtual.scheduler = value
        elif name in ("-b", "--sched-flags"):
            virtual.flags += value.split(",")
        elif name == "-p":
            seconds = whole(value) if value else DEFAULT_PERSISTENCE_S
            if seconds is None:
                notes.lost(place, statement, "-p: expected a number of seconds", "set farm.persistence_s")
            elif seconds:
                persistence(virtual.service, seconds, place, statement, notes)
        elif name in ("-M", "--netmask"):
            _mask(virtual.service, value, place, statement, notes)
        elif name == "--pe":
            _lost_option("pe", place, statement, notes)
    if plain:
        _lost_option("ops", place, statement, notes)


def _mask(service: Service, text: str, place: Place, statement: str, notes: Notes) -> None:
    length = mask_length(text)
    if length is None:
        notes.lost(place, statement, f'"{text[:40]}" is not a netmask', "set farm.persistence_prefix_v4")
    else:
        persistence_prefix(service, length, place, statement, notes)


def _lost_option(name: str, place: Place, statement: str, notes: Notes) -> None:
    if name == "pe":
        notes.lost(place, statement, "a persistence engine: xlb does not read SIP", "for UDP by client use persistence_s")
    else:
        why = "one-packet scheduling: each UDP connection of xlb has one backend"
        notes.lost(place, statement, why, "nothing to do, unless each datagram must go to another server")
