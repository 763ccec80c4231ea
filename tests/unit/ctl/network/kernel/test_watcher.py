"""Which netlink notifications matter, decided without a kernel; frames and sysctls as pure functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether

from ctl.network.kernel import sysctl
from ctl.network.kernel.announcements import announcement
from ctl.network.kernel.watcher import MAX_KNOWN_NEIGHBOURS, ChangeFilter, Verdict

REACHABLE, STALE, FAILED, INCOMPLETE = 2, 4, 0x20, 1
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def neighbour(state: int, mac: str = MAC, event: str = "RTM_NEWNEIGH", address: str = "10.0.0.1") -> dict[str, Any]:
    attributes = [("NDA_DST", address)] + ([("NDA_LLADDR", mac)] if mac else [])
    return {"event": event, "family": 2, "ifindex": 2, "state": state, "attrs": attributes}


def link(name: str = "eth0", up: bool = True, event: str = "RTM_NEWLINK", index: int = 2) -> dict[str, Any]:
    return {"event": event, "family": 0, "index": index, "flags": 0x10001 if up else 0x1, "attrs": [("IFLA_IFNAME", name)]}


def test_a_neighbour_confirmed_again_is_not_reported() -> None:
    watch = ChangeFilter()
    assert watch.judge(neighbour(REACHABLE)).next_hops
    for state in (STALE, REACHABLE, 8, 16, STALE):
        assert watch.judge(neighbour(state)) == Verdict()


def test_a_neighbour_with_a_changed_mac_is_reported() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour(REACHABLE))
    assert watch.judge(neighbour(REACHABLE, OTHER_MAC)).next_hops
    assert not watch.judge(neighbour(STALE, OTHER_MAC)).next_hops


def test_a_neighbour_that_recovers_with_the_same_mac_is_not_reported() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour(REACHABLE))
    assert not watch.judge(neighbour(FAILED, "")).next_hops
    assert not watch.judge(neighbour(INCOMPLETE, "")).next_hops
    assert not watch.judge(neighbour(REACHABLE)).next_hops
    assert watch.judge(neighbour(REACHABLE, OTHER_MAC)).next_hops


def test_a_neighbour_that_is_deleted_is_reported_and_forgotten() -> None:
    watch = ChangeFilter()
    watch.judge(neighbour(REACHABLE))
    assert watch.judge(neighbour(STALE, event="RTM_DELNEIGH")) == Verdict(lost_neighbour=(2, "10.0.0.1"))
    assert watch.judge(neighbour(REACHABLE)).next_hops


def test_remembered_neighbours_are_bounded() -> None:
    watch = ChangeFilter()
    for number in range(MAX_KNOWN_NEIGHBOURS + 10):
        watch.judge(neighbour(REACHABLE, address=f"{number}"))
    assert len(watch._macs) <= MAX_KNOWN_NEIGHBOURS


def test_links() -> None:
    watch = ChangeFilter()
    assert watch.judge(link()).link == ("eth0", "new")
    assert watch.judge(link()) == Verdict(), "statistics and the like"
    assert watch.judge(link(up=False)) == Verdict(next_hops=True, routes=True, link=("eth0", "down"))
    assert watch.judge(link()).link == ("eth0", "up")
    assert watch.judge(link(event="RTM_DELLINK")).link == ("eth0", "gone")
    assert watch.judge(link(index=9)).link == ("eth0", "new"), "the same name, another interface"
    assert watch.judge(link("lan0", index=9)).link == ("lan0", "new")


def test_routes_and_addresses() -> None:
    watch = ChangeFilter()
    assert watch.judge({"event": "RTM_NEWROUTE", "flags": 0, "attrs": []}) == Verdict(next_hops=True, routes=True)
    assert watch.judge({"event": "RTM_NEWROUTE", "flags": 0x200, "attrs": []}) == Verdict(), "a cached clone"
    gone = {"event": "RTM_DELADDR", "index": 3, "attrs": [("IFA_ADDRESS", "fd00::1")]}
    assert watch.judge(gone).lost_address == (3, "fd00::1")
    assert watch.judge(gone | {"event": "RTM_NEWADDR"}).lost_address is None


@pytest.mark.parametrize("message", [{}, {"event": "RTM_NEWNEIGH", "attrs": [("NDA_DST", 5)]}])
def test_incomplete_netlink_messages_are_ignored(message: dict[str, Any]) -> None:
    ChangeFilter().judge(message)


def test_gratuitous_arp_as_scapy_reads_it() -> None:
    frame = Ether(announcement("10.77.0.100", MAC))
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", MAC)
    arp = frame[ARP]
    assert (arp.op, arp.psrc, arp.pdst, arp.hwsrc) == (1, "10.77.0.100", "10.77.0.100", MAC)


def test_unsolicited_advertisement_as_scapy_reads_it() -> None:
    raw = announcement("fd00::100", MAC)
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


def test_sysctls_are_set_only_where_they_must_be(tree: Path) -> None:
    messages = sysctl.enable(("eth0",), tree)
    assert len(messages) == 6 and "set net.ipv6.conf.eth0.accept_ra from 1 to 2" in messages
    assert (tree / "ipv4/ip_forward").read_text() == "1"
    assert (tree / "ipv6/conf/eth1/accept_ra").read_text() == "0\n"
    order = [message.split()[1] for message in messages]
    assert order.index("net.ipv6.conf.eth0.accept_ra") < order.index("net.ipv6.conf.all.forwarding"), "or the route is lost"
    assert sysctl.enable(("eth0",), tree) == []
    assert [problem.split()[0] for problem in sysctl.problems(("eth0",), tree)] == ["net.ipv4.conf.all.rp_filter"]


def test_a_node_without_ipv6_sets_no_ipv6_sysctl(tree: Path) -> None:
    (tree / "ipv6/conf/all/forwarding").unlink()
    assert not any("ipv6" in message for message in sysctl.enable(("eth0",), tree))


def test_a_sysctl_that_cannot_be_set_is_reported(tree: Path) -> None:
    (tree / "ipv4/ip_forward").unlink()
    (tree / "ipv4/ip_forward").mkdir()
    assert len(sysctl.enable(("eth0",), tree)) == 5, "what cannot be read is not there"
