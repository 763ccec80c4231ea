"""Which netlink notifications matter, decided without a kernel; frames and sysctls as pure functions."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether

from ctl.network.kernel import sysctl
from ctl.network.kernel.announcements import announcement
from ctl.network.kernel.messages import HEADER, Address, Link, NeighbourEntry, RouteChanged, SettingChanged, attribute, decode
from ctl.network.kernel.watcher import MAX_KNOWN_NEIGHBOURS, ChangeFilter, Verdict

MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
FRAME_MAC = bytes.fromhex(MAC.replace(":", ""))


def neighbour(mac: str = MAC, gone: bool = False, address: str = "10.0.0.1") -> NeighbourEntry:
    return NeighbourEntry(gone, 2, address, mac, bool(mac), managed=False)


def link(name: str = "eth0", up: bool = True, gone: bool = False, index: int = 2, **other: Any) -> Link:
    plain = Link(gone, index, name, True, up, MAC, 1500, 7, "native", 0, 0)
    return replace(plain, **other)


def test_a_neighbour_confirmed_again_is_not_reported() -> None:
    watch = ChangeFilter()
    assert watch.judge(neighbour()).next_hops
    for _ in range(5):
        assert watch.judge(neighbour()) == Verdict()


def test_a_neighbour_with_a_changed_mac_is_reported() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour())
    assert watch.judge(neighbour(OTHER_MAC)).next_hops
    assert not watch.judge(neighbour(OTHER_MAC)).next_hops


def test_a_neighbour_that_recovers_with_the_same_mac_is_not_reported() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour())
    assert not watch.judge(neighbour("")).next_hops
    assert not watch.judge(neighbour("")).next_hops
    assert not watch.judge(neighbour()).next_hops
    assert watch.judge(neighbour(OTHER_MAC)).next_hops


def test_a_neighbour_that_is_deleted_is_reported_and_forgotten() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour())
    assert watch.judge(neighbour("", gone=True)) == Verdict(lost_neighbour=(2, "10.0.0.1"))
    assert watch.judge(neighbour()).next_hops


def test_remembered_neighbours_are_bounded() -> None:
    watch = ChangeFilter()
    for number in range(MAX_KNOWN_NEIGHBOURS + 10):
        watch.judge(neighbour(address=f"{number}"))
    assert len(watch._macs) <= MAX_KNOWN_NEIGHBOURS


def test_links() -> None:
    watch = ChangeFilter()
    assert watch.judge(link()).link == ("eth0", "new")
    assert watch.judge(link()) == Verdict(), "statistics and the like"
    assert watch.judge(link(up=False)) == Verdict(next_hops=True, routes=True, compare=True, link=("eth0", "down"))
    assert watch.judge(link()).link == ("eth0", "up")
    assert watch.judge(link(gone=True)).link == ("eth0", "gone")
    assert watch.judge(link(index=9)).link == ("eth0", "new"), "the same name, another interface"
    assert watch.judge(link("lan0", index=9)).link == ("lan0", "new")


@pytest.mark.parametrize(
    ("change", "next_hops"),
    [
        ({"mac": OTHER_MAC}, True),
        ({"mtu": 1400}, True),
        ({"xdp_program": 0, "xdp_mode": ""}, False),
        ({"xdp_program": 8}, False),
    ],
)
def test_a_link_with_another_mac_mtu_or_program_is_reported_once(change: dict[str, Any], next_hops: bool) -> None:
    watch = ChangeFilter()
    watch.judge(link())
    assert watch.judge(link(**change)) == Verdict(next_hops=next_hops, compare=True)
    assert watch.judge(link(**change)) == Verdict()


def test_routes_addresses_and_settings() -> None:
    watch = ChangeFilter()
    assert watch.judge(RouteChanged()) == Verdict(next_hops=True, routes=True)
    assert watch.judge(Address(True, 3, "fd00::1", 64, False)) == Verdict(next_hops=True, routes=True, compare=True)
    assert watch.judge(SettingChanged()) == Verdict(compare=True)


def message(kind: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body


def test_messages_are_decoded() -> None:
    route = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0)
    cached = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0x200)
    secondary = struct.pack("=BBBBI", 2, 24, 1, 0, 3) + attribute(2, bytes((10, 0, 0, 1)))
    temporary = struct.pack("=BBBBI", 10, 64, 1, 0, 3) + attribute(1, bytes(15) + b"\x01")
    xdp = attribute(43, attribute(2, b"\x01") + attribute(4, struct.pack("=I", 9)))
    veth = attribute(3, b"eth0\0") + attribute(18, attribute(1, b"veth\0")) + attribute(5, struct.pack("=I", 5)) + xdp
    failed = struct.pack("=BxxxiHBB", 2, 3, 0x20, 0, 0) + attribute(1, bytes((10, 0, 0, 2))) + attribute(2, FRAME_MAC)
    data = b"".join(
        (
            message(24, route),
            message(24, cached),
            message(20, secondary),
            message(21, temporary),
            message(16, struct.pack("=BxHiII", 0, 1, 4, 0x10001, 0) + veth),
            message(16, struct.pack("=BxHiII", 7, 1, 4, 0x10001, 0) + veth),  # a bridge's port
            message(28, failed),
            message(80, bytes(4)),
            message(32, bytes(12)),  # a rule
        )
    )
    assert list(decode(data)) == [
        RouteChanged(),
        Address(False, 3, "10.0.0.1", 24, True),
        Address(True, 3, "::1", 64, False),
        Link(False, 4, "eth0", True, True, "", 0, 9, "native", 0, 0, "veth"),
        NeighbourEntry(False, 3, "10.0.0.2", "", False, False),
        SettingChanged(),
        RouteChanged(),
    ]


@given(st.binary(max_size=200), st.sampled_from((16, 20, 24, 28, 64, 80)))
def test_a_malformed_message_is_skipped(body: bytes, kind: int) -> None:
    for each in decode(message(kind, body) + message(80, bytes(4))):
        ChangeFilter().judge(each)
    list(decode(body))


def test_gratuitous_arp_as_scapy_reads_it() -> None:
    frame = Ether(announcement("10.77.0.100", FRAME_MAC))
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", MAC)
    arp = frame[ARP]
    assert (arp.op, arp.psrc, arp.pdst, arp.hwsrc) == (1, "10.77.0.100", "10.77.0.100", MAC)


def test_unsolicited_advertisement_as_scapy_reads_it() -> None:
    raw = announcement("fd00::100", FRAME_MAC)
    frame = Ether(raw)
    advertisement = frame[ICMPv6ND_NA]
    assert (frame.dst, frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == ("33:33:00:00:00:01", "fd00::100", "ff02::1", 255)
    assert (advertisement.tgt, advertisement.S, advertisement.O) == ("fd00::100", 0, 1)
    assert advertisement.payload.lladdr == MAC
    checksum = advertisement.cksum
    del advertisement.cksum
    assert Ether(bytes(frame))[ICMPv6ND_NA].cksum == checksum


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    values = {
        "ipv4/ip_forward": "0",
        "ipv4/conf/all/rp_filter": "1",
        "ipv4/conf/all/send_redirects": "1",
        "ipv4/conf/eth0/send_redirects": "1",
        "ipv4/conf/eth0/promote_secondaries": "0",
        "ipv4/conf/eth1/promote_secondaries": "0",
        "ipv4/conf/eth0/forwarding": "1",
        "ipv4/conf/eth0/accept_local": "0",
        "ipv4/conf/eth0/arp_announce": "0",
        "ipv4/conf/eth0/rp_filter": "0",
        "ipv6/conf/all/forwarding": "0",
        "ipv6/conf/eth0/forwarding": "0",
        "ipv6/conf/eth0/accept_ra": "1",
        "ipv6/conf/eth1/accept_ra": "0",
    }
    for name, value in values.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return tmp_path


def correct_all(tree: Path) -> list[str]:
    wrong = [setting for setting, value in sysctl.read(("eth0",), ("eth1",), tree).items() if setting.is_wrong(value)]
    for setting in wrong:
        sysctl.correct(setting, tree)
    return [setting.name for setting in wrong]


def test_sysctls_are_set_only_where_they_must_be(tree: Path) -> None:
    order = correct_all(tree)
    assert len(order) == 10 and "net.ipv6.conf.eth0.accept_ra" in order
    assert (tree / "ipv4/ip_forward").read_text() == "1"
    assert (tree / "ipv6/conf/eth1/accept_ra").read_text() == "0\n"
    assert (tree / "ipv4/conf/eth1/promote_secondaries").read_text() == "1", "of an interface that has VIPs only"
    assert (tree / "ipv4/conf/all/send_redirects").read_text() == "0", "all and the interface are combined by OR"
    assert order.index("net.ipv6.conf.eth0.accept_ra") < order.index("net.ipv6.conf.all.forwarding"), "or the route is lost"
    assert correct_all(tree) == []
    assert [problem.split()[0] for problem in sysctl.problems(("eth0",), tree)] == ["net.ipv4.conf.all.rp_filter"]


def test_a_node_without_ipv6_sets_no_ipv6_sysctl(tree: Path) -> None:
    (tree / "ipv6/conf/all/forwarding").unlink()
    assert not any("ipv6" in name for name in correct_all(tree))


def test_a_sysctl_that_cannot_be_read_is_not_there(tree: Path) -> None:
    (tree / "ipv4/ip_forward").unlink()
    (tree / "ipv4/ip_forward").mkdir()
    assert len(correct_all(tree)) == 9
