"""Rules of haproxy.cfg about clients: ACLs of source addresses as prefix lists, rates as limits, stick tables as persistence.

Source: HAProxy's configuration manual, sections 4.2 and 7. Must not know servers and listeners.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import ceil

from ctl.importing.form import Imported, Notes, Service, Source, as_name, mask_length, persistence, persistence_prefix, whole
from ctl.importing.haproxy_syntax import Section, Statement, milliseconds

LIST_REMEDY = "put the addresses into a list: xlbctl prefixes set {name} -f FILE"
NO_ACL = "xlb decides by the client's address only"
NO_ACL_REMEDY = "leave this rule to HAProxy behind xlb"
RATES = ("src_conn_rate", "sc0_conn_rate", "sc1_conn_rate", "sc2_conn_rate", "sc_conn_rate", "src_http_req_rate")


@dataclass(slots=True)
class Acl:
    """An ACL of source addresses: prefixes, or the reason why it is none."""

    statement: Statement
    prefixes: list[str] = field(default_factory=list)
    why: str = ""
    rate: int = 0
    used: bool = False


@dataclass(slots=True)
class _Clients:
    """Who a farm serves. allow None: everybody; closed: no rule after this one is reached."""

    allow: list[str] | None = None
    deny: list[str] = field(default_factory=list)
    closed: bool = False

    def only(self, prefixes: list[str]) -> None:
        self.allow = [*(self.allow or []), *prefixes]


def read_rules(section: Section, service: Service, out: Imported, source: Source, used: Collection[str]) -> None:
    """The rules of a frontend or listen section, in their order. source: reads the files of addresses. used: ACLs of others."""
    notes = out.notes
    acls = _acls(section, source)
    clients = _Clients()
    for each in section.all():
        if each.name == "acl":
            continue
        if each.name.startswith("stick"):
            _stick(each, section, service, notes)
        elif each.name == "tcp-request connection" and clients.closed:
            notes.lost(each.place, each.text, "a rule before it rejects all connections", "nothing to do")
        elif each.name == "tcp-request connection":
            _connection(each, section, source, acls, clients, service, notes)
        elif each.name.startswith(("tcp-request", "tcp-response")):
            notes.lost(each.place, each.text, "it is about the content of the connection", NO_ACL_REMEDY)
    for name, acl in acls.items():
        if not acl.used and name not in used:
            notes.lost(
                acl.statement.place, acl.statement.text, acl.why or "no rule that is carried over uses it", NO_ACL_REMEDY
            )
    if clients.allow is not None:
        service.settings["allow"] = _list(out, f"{service.name}-allow", clients.allow)
    if clients.deny:
        service.settings["deny"] = _list(out, f"{service.name}-deny", clients.deny)


def _list(out: Imported, name: str, prefixes: list[str]) -> str:
    base = as_name(name) or "clients"
    names = itertools.chain((base,), (f"{base}-{number}" for number in itertools.count(2)))
    key = next(each for each in names if out.prefixes.get(each, prefixes) == prefixes)
    out.prefixes[key] = prefixes
    return key


def _acls(section: Section, source: Source) -> dict[str, Acl]:
    found: dict[str, Acl] = {}
    for each in section.all():
        if each.name == "acl" and len(each.words) > 2:
            acl = _acl(each, each.words[2:], source)
            before = found.get(each.word(1))
            if before is None:
                found[each.word(1)] = acl
            else:  # several lines of one name: any of them may hold
                before.why = before.why or acl.why or (NO_ACL if before.rate or acl.rate else "")
                before.prefixes += acl.prefixes
    return found


def _acl(statement: Statement, words: tuple[str, ...], source: Source) -> Acl:
    criterion, *values = words
    acl = Acl(statement)
    if criterion.partition("(")[0] in RATES and len(values) == 2 and values[0] in ("gt", "ge"):
        acl.rate = whole(values[1], 1) or 0
    if criterion == "src":
        texts = list(_addresses(values, acl, source))
        acl.prefixes = [prefix for text in texts if (prefix := _prefix(text))]
        if not acl.why and (not texts or len(acl.prefixes) < len(texts)):
            acl.why = "it has something that is not an address"
    elif not acl.rate:
        acl.why = NO_ACL
    return acl


def _addresses(values: list[str], acl: Acl, source: Source) -> Iterator[str]:
    """The addresses of an ACL, also those in files (-f), without flags."""
    rest = list(values)
    while rest:
        word = rest.pop(0)
        if word == "-f" and rest:
            name = rest.pop(0)
            included = source.include(name, source.path)
            if included.problems or not included.sources:
                acl.why = f"the file {name[:80]} cannot be read"
            for each in included.sources:
                lines = (line.partition("#")[0].strip() for line in each.text.splitlines())
                yield from (line for line in lines if line)
        elif word not in ("-i", "-n", "--"):
            yield word


def _prefix(text: str) -> str:
    address, slash, length = text.partition("/")
    number = mask_length(length) if slash else None
    try:
        return str(ipaddress.ip_network(f"{address}/{number}" if slash else address, strict=False))
    except ValueError:
        return ""


def _connection(
    each: Statement,
    section: Section,
    source: Source,
    acls: dict[str, Acl],
    clients: _Clients,
    service: Service,
    notes: Notes,
) -> None:
    """Read one `tcp-request connection` rule."""
    words = list(each.words[2:])
    action = words.pop(0) if words else ""
    if action.startswith("track-sc") and words[:1] == ["src"]:
        return  # counts for the rates of other rules
    if action not in ("accept", "reject"):
        notes.lost(each.place, each.text, "xlb accepts or rejects connections, and nothing else", NO_ACL_REMEDY)
        return
    if not words:
        clients.closed = True
        if action == "reject":
            clients.only([])
        return
    if words[0] not in ("if", "unless"):
        notes.lost(each.place, each.text, "expected if or unless, and a condition", "correct it and import again")
        return
    condition = list(_terms(each, words, acls, source))
    acl, wanted = condition[0] if len(condition) == 1 else (Acl(each, why="xlb does not combine conditions"), True)
    for used, _ in condition:
        used.used = True
    # A client is served unless a rule rejects it: one that must hold is a list of the only clients.
    only = wanted == (action == "accept")
    matters = action == "reject" or _rejects_at_last(section)
    if acl.rate and action == "reject" and wanted:
        _rate(each, acl.rate, section, service, notes)
    elif not acl.why and acl.prefixes and matters and not (action == "accept" and not wanted):
        if not only:
            clients.deny += acl.prefixes
        elif action == "reject" and clients.allow is not None:
            notes.lost(each.place, each.text, "a farm has one list of its only clients", "set it with xlbctl prefixes set")
        else:
            clients.only(acl.prefixes)
    elif matters and only and "src" in each.text.split() + [word for used, _ in condition for word in used.statement.words]:
        clients.only([])
        name = as_name(f"{service.name}-allow")
        why = f"{acl.why or NO_ACL}: the list {name} of the farm's only clients lacks its addresses"
        notes.lost(each.place, each.text, why, LIST_REMEDY.format(name=name))
    else:
        why = acl.why or NO_ACL
        after = "; until then the farm serves clients that this rule rejects" if action == "reject" else ""
        remedy = LIST_REMEDY.format(name="NAME") + ", farm set --deny NAME" if "file" in why else NO_ACL_REMEDY
        notes.lost(each.place, each.text, why, remedy + after)


def _terms(each: Statement, words: list[str], acls: dict[str, Acl], source: Source) -> Iterator[tuple[Acl, bool]]:
    """(ACL, it must hold) of a condition; nothing that can be carried over for a condition of another form."""
    unless = words[0] == "unless"
    rest = words[1:]
    negated = False
    while rest:
        word = rest.pop(0)
        if word == "!":
            negated = True
            continue
        if word in ("or", "||"):
            yield Acl(each, why="xlb does not combine conditions"), True
            continue
        if word == "{":
            end = rest.index("}") if "}" in rest else len(rest)
            inner, rest = rest[:end], rest[end + 1 :]
            acl = _acl(each, tuple(inner), source) if inner else Acl(each, why=NO_ACL)
        else:
            negated = negated or word.startswith("!")
            acl = acls.get(word.removeprefix("!")) or Acl(each, why=NO_ACL)
        yield acl, negated == unless
        negated = False


def _rejects_at_last(section: Section) -> bool:
    rules = [each for each in section.all() if each.name == "tcp-request connection"]
    return bool(rules) and rules[-1].words[2:] == ("reject",)


def _rate(each: Statement, limit: int, section: Section, service: Service, notes: Notes) -> None:
    """A rate of connections per client over the period of the stick table."""
    period = 1000
    for table in section.all():
        if table.name.startswith("stick-table"):
            stored = " ".join(table.words).partition("conn_rate(")[2].partition(")")[0]
            period = milliseconds(stored) or period
    service.settings["max_rate"] = max(1, ceil(limit * 1000 / period))
    if period != 1000:
        why = f"max_rate is per second: {service.settings['max_rate']} instead of {limit} in {period / 1000:g} s"
        notes.changed(each.place, each.text, why, "check what clients need at once")


def _stick(each: Statement, section: Section, service: Service, notes: Notes) -> None:
    if each.words[0] == "stick-table":
        words = dict(itertools.pairwise(each.words))
        keeps = any(_by_source(other) for other in section.all())
        if not keeps:
            counted = any(rate in word for other in section.all() for word in other.words for rate in RATES)
            if not counted:
                notes.lost(each.place, each.text, "nothing that is carried over uses it", "nothing to do")
            return
        expire = milliseconds(words.get("expire", ""))
        if expire is None:
            why = "without expire it keeps a client until it is full"
            notes.changed(each.place, each.text, why, "86400 is written; set farm.persistence_s")
        persistence(service, max(1, ceil((expire or 86_400_000) / 1000)), each.place, each.text, notes)
        return
    expression = each.word(2)
    if _by_source(each):
        if "ipmask(" in expression:
            length = mask_length(expression.partition("ipmask(")[2].partition(")")[0].partition(",")[0])
            if length is not None:
                persistence_prefix(service, length, each.place, each.text, notes)
        elif "," in expression:
            why = "xlb keeps each client prefix, or client, at its backend"
            notes.changed(each.place, each.text, why, "set farm.persistence_prefix_v4 if clients are grouped")
    else:
        why = "xlb keeps a client at a backend by its address only"
        notes.lost(each.place, each.text, why, "use persistence_s if that is enough")


def _by_source(each: Statement) -> bool:
    """Whether a statement keeps each client at its server by the client's address."""
    words = ("on", "match", "store-request")
    is_source = each.word(2).partition(",")[0] == "src"
    return each.words[0] == "stick" and each.word(1) in words and is_source and not {"if", "unless"} & set(each.words)
