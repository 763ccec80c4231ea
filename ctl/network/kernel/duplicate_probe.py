"""Asks a link whether another machine answers for an address: the ARP probe of RFC 5227 (section 2.1.1), and the neighbour
solicitation of duplicate address detection (RFC 4862 section 5.4.2).

The frames and the answers are pure functions; `who_answers` does the I/O and blocks. The RFCs wait for seconds, for machines
that start slowly; a machine that serves the address answers within milliseconds, and an operator waits here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from ctl.network.kernel.announcements import ETH_P_ARP, ETH_P_IPV6, internet_checksum
from ctl.network.network import Interface, InterfaceAddress

PROBES = 3
PROBE_INTERVAL_S = 0.06
RECEIVE_BYTES = 2048
_BROADCAST = b"\xff" * 6
_ICMPV6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
_ICMP6_FILTER = 1
_TARGET_MAC_OPTION = 2


def arp_probe(address: str, mac: bytes) -> bytes:
    """The frame that asks for `address` without a sender address, so that no cache changes."""
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + b"\0" * 4 + b"\0" * 6 + socket.inet_aton(address)
    return (_BROADCAST + mac + struct.pack("!H", ETH_P_ARP) + arp).ljust(60, b"\0")


def solicitation(address: str, mac: bytes) -> bytes:
    """The frame of duplicate address detection: from the unspecified address to the solicited-node group."""
    target = socket.inet_pton(socket.AF_INET6, address)
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + target[13:]
    body = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + target
    pseudo = bytes(16) + group + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + bytes(16) + group
    return b"\x33\x33" + group[12:] + mac + struct.pack("!H", ETH_P_IPV6) + ip + body


def sender_of_arp(frame: bytes) -> tuple[str, bytes] | None:
    """Address and MAC that an ARP packet of any kind claims; None for a probe or what is no ARP."""
    if len(frame) < 42 or frame[14:20] != struct.pack("!HHBB", 1, 0x0800, 6, 4):
        return None
    address = socket.inet_ntoa(frame[28:32])
    return None if address == "0.0.0.0" else (address, frame[22:28])


def sender_of_advertisement(body: bytes) -> tuple[str, bytes] | None:
    """Target and MAC of a neighbour advertisement (ICMPv6 message without IP header); MAC empty if it has no such option."""
    if len(body) < 24 or body[0] != _ADVERTISEMENT:
        return None
    mac = body[26:32] if len(body) >= 32 and body[24] == _TARGET_MAC_OPTION else b""
    return socket.inet_ntop(socket.AF_INET6, body[8:24]), mac


def who_answers(addresses: Iterable[InterfaceAddress], interfaces: Mapping[str, Interface]) -> dict[InterfaceAddress, str]:
    """Which of these addresses another machine has, to its MAC. Only links with a carrier are asked. Raises OSError."""
    own = {bytes.fromhex(each.mac.replace(":", "")) for each in interfaces.values() if each.mac}
    asked = {(each.device, each.address): each for each in addresses if _can_ask(interfaces.get(each.device))}
    found: dict[InterfaceAddress, str] = {}
    with contextlib.ExitStack() as stack:
        readers: dict[socket.socket, tuple[str, bool]] = {}
        for device, six in sorted({(device, ":" in address) for device, address in asked}):
            readers[stack.enter_context(_listener(device, six))] = (device, six)
        for _ in range(PROBES if asked else 0):
            _ask(asked, interfaces)
            ends_s = time.monotonic() + PROBE_INTERVAL_S
            while (left_s := ends_s - time.monotonic()) > 0:
                for reader in select.select(list(readers), (), (), left_s)[0]:
                    device, six = readers[reader]
                    data = reader.recv(RECEIVE_BYTES)
                    sender = sender_of_advertisement(data) if six else sender_of_arp(data)
                    if sender is not None and sender[1] not in own and (device, sender[0]) in asked:
                        found[asked[device, sender[0]]] = sender[1].hex(":") or "another machine"
    return found


def _can_ask(interface: Interface | None) -> bool:
    return interface is not None and interface.carrier and interface.mac not in ("", "00:00:00:00:00:00")


def _ask(asked: Iterable[tuple[str, str]], interfaces: Mapping[str, Interface]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as link:
        for device, address in asked:
            mac = bytes.fromhex(interfaces[device].mac.replace(":", ""))
            frame = solicitation(address, mac) if ":" in address else arp_probe(address, mac)
            with contextlib.suppress(OSError):  # the link went away: an announcement is not heard there either
                link.sendto(frame, (device, 0))


def _listener(device: str, six: bool) -> socket.socket:
    if not six:
        link = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ARP)
        )
        link.bind((device, ETH_P_ARP))
        return link
    raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    blocked = bytearray(b"\xff" * 32)  # one bit per type: set is blocked (RFC 3542 section 3.2)
    word = _ADVERTISEMENT >> 5
    blocked[4 * word : 4 * word + 4] = struct.pack("=I", 0xFFFFFFFF & ~(1 << (_ADVERTISEMENT & 31)))
    raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return raw
