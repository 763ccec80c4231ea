"""Server lines of haproxy.cfg and their checks.

Source: HAProxy's configuration manual, section 5.2, and `option httpchk`. Must not know how proxies make services.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from ctl.config.settings import MAX_SLOW_START_S
from ctl.importing.form import Notes, Place, Server, Service, Settings, cut_last_colon, host_address, port_number, whole
from ctl.importing.haproxy_syntax import Section, Statement, milliseconds

WITH_VALUE = (
    *(
        "addr",
        "agent-addr",
        "agent-inter",
        "agent-port",
        "agent-send",
        "alpn",
        "ca-file",
        "check-alpn",
        "check-proto",
        "check-sni",
    ),
    *(
        "ciphers",
        "ciphersuites",
        "cookie",
        "crl-file",
        "crt",
        "curves",
        "downinter",
        "error-limit",
        "fall",
        "fastinter",
        "hash-key",
    ),
    *("id", "init-addr", "init-state", "inter", "log-proto", "max-reuse", "maxconn", "maxqueue", "minconn", "namespace", "npn"),
    *("observe", "on-error", "on-marked-down", "on-marked-up", "pool-conn-name", "pool-low-conn", "pool-max-conn"),
    *("pool-purge-delay", "port", "proto", "proxy-v2-options", "redir", "resolve-net", "resolve-opts", "resolve-prefer"),
    *(
        "resolvers",
        "rise",
        "set-proxy-v2-tlv-fmt",
        "shard",
        "sigalgs",
        "slowstart",
        "sni",
        "socks4",
        "ssl-max-ver",
        "ssl-min-ver",
    ),
    *("tcp-ut", "track", "usesrc", "verify", "verifyhost", "weight", "ws", "guid", "client-sigalgs", "source", "interface"),
    *("http-reuse", "check-pool-conn-name", "strict-maxconn", "renegotiate", "cc"),
)
LOST: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("send-proxy", "send-proxy-v2", "send-proxy-v2-ssl", "send-proxy-v2-ssl-cn"),
        (
            "xlb adds no PROXY header, and a server that expects one refuses the connections",
            "switch it off on the servers; they see the client with mode dnat or farm.toa",
        ),
    ),
    "check-send-proxy": ("checks send no PROXY header", "check a port that expects none: farm.health.port"),
    "cookie": ("cookies belong to HTTP, above layer 4", "use persistence_s"),
    "fastinter": ("the interval of a check does not change while a backend changes its state", "shorten interval_ms or fall"),
    "minconn": ("max_connections does not vary with the load", "nothing to do"),
    "maxqueue": ("xlb does not queue connections", "nothing to do"),
    "track": ("a backend is checked for each farm", "give this farm a check"),
    "on-marked-up": ("a backend that comes up ends no connections of others", "use priority and drain"),
    "observe": ("xlb does not watch the traffic for errors", "shorten the interval of the check"),
    "on-error": ("xlb does not watch the traffic for errors", "shorten the interval of the check"),
    "error-limit": ("xlb does not watch the traffic for errors", "shorten the interval of the check"),
    "agent-check": ("xlb asks no agent", "use a check of kind command"),
    "agent-port": ("xlb asks no agent", "use a check of kind command"),
    "agent-addr": ("xlb asks no agent", "use a check of kind command"),
    "agent-inter": ("xlb asks no agent", "use a check of kind command"),
    "agent-send": ("xlb asks no agent", "use a check of kind command"),
    "source": ("backends see the VIP, or the addresses of farm.snat_address", "add the address as a VIP and set snat_address"),
    "socks4": ("xlb does not use a proxy", "leave this server on HAProxy"),
    "redir": ("redirects belong to HTTP, above layer 4", "leave this proxy on HAProxy"),
    "resolvers": ("a backend is an address", "update it with xlbctl apply when the name changes"),
    "namespace": ("xlbd runs in the namespace that starts it", "nothing to do if both are the same"),
    "check-via-socks4": ("xlb does not use a proxy", "nothing to do"),
}
IGNORED = (
    *(
        "id",
        "init-addr",
        "init-state",
        "no-check",
        "no-ssl",
        "no-backup",
        "enabled",
        "stick",
        "non-stick",
        "tfo",
        "pool-low-conn",
    ),
    *("pool-max-conn", "pool-purge-delay", "max-reuse", "tcp-ut", "proto", "log-proto", "resolve-net", "resolve-opts", "shard"),
    *("resolve-prefer", "no-send-proxy", "no-send-proxy-v2", "no-agent-check", "no-check-ssl", "guid", "proxy-v2-options"),
    *("hash-key", "no-tfo", "cc", "check-proto", "check-alpn", "alpn", "npn", "ws", "no-verifyhost", "no-check-send-proxy"),
)
"""Names, tuning of HAProxy's own sockets, and words that repeat a default."""
TLS = (
    "ciphers",
    "ciphersuites",
    "crt",
    "crl-file",
    "curves",
    "sni",
    "ssl-min-ver",
    "ssl-max-ver",
    "force-tlsv12",
    "force-tlsv13",
)
DIALOGUES: Mapping[str, str] = {
    "smtpchk": "SMTP",
    "mysql-check": "MySQL",
    "pgsql-check": "PostgreSQL",
    "redis-check": "Redis",
    "ldap-check": "LDAP",
    "ssl-hello-chk": "TLS",
    "spop-check": "SPOP",
    "external-check": "command",
    "tcp-check": "send and expect",
}
HEADER_REMEDY = "use a program if the servers need it: farm.health.kind = command"
_PLAIN_TEXT = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")


@dataclass(slots=True)
class Parameters:
    """Parameters of a server, with the statement that has each."""

    of: dict[str, tuple[Statement, str]] = field(default_factory=dict)

    def value(self, name: str) -> str | None:
        found = self.of.get(name)
        return None if found is None else found[1]

    def has(self, name: str) -> bool:
        """Of two words that contradict each other the later one holds."""
        order = list(self.of)
        return name in self.of and (f"no-{name}" not in self.of or order.index(name) > order.index(f"no-{name}"))


def read_parameters(statement: Statement, start: int, into: Parameters) -> None:
    """The parameters of a `server` or `default-server` line from word `start` on."""
    words = list(statement.words[start:])
    while words:
        name = words.pop(0)
        value = words.pop(0) if name in WITH_VALUE and words else ""
        into.of.pop(name, None)
        into.of[name] = (statement, value)


def read_server(statement: Statement, section: Section, service: Service, backups: int, notes: Notes) -> Server | None:
    """A server; settings of the whole farm go to `service`. backups: those before it, -1 if all of them serve together."""
    parameters = Parameters()
    for each in section.all():
        if each.name == "default-server" and not each.negated:
            read_parameters(each, 1, parameters)
    read_parameters(statement, 3, parameters)
    short = " ".join(statement.words[:3])
    text = re.sub(r"^(ipv4|ipv6|tcp|tcp4|tcp6)@", "", statement.word(2))
    address_text, port_text = cut_last_colon(text)
    address = host_address(address_text)
    if address is None:
        why = _why_no_address(text)
        notes.lost(statement.place, short, why, "add it by its address with xlbctl backend add")
        return None
    if parameters.has("ssl"):
        why = "it gets TLS from HAProxy and plain text from the clients; xlb passes on what the clients send"
        notes.lost(statement.place, f"{short} ssl", why, "leave this proxy on HAProxy, or let the clients speak TLS")
        return None
    port, offset = _port(port_text, statement, short, notes)
    server = Server(statement.place, short, address, port, offset)
    _apply(server, short, parameters, backups, notes)
    _apply_to_farm(service, short, parameters, notes)
    if parameters.has("check"):
        server.check = _check(section, parameters, notes)
    return server


def _why_no_address(text: str) -> str:
    if text.startswith(("/", "unix@", "abns@", "abnsz@", "fd@", "sockpair@")):
        return "the server is a socket of this machine"
    if text.startswith(("udp@", "quic")):
        return "HAProxy uses UDP for it"
    if "$" in text:
        return "its address is in an environment variable"
    return "a backend is an address, not a name"


def _port(text: str, statement: Statement, short: str, notes: Notes) -> tuple[int | None, int]:
    """The port and the distance from the one that the client connects to; one of them is given."""
    if text in ("", "0"):
        return None, 0
    if text[0] in "+-" and (number := whole(text[1:], 0, 65535)) is not None:
        return None, number if text[0] == "+" else -number
    if (port := port_number(text)) is not None:
        return port, 0
    notes.lost(statement.place, f"port of {short}", "expected a port from 1 to 65535", "set it with xlbctl backend add")
    return None, 0


def _apply(server: Server, short: str, parameters: Parameters, backups: int, notes: Notes) -> None:
    if (weight := parameters.value("weight")) is not None:
        number = whole(weight, 0, 256)
        if number is None:
            notes.lost(server.place, f"{short} weight {weight}", "a weight is from 0 to 256", "1 is written; correct it")
        server.weight = 1 if number is None else number
    if (most := parameters.value("maxconn")) is not None and most != "0":
        place, shown = _where(parameters, "maxconn", short)
        server.max_connections = whole(most, 1) or 0
        why = "expected a number of connections"
        if server.max_connections:
            why = "HAProxy queues more connections, xlb gives them to other backends or refuses them"
        notes.changed(place, f"{shown} maxconn {most}", why, "set max_connections of the backend, higher if the queue was used")
    if parameters.has("backup"):
        server.priority = 1 if backups < 0 else min(255, 1 + backups)
    server.draining = parameters.has("disabled") and not parameters.has("enabled")
    known = (
        *(
            "weight",
            "maxconn",
            "backup",
            "disabled",
            "check",
            "check-ssl",
            "check-sni",
            "verify",
            "ca-file",
            "verifyhost",
            "ssl",
        ),
        *("inter", "downinter", "rise", "fall", "port", "addr", "slowstart", "on-marked-down"),
    )
    for name, (statement, value) in parameters.of.items():
        place, shown = _where(parameters, name, short)
        if name in LOST:
            notes.lost(place, f"{shown} {name} {value}".rstrip(), *LOST[name])
        elif name not in known and name not in IGNORED and name not in TLS:
            why = "xlb has nothing like it, or the word is misspelled"
            notes.lost(statement.place, f"{shown} {name} {value}".rstrip(), why, "nothing to do, if HAProxy ignores it too")


def _apply_to_farm(service: Service, short: str, parameters: Parameters, notes: Notes) -> None:
    """Parameters of a server that are settings of the farm: what one server has holds for all."""
    if (text := parameters.value("slowstart")) is not None:
        time = milliseconds(text)
        place, shown = _where(parameters, "slowstart", short)
        if time is None:
            notes.lost(place, f"{shown} slowstart {text}", "expected a time such as 60s", "set farm.slow_start_s")
        else:
            before = service.settings.get("slow_start_s", 0)
            assert isinstance(before, int)
            service.settings["slow_start_s"] = min(MAX_SLOW_START_S, max(before, ceil(time / 1000)))
    if (text := parameters.value("on-marked-down")) is not None:
        place, shown = _where(parameters, "on-marked-down", short)
        if text == "shutdown-sessions":
            service.settings["on_backend_down"] = "reset"
        else:
            why = 'expected "shutdown-sessions"'
            notes.lost(place, f"{shown} on-marked-down {text}", why, "set farm.on_backend_down")


def _where(parameters: Parameters, name: str, short: str) -> tuple[Place, str]:
    """The place of a parameter, and how a finding begins: one of default-server is named once."""
    statement = parameters.of[name][0]
    return statement.place, statement.words[0] if statement.words[0] == "default-server" else short


# --- checks -----------------------------------------------------------------------------------------------------------------


def _check(section: Section, parameters: Parameters, notes: Notes) -> Settings:
    check: Settings = {"kind": "tcp", "interval_ms": 2000, "rise": 2, "fall": 3}
    http = section.last("option httpchk")
    if http is not None:
        check["kind"] = "https" if parameters.has("check-ssl") else "http"
        _http(http, section, check, notes)
        if check["kind"] == "https":
            _tls(parameters, check)
    else:
        for name, what in DIALOGUES.items():
            if (found := section.last(f"option {name}")) is not None and not (name == "tcp-check" and not _dialogue(section)):
                why = f"xlb has no {what} check: a server whose TCP port answers counts as up"
                notes.changed(found.place, found.text, why, "for a dialogue use a program: farm.health.kind = command")
        for each in _dialogue(section):
            notes.lost(each.place, each.text, "a check of kind tcp sends and expects nothing", HEADER_REMEDY)
        if parameters.has("check-ssl"):
            where, shown = _where(parameters, "check-ssl", "check")
            why = "a check of kind tcp does not speak TLS: the TCP port is checked"
            notes.changed(where, f"{shown} check-ssl", why, "use kind https if the server answers HTTP")
    _timing(section, parameters, check, notes)
    return check


def _dialogue(section: Section) -> list[Statement]:
    return [
        each for each in section.all() if each.name == "tcp-check" and each.word(1) not in ("connect", "comment", "set-var")
    ]


def _timing(section: Section, parameters: Parameters, check: Settings, notes: Notes) -> None:
    def time(name: str) -> int | None:
        text = parameters.value(name)
        if text is None:
            return None
        value = milliseconds(text)
        if value is None:
            notes.lost(
                parameters.of[name][0].place, f"{name} {text}", "expected a time such as 2s", f"see farm.health for {name}"
            )
        return value

    interval = max(10, min(3_600_000, time("inter") or 2000))
    statement = section.last("timeout check")
    limit = milliseconds(statement.word(2)) if statement is not None else None
    if statement is not None and limit is None:
        notes.lost(statement.place, statement.text, "expected a time such as 3s", "set farm.health.timeout_ms")
    check["interval_ms"], check["timeout_ms"] = interval, max(1, min(interval, limit or interval))
    for name in ("rise", "fall"):
        if (text := parameters.value(name)) is not None:
            number = whole(text, 1, 100)
            if number is None:
                notes.lost(parameters.of[name][0].place, f"{name} {text}", f"farm.health.{name} is from 1 to 100", "set it")
            else:
                check[name] = number
    if (down := time("downinter")) is not None:
        if down >= interval:
            check["interval_down_ms"] = min(down, 3_600_000)
        else:
            place = parameters.of["downinter"][0].place
            why = f"interval_down_ms is at least interval_ms ({interval})"
            notes.lost(place, f"downinter {parameters.value('downinter')}", why, "shorten interval_ms instead")
    _target(section, parameters, check, notes)


def _target(section: Section, parameters: Parameters, check: Settings, notes: Notes) -> None:
    """Where a check connects to, if not to the server's own address and port."""
    for each in section.all():
        if each.name == "tcp-check" and each.word(1) == "connect":
            pairs = dict(itertools.pairwise(each.words))
            if (port := port_number(pairs.get("port", ""))) is not None:
                check["port"] = port
            elif len(each.words) > 2:
                why = "a check of kind tcp connects to a port, and nothing else"
                notes.lost(each.place, each.text, why, "set farm.health.port")
    if (text := parameters.value("port")) is not None:
        if (port := port_number(text)) is not None:
            check["port"] = port
        else:
            where = parameters.of["port"][0].place
            notes.lost(where, f"port {text}", "expected a port from 1 to 65535", "set farm.health.port")
    if (text := parameters.value("addr")) is not None:
        if (address := host_address(text)) is not None:
            check["address"] = address
        else:
            notes.lost(parameters.of["addr"][0].place, f"addr {text}", "expected an address", "set farm.health.address")


def _tls(parameters: Parameters, check: Settings) -> None:
    if name := parameters.value("check-sni"):
        check["sni"] = name
    if parameters.value("verify") == "required":
        check["verify"] = True
        if (path := parameters.value("ca-file")) and path.startswith("/"):
            check["ca_file"] = path


def _http(statement: Statement, section: Section, check: Settings, notes: Notes) -> None:
    words = list(statement.words[2:])
    method = "OPTIONS"
    if words and not words[0].startswith("/"):
        method = words.pop(0)
    if words:
        check["path"] = words.pop(0)
    _version, *headers = re.split(r"\r?\n", " ".join(words))
    for header in headers:
        if found := re.fullmatch(r"\s*host:\s*(\S+)\s*", header, re.IGNORECASE):
            check["host"] = found[1]
        elif header.strip() and not re.match(r"\s*(connection|user-agent|accept):", header, re.IGNORECASE):
            notes.lost(statement.place, statement.text, f"a check sends no header {header.strip()[:40]}", HEADER_REMEDY)
    sender = statement
    for each in (each for each in section.all() if each.name == "http-check"):
        if each.word(1) == "send":
            method, sender = _http_send(each, method, check, notes), each
        elif each.word(1) == "expect":
            _http_expect(each, check, notes)
        elif each.word(1) == "connect":
            _http_connect(each, check)
        elif each.word(1) != "disable-on-404":
            why = "a check of xlb is one request and its answer"
            notes.lost(each.place, each.text, why, "use a program: farm.health.kind = command")
        else:
            notes.lost(each.place, each.text, "a backend that answers 404 is not drained", "drain it with xlbctl backend drain")
    if method.upper() != "GET":
        why = f"xlb asks with GET, HAProxy with {method[:20]}"
        notes.changed(sender.place, sender.text, why, "see that the servers answer GET with the same status")
    path = str(check.get("path", "/"))
    if not path.startswith("/"):
        check["path"] = "/"
        notes.lost(statement.place, statement.text, 'a path begins with "/"', "set farm.health.path")


def _http_send(each: Statement, method: str, check: Settings, notes: Notes) -> str:
    words = list(each.words[2:])
    while words:
        name = words.pop(0)
        if name == "meth" and words:
            method = words.pop(0)
        elif name == "uri" and words:
            check["path"] = words.pop(0)
        elif name == "hdr" and len(words) > 1:
            header, value = words.pop(0), words.pop(0)
            if header.lower() == "host":
                check["host"] = value
            else:
                notes.lost(each.place, each.text, f"a check sends no header {header[:40]}", HEADER_REMEDY)
        elif name == "ver" and words:
            words.pop(0)
        elif name != "comment":
            notes.lost(each.place, each.text, f"a check of xlb has no {name[:40]}", HEADER_REMEDY)
            break
    return method


def _http_connect(each: Statement, check: Settings) -> None:
    words = each.words[2:]
    pairs = dict(itertools.pairwise(words))
    if (port := port_number(pairs.get("port", ""))) is not None:
        check["port"] = port
    if "ssl" in words:
        check["kind"] = "https"
        if name := pairs.get("sni"):
            check["sni"] = name


def _http_expect(each: Statement, check: Settings, notes: Notes) -> None:
    words = list(each.words[2:])
    while words and words[0] in ("min-recv", "comment", "ok-status", "error-status", "tout-status", "on-success", "on-error"):
        words = words[2:]
    match, pattern = (words[0], " ".join(words[1:])) if len(words) > 1 else ("", "")
    codes = [re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", part) for part in pattern.split(",")]
    if match == "status" and all(codes):
        bounds = [(int(found[1]), int(found[2] or found[1])) for found in codes if found]
        low, high = min(first for first, _ in bounds), max(last for _, last in bounds)
        check["status"] = str(low) if low == high else f"{low}-{high}"
        if len(bounds) > 1:
            why = f"farm.health.status is one range: {check['status']} accepts what lies between as well"
            notes.changed(each.place, each.text, why, "narrow the range if that matters")
    elif match == "rstatus" and (found := re.fullmatch(r"\^?([1-5])(\.\.|\[0-9\]\{2\}|\d\d)?\$?", pattern)):
        check["status"] = f"{found[1]}00-{found[1]}99" if not (found[2] or "").isdigit() else found[1] + found[2]
    elif match == "rstatus" and (
        found := re.fullmatch(r"[(^]*\[?([1-5])[|-]?([1-5])\]?[)]*(?:\.\.|\[0-9\]\[0-9\]|\[0-9\]\{2\})\$?", pattern)
    ):
        check["status"] = f"{found[1]}00-{found[2]}99"
    elif match == "string" and _PLAIN_TEXT.fullmatch(pattern):
        check["text"] = pattern
    else:
        why = "xlb compares the status with a range, and looks for a text in the body"
        notes.lost(each.place, each.text, why, "set farm.health.status or farm.health.text")
