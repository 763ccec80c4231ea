"""haproxy.cfg: proxies of mode tcp as farms.

Source: HAProxy's configuration manual, section 4. HAProxy ends the connections of clients and makes its own to the servers, so
that a server sees the balancer: that is mode snat. Must not know how a farms file is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil

from ctl.errors import InvalidInput
from ctl.importing.form import (
    ANY_V4,
    ANY_V6,
    MAIL,
    MAX_SERVICES,
    Address,
    Imported,
    Listener,
    Notes,
    Place,
    Ports,
    Service,
    Source,
    cut_last_colon,
    cut_ports,
    host_address,
    port_number,
    whole,
    with_port,
)
from ctl.importing.haproxy_rules import read_rules
from ctl.importing.haproxy_servers import DIALOGUES, read_server
from ctl.importing.haproxy_syntax import Section, Statement, milliseconds, parse

MAX_IDLE_TIMEOUT_S = 604_800
LAYER_7 = "HTTP is above layer 4: xlb passes on connections, not requests"
LAYER_7_REMEDY = "leave it on HAProxy, with a farm of xlb in front of several; or set mode tcp if nothing of HTTP is needed"
SECTIONS_LOST: Mapping[str, tuple[str, str]] = {
    "peers": ("xlb replicates connections and persistence by itself", "create a pair with xlbctl cluster create"),
    "resolvers": ("backends are addresses", "nothing to do, unless a server line has a name"),
    "userlist": (LAYER_7, "nothing to do for TCP"),
    "mailers": MAIL,
    "program": ("xlb starts no programs", "use a unit of systemd"),
}
IGNORED = (
    *(
        "log",
        "log-format",
        "log-format-sd",
        "log-tag",
        "log-steps",
        "error-log-format",
        "description",
        "id",
        "retries",
        "backlog",
    ),
    *("errorfile", "errorfiles", "errorloc", "errorloc302", "errorloc303", "bind-process", "hash-type", "unique-id-format"),
    *("unique-id-header", "hash-balance-factor", "guid", "retry-on", "load-server-state-from-file", "server-state-file-name"),
    *("timeout connect", "timeout http-request", "timeout http-keep-alive"),
    *(
        "timeout queue",
        "timeout tarpit",
        "contimeout",
        "grace",
        "max-session-srv-conns",
    ),
)
"""Logs and sockets of HAProxy itself, and statements without effect in mode tcp."""
IGNORED_OPTIONS = (
    *("tcplog", "httplog", "httpslog", "dontlognull", "dontlog-normal", "logasap", "log-health-checks", "log-separate-errors"),
    *("socket-stats", "tcpka", "clitcpka", "srvtcpka", "clitcpka-cnt", "clitcpka-idle", "clitcpka-intvl", "srvtcpka-cnt"),
    *("srvtcpka-idle", "srvtcpka-intvl", "tcp-smart-accept", "tcp-smart-connect", "splice-auto", "splice-request"),
    *("splice-response", "nolinger", "abortonclose", "redispatch", "persist", "contstats", "idle-close-on-response"),
    *(
        "http-server-close",
        "httpclose",
        "forceclose",
        "http-keep-alive",
        "forwardfor",
        "http-buffer-request",
        "accept-invalid-http-request",
    ),
    *(
        "http-ignore-probes",
        "http-use-htx",
        "prefer-last-server",
        "checkcache",
        "originalto",
        "log-stderr",
    ),
    *("http-pretend-keepalive", "http-tunnel", "h1-case-adjust-bogus-client", "h1-case-adjust-bogus-server", "http-no-delay"),
    *("http_proxy", "http-use-proxy-header", "independent-streams", "accept-unsafe-violations-in-http-request"),
)
LOST: Mapping[str, tuple[str, str]] = {
    "cookie": ("cookies belong to HTTP, above layer 4", "use persistence_s"),
    "appsession": ("cookies belong to HTTP, above layer 4", "use persistence_s"),
    "stats": ("xlb has its own statistics", "see xlbctl top and xlbctl stats"),
    "dispatch": ("a farm has backends", "add it with xlbctl backend add"),
    "fullconn": ("max_connections does not vary with the load", "nothing to do"),
    "rate-limit": ("max_rate is per client", "set farm.max_rate if that is enough"),
    "server-template": ("its servers are found by DNS", "add them by their addresses with xlbctl backend add"),
    "use-server": ("a connection of xlb cannot choose its server by a rule", "make a farm for it"),
    "force-persist": ("xlb has no such exception", "nothing to do"),
    "ignore-persist": ("xlb has no such exception", "nothing to do"),
    "source": ("servers see the VIP, or the addresses of farm.snat_address", "add the address as a VIP and set snat_address"),
    "email-alert": MAIL,
    "external-check": ("a program of checks gets XLB_ADDRESS and XLB_PORT", "set farm.health.kind = command"),
    "declare": ("xlb captures nothing of the content", "nothing to do"),
    "filter": ("xlb does not look into connections", "leave this proxy on HAProxy"),
    "option transparent": (
        "servers see the client with mode dnat",
        "set farm.mode = dnat and route the answers through this node",
    ),
    "timeout client-hs": ("xlb does not look into connections", "nothing to do"),
    "persist": ("xlb does not read RDP cookies", "use persistence_s"),
    "redirect": (LAYER_7, "leave this proxy on HAProxy"),
    "monitor-uri": (LAYER_7, "ask xlbctl cluster status --check"),
    "monitor-net": ("xlb answers no monitors", "nothing to do"),
    "monitor": (LAYER_7, "ask xlbctl cluster status --check"),
    "compression": (LAYER_7, "leave this proxy on HAProxy"),
}
TIMEOUTS = (
    "clitimeout",
    "srvtimeout",
    "timeout client",
    "timeout server",
    "timeout tunnel",
    "timeout client-fin",
    "timeout server-fin",
)
CHECKS = ("http-check", "tcp-check", "option httpchk", *(f"option {name}" for name in DIALOGUES))
"""Statements of checks, which are read with the servers."""
CARRIED = (
    *(*CHECKS, "default-server", "timeout check", "option allbackups"),
    *("mode", "bind", "server", "balance", "maxconn", "default_backend", "use_backend", "acl", "stick-table", "disabled"),
    *("enabled", "stick on", "stick match", "stick store-request", "stick store-response", *TIMEOUTS),
)
"""Statements that other functions read."""
BIND_VALUES = (
    *("accept-netscaler-cip", "alpn", "backlog", "ca-file", "ca-ignore-err", "ca-sign-file", "ca-verify-file", "ciphers", "cc"),
    *(
        "ciphersuites",
        "crl-file",
        "crt",
        "crt-ignore-err",
        "crt-list",
        "curves",
        "ecdhe",
        "expose-fd",
        "gid",
        "group",
        "id",
        "idle-ping",
    ),
    *(
        "interface",
        "level",
        "maxconn",
        "mode",
        "mss",
        "name",
        "namespace",
        "nbconn",
        "nice",
        "npn",
        "process",
        "proto",
        "quic-cc-algo",
    ),
    *(
        "quic-socket",
        "severity-output",
        "shards",
        "sigalgs",
        "ssl-max-ver",
        "ssl-min-ver",
        "tcp-ut",
        "tfo",
        "thread",
        "tls-ticket-keys",
    ),
    *("uid", "user", "verify", "guid-prefix", "label", "default-crt", "client-sigalgs", "ocsp-update"),
)
BIND_FLAGS = (
    *("accept-proxy", "accept-netscaler-cip", "allow-0rtt", "defer-accept", "force-sslv3", "force-tlsv10", "force-tlsv11"),
    *("force-tlsv12", "force-tlsv13", "generate-certificates", "no-ca-names", "no-sslv3", "no-tls-tickets", "no-tlsv10"),
    *(
        "no-tlsv11",
        "no-tlsv12",
        "no-tlsv13",
        "prefer-client-ciphers",
        "ssl",
        "strict-sni",
        "tfo",
        "transparent",
        "v4v6",
        "v6only",
    ),
    *("quic-force-retry", "no-alpn", "default"),
)
MAX_PRIORITY = 255


@dataclass(slots=True)
class _Reading:
    out: Imported
    source: Source
    sections: list[Section]
    backends: dict[str, Section] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    defaults: set[Place] = field(default_factory=set)
    """The sections of defaults that proxies use."""

    @property
    def notes(self) -> Notes:
        return self.out.notes


def read(source: Source) -> Imported:
    """Raises InvalidInput naming the line."""
    out = Imported()
    reading = _Reading(out, source, parse(source, out.notes))
    reading.backends = {each.name: each for each in reading.sections if each.kind in ("backend", "listen")}
    for section in reading.sections:
        if section.kind in ("frontend", "listen"):
            _proxy(section, reading)
        elif section.kind in SECTIONS_LOST:
            out.notes.lost(section.place, section.text, *SECTIONS_LOST[section.kind])
        elif section.kind not in ("global", "defaults", "backend"):
            out.notes.lost(section.place, section.text, "xlb has nothing like it", "nothing to do for a farm of mode tcp")
    for section in reading.sections:
        if section.kind == "backend" and section.name not in reading.used:
            _unused(section, reading)
        elif section.kind == "defaults" and section.place not in reading.defaults and section.statements:
            out.notes.lost(section.place, section.text, "no proxy that is carried over has these defaults", "nothing to do")
    return out


def _unused(section: Section, reading: _Reading) -> None:
    if _mode(section) == "http":
        reading.notes.lost(section.place, section.text, LAYER_7, LAYER_7_REMEDY)
    else:
        why = "no frontend that is carried over has it as its default_backend"
        reading.notes.lost(section.place, section.text, why, "add a farm for it with xlbctl farm add if it is needed")


def _mode(section: Section) -> str:
    return section.value("mode", "tcp")


def _proxy(section: Section, reading: _Reading) -> None:
    notes = reading.notes
    mode = _mode(section)
    if mode != "tcp":
        where = section.last("mode")
        of_defaults = f", from line {where.place.line}" if where is not None and where not in section.statements else ""
        why = LAYER_7 if mode == "http" else f"xlb has no mode {mode[:20]}"
        notes.lost(section.place, f"{section.text} (mode {mode}{of_defaults})", why, LAYER_7_REMEDY)
        return
    if len(reading.out.services) >= MAX_SERVICES:
        raise InvalidInput(f"more than {MAX_SERVICES} proxies", str(section.place))
    _extra_words(section, notes)
    listeners = list(_listeners(section, reading))
    if not listeners:
        why = "it has no address that can be carried over"
        notes.lost(section.place, section.text, why, "add the farm with xlbctl farm add")
    used_acls: set[str] = set()
    routes = list(_routes(section, listeners, reading, used_acls))
    for target, part in routes:
        name = section.name if len(routes) == 1 or target is None else f"{section.name}-{target.name}"
        service = Service(section.place, f"{section.kind} {section.name}", name or "service", one_port=True, listeners=part)
        _serve(section, target, service, used_acls, reading)


def _serve(section: Section, target: Section | None, service: Service, used_acls: set[str], reading: _Reading) -> None:
    """A service of a frontend and the section with its servers."""
    notes = reading.notes
    if section.last("disabled") is not None:
        service.settings["enabled"] = False
    for part in [section] if target in (None, section) else [section, target]:
        assert part is not None
        above = part.defaults
        while above is not None:
            reading.defaults.add(above.place)
            above = above.defaults
        _settings(part, service, reading)
    if target is not None:
        reading.used.add(target.name)
        _servers(target, service, notes)
    read_rules(section, service, reading.out, reading.source, used_acls)
    if target is not None and target is not section:
        _extra_words(target, notes)
        _rules_of_backend(target, service, reading)
    if target is None:
        why = "it has no servers, and no default_backend that could be carried over"
        notes.lost(section.place, section.text, why, "add the farm with xlbctl farm add")
    elif service.listeners:
        reading.out.services.append(service)


def _extra_words(section: Section, notes: Notes) -> None:
    """What the head of a section has besides its name, its defaults and, in old versions, an address."""
    words = list(section.words[2:])
    if words and words[0] != "from" and section.kind in ("listen", "frontend"):
        words.pop(0)
    if words[:1] == ["from"]:
        words = words[2:]
    if words:
        notes.lost(
            section.place,
            " ".join(section.words),
            f"{words[0][:40]} is not known there",
            "nothing to do, if HAProxy ignores it",
        )


def _rules_of_backend(section: Section, service: Service, reading: _Reading) -> None:
    """The stick table of a backend; rules about connections are those of the frontend."""
    own = Section(
        section.place, section.words, [each for each in section.all() if each.name.startswith(("stick", "tcp-", "acl"))]
    )
    read_rules(own, service, reading.out, reading.source, set())


def _routes(
    section: Section, listeners: list[Listener], reading: _Reading, used_acls: set[str]
) -> Iterator[tuple[Section | None, list[Listener]]]:
    """The sections with servers, each with the listeners whose connections go there: rules about the port choose them."""
    notes = reading.notes
    chosen, rest = section.last("default_backend"), listeners
    for each in section.all():
        if each.name != "use_backend":
            continue
        if len(each.words) == 2 or each.words[2:] in (("if", "TRUE"), ("if", "always_true")):
            chosen = each
            break
        ports = _ports_of_condition(each, section, used_acls)
        if ports is None:
            why = "xlb does not choose a backend by the content of a connection"
            notes.lost(each.place, each.text, why, "make a farm with another VIP or port, or leave this frontend on HAProxy")
            continue
        cut = [(listener, *cut_ports(listener.ports, ports)) for listener in rest]
        inside = [with_port(listener, found) for listener, found, _ in cut if found]
        rest = [with_port(listener, left) for listener, _, left in cut if left]
        if inside:
            yield _backend(each, reading), inside
        else:
            notes.lost(each.place, each.text, "the frontend does not listen on that port", "nothing to do")
    if any(each.name == "server" for each in section.statements):
        yield section, rest
    elif rest or not listeners:
        yield None if chosen is None else _backend(chosen, reading), rest
    elif chosen is not None:
        notes.lost(chosen.place, chosen.text, "the rules before it leave no port", "nothing to do")


def _backend(chosen: Statement, reading: _Reading) -> Section | None:
    """The section that `default_backend` or `use_backend` names, if it can be carried over."""
    found = reading.backends.get(chosen.word(1))
    if found is None:
        reading.notes.lost(chosen.place, chosen.text, "there is no such section", "correct the name and import again")
    elif _mode(found) != "tcp":
        reading.notes.lost(found.place, f"{found.text} (mode {_mode(found)})", LAYER_7, LAYER_7_REMEDY)
        reading.used.add(found.name)
        return None
    return found


def _ports_of_condition(each: Statement, section: Section, used_acls: set[str]) -> Ports | None:
    """The ports of `if ACL` or `if { dst_port … }`; None for any other condition."""
    words = each.words[2:]
    if len(words) < 2 or words[0] != "if":
        return None
    if len(words) == 2:
        of_acl = [acl.words[2:] for acl in section.all() if acl.name == "acl" and acl.word(1) == words[1]]
    else:
        of_acl = [words[2:-1]] if words[1] == "{" and words[-1] == "}" else []
    ranges: list[tuple[int, int]] = []
    for criterion in of_acl:
        for text in criterion[1:]:
            found = _ports(text.replace(":", "-"))
            if found is None or criterion[0] != "dst_port":
                return None
            ranges += found
    if ranges and len(words) == 2:
        used_acls.add(words[1])
    return tuple(ranges) or None


# --- listeners --------------------------------------------------------------------------------------------------------------


def _listeners(section: Section, reading: _Reading) -> Iterator[Listener]:
    binds = [each for each in section.statements if each.name == "bind"]
    if len(section.words) > 2 and section.words[2] != "from":
        binds.insert(0, Statement(section.place, ("bind", *section.words[2:3])))
    for each in binds:
        if _bind_options(each, reading):
            for text in each.word(1).split(","):
                yield from _endpoint(text, each, reading)


def _bind_options(each: Statement, reading: _Reading) -> bool:
    """Whether a `bind` line can be carried over."""
    notes = reading.notes
    options: dict[str, str] = {}
    words = list(each.words[2:])
    while words:
        name = words.pop(0)
        options[name] = words.pop(0) if name in BIND_VALUES and words else ""
    if "ssl" in options:
        why = "HAProxy decrypts TLS there, and its servers expect plain text"
        notes.lost(each.place, each.text, why, "leave this address on HAProxy, or let the servers speak TLS")
        return False
    if "accept-proxy" in options or "accept-netscaler-cip" in options:
        why = "xlb reads no PROXY header: the servers get it as the first bytes of the connection"
        notes.lost(
            each.place,
            f"{each.word(0)} {each.word(1)} accept-proxy",
            why,
            "let the proxy in front send none, or the servers read it",
        )
    if "maxconn" in options:
        notes.lost(each.place, f"bind {each.word(1)} maxconn", "a limit is that of the farm", "set farm.max_connections")
    for name in options.keys() - {*BIND_VALUES, *BIND_FLAGS}:
        why = "xlb has nothing like it, or the word is misspelled"
        notes.lost(each.place, f"bind {each.word(1)} {name}", why, "nothing to do, if HAProxy ignores it too")
    for text in each.word(1).split(","):
        address = host_address(cut_last_colon(re.sub(r"^(ipv4|ipv6|tcp|tcp4|tcp6)@", "", text))[0])
        if address is not None and (device := options.get("interface")):
            reading.out.addresses.append(Address(each.place, address, None, device))
    return True


def _endpoint(text: str, each: Statement, reading: _Reading) -> Iterator[Listener]:
    notes = reading.notes
    plain = re.sub(r"^(ipv4|ipv6|tcp|tcp4|tcp6)@", "", text)
    six = text.startswith(("ipv6@", "tcp6@"))
    address_text, ports_text = cut_last_colon(plain)
    if re.match(r"(/|unix@|abnsz?@|fd@|sockpair@|rhttp@|quic[46]?@|udp[46]?@)", plain):
        notes.lost(each.place, f"bind {text}", "it is no address of TCP", "nothing to do, or add the farm with xlbctl farm add")
        return
    ports = _ports(ports_text)
    if ports is None:
        notes.lost(
            each.place, f"bind {text}", "expected a port or a range from 1 to 65535", "add the farm with xlbctl farm add"
        )
    elif address_text in ("", "*", "0.0.0.0", "::"):
        if address_text != "::" and not six:
            yield Listener(each.place, ANY_V4, ports)
        else:
            if "v4v6" in each.words:
                yield Listener(each.place, ANY_V4, ports)
            yield Listener(each.place, ANY_V6, ports)
    elif (address := host_address(address_text)) is None:
        why = "its address is in an environment variable" if "$" in text else "a VIP is an address, not a name"
        notes.lost(each.place, f"bind {text}", why, "write the address there and import again")
    else:
        yield Listener(each.place, address, ports)


def _ports(text: str) -> tuple[tuple[int, int], ...] | None:
    first, dash, last = text.partition("-")
    low = port_number(first)
    high = port_number(last) if dash else low
    return None if low is None or high is None or high < low else ((low, high),)


# --- settings and servers ---------------------------------------------------------------------------------------------------


def _settings(section: Section, service: Service, reading: _Reading) -> None:
    notes = reading.notes
    _timeouts(section, service, notes)
    most = section.last("maxconn") if section.kind != "backend" else None
    if most is not None and most.word(1) != "0":
        why = "expected a number of connections"
        if (number := whole(most.word(1), 1)) is not None:
            service.settings["max_connections"] = number
            why = "HAProxy lets more connections wait, xlb refuses them"
        notes.changed(most.place, most.text, why, "raise max_connections if clients waited")
    for each in section.all():
        if each.negated or each.name in (*CARRIED, *IGNORED) or each.name.startswith(("tcp-request", "tcp-response")):
            continue
        if each.name.startswith("option ") and each.word(1) in IGNORED_OPTIONS:
            continue
        if each.name == "source" and {"client", "clientip"} & set(each.words):
            service.mode = "dnat"  # the servers see the client
            continue
        found = LOST.get(each.name) or LOST.get(each.words[0])
        if found is not None:
            notes.lost(each.place, each.text, *found)
        elif each.words[0].startswith(("req", "rsp", "capture", "http-")):
            notes.lost(each.place, each.text, LAYER_7, "nothing to do in mode tcp")
        else:
            notes.lost(
                each.place,
                each.text,
                "xlb has nothing like it, or the word is misspelled",
                "nothing to do, if HAProxy ignores it too",
            )


def _timeouts(section: Section, service: Service, notes: Notes) -> None:
    idle = [
        value
        for name in ("timeout client", "timeout server", "clitimeout", "srvtimeout")
        if (value := _seconds(section, name, notes))
    ]
    tunnel = _seconds(section, "timeout tunnel", notes)
    closing = [value for name in ("timeout client-fin", "timeout server-fin") if (value := _seconds(section, name, notes))]
    for key, found in (("idle_timeout_s", [tunnel] if tunnel else idle), ("closing_timeout_s", closing)):
        if found:
            before = service.settings.get(key, 0)
            assert isinstance(before, int)
            service.settings[key] = max(before, *found)


def _seconds(section: Section, name: str, notes: Notes) -> int:
    """A timeout in whole seconds, 0: none."""
    found = section.last(name)
    if found is None:
        return 0
    value = milliseconds(found.word(len(name.split())))
    if value is None:
        notes.lost(found.place, found.text, "expected a time such as 30s", "set farm.idle_timeout_s")
        return 0
    seconds = ceil(value / 1000)
    if seconds > MAX_IDLE_TIMEOUT_S:
        notes.changed(found.place, found.text, f"a timeout is at most {MAX_IDLE_TIMEOUT_S} s", "nothing to do")
    return min(seconds, MAX_IDLE_TIMEOUT_S)


def _servers(section: Section, service: Service, notes: Notes) -> None:
    backups = 0
    together = section.last("option allbackups") is not None
    for each in section.statements:
        if each.name != "server":
            continue
        server = read_server(each, section, service, -1 if together else backups, notes)
        if server is None:
            continue
        service.servers.append(server)
        backups += server.priority > 0
    _balance(section, service, notes)
    checked = any(server.check is not None for server in service.servers)
    for each in section.statements:
        is_http = each.name in ("http-check", "option httpchk")
        if each.name in CHECKS and not (checked and is_http == (section.last("option httpchk") is not None)):
            notes.lost(each.place, each.text, "no server is checked in this way", "nothing to do")


def _balance(section: Section, service: Service, notes: Notes) -> None:
    found = section.last("balance")
    place, text = (found.place, found.text) if found else (section.place, "balance roundrobin")
    algorithm = found.word(1).partition("(")[0] if found else "roundrobin"
    if algorithm in ("roundrobin", "static-rr"):
        service.settings["scheduler"] = "roundrobin"
    elif algorithm == "leastconn":
        service.settings["scheduler"] = "leastconn"
    elif algorithm == "source" or (found and algorithm == "hash" and found.word(2).partition(",")[0] == "src"):
        service.settings["scheduler"] = "source"
    elif algorithm == "random":
        service.settings["scheduler"] = "leastconn"
        notes.changed(place, text, "xlb has no random choice", "leastconn is written; choose with farm.scheduler")
    elif algorithm == "first":
        _first(service, place, text, notes)
    else:
        service.settings["scheduler"] = "roundrobin"
        why = (
            f"{algorithm[:30]} is above layer 4"
            if algorithm != "hash"
            else "xlb hashes the client's address, or the connection"
        )
        notes.lost(place, text, why, "roundrobin is written; choose with farm.scheduler")


def _first(service: Service, place: Place, text: str, notes: Notes) -> None:
    """The first server that has not reached its maxconn."""
    for number, server in enumerate(service.servers):
        server.priority = min(MAX_PRIORITY, number)
    service.settings["scheduler"] = "leastconn"
    why = "each server has a priority of its own, so that the next gets connections when no earlier one can take them"
    notes.changed(place, text, why, "set max_connections of each backend as HAProxy's maxconn was")
