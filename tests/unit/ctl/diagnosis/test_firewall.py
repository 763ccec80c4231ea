"""Rule sets of other software, as nft and iptables print them, and what they do to packets that the kernel forwards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctl.diagnosis import firewall
from ctl.diagnosis.finding import Finding, Severity
from ctl.diagnosis.firewall import Rules

ACCEPT, DROP = {"accept": None}, {"drop": None}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
REJECT = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
ESTABLISHED = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
NEW = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": {"set": ["established", "new"]}}}
SOURCE = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.0.0.0"}}


def on(key: str, *names: str, op: str = "==") -> dict[str, Any]:
    right: Any = {"set": list(names)} if len(names) > 1 else names[0]
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def nft(
    policy: str, *rules: list[Any], family: str = "inet", table: str = "f", name: str = "fwd", **more: list[list[Any]]
) -> Rules:
    """One base chain of the forward hook with these rules, and chains that it jumps to; through JSON, as from nft."""
    meta = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}
    chain = {
        "family": family,
        "table": table,
        "name": name,
        "handle": 1,
        "type": "filter",
        "hook": "forward",
        "prio": 0,
        "policy": policy,
    }
    other = {"family": family, "table": table, "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}
    ((_, _, hook),) = firewall.nft_hooks(json.loads(json.dumps({"nftables": [meta, {"chain": chain}, {"chain": other}]})))
    chains = {name: list(rules)} | more
    return Rules(
        (hook,),
        {
            each: firewall.nft_rules({"nftables": [meta, *({"rule": {"chain": each, "expr": expr}} for expr in body)]})
            for each, body in chains.items()
        },
    )


def judged(source: Rules, interfaces: tuple[str, ...] = ("eth0", "eth1"), families: frozenset[int] = frozenset({4})) -> Finding:
    (found,) = firewall.examine([source], interfaces, families)
    return found


@pytest.mark.parametrize(
    ("source", "severity"),
    [
        (nft("accept"), Severity.OK),
        (nft("drop"), Severity.FAIL),
        (nft("drop", [ESTABLISHED, ACCEPT], [on("iifname", "docker0"), ACCEPT]), Severity.FAIL),
        (nft("accept", [on("iifname", "docker0"), ACCEPT], [COUNTER, REJECT]), Severity.FAIL),
        (nft("accept", [ACCEPT], [DROP]), Severity.OK),
        (nft("drop", [on("iifname", "eth0", "eth1"), on("oifname", "eth0", "eth1"), ACCEPT]), Severity.OK),
        (nft("drop", [on("iifname", "eth0"), on("oifname", "eth1"), ACCEPT]), Severity.FAIL),
        (nft("drop", [on("iifname", "eth*"), ACCEPT]), Severity.OK),
        (nft("drop", [on("iifname", "docker0", op="!="), ACCEPT]), Severity.OK),
        (nft("drop", [SOURCE, ACCEPT]), Severity.WARN),
        (nft("drop", [NEW, ACCEPT]), Severity.WARN),
        (nft("accept", [SOURCE, DROP]), Severity.OK),
        (
            nft("drop", [{"jump": {"target": "sub"}}], sub=[[ESTABLISHED, ACCEPT], [on("iifname", "eth0"), ACCEPT]]),
            Severity.FAIL,
        ),
        (nft("drop", [{"jump": {"target": "sub"}}], sub=[[ACCEPT]]), Severity.OK),
        (nft("accept", [{"jump": {"target": "sub"}}], sub=[[on("oifname", "eth1"), {"return": None}], [DROP]]), Severity.FAIL),
        (nft("accept", [{"jump": {"target": "sub"}}], sub=[]), Severity.OK),
        (nft("drop", [{"goto": {"target": "sub"}}], [ACCEPT], sub=[[COUNTER]]), Severity.FAIL),
        (nft("drop", [{"jump": {"target": "fwd"}}]), Severity.WARN),
        (nft("drop", [{"limit": {"rate": 5}}, ACCEPT]), Severity.WARN),
        (nft("drop", family="ip6"), Severity.OK),
        (nft("drop", family="ip"), Severity.FAIL),
    ],
)
def test_the_rules_are_followed(source: Rules, severity: Severity) -> None:
    found = judged(source)
    assert (found.name, found.status) == ("firewall", severity), found
    assert bool(found.remedy) is (severity is not Severity.OK)


def test_the_finding_names_chain_way_and_remedy() -> None:
    found = judged(nft("drop"))
    assert found.message.startswith("nft chain inet f fwd drops forwarded packets from eth0 to eth1 and on 1 more ways; ")
    assert found.remedy == "accept them before: nft insert rule inet f fwd iifname eth0 oifname eth1 accept"
    assert "from eth0 to eth0;" in judged(nft("drop"), ("eth0",)).message
    assert judged(nft("drop", family="ip6"), families=frozenset({6})).status is Severity.FAIL


def test_the_table_of_iptables_nft_gets_an_iptables_remedy() -> None:
    """What iptables -P FORWARD DROP; -A FORWARD -i docker0 -j ACCEPT; -A FORWARD -j REJECT make of it (nft 1.0.6)."""
    reject = {"xt": {"type": "target", "name": "REJECT"}}
    related = {"xt": {"type": "match", "name": "conntrack"}}
    rules = ([on("iifname", "docker0"), COUNTER, ACCEPT], [related, COUNTER, ACCEPT], [COUNTER, reject])
    found = judged(nft("accept", *rules, family="ip", table="filter", name="FORWARD"))
    assert found.status is Severity.FAIL and found.message.startswith("iptables (nf_tables) chain FORWARD drops")
    assert found.remedy == "accept them before: iptables -I FORWARD -i eth0 -o eth1 -j ACCEPT"


DOCKER = """\
-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
"""


@pytest.mark.parametrize(
    ("listing", "severity"),
    [
        (DOCKER, Severity.FAIL),
        (DOCKER.replace("-A DOCKER-USER -j RETURN", "-A DOCKER-USER -i eth+ -o eth+ -j ACCEPT"), Severity.OK),
        (DOCKER.replace("FORWARD DROP", "FORWARD ACCEPT"), Severity.OK),
        ("-P FORWARD ACCEPT\n", Severity.OK),
        (
            "-P FORWARD ACCEPT\n-A FORWARD -i docker0 -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n",
            Severity.FAIL,
        ),
        ('-P FORWARD DROP\n-A FORWARD -m comment --comment "all of it" -j ACCEPT\n', Severity.OK),
        ("-P FORWARD DROP\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n", Severity.WARN),
        ("-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\n", Severity.WARN),
        ("-P FORWARD DROP\n-A FORWARD -j LOG\n", Severity.FAIL),
        ("", Severity.OK),
    ],
)
def test_legacy_rules_are_followed(listing: str, severity: Severity) -> None:
    found = judged(firewall.iptables("iptables-legacy", 4, listing))
    assert found.status is severity, found
    if severity is Severity.FAIL:
        assert found.message.startswith("iptables-legacy chain FORWARD drops")
        assert found.remedy.endswith("iptables-legacy -I FORWARD -i eth0 -o eth1 -j ACCEPT")


def test_what_cannot_be_told_is_said() -> None:
    found = judged(Rules(unknown="nft is not installed", remedy="apt install nftables"))
    assert (found.status, found.remedy) == (Severity.INFO, "apt install nftables")
    assert found.message == "cannot tell whether forwarded packets are dropped: nft is not installed"


@pytest.mark.parametrize(
    "document", [{}, {"nftables": None}, {"nftables": [1, {"chain": 2}, {"rule": {"expr": [3, {}, None]}}]}]
)
def test_anything_else_is_no_rule_set(document: dict[str, Any]) -> None:
    assert firewall.nft_hooks(document) == []
    assert [rule.verdict for rule in firewall.nft_rules(document)] in ([], [firewall.Verdict.NONE])
