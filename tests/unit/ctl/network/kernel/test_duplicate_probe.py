"""The frames that ask whether an address is free, and what counts as an answer."""

from __future__ import annotations

import socket

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from ctl.network.kernel.duplicate_probe import arp_probe, sender_of_advertisement, sender_of_arp, solicitation

MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def test_an_arp_probe_has_no_sender_address() -> None:
    frame = Ether(arp_probe("10.77.0.100", MAC))
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", MAC.hex(":"))
    assert (frame[ARP].op, frame[ARP].psrc, frame[ARP].pdst) == (1, "0.0.0.0", "10.77.0.100")
    assert sender_of_arp(bytes(frame)) is None, "the probe of a third machine is no answer"


def test_a_solicitation_comes_from_the_unspecified_address() -> None:
    frame = Ether(solicitation("fd77::1:2345", MAC))
    assert (frame.dst, frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == (
        "33:33:ff:01:23:45",
        "::",
        "ff02::1:ff01:2345",
        255,
    )
    assert frame[ICMPv6ND_NS].tgt == "fd77::1:2345"
    again = Ether(bytes(frame))
    del again[ICMPv6ND_NS].cksum
    assert bytes(again) == bytes(frame), "the checksum is right"


def test_whoever_claims_the_address_answers() -> None:
    reply = Ether(src=OTHER, dst=MAC) / ARP(op=2, hwsrc=OTHER.hex(":"), psrc="10.77.0.100", hwdst=MAC.hex(":"), pdst="0.0.0.0")
    assert sender_of_arp(bytes(reply)) == ("10.77.0.100", OTHER)
    assert sender_of_arp(bytes(reply)[:41]) is None
    advertisement = bytes(ICMPv6ND_NA(tgt="fd77::100") / ICMPv6NDOptDstLLAddr(lladdr=OTHER.hex(":")))
    assert sender_of_advertisement(advertisement) == ("fd77::100", OTHER)
    assert sender_of_advertisement(advertisement[:24]) == ("fd77::100", b"")
    assert sender_of_advertisement(advertisement[:23]) is None and sender_of_advertisement(b"\x87" + advertisement[1:]) is None
    assert socket.inet_pton(socket.AF_INET6, "fd77::100") in advertisement
