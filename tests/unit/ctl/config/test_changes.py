"""The configuration that each command produces, and the message for each invalid one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.constants import MAX_BACKENDS, MAX_FARMS
from ctl.config import changes, validation
from ctl.config.changes import CHANGES, change, replace_from_document
from ctl.config.farms_file import to_document
from ctl.config.model import CheckKind, Config, HealthCheck, Mode, Protocol, Scheduler
from ctl.errors import InvalidInput, XlbError


@pytest.fixture
def config() -> Config:
    made = Config()
    for command, arguments in (
        ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"}),
        ("vip.add", {"address": "2001:db8::1/64", "device": "eth0"}),
        ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80}),
        ("farm.add", {"name": "many", "vip": "10.0.0.1", "port": "8000-8010"}),
        ("farm.add", {"name": "six", "vip": "2001:db8::1", "port": 80}),
        ("backend.add", {"farm": "web", "address": "10.0.1.1", "port": 80, "weight": 3}),
        ("backend.add", {"farm": "web", "address": "10.0.1.2", "port": 80}),
    ):
        made = change(made, command, arguments)
    return made


def add(**fields: object) -> tuple[str, dict[str, object]]:
    return "farm.add", {"name": "new", "vip": "10.0.0.1", "port": 99} | fields


def backend(command: str = "add", **fields: object) -> tuple[str, dict[str, object]]:
    return f"backend.{command}", {"farm": "web", "address": "10.0.1.9", "port": 80} | fields


BAD = [
    (add(port=0), "farm.new.port: expected a port from 1 to 65535, got 0"),
    (add(port=70000), "farm.new.port: expected a port from 1 to 65535, got 70000"),
    (add(port="90-80"), "farm.new.port: expected a range like 8000-8010, got 90-80, which ends before it starts"),
    (
        add(port="8o"),
        'farm.new.port: expected a port from 1 to 65535, a range like "8000-8010", a list of them like "80,443,8000-8010", or '
        '"all", got the string "8o"',
    ),
    (add(port="80,,81"), 'or "all", got the string "80,,81"'),
    (add(port=[]), 'or "all", got a list'),
    (add(port=[90, True]), 'or "all", got a list'),
    (add(port="90,100-110,105"), "farm.new.port: expected each port once, got 100-110 and 105"),
    (add(port=",".join(map(str, range(1, 200, 2)))), "farm.new.port: expected at most 64 ports and ranges, got 100"),
    (add(port="99,8005-8020"), "8005-8020/tcp on 10.0.0.1 overlaps 8000-8010/tcp of farm many"),
    (add(port="all", vip="2001:db8::1"), "all/tcp on 2001:db8::1 overlaps 80/tcp of farm six"),
    (add(vip="10.0.0.1,2001:db8::1", port="60-80"), "60-80/tcp on 10.0.0.1 overlaps 80/tcp of farm web"),
    (add(vip="10.0.0.1,10.0.0.1"), "farm.new.vip: expected different VIPs, got 10.0.0.1 twice"),
    (add(vip="10.0.0.1,"), 'farm.new.vip: expected an IP address like 10.0.0.1 or 2001:db8::1, got ""'),
    (add(vip=[]), "farm.new.vip: expected an address, or several separated by commas"),
    (add(vip=["10.0.0.1", 7]), "farm.new.vip: expected a list of strings"),
    (add(vip="10.0.0.1,10.0.0.9"), "farm.new.vip: 10.0.0.9 is not one of the virtual addresses; add it first"),
    (add(vip=[f"10.1.0.{n}" for n in range(1, 34)]), "farm.new.vip: expected at most 32 VIPs, got 33"),
    (
        add(vip="10.0.0.1,2001:db8::1", snat_address=",".join(f"10.1.0.{n}" for n in range(9))),
        "farm.new.snat_address: expected at most 8 addresses, got 9",
    ),
    (("farm.set", {"name": "web", "snat_address": "10.0.0.9"}), "10.0.0.9 is not one of the virtual addresses"),
    (add(port=True), "farm.new.port: expected an integer, got true"),
    (add(port=None), 'farm.new.port: is missing; expected a port, a range like 8000-8010, a list of them, or "all"'),
    (
        add(port=80),
        "farm.new.port: 80/tcp on 10.0.0.1 overlaps 80/tcp of farm web; choose another port or VIP, or delete that farm",
    ),
    (add(port="70-80"), "70-80/tcp on 10.0.0.1 overlaps 80/tcp of farm web"),
    (add(port=8010), "8010/tcp on 10.0.0.1 overlaps 8000-8010/tcp of farm many"),
    (
        add(vip="10.0.0.2"),
        "farm.new.vip: 10.0.0.2 is not one of the virtual addresses; add it first: xlbctl vip add 10.0.0.2/24 --dev INTERFACE",
    ),
    (add(vip="10.0.0.256"), 'farm.new.vip: expected an IP address like 10.0.0.1 or 2001:db8::1, got "10.0.0.256"'),
    (add(name="web"), "farm.name: farm web already exists; change it with xlbctl farm set web"),
    (add(name="-x"), 'farm.-x.name: expected 1 to 64 letters, digits, ".", "_" or "-"'),
    (add(name="x" * 65), "expected 1 to 64 letters"),
    (add(name=7), "farm.name: expected a string, got 7"),
    (
        add(mode="ipip", snat_address="10.0.0.1"),
        "farm.new.snat_address: expected none (mode ipip keeps the client's address), got 10.0.0.1",
    ),
    (
        add(mode="dsr", snat_address="10.0.0.1"),
        "farm.new.snat_address: expected none (mode dsr keeps the client's address), got 10.0.0.1",
    ),
    (add(mode="nat"), 'farm.new.mode: expected snat or dnat or dsr or ipip, got the string "nat"'),
    (add(shceduler="maglev"), 'farm.new.shceduler: no such setting; did you mean "scheduler"?'),
    (add(scheduler="rr"), "farm.new.scheduler: expected maglev or roundrobin or source"),
    (add(snat_address="2001:db8::2"), "farm.new.snat_address: expected the family of the farm's VIP 10.0.0.1, got 2001:db8::2"),
    (add(snat_address="10.0.0.9"), "farm.new.snat_address: 10.0.0.9 is not one of the virtual addresses; add it first"),
    (add(snat_address="224.0.0.1"), "farm.new.snat_address: expected the address of one host"),
    (add(idle_timeout_s=-1), "farm.new.idle_timeout_s: expected 0 to 604800, got -1"),
    (add(enabled="yes"), 'farm.new.enabled: expected true or false, got the string "yes"'),
    (
        add(health={"kind": "tcp", "timeout_ms": 3000}),
        "farm.new.health.timeout_ms: expected at most interval_ms (2000), got 3000",
    ),
    (add(health={"kind": "smtp"}), "farm.new.health.kind: expected none or tcp or http"),
    (add(health={"interval_down_ms": 1999}), "health.interval_down_ms: expected 0 or at least interval_ms (2000), got 1999"),
    (add(health={"interval_down_ms": 3_600_001}), "health.interval_down_ms: expected 0 to 3600000, got 3600001"),
    (add(health={"interval_down_ms": "2s"}), "health.interval_down_ms: expected an integer: 0 to 3600000, got the string"),
    (add(health={"address": "web"}), 'health.address: expected an IP address like 10.0.0.1 or 2001:db8::1, got "web"'),
    (add(health={"kind": "http", "text": "a\nb"}), 'health.text: expected "" or a text of at most 1024 characters'),
    (add(health={"kind": "http", "text": "x" * 1025}), 'health.text: expected "" or a text of at most 1024 characters'),
    (add(health={"kind": "http", "text": 5}), "health.text: expected a string, got 5"),
    (add(health={"text": "well"}), 'health.text: is for checks of kind http or https; got "well" with kind tcp'),
    (add(health={"kind": "http", "verify": True}), "health.verify: is for checks of kind https; got true with kind http"),
    (add(health={"kind": "https", "verify": "yes"}), "health.verify: expected true or false"),
    (add(health={"kind": "https", "sni": "a b"}), 'health.sni: expected "" or a host name, got "a b"'),
    (add(health={"kind": "https", "ca_file": "/ca"}), 'health.ca_file: expected "" without verify, got "/ca"'),
    (
        add(health={"kind": "https", "verify": True, "ca_file": "ca"}),
        'health.ca_file: expected "" or an absolute path, got "ca"',
    ),
    (add(health={"kind": "udp", "payload": "hex:0"}), 'health.payload: expected "" or a text, or "hex:" with pairs'),
    (add(health={"kind": "udp", "answer": "hex:"}), 'health.answer: expected "" or a text, or "hex:" with pairs'),
    (add(health={"kind": "udp", "payload": "\ud800"}), 'health.payload: expected "" or a text'),
    (add(health={"kind": "dns"}), "health.query: is missing; expected the name that a check of kind dns asks for"),
    (add(health={"kind": "dns", "query": "a..b"}), 'health.query: expected "" or a domain name, got "a..b"'),
    (add(health={"kind": "dns", "query": "a", "query_type": "B"}), "health.query_type: expected A or AAAA or CNAME or MX"),
    (add(health={"kind": "dns", "query": "a", "rcode": "OK"}), "health.rcode: expected NOERROR or FORMERR or SERVFAIL"),
    (add(health={"kind": "dns", "query": "a", "answer": "b"}), "health.answer: expected an IP address like 10.0.0.1"),
    (add(health={"kind": "dns", "query": "a", "answer": "::1"}), "health.answer: expected an address of type A, got ::1"),
    (add(health={"kind": "grpc", "service": "a b"}), 'health.service: expected "" or the name of a service, got "a b"'),
    (add(health={"kind": "grpc", "payload": "x"}), 'health.payload: is for checks of kind udp; got "x" with kind grpc'),
    (add(health={"via": "lan"}), "health.via: expected backend or vip, got the string"),
    (add(health={"via": "vip"}), "health.via: expected backend unless the farm's mode is dsr or ipip, got vip with snat"),
    (add(mode="dsr", health={"kind": "http", "via": "vip"}), "health.via: is for checks of kind tcp; got"),
    (add(health={"kind": "command"}), "health.command: is missing; expected the absolute path of a program and its arguments"),
    (add(health={"kind": "command", "command": []}), "health.command: is missing"),
    (add(health={"kind": "command", "command": "/bin/true"}), "health.command: expected a list of strings, got the string"),
    (add(health={"kind": "command", "command": ["/a", 1]}), "health.command: expected a list of strings, got a list"),
    (add(health={"kind": "command", "command": ["true"]}), 'expected the absolute path of a program first, got "true"'),
    (add(health={"kind": "command", "command": ["/a", "\0"]}), "health.command: expected arguments of at most 1024 characters"),
    (add(health={"kind": "command", "command": ["/a"] * 33}), "health.command: expected at most 32 arguments, got 33"),
    (add(health={"command": ["/a"]}), "health.command: is for checks of kind command; got 1 arguments with kind tcp"),
    (add(health={"rise": 0}), "farm.new.health.rise: expected 1 to 100, got 0"),
    (add(health={"status": "99"}), "farm.new.health.status: expected an HTTP status or a range like 200-399"),
    (add(health={"status": "399-200"}), "farm.new.health.status: expected an HTTP status"),
    (add(health={"path": "x"}), "farm.new.health.path: expected a path"),
    (add(health={"path": "/a\r\nHost: x"}), "farm.new.health.path: expected a path"),
    (add(health={"host": "a b"}), "farm.new.health.host: expected a host name"),
    (add(health=3), "farm.new.health: expected a table of settings, got 3"),
    (("farm.set", {"name": "wbe", "port": 1}), 'farm: there is no farm "wbe"; did you mean "web"?'),
    (("farm.stop", {}), "farm.name: is missing"),
    (("farm.set", {"name": "web", "port": 8001}), "overlaps 8000-8010/tcp of farm many"),
    (("farm.set", {"name": "web", "vip": "2001:db8::1", "port": 81}), "farm.web.backend[0].address: expected an IPv6 address"),
    (backend(farm="wep"), 'farm: there is no farm "wep"; did you mean "web"?'),
    (backend(weight=-1), "farm.web.backend.weight: expected 0 to 65535, got -1"),
    (backend(weight=65536), "farm.web.backend.weight: expected 0 to 65535"),
    (backend(weight=1.5), "farm.web.backend.weight: expected an integer: 0 to 65535, got 1.5"),
    (backend(priority=256), "farm.web.backend.priority: expected 0 to 255"),
    (backend(port=0), "farm.web.backend.port: expected a port from 1 to 65535, got 0"),
    (
        backend(farm="many", port=65530),
        "farm.many.backend.port: expected a port from 1 to 65525 (the farm's range has 11 ports)",
    ),
    (
        backend(address="2001:db8::9"),
        "farm.web.backend.address: expected an IPv4 address like the farm's VIP 10.0.0.1, got 2001:db8::9",
    ),
    (backend(farm="six"), "farm.six.backend.address: expected an IPv6 address"),
    (backend(address="10.0.0.1"), "expected the address of a server, got the farm's own VIP"),
    (backend(address="fe80::1%eth0"), "expected an address without zone"),
    (backend(address="10.0.1.1"), "farm.web.backend: farm web already has this backend"),
    (backend("set"), 'farm.web.backend: farm web has no backend 10.0.1.9:80; did you mean "10.0.1.2:80"?'),
    (backend("remove", weight=1), "farm.web.backend.weight: no such setting"),
    (("vip.add", {"address": "10.0.0.1/24", "device": "eth1"}), "vip.address: 10.0.0.1 already exists on eth0"),
    (("vip.add", {"address": "10.0.0.5", "device": "eth1"}), "vip.address: expected an address with prefix length"),
    (("vip.add", {"address": "10.0.0.5/33", "device": "eth1"}), "expected 1 to 32, got 33"),
    (("vip.add", {"address": "10.0.0.5/24", "device": "a/b"}), "device: expected the name of an interface"),
    (("vip.delete", {"address": "10.0.0.7"}), "vip.address: there is no virtual address 10.0.0.7"),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_invalid_input_gets_a_message_and_changes_nothing(
    config: Config, request_: tuple[str, dict[str, object]], message: str
) -> None:
    before = to_document(config)
    with pytest.raises(InvalidInput) as caught:
        change(config, *request_)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert to_document(config) == before


def test_another_kind_of_check_resets_what_it_does_not_use(config: Config) -> None:
    https = {"kind": "https", "verify": True, "ca_file": "/ca", "text": "well", "path": "/up", "interval_down_ms": 9000}
    made = change(config, "farm.set", {"name": "web", "health": https})
    made = change(made, "farm.set", {"name": "web", "health": {"kind": "http"}})
    assert made.farms["web"].health == HealthCheck(CheckKind.HTTP, text="well", path="/up", interval_down_ms=9000)
    made = change(made, "farm.set", {"name": "web", "health": {"kind": "command", "command": ["/bin/true"]}})
    assert made.farms["web"].health.command == ("/bin/true",)
    made = change(made, "farm.set", {"name": "web", "health": {"kind": "tcp"}})
    assert made.farms["web"].health == HealthCheck(CheckKind.TCP, path="/up", interval_down_ms=9000)


def test_a_vip_in_use_is_not_deleted(config: Config) -> None:
    with pytest.raises(XlbError, match=r"10\.0\.0\.1 is used by farm many, web; delete or move") as caught:
        change(config, "vip.delete", {"address": "10.0.0.1"})
    assert caught.value.exit_code == 1


def test_defaults_are_those_of_the_contract(config: Config) -> None:
    farm = config.farms["web"]
    assert (farm.protocol, farm.mode, farm.scheduler) == (Protocol.TCP, Mode.SNAT, Scheduler.MAGLEV)
    assert farm.health == HealthCheck(kind=CheckKind.TCP)
    udp = change(config, "farm.add", {"name": "dns", "vip": "10.0.0.1", "port": 53, "proto": "udp"})
    assert udp.farms["dns"].health == HealthCheck(kind=CheckKind.NONE)
    assert (farm.backends[1].weight, farm.backends[1].priority, farm.backends[1].draining) == (1, 0, False)


def test_listeners_of_different_protocols_or_vips_do_not_overlap(config: Config) -> None:
    assert change(config, *add(port=80, proto="udp")).farms["new"].port == 80
    assert change(config, *add(port=8000, vip="2001:db8::1")).farms["new"].port == 8000


def test_addresses_are_stored_in_canonical_form(config: Config) -> None:
    made = change(config, "backend.add", {"farm": "six", "address": "2001:DB8:0::00B", "port": 80})
    assert made.farms["six"].backends[0].endpoint == "[2001:db8::b]:80"


def test_untouched_farms_keep_their_identity_and_generation_counts(config: Config) -> None:
    made = change(config, *backend())
    assert made.generation == config.generation + 1
    assert made.farms["six"] is config.farms["six"] and made.vips is config.vips
    assert made.farms["web"].backends[:2] == config.farms["web"].backends


@pytest.mark.parametrize(
    "request_",
    [
        ("farm.start", {"name": "web"}),
        ("farm.set", {"name": "web", "mode": "snat"}),
        ("backend.set", {"farm": "web", "address": "10.0.1.1", "port": 80, "weight": 3}),
    ],
)
def test_a_change_that_changes_nothing_returns_the_same(config: Config, request_: tuple[str, dict[str, object]]) -> None:
    assert change(config, *request_) is config


def test_drain_and_undrain(config: Config) -> None:
    which = {"farm": "web", "address": "10.0.1.1", "port": 80}
    drained = change(config, "backend.drain", which)
    assert drained.farms["web"].backends[0].draining
    assert change(drained, "backend.set", which | {"draining": False}).farms == config.farms


def test_start_stop_delete_remove(config: Config) -> None:
    stopped = change(config, "farm.stop", {"name": "web"})
    assert not stopped.farms["web"].enabled
    assert change(stopped, "farm.start", {"name": "web"}).farms == config.farms
    assert set(change(config, "farm.delete", {"name": "web"}).farms) == {"many", "six"}
    left = change(config, "backend.remove", {"farm": "web", "address": "10.0.1.1", "port": 80})
    assert [each.address for each in left.farms["web"].backends] == ["10.0.1.2"]


def test_health_settings_not_given_stay(config: Config) -> None:
    made = change(config, "farm.set", {"name": "web", "health": {"kind": "http", "path": "/health"}})
    made = change(made, "farm.set", {"name": "web", "health": {"status": 204}})
    assert made.farms["web"].health == HealthCheck(kind=CheckKind.HTTP, path="/health", status="204")


def test_a_document_keeps_ids_and_identity_of_what_stays(config: Config) -> None:
    document = to_document(config)
    assert replace_from_document(config, document) is config
    web = next(farm for farm in document["farm"] if farm["name"] == "web")  # type: ignore[attr-defined]
    web["backend"].reverse()
    assert replace_from_document(config, document) is config, "order is not a change"
    web["backend"].append({"address": "10.0.1.3", "port": 80})
    web["backend"][0]["weight"] = 9
    made = replace_from_document(config, document)
    assert made.farms["many"] is config.farms["many"] and made.generation == config.generation + 1
    ids = {each.endpoint: each.id for each in made.farms["web"].backends}
    assert {each.endpoint: each.id for each in config.farms["web"].backends}.items() <= ids.items()
    assert len(set(ids.values())) == 3


def test_ids_of_one_change_are_new_even_when_all_is_replaced(config: Config) -> None:
    document = to_document(config)
    for farm in document["farm"]:  # type: ignore[attr-defined]
        farm["name"] += "2"
    made = replace_from_document(config, document)
    assert not {farm.id for farm in made.farms.values()} & {farm.id for farm in config.farms.values()}


def test_a_freed_id_is_reused_only_after_all_others(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_FARMS", 7)  # ids 1 to 6, three in use
    seen = []
    for _ in range(9):
        config = change(config, *add())
        seen.append(config.farms["new"].id)
        config = change(config, "farm.delete", {"name": "new"})
    taken = {farm.id for farm in config.farms.values()}
    assert set(seen[:3]) == set(range(1, 7)) - taken, "a free id is used again only after all others"


def test_a_change_that_needs_more_ids_than_exist_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_FARMS", 5)
    document = to_document(config)
    document["farm"] += [  # type: ignore[operator]
        {"name": f"more{port}", "vip": "10.0.0.1", "port": port} for port in (1, 2)
    ]
    with pytest.raises(InvalidInput, match="farm: all 4 farm ids are in use or not released yet; remove farms first"):
        replace_from_document(config, document)


def test_backends_of_different_farms_never_share_an_id(config: Config) -> None:
    for number in range(1, 4):
        config = change(config, *backend(address=f"10.0.2.{number}"))
        config = change(config, *backend(farm="many", address=f"10.0.2.{number}"))
    validation.check_config(config)
    assert len({each.id for farm in config.farms.values() for each in farm.backends}) == 8


def test_limits(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_FARMS", 4)
    with pytest.raises(InvalidInput, match="farm: this node supports at most 3 farms, and the change would make 4"):
        change(config, *add())
    monkeypatch.setattr(validation, "MAX_FARMS", MAX_FARMS)
    monkeypatch.setattr(validation, "MAX_BACKENDS", 3)
    with pytest.raises(InvalidInput, match="backend: this node supports at most 2 backends, and the change would make 3"):
        change(config, *backend())
    monkeypatch.setattr(validation, "MAX_BACKENDS", MAX_BACKENDS)
    monkeypatch.setattr(validation, "MAX_BACKENDS_PER_FARM", 2)
    with pytest.raises(InvalidInput, match="expected at most 2 backends, got 3"):
        change(config, *backend())


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["web", "10.0.0.1", "10.0.1.1", 80]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["name", "farm", "vip", "port", "proto", "mode", "address", "device", "guard", "health", "weight", "draining"]
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(sorted(CHANGES)), st.dictionaries(NAMES | st.text(max_size=6), JUNK, max_size=6))
def test_random_arguments_raise_only_invalid_input(command: str, arguments: dict[str, object]) -> None:
    config = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    config = change(config, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80})
    config = change(config, "backend.add", {"farm": "web", "address": "10.0.1.1", "port": 80})
    try:
        made = change(config, command, arguments)
    except XlbError as error:
        assert str(error)
    else:
        validation.check_config(made)
