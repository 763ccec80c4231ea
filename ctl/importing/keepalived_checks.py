"""The checkers of keepalived's real servers as the check of a farm.

Source: keepalived.conf(5), "Virtual server(s)". Must not know how servers make a farm.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from ctl.config.model import QueryType
from ctl.importing.form import Notes, Server, Settings, host_address, port_number, whole
from ctl.importing.keepalived_syntax import Statement

CHECKERS: Mapping[str, str] = {
    "HTTP_GET": "http",
    "SSL_GET": "https",
    "DNS_CHECK": "dns",
    "MISC_CHECK": "command",
    "UDP_CHECK": "udp",
    "SMTP_CHECK": "tcp",
    "TCP_CHECK": "tcp",
    "PING_CHECK": "icmp",
    "BFD_CHECK": "",
    "FILE_CHECK": "",
}
"""The most thorough first: of several checkers of a server the first of this order is carried over."""
TIMING = (
    "delay_loop",
    "connect_timeout",
    "retry",
    "nb_get_retry",
    "delay_before_retry",
    "warmup",
    "alpha",
    "inhibit_on_failure",
)
"""Settings of a virtual server that its real servers inherit, and those of a real server that its checkers inherit."""
IGNORED = ("warmup", "alpha", "fast_recovery", "http_protocol", "log_all_failures", "inhibit_on_failure", "tls_compliant")
DEFAULT_INTERVAL_S, DEFAULT_TIMEOUT_S, DEFAULT_RETRIES = 60, 5, 1
DEFAULT_RETRY_DELAYS_S: Mapping[str, int] = {"HTTP_GET": 3, "SSL_GET": 3}
RETRIES: Mapping[str, int] = {"DNS_CHECK": 3, "MISC_CHECK": 0}
MAX_INTERVAL_MS = 3_600_000
MAX_FALL = 100
_PLAIN_TEXT = re.compile(r"[^\\^$.|?*+()\[\]{}\x00-\x1f\x7f]{1,1024}")


@dataclass(slots=True)
class Inherited:
    """Settings with the statement that has them, innermost last."""

    of: dict[str, Statement] = field(default_factory=dict)

    def within(self, block: list[Statement] | None, names: tuple[str, ...] = (*TIMING, "virtualhost")) -> Inherited:
        """With those that a block sets."""
        return Inherited(self.of | {each.key: each for each in block or [] if each.key in names})

    def value(self, name: str) -> str | None:
        found = self.of.get(name)
        return found.value() if found else None


def make_check(of: Server, server: list[Statement], inherited: Inherited, notes: Notes) -> Settings | None:
    """The check of a real server; None: it has no checker, or none that xlb has."""
    inherited = inherited.within(server)
    found = sorted((each for each in server if each.key in CHECKERS), key=lambda each: list(CHECKERS).index(each.key))
    made: Settings | None = None
    for checker in found:
        if made is not None:
            why = "a farm of xlb has one check, and the server has a more thorough checker"
            notes.lost(checker.place, checker.text, why, "choose the check with farm.health")
            continue
        made = _one_check(checker, inherited.within(checker.block), notes)
    for name, own in (("address", of.address), ("port", of.port)):
        if made is not None and made.get(name) == own:
            made.pop(name, None)  # it is that of each backend by itself
    return made


def _one_check(checker: Statement, inherited: Inherited, notes: Notes) -> Settings | None:
    kind = CHECKERS[checker.key]
    block = checker.block or []
    if not kind:
        why = f"xlb has no check like {checker.key}"
        notes.lost(checker.place, checker.text, why, "use a check of kind tcp, http or command (farm.health)")
        return None
    check: Settings = {"kind": kind, "rise": 1}
    if checker.key == "SMTP_CHECK":
        why = "xlb has no SMTP check: the TCP port is checked"
        notes.changed(checker.place, checker.text, why, "for a dialogue use kind command, for example with check_smtp")
    _timing(checker, check, inherited, notes)
    own = {"HTTP_GET": _http, "SSL_GET": _http, "DNS_CHECK": _dns, "MISC_CHECK": _misc, "UDP_CHECK": _udp}.get(checker.key)
    rest = [each for each in block if not _connection(each, check, notes)]
    if own is not None:
        rest = own(rest, check, notes)
        if kind in ("http", "https") and "host" not in check and (host := inherited.value("virtualhost")):
            check["host"] = host
    hosts = 0
    for each in rest:
        if checker.key == "SMTP_CHECK" and each.key == "host" and each.block is not None:
            hosts += 1
            for inner in each.block if hosts == 1 else ():
                if not _connection(inner, check, notes):
                    notes.lost(inner.place, inner.text, "a check of kind tcp has no such setting", "see farm.health")
            if hosts > 1:
                notes.lost(
                    each.place, each.text, "a check of xlb asks one address, the first", "choose it with farm.health.address"
                )
        elif each.key not in TIMING and each.key not in IGNORED:
            why = f"a check of kind {kind} has no such setting"
            notes.lost(each.place, each.text, why, "see farm.health in docs/farms-file.md")
    if kind == "command" and "command" not in check:
        return None
    if kind == "https" and check.pop("enable_sni", False) and "sni" not in check and "host" in check:
        check["sni"] = check["host"]
    return check


def seconds(text: str | None) -> float | None:
    """A time in seconds, such as 2 or 0.5."""
    if text is None or not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", text):
        return None
    return float(text)


def _timing(checker: Statement, check: Settings, inherited: Inherited, notes: Notes) -> None:
    """delay_loop is from one check to the next, connect_timeout the limit of one, retry the checks after the first failure.

    A server that fails for as long as keepalived repeats the check is down in xlb, too, and not before.
    """

    def number(name: str, default: float) -> float:
        found = inherited.of.get(name)
        value = seconds(found.value()) if found else default
        if value is None and found:
            notes.lost(found.place, found.text, "expected a number of seconds", f"set {name} and import again")
        return default if value is None else value

    interval = max(10, min(MAX_INTERVAL_MS, round(1000 * number("delay_loop", DEFAULT_INTERVAL_S))))
    timeout = max(1, round(1000 * number("connect_timeout", DEFAULT_TIMEOUT_S)))
    name = "nb_get_retry" if "nb_get_retry" in inherited.of and "retry" not in inherited.of else "retry"
    check["interval_ms"], check["timeout_ms"] = interval, min(timeout, interval)
    default_delay = interval / 1000 if checker.key == "DNS_CHECK" else DEFAULT_RETRY_DELAYS_S.get(checker.key, 1)
    retries = int(number(name, RETRIES.get(checker.key, DEFAULT_RETRIES)))
    failing_ms = 1000 * retries * number("delay_before_retry", default_delay)
    fall = max(1, min(MAX_FALL, 1 + ceil(failing_ms / interval)))
    check["fall"] = fall
    between = inherited.of.get("delay_before_retry")
    if between and retries and fall != retries + 1:
        why = f"xlb repeats a failed check after interval_ms ({interval}): {fall} failures (fall) take at least as long"
        notes.changed(between.place, between.text, why, "lower interval_ms to find a dead server sooner")


def _connection(each: Statement, check: Settings, notes: Notes) -> bool:
    """Whether a statement is one of those that all checkers have."""
    if each.key == "connect_port":
        port = port_number(each.value())
        if port is None:
            notes.lost(each.place, each.text, "expected a port from 1 to 65535", "set farm.health.port")
        else:
            check["port"] = port
    elif each.key == "connect_ip":
        address = host_address(each.value())
        if address is None:
            notes.lost(each.place, each.text, "expected an address", "set farm.health.address")
        else:
            check["address"] = address
            if len(each.words) > 2 and (port := port_number(each.words[2])):
                check["port"] = port
    elif each.key in ("bindto", "bind_port", "bind_if", "fwmark"):
        why = "xlb chooses the source of checks by the routes"
        notes.lost(each.place, each.text, why, "allow the addresses of both nodes on the servers")
    else:
        return False
    return True


def _http(rest: list[Statement], check: Settings, notes: Notes) -> list[Statement]:
    left, seen = [], False
    check["status"] = "200-299"
    for each in rest:
        if each.key == "url" and each.block is not None and not seen:
            seen = True
            _url(each.block, check, notes)
        elif each.key == "url":
            notes.lost(each.place, each.text, "a check of xlb asks for one URL, the first", "choose it with farm.health.path")
        elif each.key == "enable_sni":
            check["enable_sni"] = True
        elif each.key == "sni_name":
            check["sni"] = each.value()
        elif each.key == "virtualhost":
            check["host"] = each.value()
        else:
            left.append(each)
    return left


def _url(block: list[Statement], check: Settings, notes: Notes) -> None:
    for each in block:
        if each.key == "path" and each.value().startswith("/"):
            check["path"] = each.value()
        elif each.key == "path":
            notes.lost(each.place, each.text, 'a path begins with "/"', "set farm.health.path")
        elif each.key == "virtualhost":
            check["host"] = each.value()
        elif each.key == "status_code":
            _status(each, check, notes)
        elif each.key == "digest":
            why = "xlb does not compare a digest of the page"
            notes.lost(each.place, each.text, why, "set farm.health.text to a text that the page has")
        elif each.key == "regex" and _PLAIN_TEXT.fullmatch(each.value()):
            check["text"] = each.value()
        elif each.key not in IGNORED:
            why = "xlb looks for a text, not for a regular expression"
            notes.lost(each.place, each.text, why, "set farm.health.text to a text that the page has")


def _status(each: Statement, check: Settings, notes: Notes) -> None:
    ranges = [re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", word) for word in each.rest]
    codes = [(int(found[1]), int(found[2] or found[1])) for found in ranges if found]
    if not codes or len(codes) < len(ranges):
        notes.lost(each.place, each.text, "expected statuses such as 200 or 200-299", "set farm.health.status")
        return
    low, high = min(code for code, _ in codes), max(code for _, code in codes)
    check["status"] = str(low) if low == high else f"{low}-{high}"
    if len(codes) > 1:
        why = f"farm.health.status is one range: {check['status']} accepts what lies between as well"
        notes.changed(each.place, each.text, why, "narrow the range if that matters")


def _dns(rest: list[Statement], check: Settings, notes: Notes) -> list[Statement]:
    check |= {"query": ".", "query_type": "SOA"}
    left = []
    for each in rest:
        if each.key == "name":
            check["query"] = each.value(".")
        elif each.key == "type" and each.value().upper() in set(QueryType):
            check["query_type"] = each.value().upper()
        else:
            left.append(each)
    return left


def _misc(rest: list[Statement], check: Settings, notes: Notes) -> list[Statement]:
    left = []
    for each in rest:
        if each.key == "misc_path":
            try:
                words = shlex.split(each.value())
            except ValueError:
                words = []
            if words and words[0].startswith("/"):
                check["command"] = words
            else:
                why = "a command is an absolute path and its arguments"
                notes.lost(each.place, each.text, why, "set farm.health.command")
        elif each.key == "misc_timeout" and (limit := whole(each.value(), 1, 3600)):
            check["timeout_ms"] = min(1000 * limit, int(str(check["interval_ms"])))
        elif each.key == "misc_dynamic":
            notes.lost(each.place, each.text, "a check of xlb does not set weights", "set them with xlbctl backend set")
        elif each.key == "user":
            why = "all commands of checks run as one user"
            notes.lost(each.place, each.text, why, "name the user in the node file: [checks] command_user")
        else:
            left.append(each)
    return left


def _udp(rest: list[Statement], check: Settings, notes: Notes) -> list[Statement]:
    left = []
    for each in rest:
        key = {"payload": "payload", "require_reply": "answer"}.get(each.key)
        if key is None:
            left.append(each)
            continue
        pairs = [word.zfill(len(word) + len(word) % 2) for word in each.rest]
        text = "".join(pairs).lower()
        if text and re.fullmatch(r"([0-9a-f]{2}){1,1024}", text):
            check[key] = f"hex:{text}"
        else:
            why = "any answer of a server that is up is right" if not text else "xlb compares whole bytes"
            notes.lost(each.place, each.text, why, f'set farm.health.{key} to a text or to "hex:…"')
    return left
