"""The first reason why a client cannot connect, for each reason there is, in both families and for both protocols."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpf.constants import Protocol
from bpf.dataplane import FlowTuple
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.config.prefixes import packed, parse_texts
from ctl.diagnosis.finding import Finding, Severity, ok
from ctl.explanation.explain import Loads, NextHop, Standing, explain
from ctl.explanation.why import Machine, first_reason, reachable, way

VIPS = {"v4": "10.0.0.1", "v6": "fd00::1"}
SERVERS = {"v4": ("10.0.1.1", "10.0.1.2"), "v6": ("fd00:1::1", "fd00:1::2")}
CLIENTS = {"v4": "192.0.2.7", "v6": "2001:db8::7"}
ETH0 = {"eth0": ok("interface eth0", "native XDP")}
SERVING, BACKUP = Standing("lb1", "active", "lb1"), Standing("lb1", "backup", "lb2")

Changes = list[tuple[str, dict[str, Any]]]


def configured(family: str, protocol: str, changes: Changes) -> Config:
    config = Config(hash_seed=7)
    length = 24 if family == "v4" else 64
    base: Changes = [
        ("vip.add", {"address": f"{VIPS[family]}/{length}", "device": "eth0"}),
        ("farm.add", {"name": "web", "vip": VIPS[family], "port": 80, "protocol": protocol, "health": {"kind": "none"}}),
        *(("backend.add", {"farm": "web", "address": each, "port": 8080}) for each in SERVERS[family]),
    ]
    for command, arguments in base + changes:
        config = change(config, command, arguments)
    return config


def machine(family: str, **changed: Any) -> Machine:
    addresses = (*SERVERS[family], CLIENTS[family])
    hops: dict[str, NextHop | None] = {each: NextHop("eth0", each, True) for each in addresses}
    return replace(Machine(200, ETH0, hops=hops, seconds=60.0), **changed)


def judged(
    family: str,
    protocol: str,
    changes: Changes = [],  # noqa: B006
    seen: Machine | None = None,
    down: frozenset[int] = frozenset(),
    standing: Standing = SERVING,
    source: str = "",
    port: int = 80,
    loads: Loads | None = None,
    exact: bool = False,
) -> list[Finding]:
    config = configured(family, protocol, changes)
    number = Protocol.TCP if protocol == "tcp" else Protocol.UDP
    arriving = FlowTuple(source or CLIENTS[family], VIPS[family], 50000, port, number)
    answer = explain(arriving, None, config, down, 7, loads=loads)
    backends = reachable(arriving, answer, config, down, exact)
    observed = (seen or machine(family)) if standing.serving == standing.node else None
    return way(arriving, answer, config, standing, observed, backends)


def reason(findings: list[Finding]) -> Finding:
    found = first_reason(findings)
    assert found is not None and findings[-1] is found and found.remedy, findings
    return found


FAMILIES = pytest.mark.parametrize("family", ["v4", "v6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@FAMILIES
@PROTOCOLS
def test_a_client_that_can_connect_has_no_reason(family: str, protocol: str) -> None:
    found = judged(family, protocol)
    assert first_reason(found) is None
    names = ["lease", "interface eth0", "vip", "farm", "backends", "route", "way back", "recent drops"]
    assert [each.name for each in found] == names and {each.status for each in found} == {Severity.OK}


def prefixes(of: str) -> dict[str, Any]:
    return {"name": "list", **packed(parse_texts("list", [of], "prefixes"))}


def set_farm(**fields: Any) -> tuple[str, dict[str, Any]]:
    return ("farm.set", {"name": "web", **fields})


def each_backend(family: str, **fields: Any) -> Changes:
    return [("backend.set", {"farm": "web", "address": each, "port": 8080, **fields}) for each in SERVERS[family]]


@FAMILIES
@PROTOCOLS
def test_the_configuration_is_judged_in_order(family: str, protocol: str) -> None:
    vip, client = VIPS[family], CLIENTS[family]

    def expect(stage: str, remedy: str, changes: Changes, **given: Any) -> None:
        found = reason(judged(family, protocol, changes, **given))
        assert (found.name, remedy in found.remedy) == (stage, True), found

    gone: Changes = [("farm.delete", {"name": "web"}), ("vip.delete", {"address": vip})]
    expect("vip", f"xlbctl vip add {vip}/LENGTH", gone)
    expect("client", "source address of its own", [], source=vip)
    expect("farm", f"xlbctl farm add NAME --vip {vip} --port 81", [], port=81)
    expect("farm", f"farms listen on 80/{protocol} of it", [], port=81)
    expect("farm", "xlbctl farm start web", [("farm.stop", {"name": "web"})])
    other = "udp" if protocol == "tcp" else "tcp"
    flag = "with --udp" if other == "udp" else "without --udp"
    moved: Changes = [("farm.add", {"name": "other", "vip": vip, "port": 81, "protocol": other})]
    expect("farm", f"farm other listens there for {other}, not {protocol}: ask again {flag}", moved, port=81)
    open_guard: Changes = [("vip.set", {"address": vip, "guard": False}), ("farm.delete", {"name": "web"})]
    expect("farm", "xlbctl farm add NAME", open_guard)

    wide = "192.0.2.0/24" if family == "v4" else "2001:db8::/64"
    listed: Changes = [("prefixes.set", prefixes(wide))]
    expect("lists", "xlbctl prefixes show list", [*listed, set_farm(deny="list")])
    stranger = "198.51.100.1" if family == "v4" else "2001:db8:1::1"
    expect("lists", "xlbctl prefixes show list", [*listed, set_farm(allow="list")], source=stranger)
    assert first_reason(judged(family, protocol, [*listed, set_farm(allow="list")], source=client)) is None

    farm_id = configured(family, protocol, []).farms["web"].id
    limited = [set_farm(max_connections=5)]
    expect("limits", "--max-connections", limited, loads=Loads(farms={farm_id: 5}))
    assert first_reason(judged(family, protocol, limited, loads=Loads(farms={farm_id: 4}))) is None

    ids = [each.id for each in configured(family, protocol, []).farms["web"].backends]
    expect("backends", "xlbctl farm show web", [], down=frozenset(ids))
    none = [("backend.remove", {"farm": "web", "address": each, "port": 8080}) for each in SERVERS[family]]
    expect("backends", "xlbctl backend add web ADDR:PORT", none)
    expect("backends", "--no-drain", each_backend(family, draining=True))
    expect("backends", "--weight 1", each_backend(family, weight=0))
    full = Loads(backends=dict.fromkeys(ids, 3))
    expect("backends", "--max-connections", each_backend(family, max_connections=3), loads=full)


@FAMILIES
@PROTOCOLS
def test_the_machine_is_judged_where_the_node_serves(family: str, protocol: str) -> None:
    one, two = SERVERS[family]
    client, good = CLIENTS[family], dict(machine(family).hops)

    def expect(stage: str, part: str, status: Severity = Severity.FAIL, changes: Changes = [], **seen: Any) -> Finding:  # noqa: B006
        found = judged(family, protocol, changes, machine(family, **seen))
        last = next(each for each in found if each.name == stage and each.status is not Severity.OK)
        assert last.status is status and part in f"{last.message}; {last.remedy}" and last.remedy, found
        assert (first_reason(found) is last) is (status is Severity.FAIL)
        return last

    expect("lease", "has expired", lease_left_ms=0)
    broken = Finding("interface eth0", Severity.FAIL, "balances nothing: not attached", "bring it back")
    expect("interface eth0", "balances nothing", interfaces={"eth0": broken})
    spare = {"eth0": ETH0["eth0"], "eth1": replace(broken, name="interface eth1")}
    expect("interface eth1", "balances nothing", Severity.WARN, interfaces=spare)
    expect("interface eth0", "balances nothing", interfaces={"eth0": broken, "eth1": ETH0["eth0"]})
    expect("forwarding", "net.ipv4", forwarding=["net.ipv4.ip_forward is 0"])
    expect(f"vip {VIPS[family]}", "is not on eth0", absent=True)
    expect(f"vip {VIPS[family]}", "02:00:00:00:00:09", absent=True, taken="02:00:00:00:00:09")
    expect("client", "lb1 itself", own=frozenset({client}))
    expect("route", f"ip route get {one}", hops=good | {one: None})
    expect("route", "2 of 2 backends", hops=good | {one: None, two: None})
    expect("neighbour", f"ip neigh show {two}", hops=good | {two: NextHop("eth0", two, False)})
    expect("way back", f"ip route get {client}", hops=good | {client: None})
    routed = good | {client: NextHop("eth0", "10.0.0.254", False)}
    assert first_reason(judged(family, protocol, seen=machine(family, hops=routed))) is None, "the kernel asks for it"
    dnat = [set_farm(mode="dnat")]
    expect("way back", "--mode snat", Severity.WARN, dnat)
    expect("way back", f"ip route get {client}", Severity.INFO, dnat, hops=routed)
    expect("recent drops", "drop_snat_exhausted: 3 packets", Severity.WARN, dropped={"drop_snat_exhausted": 3})
    expect("recent drops", "--max-rate", Severity.WARN, [set_farm(max_rate=9)], dropped={"drop_rate": 3})
    expect("recent drops", "--max-half-open", Severity.WARN, [set_farm(max_half_open=9)], dropped={"drop_half_open": 3})
    others = {"drop_rate": 3, "drop_half_open": 3, "drop_no_backend": 3, "drop_fenced": 9}
    assert judged(family, protocol, seen=machine(family, dropped=others))[-1].status is Severity.OK


@pytest.mark.parametrize("mode", ["dsr", "ipip"])
def test_in_one_way_modes_the_backend_finds_the_way_back(mode: str) -> None:
    hops = dict(machine("v4").hops) | {CLIENTS["v4"]: None}
    base: Changes = [
        ("farm.delete", {"name": "web"}),
        ("farm.add", {"name": "web", "vip": VIPS["v4"], "port": 80, "mode": mode}),
    ]
    base += [("backend.add", {"farm": "web", "address": each, "port": 80}) for each in SERVERS["v4"]]
    found = judged("v4", "tcp", base, machine("v4", hops=hops))
    assert first_reason(found) is None and found[-2].name == "way back" and found[-2].status is Severity.INFO


@FAMILIES
def test_with_the_clients_port_its_own_backend_counts(family: str) -> None:
    one, two = SERVERS[family]
    good = dict(machine(family).hops)
    outcomes = {
        first_reason(judged(family, "tcp", seen=machine(family, hops=good | {lost: None}), exact=True)) is None
        for lost in (one, two)
    }
    assert outcomes == {True, False}, "one of the two is its backend"


@FAMILIES
@PROTOCOLS
def test_who_does_not_serve_judges_the_configuration(family: str, protocol: str) -> None:
    found = judged(family, protocol, standing=BACKUP)
    assert [each.name for each in found] == ["lease", "vip", "farm", "backends"] and first_reason(found) is None
    assert found[0].status is Severity.INFO and "lb2" in found[0].message
    assert reason(judged(family, protocol, standing=BACKUP, port=81)).name == "farm"
    neither = reason(judged(family, protocol, standing=Standing("lb1", "fault", "")))
    assert neither.name == "lease" and "cluster status" in neither.remedy
