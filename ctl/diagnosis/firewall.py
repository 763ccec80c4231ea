"""Whether a rule set of other software drops what xlb leaves to the kernel to forward. Pure.

The program forwards by itself; the kernel gets, already rewritten, the packets whose next hop is unresolved and those that must
be fragmented. A chain of the forward hook that drops them makes connections fail now and then, which is hard to find.

The rules are followed for a new packet from each data interface to each. Known conditions are the interfaces and the state
of connection tracking; a rule with any other condition may or may not match. So the outcome is accept, drop, or "perhaps": the
packet is dropped unless a rule with a condition that is not known accepts it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from ctl.diagnosis.finding import Finding, Severity, ok

MAX_DEPTH = 16  # of jumps, as in the kernel (NFT_JUMP_STACK_SIZE)
MAX_INTERFACES = 8
_STATES_OF_A_NEW_PACKET = frozenset({"new", "untracked", "invalid"})
NAME = "firewall"
WHY = "xlb leaves packets to the kernel whose next hop is unresolved or that must be fragmented"


class Verdict(Enum):
    """What a rule does with a packet that it matches."""

    ACCEPT = "accept"
    DROP = "drop"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Match:
    """One condition. key: "in" or "out" (interface; names may end with *), "never" (not of a new packet) or "other"."""

    key: str
    names: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, and the verdict where all of them hold."""

    matches: tuple[Match, ...]
    verdict: Verdict
    target: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """A chain of the forward hook. label: its name for people; fix: a command that lets packets pass from %(in)s to %(out)s."""

    label: str
    families: frozenset[int]
    chain: str
    policy: Verdict
    fix: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What one source has: hooks, and the rules of their chains and of those they jump to. unknown: why it cannot be told."""

    hooks: tuple[Hook, ...] = ()
    chains: Mapping[str, Sequence[Rule]] | None = None
    unknown: str = ""
    remedy: str = ""


def examine(sources: Iterable[Rules], interfaces: Sequence[str], families: frozenset[int]) -> Iterator[Finding]:
    """families: of the addresses that are balanced."""
    found = False
    names = interfaces[:MAX_INTERFACES]
    pairs = [(source, to) for source in names for to in names if source != to or len(names) == 1]
    for source in sources:
        if source.unknown:
            found = True
            yield Finding(
                NAME, Severity.INFO, f"cannot tell whether forwarded packets are dropped: {source.unknown}", source.remedy
            )
        for hook in source.hooks:
            if not hook.families & families:
                continue
            lost = {pair: outcome for pair in pairs if (outcome := _outcome(source.chains or {}, hook, *pair)) != "accept"}
            if lost:
                found = True
                yield _finding(hook, lost)
    if not found:
        yield ok(NAME, "no rule set is known to drop what the kernel forwards between the data interfaces")


def _finding(hook: Hook, lost: Mapping[tuple[str, str], str]) -> Finding:
    source, to = next(iter(lost))
    ways = f"from {source} to {to}" + (f" and on {len(lost) - 1} more ways" if len(lost) > 1 else "")
    remedy = f"accept them before: {hook.fix % {'in': source, 'out': to}}"
    if "drop" in lost.values():
        return Finding(NAME, Severity.FAIL, f"{hook.label} drops forwarded packets {ways}; {WHY}", remedy)
    message = f"{hook.label} drops forwarded packets {ways} unless a rule with further conditions accepts them; {WHY}"
    return Finding(NAME, Severity.WARN, message, remedy)


def _outcome(chains: Mapping[str, Sequence[Rule]], hook: Hook, source: str, to: str) -> str:
    """ "accept", "drop" or "perhaps"."""
    verdict, perhaps = _walk(chains, hook.chain, source, to, 0)
    if verdict is Verdict.NONE:
        verdict = hook.policy
    if verdict is not Verdict.DROP:
        return "accept"
    return "perhaps" if perhaps else "drop"


def _walk(chains: Mapping[str, Sequence[Rule]], name: str, source: str, to: str, depth: int) -> tuple[Verdict, bool]:
    """The verdict of a chain (NONE: it returns), and whether a rule that may match would have accepted."""
    perhaps = False
    if depth > MAX_DEPTH or name not in chains:
        return Verdict.NONE, depth > 0
    for rule in chains[name]:
        holds = _holds(rule, source, to)
        if holds is False:
            continue
        verdict = rule.verdict
        if verdict in (Verdict.JUMP, Verdict.GOTO):
            inner, maybe = _walk(chains, rule.target, source, to, depth + 1)
            perhaps |= maybe or (holds is None and inner is Verdict.ACCEPT)
            if holds and (inner is not Verdict.NONE or verdict is Verdict.GOTO):
                return inner, perhaps
        elif holds and verdict is Verdict.RETURN:
            return Verdict.NONE, perhaps
        elif holds and verdict is not Verdict.NONE:
            return verdict, perhaps
        elif verdict is Verdict.ACCEPT:
            perhaps = True
    return Verdict.NONE, perhaps


def _holds(rule: Rule, source: str, to: str) -> bool | None:
    """Whether a new packet between these interfaces matches; None: it depends on what is not known."""
    outcomes = [_match_holds(match, source, to) for match in rule.matches]
    if False in outcomes:
        return False
    return None if None in outcomes else True


def _match_holds(match: Match, source: str, to: str) -> bool | None:
    if match.key == "never":
        return False
    if match.key not in ("in", "out"):
        return None
    device = source if match.key == "in" else to
    return any(fnmatchcase(device, name) for name in match.names) is not match.negated


# --- nft -j ----------------------------------------------------------------------------------------------------------

_NFT_FAMILIES = {"ip": frozenset({4}), "ip6": frozenset({6}), "inet": frozenset({4, 6})}


def nft_hooks(document: Mapping[str, Any]) -> list[tuple[str, str, Hook]]:
    """Family, table and hook of each chain of the forward hook in `nft -j list chains`."""
    found = []
    for chain in _objects(document, "chain"):
        family, table, name = (str(chain.get(key, "")) for key in ("family", "table", "name"))
        if chain.get("hook") != "forward" or family not in _NFT_FAMILIES or chain.get("type") not in ("filter", None):
            continue
        policy = Verdict.DROP if chain.get("policy") == "drop" else Verdict.ACCEPT
        # The table of iptables-nft: nft should not change it.
        if (table, name) == ("filter", "FORWARD") and family != "inet":
            fix = f"{'iptables' if family == 'ip' else 'ip6tables'} -I FORWARD -i %(in)s -o %(out)s -j ACCEPT"
            label = f"{'iptables' if family == 'ip' else 'ip6tables'} (nf_tables) chain FORWARD"
        else:
            fix = f"nft insert rule {family} {table} {name} iifname %(in)s oifname %(out)s accept"
            label = f"nft chain {family} {table} {name}"
        found.append((family, table, Hook(label, _NFT_FAMILIES[family], name, policy, fix)))
    return found


def nft_rules(document: Mapping[str, Any]) -> list[Rule]:
    """The rules of `nft -j list chain …`, in their order."""
    return [_nft_rule(rule.get("expr", ())) for rule in _objects(document, "rule")]


def _objects(document: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    listed = document.get("nftables", ())
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get(kind), dict):
            yield each[kind]


def _nft_rule(expressions: Iterable[Any]) -> Rule:
    matches: list[Match] = []
    verdict, target = Verdict.NONE, ""
    for expression in expressions:
        if not isinstance(expression, dict) or not expression:
            continue
        kind, value = next(iter(expression.items()))
        if kind == "match":
            matches.append(_nft_match(value))
        elif kind == "xt":
            matches_too, verdict = _nft_xt(value, verdict)
            matches += matches_too
        elif kind in ("accept", "drop", "return"):
            verdict = Verdict(kind)
        elif kind == "reject":
            verdict = Verdict.DROP
        elif kind in ("jump", "goto"):
            verdict, target = Verdict(kind), str(value.get("target", ""))
        elif kind in ("limit", "vmap", "quota", "ct count"):
            matches.append(Match("other"))
    return Rule(tuple(matches), verdict, target)


def _nft_match(value: Any) -> Match:
    left, right = value.get("left", {}), value.get("right")
    negated = value.get("op") == "!="
    key = (left.get("meta") or {}).get("key") if isinstance(left, dict) else None
    if key in ("iifname", "oifname", "iif", "oif"):
        return Match("in" if key.startswith("i") else "out", _names(right), negated)
    if isinstance(left, dict) and (left.get("ct") or {}).get("key") == "state" and not negated:
        return Match("other" if _STATES_OF_A_NEW_PACKET & set(_names(right)) else "never")
    return Match("other")


def _names(right: Any) -> tuple[str, ...]:
    if isinstance(right, dict):
        right = right.get("set", ())
    return tuple(map(str, right)) if isinstance(right, list) else (str(right),)


def _nft_xt(value: Any, verdict: Verdict) -> tuple[list[Match], Verdict]:
    """An extension of iptables, of which nft shows only the name."""
    name = str(value.get("name", ""))
    if value.get("type") == "target":
        return [], Verdict.DROP if name in ("REJECT", "DROP") else verdict
    if name == "comment":
        return [], verdict
    # Rules of iptables test the state nearly always for "RELATED,ESTABLISHED".
    return [Match("never" if name in ("conntrack", "state") else "other")], verdict


# --- iptables -S -----------------------------------------------------------------------------------------------------

_TARGETS = {"ACCEPT": Verdict.ACCEPT, "DROP": Verdict.DROP, "REJECT": Verdict.DROP, "RETURN": Verdict.RETURN}
_NO_VERDICT = frozenset({"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TRACE", "TCPMSS", "CT", "SET", "CLASSIFY", "DSCP", "TOS"})
_POLICY = re.compile(r"-P FORWARD (\w+)")


def iptables(command: str, family: int, listing: str) -> Rules:
    """The filter table as `iptables -S` prints it."""
    policy, chains = Verdict.ACCEPT, dict[str, list[Rule]]()
    for line in listing.splitlines():
        if found := _POLICY.fullmatch(line.strip()):
            policy = _TARGETS.get(found[1], Verdict.ACCEPT)
        elif line.startswith("-A "):
            name, rule = _iptables_rule(line)
            chains.setdefault(name, []).append(rule)
        elif line.startswith("-N "):
            chains.setdefault(line.split()[1], [])
    fix = f"{command} -I FORWARD -i %(in)s -o %(out)s -j ACCEPT"
    chains.setdefault("FORWARD", [])
    return Rules((Hook(f"{command} chain FORWARD", frozenset({family}), "FORWARD", policy, fix),), chains)


def _iptables_rule(line: str) -> tuple[str, Rule]:
    words = shlex.split(line)
    name, matches, verdict, target, negated = words[1], list[Match](), Verdict.NONE, "", False
    index = 2
    while index < len(words):
        word, value = words[index], words[index + 1] if index + 1 < len(words) else ""
        if word == "!":
            negated = True
            index += 1
            continue
        if word in ("-i", "-o"):
            device = value[:-1] + "*" if value.endswith("+") else value
            matches.append(Match("in" if word == "-i" else "out", (device,), negated))
        elif word in ("--ctstate", "--state"):
            states = {state.lower() for state in value.split(",")}
            matches.append(Match("other" if negated or states & _STATES_OF_A_NEW_PACKET else "never"))
        elif word in ("-j", "-g"):
            verdict, target = _iptables_target(word, value)
            break  # what follows are options of the target
        elif word == "-m" and value in ("conntrack", "state", "comment"):
            pass
        elif word != "--comment":
            matches.append(Match("other"))
        negated = False
        index += 2
    return name, Rule(tuple(matches), verdict, target)


def _iptables_target(word: str, value: str) -> tuple[Verdict, str]:
    if value in _TARGETS:
        return _TARGETS[value], ""
    if value in _NO_VERDICT:
        return Verdict.NONE, ""
    return (Verdict.GOTO if word == "-g" else Verdict.JUMP), value
