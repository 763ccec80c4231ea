"""What is shown of a packet: names, the reason, and what cannot be read does no harm."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpf.constants import COUNTERS
from ctl.capture import selection
from ctl.capture.headers import describe
from ctl.capture.record import Record, decode
from ctl.capture.selection import Selection
from ctl.capture.text import Capture, Names, comment, document, line
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.errors import Code
from tests.refusals import invalid, refused

NUMBERS = {counter.name: number for number, counter in enumerate(COUNTERS)}
SYN = Ether() / IP(src="192.0.2.7", dst="10.77.0.100") / TCP(sport=40000, dport=80, flags="S")
SENT = Ether() / IP(src="10.77.0.100", dst="10.77.0.11") / TCP(sport=40000, dport=8080, flags="S")
NAMES = Names({1: "web"}, {8: "10.77.0.11:8080"}, lambda index: f"eth{index}")


def record(*counted: str, action: int, after: bytes = b"", farm: int = 0, backend: int = 0, egress: int = 0) -> Record:
    before = bytes(SYN)
    bits = sum(1 << NUMBERS[name] for name in counted)
    sizes = (len(before), len(after), len(before), len(after))
    return decode(struct.pack("=QQQ10I", 10, 150, bits, 0, egress, *sizes, action, farm, backend, 1) + before + after)


DROPPED = record("drop_vip_guard", action=1)
FORWARDED = record("forward_redirect", "event_promoted", action=4, after=bytes(SENT), farm=1, backend=8, egress=1)


def test_a_drop_is_one_line_with_its_reason() -> None:
    assert line(DROPPED, NAMES, "03:12:07.301245") == (
        "03:12:07.301245  eth0  tcp 192.0.2.7:40000 > 10.77.0.100:80 [S]  drop_vip_guard  "
        "(No farm serves this port of the VIP, and the guard keeps other listeners private)"
    )
    assert document(DROPPED, NAMES, "t", 7)["after"] is None


def test_a_forwarded_packet_has_both_sides_and_names() -> None:
    assert line(FORWARDED, NAMES, "t").startswith(
        "t  eth0>eth1  tcp 192.0.2.7:40000 > 10.77.0.100:80 [S]  => tcp 10.77.0.100:40000 > 10.77.0.11:8080 [S]  "
        "forward_redirect  farm web  backend 10.77.0.11:8080  event_promoted"
    )
    assert comment(FORWARDED, NAMES, True).startswith("after xlb; forward_redirect; farm web; backend 10.77.0.11:8080; ")
    shown = document(FORWARDED, NAMES, "t", 7)
    assert (shown["farm"], shown["after"]["interface"], shown["after"]["where"], shown["ns"]) == ("web", "eth1", "sent", 140)


def test_an_answer_is_said_to_be_one() -> None:
    answered = record("drop_no_backend", "event_reset_sent", action=3, after=bytes(SENT), farm=2)
    shown = line(answered, NAMES, "t")
    assert "  answered: tcp 10.77.0.100:40000 > " in shown and "farm (deleted farm 2)" in shown


def test_what_the_kernel_gets_as_it_came_is_one_packet_of_a_file() -> None:
    file = Capture("xlbctl", "Linux", 9216)
    same, changed = (record("pass_unresolved", action=2, after=bytes(each)) for each in (SYN, SENT))
    blocks = file.packets(same, NAMES, 0, 1)
    assert blocks.count(b"eth0") == 1 and blocks.count(b" xlb; pass_unresolved") == 1
    blocks = file.packets(changed, NAMES, 0, 2)
    assert b"given to the kernel, after xlb" in blocks and blocks.count(b" xlb; pass_unresolved") == 2


@pytest.mark.parametrize("content", [b"", bytes(63), bytes(64), struct.pack("=QQQ10I", 0, 0, 1, 0, 0, 9, 9, 9, 9, 2, 0, 0, 0)])
def test_a_record_that_no_program_writes_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="a record"):
        decode(content)


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (Ether() / Dot1Q(vlan=7) / SYN[IP], "vlan 7 tcp 192.0.2.7:40000 > 10.77.0.100:80 [S]"),
        (Ether() / IPv6(src="2001:db8::7", dst="fd77::1") / UDP(sport=5, dport=53), "udp [2001:db8::7]:5 > [fd77::1]:53"),
        (
            Ether() / IPv6(src="::7", dst="::8") / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(bytes(8)),
            "udp ::7 > ::8 fragment at 24",
        ),
        (Ether() / IP(src="1.2.3.4", dst="5.6.7.8", frag=2, proto=6) / Raw(bytes(8)), "tcp 1.2.3.4 > 5.6.7.8 fragment at 16"),
        (Ether() / IP(src="1.1.1.1", dst="2.2.2.2") / SYN[IP], "ipip 1.1.1.1 > 2.2.2.2: tcp 192.0.2.7:40000 > "),
        (Ether() / IP(src="1.1.1.1", dst="2.2.2.2") / ICMP(type=3), "icmp 1.1.1.1 > 2.2.2.2 unreachable"),
        (Ether() / IPv6(src="::7", dst="::8") / ICMPv6ND_NS(), "icmp6 ::7 > ::8 neighbour solicitation"),
        (Ether() / ARP(op=1, psrc="1.1.1.1", pdst="2.2.2.2"), "arp who has 2.2.2.2, from 1.1.1.1"),
        (Ether(type=0x88CC), "ethertype 0x88cc"),
    ],
)
def test_headers_in_one_line(packet: Packet, words: str) -> None:
    assert describe(bytes(packet)).startswith(words)


@given(st.binary(max_size=120), st.sampled_from([b"", bytes(12) + b"\x08\0", bytes(12) + b"\x86\xdd", bytes(SYN)[:30]]))
def test_any_frame_can_be_described(content: bytes, begin: bytes) -> None:
    assert describe(begin + content)


# --- what is selected -----------------------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    made = change(Config(), "vip.add", {"address": "10.77.0.100/24", "device": "eth0"})
    for number, name in enumerate(("web", "mail")):
        made = change(made, "farm.add", {"name": name, "vip": "10.77.0.100", "port": 80 + number})
        for port in (8080, 8081):
            made = change(made, "backend.add", {"farm": name, "address": "10.77.0.11", "port": port})
    return made


def test_a_backend_without_a_port_is_all_of_its_host(config: Config) -> None:
    web = config.farms["web"]
    everywhere = Selection(backend=("10.77.0.11", None)).filter(config).backends
    assert everywhere == frozenset(each.id for farm in config.farms.values() for each in farm.backends)
    of_web = Selection("web", backend=("10.77.0.11", 8081)).filter(config)
    assert (of_web.farm, of_web.backends) == (web.id, frozenset({web.backends[1].id}))


def test_what_the_configuration_does_not_have_is_refused(config: Config) -> None:
    with refused(Code.UNKNOWN_FARM):
        Selection("wbe").filter(config)
    with refused(Code.UNKNOWN_BACKEND):
        Selection("web", backend=("10.77.0.12", None)).filter(config)
    with invalid(Code.INVALID_VALUE, "--verdict"):
        selection.verdicts(["drop_nothing"], False)


def test_drops_are_all_drops_and_add_to_verdicts() -> None:
    chosen = selection.verdicts(["forward_tx"], True)
    assert {COUNTERS[number].name for number in chosen} == {
        "forward_tx",
        *(each.name for each in COUNTERS if each.name.startswith("drop_")),
    }


def test_a_client_is_an_address_or_a_network() -> None:
    assert selection.parse_client("192.0.2.7") == ipaddress.ip_network("192.0.2.7/32")
    assert selection.parse_client("2001:db8::7/64") == ipaddress.ip_network("2001:db8::/64")
    assert selection.parse_client("[2001:db8::7]") == ipaddress.ip_network("2001:db8::7/128")
    with pytest.raises(ValueError, match="neither an address nor a network"):
        selection.parse_client("client")
