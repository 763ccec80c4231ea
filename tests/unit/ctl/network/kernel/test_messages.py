"""What a notification of a link says of VLAN devices."""

from __future__ import annotations

import struct

import pytest

from ctl.network.kernel.messages import HEADER, RTM_NEWLINK, Link, attribute, decode

IFNAME, LINK, LINKINFO, NETNSID = 3, 5, 18, 37
KIND, DATA = 1, 2
ID, FLAGS, PROTOCOL = 1, 2, 5


def message(kind: str, data: bytes, *more: bytes) -> bytes:
    information = attribute(KIND, kind.encode() + b"\0") + attribute(DATA | 0x8000, data)
    body = struct.pack("=BxHiII", 0, 1, 9, 0x11043, 0)
    body += attribute(IFNAME, b"eth0.100\0") + attribute(LINK, struct.pack("=I", 2))
    body += attribute(LINKINFO | 0x8000, information) + b"".join(more)
    return HEADER.pack(HEADER.size + len(body), RTM_NEWLINK, 0, 0, 0) + body


def link(data: bytes) -> Link:
    (found,) = decode(data)
    assert isinstance(found, Link)
    return found


@pytest.mark.parametrize("protocol", [0x8100, 0x88A8])
def test_number_and_protocol_of_a_vlan_device(protocol: int) -> None:
    data = attribute(PROTOCOL, protocol.to_bytes(2, "big")) + attribute(ID, struct.pack("=H", 4094))
    data += attribute(FLAGS, struct.pack("=II", 1, 0xFFFFFFFF))
    found = link(message("vlan", data))
    assert (found.name, found.below, found.kind, found.vlan_id, found.vlan_protocol) == ("eth0.100", 2, "vlan", 4094, protocol)


def test_an_old_kernel_names_no_protocol() -> None:
    found = link(message("vlan", attribute(ID, struct.pack("=H", 7))))
    assert (found.vlan_id, found.vlan_protocol) == (7, 0x8100)


def test_the_interface_below_may_be_in_another_namespace() -> None:
    data = attribute(ID, struct.pack("=H", 7))
    found = link(message("vlan", data, attribute(NETNSID, struct.pack("=i", 0))))
    assert (found.below, found.vlan_id) == (0, 7)


@pytest.mark.parametrize("kind", ["macvlan", "bond", "veth"])
def test_the_data_of_other_kinds_is_no_tag(kind: str) -> None:
    found = link(message(kind, attribute(ID, struct.pack("=H", 7))))
    assert (found.kind, found.vlan_id, found.vlan_protocol) == (kind, 0, 0)


def test_a_vlan_device_without_data_has_a_tag_that_is_not_handled() -> None:
    found = link(message("vlan", b""))
    assert (found.vlan_id, found.vlan_protocol) == (0, 0x8100)
