"""What `conn show` says about packets that open no connection because of their source."""

from __future__ import annotations

import pytest

from bpf.constants import Protocol
from bpf.dataplane import FlowTuple
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.explanation.explain import explain

VIPS = {"v4": "10.0.0.1", "v6": "fd00::1"}
SERVERS = {"v4": "10.0.1.1", "v6": "fd00:1::1"}


def configured(mode: str = "dnat", proto: str = "udp", guard: bool = True) -> Config:
    config = Config()
    for family, length in (("v4", 24), ("v6", 64)):
        farm = f"web-{family}"
        for command, arguments in (
            ("vip.add", {"address": f"{VIPS[family]}/{length}", "device": "eth0", "guard": guard}),
            ("farm.add", {"name": farm, "vip": VIPS[family], "port": "80-89", "mode": mode, "proto": proto}),
            ("backend.add", {"farm": farm, "address": SERVERS[family], "port": 8000}),
        ):
            config = change(config, command, arguments)
    return config


def verdict(config: Config, source: str, destination: str, source_port: int = 40000, port: int = 80) -> str:
    tuple_ = FlowTuple(source, destination, source_port, port, Protocol.UDP)
    return str(explain(tuple_, None, config, frozenset(), 7)["verdict"])


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", VIPS["v4"]])
def test_an_impossible_ipv4_source(source: str) -> None:
    assert verdict(configured(), source, VIPS["v4"]) == "drop_martian"
    assert verdict(configured(guard=False), source, VIPS["v4"], port=22) == "pass_vip_open"


@pytest.mark.parametrize("source", ["::", "::1", "::ffff:10.0.0.9", "ff02::1", VIPS["v6"]])
def test_an_impossible_ipv6_source(source: str) -> None:
    assert verdict(configured(), source, VIPS["v6"]) == "drop_martian"


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize(
    ("port", "expected"), [(7999, "forward"), (8000, "drop_martian"), (8009, "drop_martian"), (8010, "forward")]
)
def test_the_udp_service_of_a_backend(family: str, port: int, expected: str) -> None:
    assert verdict(configured("snat"), SERVERS[family], VIPS[family], port) == expected


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize(
    ("mode", "port", "expected"),
    [("dnat", 8000, "drop_no_flow"), ("dnat", 22, "pass_not_ours"), ("snat", 8000, "pass_not_ours")],
)
def test_a_reply_without_a_flow(family: str, mode: str, port: int, expected: str) -> None:
    client = "192.0.2.1" if family == "v4" else "2001:db8::1"
    assert verdict(configured(mode), SERVERS[family], client, port, 40000) == expected


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_datagram_leaves_a_backend_that_is_down_before_it_has_answered(family: str) -> None:
    """Of an exchange with an answer, the entry decides; and so it does for the segments of TCP."""
    config, farm = configured("snat"), f"web-{family}"
    config = change(config, "backend.add", {"farm": farm, "address": SERVERS[family][:-1] + "2", "port": 8000})
    first, second = config.farms[farm].backends
    bracketed = "[{}]" if family == "v6" else "{}"
    servers = [f"{bracketed.format(each.address)}:8005" for each in (first, second)]
    found: dict[str, object] = {
        "farm": farm,
        "backend": servers[0],
        "mode": "snat",
        "client": "c",
        "vip": "v",
        "backend_sees": "s",
    }
    found |= {"state": "opening", "direction": "forward", "idle_s": 1.0, "backend_known": True}
    client = "192.0.2.1" if family == "v4" else "2001:db8::1"
    for protocol, answered, down, expected in (
        (Protocol.UDP, False, first.id, servers[1]),
        (Protocol.UDP, False, second.id, servers[0]),
        (Protocol.UDP, True, first.id, servers[0]),
        (Protocol.TCP, False, first.id, servers[0]),
    ):
        arriving = FlowTuple(client, VIPS[family], 40000, 85, protocol)
        answer = explain(arriving, found, config, frozenset({down}), 7, answered=answered)
        assert (answer["verdict"], answer["backend"], answer["exists"]) == ("forward", expected, True)
        assert ("takes no packets" in answer["steps"][0]) == (expected == servers[1])


def test_each_vip_and_port_of_a_farm() -> None:
    config = Config()
    for command, arguments in (
        ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"}),
        ("vip.add", {"address": "fd00::1/64", "device": "eth0"}),
        ("farm.add", {"name": "web", "vip": "10.0.0.1,fd00::1", "port": "80,443,8000-8010"}),
        ("backend.add", {"farm": "web", "address": "10.0.1.1", "port": 1080}),
        ("backend.add", {"farm": "web", "address": "fd00:1::1"}),
    ):
        config = change(config, command, arguments)

    def to(source: str, destination: str, port: int) -> tuple[str, str]:
        answer = explain(FlowTuple(source, destination, 40000, port, Protocol.TCP), None, config, frozenset(), 7)
        return answer["verdict"], answer["rewrite"] or ""

    verdict, rewrite = to("192.0.2.1", "10.0.0.1", 443)
    assert verdict == "forward" and "10.0.0.1:40000 -> 10.0.1.1:1443" in rewrite
    verdict, rewrite = to("2001:db8::9", "fd00::1", 8010)
    assert verdict == "forward" and "[fd00::1]:40000 -> [fd00:1::1]:8010" in rewrite
    assert to("192.0.2.1", "10.0.0.1", 444)[0] == "drop_vip_guard"


def test_a_dead_backend_is_named_with_the_error_of_its_check() -> None:
    config = Config()
    for command, arguments in (
        ("vip.add", {"address": "10.0.0.1/24", "device": "eth0"}),
        ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80}),
        ("backend.add", {"farm": "web", "address": "10.0.1.1", "port": 80}),
    ):
        config = change(config, command, arguments)
    (number,) = (backend.id for backend in config.farms["web"].backends)
    arriving = FlowTuple("192.0.2.1", "10.0.0.1", 40000, 80, Protocol.TCP)
    errors = {number: "connection refused"}
    answer = explain(arriving, None, config, frozenset({number}), 7, error_of=errors.__getitem__)
    (step,) = (step for step in answer["steps"] if "take new connections" in step)
    assert step.startswith("0 of 1 backends take new connections; 10.0.1.1:80 is down (connection refused)")


@pytest.mark.parametrize("mode", ["dsr", "ipip"])
def test_a_mode_that_the_program_does_not_have_yet(mode: str) -> None:
    ends = FlowTuple("192.0.2.1", VIPS["v4"], 40000, 80, Protocol.UDP)
    config = change(Config(), "vip.add", {"address": f"{VIPS['v4']}/24", "device": "eth0"})
    config = change(config, "farm.add", {"name": "web", "vip": VIPS["v4"], "port": 80, "mode": mode, "proto": "udp"})
    config = change(config, "backend.add", {"farm": "web", "address": SERVERS["v4"], "port": 80})
    answer = explain(ends, None, config, frozenset(), 7, missing=frozenset({mode}))
    assert (answer["verdict"], answer["farm"], answer["mode"]) == ("drop_not_compiled", "web", mode)
    assert explain(ends, None, config, frozenset(), 7)["verdict"] == "forward"


def test_lists_that_the_program_does_not_have_yet() -> None:
    config = change(change(configured(), "prefixes.set", {"name": "office"}), "farm.set", {"name": "web-v4", "deny": "office"})
    ends = FlowTuple("192.0.2.1", VIPS["v4"], 40000, 80, Protocol.UDP)
    answer = explain(ends, None, config, frozenset(), 7, missing=frozenset({"lists"}))
    assert (answer["verdict"], answer["farm"]) == ("drop_vip_guard", "web-v4") and "prefix lists" in answer["why"]
    assert explain(ends, None, config, frozenset(), 7)["verdict"] == "forward"
